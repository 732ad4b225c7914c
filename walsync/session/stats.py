"""The figures of a journal: one frozen snapshot, and what is computed for it. Pure; reads no clock and no log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["BacklogTrend", "JournalStats", "estimate"]

BacklogTrend: TypeAlias = Literal["nothing waits", "catching up", "not catching up"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalStats:
    """What `Journal.stats()` returns. Its fields are read one after the other: the snapshot is not atomic.

    `durable_entry_id`, `applied_entry_id`: the last entry that is durable in the log, and in the target.
    `backlog_entries`, `backlog_bytes`: durable and not applied. `backlog_age_s`: how long ago the oldest of them was
    committed, in seconds, also where that was before the log was opened; None if there is none (or if it cannot be
    read).
    `backlog_trend`: ``"nothing waits"``; ``"catching up"``: entries are applied faster than they come;
    ``"not catching up"``: they are not, or nothing is applied at all. `catch_up_s`: seconds until nothing waits, if
    things go on as they did lately; None unless it is catching up.
    `commits_per_s`, `applied_per_s`: entries a second, of the last 10 seconds (since `attach()` if that is less).
    `state`: this process's checkpointer's ("running", "standby", "external", "paused", "retrying", "blocked", "halted",
    "stopped", "failed"); see `CheckpointState`. `applier`: who applies, in words: this process or another one, since
    when, and how it goes there. The ids, the backlog and what follows are those of the log, whoever writes and applies.
    `state_since`: when that began, in seconds since the epoch.
    `last_error`: the message of the failure that lasts, None when all is well. `failures`: failed tries in a row, 0
    when all is well. `next_retry_s`: seconds until the next try, None when none is due. `rejected_entry_id`: the entry
    that holds the others up, where one does and it is known.
    `replay_pending`: entries that were in the log when it was opened are not all applied yet.
    `quarantined_entries`: entries in the quarantine, as far as the checkpointer has looked.
    `buffered_transactions`, `direct_transactions`: how many were committed in each way by this process since
    `attach()`.
    `direct_reasons`: why transactions became direct, with their number.
    """

    durable_entry_id: int
    applied_entry_id: int
    backlog_entries: int
    backlog_bytes: int
    backlog_age_s: float | None
    backlog_trend: BacklogTrend
    catch_up_s: float | None
    commits_per_s: float
    applied_per_s: float
    state: str
    state_since: float
    last_error: str | None
    failures: int
    next_retry_s: float | None
    rejected_entry_id: int | None
    replay_pending: bool
    quarantined_entries: int
    applier: str
    buffered_transactions: int
    direct_transactions: int
    direct_reasons: Mapping[str, int]


def estimate(
    backlog_entries: int, commits_per_s: float, applied_per_s: float, state: str
) -> tuple[BacklogTrend, float | None]:
    """Where the backlog goes, and in how many seconds it is gone, if both rates stay as they are."""
    if backlog_entries <= 0:
        return "nothing waits", None
    gained_per_s = applied_per_s - commits_per_s
    if state not in ("running", "standby", "external") or gained_per_s <= 0:
        return "not catching up", None
    return "catching up", backlog_entries / gained_per_s

"""The figures of a journal: one frozen snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["JournalStats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalStats:
    """What `Journal.stats()` returns. Its fields are read one after the other: the snapshot is not atomic.

    `durable_entry_id`, `applied_entry_id`: the last entry that is durable in the log, and in the target.
    `backlog_entries`, `backlog_bytes`: durable and not applied. `backlog_age_s`: for how long the oldest of them has
    been waiting, in seconds; None if there is none, or it was there before the log was opened.
    `state`: the checkpointer's ("running", "paused", "retrying", "blocked", "halted", "stopped", "failed").
    `last_error`: the last failure's message, None after a success.
    `quarantined_entries`: entries in the quarantine, as far as the checkpointer has looked.
    `buffered_transactions`, `direct_transactions`: how many were committed in each way since `attach()`.
    `direct_reasons`: why transactions became direct, with their number.
    `commits_per_s`, `applied_per_s`: entries a second since `attach()`.
    """

    durable_entry_id: int
    applied_entry_id: int
    backlog_entries: int
    backlog_bytes: int
    backlog_age_s: float | None
    state: str
    last_error: str | None
    quarantined_entries: int
    buffered_transactions: int
    direct_transactions: int
    direct_reasons: Mapping[str, int]
    commits_per_s: float
    applied_per_s: float

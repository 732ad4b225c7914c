"""What the checkpointer says about itself: one frozen picture, made under its lock, valid when it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from walsync.checkpoint.failures import FailureKind

__all__ = ["CheckpointState", "CheckpointStatus"]

CheckpointState: TypeAlias = Literal[
    "running", "standby", "external", "paused", "retrying", "blocked", "halted", "stopped", "failed"
]
"""``running``: applies, or waits for entries. ``standby``: another process applies; takes over when that ends.
``external``: this process only writes, and leaves applying to others. ``paused``: told to wait. ``retrying``: a passing
failure of the target. ``blocked``: the target lacks something that somebody must provide. ``halted``: an entry was
refused, or log and target do not fit; `resume()` tries again. ``stopped``: not started, or stopped. ``failed``: the
thread died of a fault that is not the target's."""


@dataclass(frozen=True)
class CheckpointStatus:
    """The checkpointer at one moment.

    With ``standby`` and ``external``, `state` and `since` are this process's, and what is said of failures is what the
    process that applies has said last.
    """

    state: CheckpointState
    since: float
    """When this state began, in seconds since the epoch."""

    applied_id: int
    """The last entry known to be committed in the target; 0 before the first."""

    last_error: str | None = None
    """The failure that lasts, in the driver's own words; None when all is well."""

    last_error_kind: FailureKind | None = None
    """Whose fault it is; None when all is well, or when it did not come from the target."""

    next_retry_s: float | None = None
    """Seconds until the next try; None when none is due."""

    rejected_entry_id: int | None = None
    """The entry that holds the log up, where it is known which."""

    failures: int = 0
    """Failed tries in a row."""

    replay_pending: bool = False
    """Entries that were in the log when it was opened still wait."""

    applied_entries: int = 0
    """Entries applied since the start."""

    applied_per_s: float = 0.0
    """Entries applied a second, of the last 10 seconds."""

    applied_changes: int = 0
    """Rows and statements applied since the start."""

    batches: int = 0
    """Transactions committed in the target since the start."""

    last_applied_at: float | None = None
    """When the last batch was committed, in seconds since the epoch."""

    quarantined_entries: int = 0
    """Entries that are kept in the quarantine, as far as the checkpointer has looked; 0 before it has."""

    applier: str = "nobody"
    """Who applies, in words: this process or another one, where, since when, and how it goes there."""

    last_error_type: str | None = None
    """The name of the class of the failure that lasts."""

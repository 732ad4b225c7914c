"""A log's figures at one moment. Holds nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from walsync.wal.positions import EntryId

__all__ = ["LogStats"]


@dataclass(frozen=True, kw_only=True)
class LogStats:
    """What `WriteAheadLog.stats()` returns. The figures are read one after the other, while the log goes on."""

    last_id: EntryId
    """The last entry written."""
    durable_id: EntryId
    """The last entry that is on stable storage."""
    checkpointed_id: EntryId
    """The last entry that was released."""
    backlog_entries: int
    """Entries durable and not released."""
    backlog_bytes: int
    """Bytes of the log they take."""
    segments: int
    """Segment files in use."""
    free_segments: int
    """Segment files ready for use."""
    segment_bytes: int
    """Bytes of one segment file."""
    syncs: int
    """Syncs since the log was opened; entries committed, divided by it, is the size of the groups."""
    torn_bytes: int
    """Bytes of a torn tail that were cut when the log was opened."""
    poisoned: bool
    """A write or a sync failed; nothing is committed any more."""
    last_checkpoint_error: str | None
    """What the driver's last call of the checkpointer raised, if it did."""

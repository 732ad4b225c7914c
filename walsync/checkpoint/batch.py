"""A batch: whole entries, read from the log and decoded, that will be one transaction of the target.

Building one is bounded by changes, by bytes, and by nothing else: an entry is never split, so a single entry larger
than the bounds is a batch of its own. No I/O here except what reading the log does.

A line that breaks every second never carries a batch that takes two: tried again as it is, it would be tried for ever.
So a batch that did not get through is followed by one of half as many changes, down to a single entry, and one that did
by one of twice as many (`BatchSize`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from walsync.changes import ChangeSet, decode_change_set
from walsync.checkpoint.config import CheckpointConfig
from walsync.wal import Entry, EntryId

__all__ = ["Batch", "BatchSize", "ids"]


class BatchSize:
    """How many changes the next batch may hold. One thread's alone."""

    __slots__ = ("_most", "changes")

    def __init__(self, config: CheckpointConfig) -> None:
        self._most: Final = config.batch_changes
        self.changes = config.batch_changes

    def failed(self, change_sets: Sequence[ChangeSet]) -> None:
        """This batch met a passing failure of the target."""
        tried = sum([change_set.change_count for change_set in change_sets])
        self.changes = max(1, min(self.changes, tried) // 2)

    def succeeded(self) -> None:
        """A batch got through."""
        self.changes = min(self._most, self.changes * 2)


class Batch:
    """Entries that go into one transaction of the target, in commit order, without a gap. One thread's alone."""

    __slots__ = ("_bytes", "_changes", "_max_bytes", "_max_changes", "change_sets")

    def __init__(self, config: CheckpointConfig, max_changes: int | None = None) -> None:
        self._max_changes: Final = config.batch_changes if max_changes is None else max_changes
        self._max_bytes: Final = config.batch_bytes
        self._changes = 0
        self._bytes = 0
        self.change_sets: list[ChangeSet] = []

    def add_from(self, entries: Iterator[Entry]) -> None:
        """Reads and decodes entries until the batch is full or there are no more.

        Raises what reading raises (`DamagedLogError`), and `CorruptEntryError` for an entry that is no change set; the
        entries before it are in the batch then.
        """
        for entry in entries:
            change_set = decode_change_set(entry.id, entry.chunks())
            self.change_sets.append(change_set)
            self._changes += change_set.change_count
            self._bytes += entry.byte_length
            if self.full:
                return

    @property
    def full(self) -> bool:
        return self._changes >= self._max_changes or self._bytes >= self._max_bytes

    def __len__(self) -> int:
        return len(self.change_sets)


def ids(change_sets: Sequence[ChangeSet]) -> tuple[EntryId, EntryId]:
    """The first and the last entry id of some change sets from the log."""
    first, last = change_sets[0].entry_id, change_sets[-1].entry_id
    assert first is not None
    assert last is not None
    return first, last

"""What the log asks of whoever makes its entries durable elsewhere.

Owns the base class `Checkpointer` and the answers of its recovery protocol. Never touches a file.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from walsync.wal.entry import Entry
    from walsync.wal.log import WriteAheadLog
    from walsync.wal.positions import EntryId

__all__ = ["Checkpointer", "Recovery", "SegmentInfo"]


class Recovery(enum.Enum):
    """What `Checkpointer.should_recover_segment` answers."""

    RECOVER = "recover"
    """Hand the segment's entries to `recover()`."""

    ABANDON = "abandon"
    """Move the segment aside into `abandoned/`; its entries are skipped. Nothing is deleted."""


class SegmentInfo(NamedTuple):
    """What is known of a segment: for `should_recover_segment`, and as `Entry.segment`."""

    name: str
    """The file's name in the log directory."""

    sequence: int
    """The segment's number in the log, from 1."""

    version_info: bytes
    """`LogConfig.version_info` of the log that wrote the segment."""

    first_id: EntryId | None
    """The first entry committed in it and not yet checkpointed, where that is known."""

    last_id: EntryId | None
    """The last entry committed in it, where that is known."""


class Checkpointer:
    """Takes committed entries and makes them durable elsewhere. Every method here may be overridden.

    A plain checkpointer is called by a thread of the log; an error that it raises reaches the next caller of the log.
    """

    self_driven: ClassVar[bool] = False
    """True: it has a thread of its own and calls `log.checkpoint(through)`; the log then starts none for it."""

    recovers_entries: ClassVar[bool] = True
    """False: `recover` is not called, which saves opening a long log from reading all of it a second time."""

    def should_recover_segment(self, segment: SegmentInfo) -> Recovery:
        """Asked while opening, once for each segment that holds entries not yet checkpointed, oldest first."""
        return Recovery.RECOVER

    def recover(self, entry: Entry) -> None:
        """Called while opening, once for each entry not yet checkpointed, in order, if `recovers_entries`."""

    def checkpoint_to(self, last_id: EntryId, entries: Iterator[Entry], log: WriteAheadLog) -> None:
        """Make `entries` durable elsewhere, the last of which is `last_id`. When this returns they are released."""
        raise NotImplementedError(f"{type(self).__name__} must implement checkpoint_to")

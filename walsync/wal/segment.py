"""One segment of an open log: which file it is, which positions and entries it holds.

Never reads or writes frames.
"""

from __future__ import annotations

from walsync.wal.checkpointer import SegmentInfo
from walsync.wal.format import FRAMES_OFFSET, SegmentHeader
from walsync.wal.positions import EntryId

__all__ = ["SLOT_PREFIX", "Segment", "slot_name", "slot_number"]

SLOT_PREFIX = "segment-"


def slot_name(number: int) -> str:
    """The name of the slot file with this number."""
    return f"{SLOT_PREFIX}{number:08d}"


def slot_number(name: str) -> int | None:
    """The number in the name of a slot file; None for a name that is none."""
    digits = name[len(SLOT_PREFIX) :]
    if (
        not name.startswith(SLOT_PREFIX)
        or not digits.isascii()
        or not digits.isdigit()
        or slot_name(int(digits)) != name
    ):
        return None
    return int(digits)


class Segment:
    """A segment in use. `end` and `last_id` grow while it is appended to; the appender's lock guards them.

    `first_id` is the first entry committed in it, `last_id` the last entry that has any byte in it: the segment may be
    recycled when that one is released. `committed_id` is the last entry whose COMMIT lies in it.
    """

    __slots__ = ("abandoned", "base", "chain", "committed_id", "end", "end_chain", "end_epoch", "first_id", "header",
                 "last_id", "name", "sequence", "size")  # fmt: skip

    def __init__(self, name: str, header: SegmentHeader) -> None:
        self.name = name
        self.header = header
        self.sequence = header.sequence
        self.base = header.base
        self.size = header.segment_bytes
        self.first_id = header.next_id
        self.last_id = header.next_id - 1
        self.committed_id = header.next_id - 1
        self.end = header.base + FRAMES_OFFSET
        self.abandoned = header.abandoned

    @property
    def start(self) -> int:
        """The position of its first frame."""
        return self.base + FRAMES_OFFSET

    def info(self) -> SegmentInfo:
        """What users may know of it."""
        holds_entries = self.committed_id >= self.first_id
        return SegmentInfo(
            self.name,
            self.sequence,
            self.header.version_info,
            EntryId(self.first_id) if holds_entries else None,
            EntryId(self.committed_id) if holds_entries else None,
        )

    def __repr__(self) -> str:
        return f"<Segment {self.sequence} in {self.name}, entries {self.first_id} to {self.committed_id}>"

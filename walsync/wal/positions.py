"""Names of places in the log: entry ids and positions.

Owns `EntryId`, `LogPosition` and `ChunkRecord`. Never reads or writes a file.

Invariants: entry ids are dense, increasing from 1, in commit order, and never given twice to acknowledged entries.
Positions grow with every frame written; a position is `base of its segment + offset in its file` and is not used again
when the file is.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, NewType

from walsync.exceptions import UsageError

__all__ = ["ChunkRecord", "EntryId", "LogPosition"]

EntryId = NewType("EntryId", int)
"""The number of an entry: 1, 2, 3, … in commit order. `EntryId(0)` means "before the first"."""

_POSITION = struct.Struct("<QQ")


class LogPosition(NamedTuple):
    """Where a chunk lies. Ordered like the log; serialised in 16 bytes.

    `position` is a byte position in the log as a whole, `entry_id` the entry that the chunk belongs to: a read checks
    that the bytes found there are still that entry's.
    """

    position: int
    entry_id: EntryId

    def to_bytes(self) -> bytes:
        """This position in 16 bytes (two little-endian 64-bit numbers)."""
        return _POSITION.pack(self.position, self.entry_id)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> LogPosition:
        """The position that `to_bytes()` wrote. Raises `UsageError` if `data` is not 16 bytes long."""
        if len(data) != _POSITION.size:
            raise UsageError(f"a log position is {_POSITION.size} bytes long, not {len(data)}")
        position, entry_id = _POSITION.unpack(data)
        return cls(position, EntryId(entry_id))


class ChunkRecord:
    """What `EntryWriter.write_chunk` returns: the chunk's length in bytes, its checksum, and later its position."""

    __slots__ = ("_position", "crc", "length")

    def __init__(self, length: int, crc: int) -> None:
        self.length = length
        self.crc = crc
        self._position: LogPosition | None = None

    @property
    def position(self) -> LogPosition:
        """Where the chunk lies. Raises `UsageError` until the entry is committed: before that it has no place."""
        if self._position is None:
            raise UsageError("a chunk has a position once its entry is committed; commit the entry first")
        return self._position

    def place(self, position: LogPosition) -> None:
        """Called by the log when the entry is committed."""
        self._position = position

    def __repr__(self) -> str:
        return f"ChunkRecord(length={self.length}, crc={self.crc:#010x}, position={self._position})"

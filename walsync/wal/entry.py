"""Entries as users see them: `Entry` when read, `EntryWriter` when written.

Never touches a file: reading goes through the reader that made the entry, writing through the log.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from walsync.exceptions import EntryTooLargeError, UsageError
from walsync.wal.checkpointer import SegmentInfo
from walsync.wal.checksum import ChecksumFunction
from walsync.wal.pending import PendingEntry, SpilledEntry
from walsync.wal.positions import ChunkRecord, EntryId, LogPosition
from walsync.wal.scanner import RawEntry
from walsync.wal.segment import Segment

__all__ = ["ChunkWriter", "Entry", "EntryWriter"]


class ChunkSource(Protocol):
    """Reads the chunks of an entry that is too large to be kept."""

    def chunks_of(self, first_position: int, entry_id: int) -> Iterator[bytes]:
        """The chunks in order, each verified."""

    def positions_of(self, first_position: int, entry_id: int) -> list[int]:
        """Where the chunks lie."""


class Entry:
    """A committed entry. Its small chunks are in memory; those of a large entry are read when asked for."""

    __slots__ = ("_raw", "_segment", "_source", "id")

    def __init__(self, raw: RawEntry, segment: Segment, source: ChunkSource) -> None:
        self.id = EntryId(raw[0])
        self._raw = raw
        self._segment = segment
        self._source = source

    @property
    def position(self) -> LogPosition:
        """Where its first frame lies."""
        return LogPosition(self._raw[1], self.id)

    @property
    def segment(self) -> SegmentInfo:
        """The segment that its last byte lies in."""
        return self._segment.info()

    @property
    def byte_length(self) -> int:
        """The bytes of all its chunks."""
        return self._raw[3]

    @property
    def chunk_count(self) -> int:
        """How many chunks it has."""
        return self._raw[4]

    def chunks(self) -> Iterator[bytes]:
        """Its chunks in order, each verified against its checksum, one in memory at a time.

        `DamagedLogError` if the bytes are not what was written, `EntryNotFoundError` if the entry was released. To
        stream a chunk that does not fit into memory use `WriteAheadLog.open_chunk` with a position of
        `chunk_positions`.
        """
        parts = self._raw[5]
        if type(parts) is bytes:
            return iter((parts,))
        if parts is None:
            return self._source.chunks_of(self._raw[1], self.id)
        return iter([data for _, data in parts])  # type: ignore[misc]

    @property
    def chunk_positions(self) -> list[LogPosition]:
        """Where its chunks lie, in order."""
        parts = self._raw[5]
        if type(parts) is bytes:
            return [LogPosition(self._raw[1], self.id)]
        if parts is None:
            return [LogPosition(position, self.id) for position in self._source.positions_of(self._raw[1], self.id)]
        return [LogPosition(position, self.id) for position, _ in parts]  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"<Entry {self.id}: {self.chunk_count} chunks, {self.byte_length} bytes>"


class EntryWriter:
    """An entry being built, by one thread. It has no id and no place in the log, and holds no lock, until `commit()`.

    As a context manager it commits at the end of the block, and rolls back if the block raises.
    """

    def __init__(
        self,
        commit: Callable[[PendingEntry], int],
        checksum: ChecksumFunction,
        *,
        buffer_bytes: int,
        max_entry_bytes: int,
    ) -> None:
        self._commit = commit
        self._checksum = checksum
        self._max_entry_bytes = max_entry_bytes
        self._entry = SpilledEntry(buffer_bytes)
        self._records: list[ChunkRecord] = []
        self._open_chunk: ChunkWriter | None = None
        self._finished = False
        self._entry_id: EntryId | None = None

    @property
    def entry_id(self) -> EntryId:
        """The entry's id. Raises `UsageError` until it is committed."""
        if self._entry_id is None:
            raise UsageError("an entry has an id once it is committed; call commit(), or leave its `with` block")
        return self._entry_id

    @property
    def byte_length(self) -> int:
        """The bytes written so far."""
        return self._entry.size

    def write_chunk(self, data: bytes | bytearray | memoryview) -> ChunkRecord:
        """Add a chunk. Past `LogConfig.max_entry_bytes`: `EntryTooLargeError`, and only a rollback is left."""
        with self.open_chunk() as chunk:
            chunk.write(data)
        return chunk.record

    def open_chunk(self) -> ChunkWriter:
        """Add a chunk piece by piece: a writer with `write()`, closed at the end of its `with` block."""
        self._check_open()
        if self._open_chunk is not None:
            raise UsageError("the chunk before is still open; close it first")
        self._entry.begin_chunk()
        self._open_chunk = ChunkWriter(self)
        return self._open_chunk

    def _add(self, data: memoryview, crc: int) -> int:
        self._check_open()
        if self._entry.size + len(data) > self._max_entry_bytes:
            raise EntryTooLargeError(
                f"the entry would have {self._entry.size + len(data)} bytes, and LogConfig.max_entry_bytes is "
                f"{self._max_entry_bytes}. Nothing of it was written; split it, or raise the bound"
            )
        self._entry.add(data)
        return self._checksum(data, crc)

    def _close_chunk(self, record: ChunkRecord) -> None:
        self._records.append(record)
        self._open_chunk = None

    def _check_open(self) -> None:
        if self._finished:
            raise UsageError("this entry is committed or rolled back; begin another one")

    def commit(self) -> EntryId:
        """Write the entry and return its id when it is durable. Raises what `WriteAheadLog.append` raises.

        After `LogFullError` the entry is unharmed, and `commit()` may be called again.
        """
        self._check_open()
        if self._open_chunk is not None:
            raise UsageError("a chunk is still open; close it before the entry is committed")
        self._entry.positions.clear()
        entry_id = EntryId(self._commit(self._entry))
        for record, position in zip(self._records, self._entry.positions, strict=True):
            record.place(LogPosition(position, entry_id))
        self._entry_id = entry_id
        self._finish()
        return entry_id

    def rollback(self) -> None:
        """Forget the entry. Nothing of it reached the log. May be called twice, and after `commit()` does nothing."""
        if not self._finished:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        self._entry.close()

    def __enter__(self) -> EntryWriter:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.rollback()
        elif not self._finished:
            try:
                self.commit()
            finally:
                self.rollback()


class ChunkWriter:
    """Writes one chunk in pieces. `record` is there when it is closed."""

    def __init__(self, writer: EntryWriter) -> None:
        self._writer = writer
        self._length = 0
        self._crc = 0
        self._record: ChunkRecord | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add to the chunk; returns how many bytes that were."""
        if self._record is not None:
            raise UsageError("this chunk is closed; open another one")
        view = memoryview(data).cast("B")
        self._crc = self._writer._add(view, self._crc)
        self._length += len(view)
        return len(view)

    def close(self) -> None:
        """The chunk is complete. May be called twice."""
        if self._record is None:
            self._record = ChunkRecord(self._length, self._crc)
            self._writer._close_chunk(self._record)

    @property
    def record(self) -> ChunkRecord:
        """The chunk's length and checksum, and once the entry is committed its position."""
        if self._record is None:
            raise UsageError("the chunk is still open; close it first")
        return self._record

    def __enter__(self) -> ChunkWriter:  # noqa: PYI034
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


class ChunkReader(io.RawIOBase):
    """A chunk as a readable binary stream, verified fragment by fragment (at most 1 MiB in memory)."""

    def __init__(self, fragments: Iterator[bytes]) -> None:
        self._fragments = fragments
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` from the chunk; 0 at its end."""
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._left:
            piece = next(self._fragments, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

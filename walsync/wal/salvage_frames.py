"""Finding the whole frames of a damaged segment file, wherever in it they lie.

Owns `FrameFinder` and the runs that it finds. Never decides whether a frame still belongs to the log: that is
`salvage_plan`. Never writes.

Here a frame counts as whole if both of its CRCs match (that of the header goes on from the log's uuid, so no other
log's frame can pass), its position fits the file, and its padding is zeros. Frames that lie one behind the other and
are chained make a *run*. Between two runs lies what cannot be read.

A part of a file that the system cannot read (EIO) counts as zeros: no frame of it passes its CRC.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from walsync.exceptions import LogVersionError
from walsync.wal.checksum import ChecksumFunction
from walsync.wal.format import (
    ALIGNMENT,
    BOUNDARY_HEADER,
    BOUNDARY_HEADER_BYTES,
    COMMIT,
    DATA,
    DATA_HEADER,
    DATA_HEADER_BYTES,
    FIRST_SKIPPABLE_TYPE,
    FRAMES_OFFSET,
    HINT,
    RECOVERY,
    SEAL,
)
from walsync.wal.storage.protocol import StorageFile

__all__ = ["BASE_ALIGNMENT", "BrokenFrame", "FoundFrame", "FrameFinder", "Run", "find_runs"]

BASE_ALIGNMENT = 4096
"""Segment sizes, and so their bases, are multiples of this."""

_BLOCK_BYTES = 1024 * 1024
_SECTOR_BYTES = 4096
_ZEROS = bytes(_BLOCK_BYTES)

# Type, flags and size of every frame header that is known. A lookahead, because a match in the middle of other bytes
# must not swallow the one that follows.
_HEADER_PATTERN = re.compile(rb"(?=\x01[\x00-\x07]\x05\x00|[\x02-\x05][\x00-\x07]\x09\x00)", re.DOTALL)
_TYPE_OFFSET = 4


class FoundFrame(NamedTuple):
    """A whole frame: where it lies in its file, what its header says, and its payload."""

    start: int
    end: int
    base: int
    kind: int
    flags: int
    epoch: int
    chain: int
    crc: int
    entry_id: int
    promise: int
    first_position: int
    chunk_count: int
    entry_bytes: int
    payload: bytes

    @property
    def position(self) -> int:
        """Where it lies in the log."""
        return self.base + self.start

    @property
    def next_id_before(self) -> int:
        """The id of the entry that is open, or comes next, where the frame begins."""
        return self.entry_id if self.kind in (DATA, COMMIT) else self.entry_id + 1

    @property
    def next_id_after(self) -> int:
        """The same where it ends."""
        return self.entry_id if self.kind == DATA else self.entry_id + 1


class BrokenFrame(NamedTuple):
    """A frame whose header is whole, and whose payload is not."""

    start: int
    end: int
    base: int
    kind: int
    entry_id: int


class Run:
    """Whole frames that lie one behind the other in a file, each chained to the one before it."""

    __slots__ = ("base", "chain_after", "end", "epochs", "limit", "name", "next_id", "next_id_after", "promise",
                 "sealed", "start")  # fmt: skip

    def __init__(self, name: str, frame: FoundFrame) -> None:
        self.name = name
        self.base = frame.base
        self.start = frame.position
        self.epochs: list[tuple[int, int]] = []
        """From which position on it has which epoch."""
        self.next_id = frame.next_id_before
        self.promise = 0
        self.limit: int | None = None
        """Only frames that end at or before this position are the log's. None: all."""
        self._take(frame)

    def _take(self, frame: FoundFrame) -> None:
        self.end = frame.base + frame.end
        self.chain_after = frame.crc
        if not self.epochs or self.epochs[-1][1] != frame.epoch:
            self.epochs.append((frame.position, frame.epoch))
        self.next_id_after = frame.next_id_after
        self.promise = max(self.promise, frame.promise)
        self.sealed = frame.kind == SEAL

    def extend(self, frame: FoundFrame) -> bool:
        """Take the frame if it continues this run; else False."""
        if self.sealed or frame.base != self.base or frame.position != self.end or frame.chain != self.chain_after:
            return False
        epoch = self.epochs[-1][1]
        if frame.epoch != epoch and (frame.kind != RECOVERY or frame.epoch != epoch + 1):
            return False
        self._take(frame)
        return True

    def epoch_at(self, position: int) -> int:
        """The epoch of the last frame that begins at this position or before; the first epoch if none does."""
        return max((epoch for start, epoch in self.epochs if start <= position), default=self.epochs[0][1])

    def __repr__(self) -> str:
        return f"<Run in {self.name}: {self.start} to {self.end}, entries from {self.next_id}, epochs {self.epochs}>"


class FrameFinder:
    """Reads the frames of one file at any offset. `bases` are those that the file's headers name; None: not known."""

    def __init__(
        self,
        file: StorageFile,
        size: int,
        bases: frozenset[int] | None,
        checksum: ChecksumFunction,
        seed: int,
    ) -> None:
        self._file = file
        self.size = size
        self._bases = bases
        self._checksum = checksum
        self._seed = seed
        self._block = b""
        self._block_offset = 0
        self.unreadable_bytes = 0
        """Bytes that the system could not read."""

    @property
    def base_is_certain(self) -> bool:
        """Whether the file can hold frames of one lap only."""
        return self._bases is not None and len(self._bases) == 1

    def frame_at(self, offset: int) -> FoundFrame | BrokenFrame | None:
        """The frame at an offset; None if no whole header lies there."""
        header = self._read(offset, BOUNDARY_HEADER_BYTES)
        fields = self._header(header, offset)
        if fields is None:
            return None
        crc, kind, flags, words, position, length, epoch, chain, payload_crc, entry_id = fields
        if HINT < kind < FIRST_SKIPPABLE_TYPE:
            raise LogVersionError(
                f"a frame of type {kind} lies at position {position}; it was written by a newer walsync. Salvage the "
                "log with that"
            )
        base = position - offset
        payload_start = offset + words * 8
        payload_end = payload_start + length
        end = payload_end + (-length % ALIGNMENT)
        if end > self.size:
            return BrokenFrame(offset, self.size, base, kind, entry_id)
        # A copy: the block is read over.
        data = self._read(payload_start, end - payload_start)
        payload = data[:length]
        if len(data) < end - payload_start or self._checksum(payload) != payload_crc or any(data[length:]):
            return BrokenFrame(offset, end, base, kind, entry_id)
        promise = first_position = chunk_count = entry_bytes = 0
        if kind in (COMMIT, RECOVERY, SEAL, HINT):
            promise, first_position, chunk_count, _, entry_bytes = BOUNDARY_HEADER.unpack(header)[10:]
        return FoundFrame(
            offset, end, base, kind, flags, epoch, chain, crc, entry_id, promise, first_position, chunk_count,
            entry_bytes, payload,
        )  # fmt: skip

    def _header(self, header: bytes, offset: int) -> tuple[int, ...] | None:
        if len(header) < DATA_HEADER_BYTES:
            return None
        fields = DATA_HEADER.unpack_from(header)
        kind, words, position = fields[1], fields[3], fields[4]
        if kind == DATA:
            fits = words * 8 == DATA_HEADER_BYTES
        elif kind < FIRST_SKIPPABLE_TYPE:
            fits = words * 8 == BOUNDARY_HEADER_BYTES
        else:
            fits = DATA_HEADER_BYTES <= words * 8 <= BOUNDARY_HEADER_BYTES
        if not fits or not kind or words * 8 > len(header) or not self._is_base(position - offset):
            return None
        if self._checksum(header[4 : words * 8], self._seed) != fields[0]:
            return None
        return fields

    def _is_base(self, base: int) -> bool:
        if self._bases is not None:
            return base in self._bases
        return base >= 0 and base % BASE_ALIGNMENT == 0

    def search(self, offset: int) -> int | None:
        """The first offset from this one on at which a whole frame header lies; None if there is none."""
        offset += -offset % ALIGNMENT
        while offset + DATA_HEADER_BYTES <= self.size:
            block = self._read(offset, min(_BLOCK_BYTES, self.size - offset))
            if len(block) < DATA_HEADER_BYTES:
                return None
            if block != _ZEROS[: len(block)]:
                for match in _HEADER_PATTERN.finditer(block):
                    at = match.start() - _TYPE_OFFSET
                    if at >= 0 and at % ALIGNMENT == 0:
                        header = block[at : at + BOUNDARY_HEADER_BYTES]
                        if self._header(header, offset + at) is not None:
                            return offset + at
            # Blocks overlap by a header, so that none is cut in two.
            step = len(block) - BOUNDARY_HEADER_BYTES
            offset += max(ALIGNMENT, step - step % ALIGNMENT)
        return None

    # ------------------------------------------------------------------------------------------------ reading

    def _read(self, offset: int, length: int) -> bytes:
        """`length` bytes, fewer at the end of the file."""
        start = offset - self._block_offset
        if start < 0 or start + length > len(self._block):
            wanted = min(max(length, _BLOCK_BYTES), self.size - offset)
            if wanted <= 0:
                return b""
            self._block = self._read_file(offset, wanted)
            self._block_offset = offset
            start = 0
        return self._block[start : start + length]

    def _read_file(self, offset: int, length: int) -> bytes:
        try:
            return self._pread(offset, length)
        except OSError:
            pieces = []
            for start in range(offset, offset + length, _SECTOR_BYTES):
                count = min(_SECTOR_BYTES, offset + length - start)
                try:
                    piece = self._pread(start, count)
                except OSError:
                    self.unreadable_bytes += count
                    piece = b""
                pieces.append(piece.ljust(count, b"\0"))
            return b"".join(pieces)

    def _pread(self, offset: int, length: int) -> bytes:
        data = self._file.pread(length, offset)
        while len(data) < length:
            more = self._file.pread(length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


def find_runs(name: str, finder: FrameFinder) -> tuple[list[Run], list[BrokenFrame]]:
    """All runs of a file in order, and the frames of which only the header is whole."""
    runs: list[Run] = []
    broken: list[BrokenFrame] = []
    offset: int | None = FRAMES_OFFSET
    while offset is not None:
        frame = finder.frame_at(offset)
        if isinstance(frame, FoundFrame):
            if not runs or not runs[-1].extend(frame):
                runs.append(Run(name, frame))
            if frame.kind == SEAL and finder.base_is_certain:
                # Nothing behind it is of this lap.
                break
            offset = frame.end
        elif frame is not None:
            broken.append(frame)
            offset = frame.end
        else:
            offset = finder.search(offset + ALIGNMENT)
    return runs, broken

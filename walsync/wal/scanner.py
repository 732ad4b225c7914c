"""The tight loop that reads frames in order and checks every byte of them.

Owns the rule of validity: a frame is valid if it lies inside of its segment, both CRCs match, its position is where it
lies, it chains to the frame before it and has the epoch of that frame (RECOVERY alone raises the epoch, by one), and
what it says of its entry agrees with the frames before it. Never decides what an invalid frame means, never writes.

Everything read is untrusted: a length is compared with the segment's size before anything is read by it.
"""

from __future__ import annotations

import enum

from walsync.exceptions import LogVersionError
from walsync.wal.checksum import ChecksumFunction
from walsync.wal.format import (
    ALIGNMENT,
    BOUNDARY_HEADER,
    BOUNDARY_HEADER_BYTES,
    COMMIT,
    DATA,
    DATA_HEADER_BYTES,
    FIRST,
    FIRST_SKIPPABLE_TYPE,
    FRAMES_OFFSET,
    HINT,
    INLINE,
    LAST,
    PADDING,
    RECOVERY,
    SEAL,
    SegmentHeader,
)
from walsync.wal.storage.protocol import StorageFile

__all__ = ["RawEntry", "Scanner", "Stop"]

BLOCK_BYTES = 256 * 1024
"""How much is read at once; a larger frame is read whole, and none is larger than 1 MiB and its header."""

KEPT_ENTRY_BYTES = 256 * 1024
"""The chunks of an entry up to this size are kept as they are read; those of a larger one are read again when asked."""


RawEntry = tuple[int, int, int, int, int, "bytes | list[tuple[int, bytes]] | None"]
"""An entry as found: id, first position, end position, byte length, number of chunks, content.

The content of an entry of one frame is the bytes of its chunk, which lies at the first position; else a list of
positions and bytes; or None if the chunks are to be read again from the first position on. A plain tuple, because there
are many.
"""


_WHOLE_ENTRY = FIRST | LAST | INLINE
_BOUNDARY_WORDS = BOUNDARY_HEADER_BYTES // 8


class Stop(enum.Enum):
    """Why a scanner does not go on in its segment."""

    SEALED = "sealed"
    LIMIT = "limit"
    INVALID = "invalid"


class Scanner:
    """Reads the frames of one segment after another. Not for several threads at once.

    `position`, `chain`, `epoch` and `next_id` are where it stands: behind the last valid frame. `boundary` is
    `(position, chain, epoch)` behind the last frame that is not DATA: where a torn tail is cut. `promise` is the
    highest promise read.
    """

    def __init__(self, checksum: ChecksumFunction, seed: int) -> None:
        self._checksum = checksum
        self._seed = seed
        self._file: StorageFile | None = None
        self._base = 0
        self._size = 0
        self._block = b""
        self._block_offset = 0
        self._open_parts: list[tuple[int, bytes]] | None = []
        self._open_first = 0
        self._open_bytes = 0
        self._open_count = 0
        self._open_fragment = False
        self._headless = False
        self.position = 0
        self.chain = 0
        self.epoch = 0
        self.next_id = 1
        self.promise = 0
        self.boundary = (0, 0, 0)
        self.stop: Stop | None = None
        self.reason = ""

    def enter(self, header: SegmentHeader, file: StorageFile, *, resume: bool = False) -> None:
        """Go on at the first frame of a segment. Without `resume` it is the first segment read: trust its header."""
        self._file = file
        self._base = header.base
        self._size = header.segment_bytes
        self._block = b""
        self._block_offset = 0
        self.stop = None
        self.position = header.base + FRAMES_OFFSET
        if not resume:
            self.chain = header.previous_chain
            self.epoch = header.epoch
            self.next_id = header.next_id
            self._reset_entry()
        # An entry whose beginning was released, or moved aside, with the segment before: it is passed over.
        self._headless = header.continues and not self._open_count
        if not self.entry_is_open:
            self.boundary = (self.position, self.chain, self.epoch)

    def skip_abandoned(self, header: SegmentHeader) -> None:
        """Go on behind a segment that was moved aside."""
        self.position = header.end
        self.chain = header.end_chain
        self.epoch = header.end_epoch
        self.next_id = header.end_next_id
        self._reset_entry()
        self.boundary = (self.position, self.chain, self.epoch)
        self.promise = max(self.promise, header.end)
        self.stop = Stop.SEALED

    def seek(self, header: SegmentHeader, file: StorageFile, state: tuple[int, int, int, int]) -> None:
        """Go on at `(position, chain, epoch, next_id)`, a place between two entries, in an open segment."""
        self.enter(header, file)
        self.position, self.chain, self.epoch, self.next_id = state

    @property
    def entry_is_open(self) -> bool:
        """DATA was read whose COMMIT was not."""
        return self._open_count > 0 or self._headless

    def _reset_entry(self) -> None:
        self._open_parts = []
        self._open_first = 0
        self._open_bytes = 0
        self._open_count = 0
        self._open_fragment = False

    def _invalid(self, reason: str) -> None:
        self.stop = Stop.INVALID
        self.reason = reason

    def _load(self, offset: int, needed: int, limit: int) -> bool:
        """Have `needed` bytes from `offset` on in the block. False if the file ends before."""
        assert self._file is not None
        end = min(self._size, limit)
        if offset + needed > end:
            return False
        wanted = min(max(needed, BLOCK_BYTES), end - offset)
        block = self._file.pread(wanted, offset)
        while len(block) < needed:
            more = self._file.pread(wanted - len(block), offset + len(block))
            if not more:
                return False
            block += more
        self._block = block
        self._block_offset = offset
        return True

    def read(self, limit: int) -> list[RawEntry]:
        """The entries committed in the next block, none beyond the position `limit`. `stop` says why it is empty."""
        found: list[RawEntry] = []
        if self.stop is Stop.LIMIT:
            self.stop = None
        if self.stop is not None:
            return found
        end_offset = limit - self._base
        while not found and self.stop is None:
            offset = self.position - self._base
            if offset >= end_offset:
                self.stop = Stop.LIMIT
                return found
            # DATA's header is shorter, but nothing ends right behind one: at least SEAL or COMMIT follows.
            if not self._load(offset, BOUNDARY_HEADER_BYTES, end_offset):
                self._invalid("the segment ends inside of a frame header")
                return found
            self._scan_block(found, end_offset)
        return found

    def _scan_block(self, found: list[RawEntry], end_offset: int) -> None:  # noqa: C901 - one loop, by intent
        # Everything that the loop uses is a local name, and one frame costs about a microsecond.
        block = self._block
        block_end = len(block)
        at = self.position - self._base - self._block_offset
        size_left = self._size - self._block_offset
        position = self.position
        chain = self.chain
        epoch = self.epoch
        next_id = self.next_id
        checksum = self._checksum
        seed = self._seed
        unpack = BOUNDARY_HEADER.unpack_from
        promise_read = self.promise
        boundary = self.boundary
        # No entry is open, and the last frame read was not DATA: the log may be cut at `position`.
        closed = False
        while True:
            if at + BOUNDARY_HEADER_BYTES > block_end:
                break
            (
                header_crc, kind, flags, words, frame_position, length, frame_epoch, frame_chain, payload_crc, entry_id,
                promise, first_position, chunk_count, _, entry_bytes,
            ) = unpack(block, at)  # fmt: skip
            if frame_position != position or frame_chain != chain:
                self._invalid("no frame that continues the log lies here")
                break
            payload_end = at + BOUNDARY_HEADER_BYTES + length
            frame_end = payload_end + (-length & 7)
            if (
                closed
                and kind == COMMIT
                and flags == _WHOLE_ENTRY
                and words == _BOUNDARY_WORDS
                and entry_id == next_id
                and frame_epoch == epoch
                and chunk_count == 1
                and entry_bytes == length
                and frame_end <= block_end
            ):
                # The usual case, an entry in one frame, without the questions that only other frames raise.
                data = block[at + BOUNDARY_HEADER_BYTES : payload_end]
                if checksum(block[at + 4 : at + BOUNDARY_HEADER_BYTES], seed) != header_crc:
                    self._invalid("the checksum of the frame's header does not match")
                    break
                if checksum(data) != payload_crc:
                    self._invalid("the checksum of the frame's payload does not match")
                    break
                if length & 7 and block[payload_end:frame_end] != PADDING[length & 7]:
                    self._invalid("the zeros behind the frame's payload are not zeros")
                    break
                position += frame_end - at
                found.append((entry_id, frame_position, position, length, 1, data))
                at = frame_end
                chain = header_crc
                next_id += 1
                if promise > promise_read:
                    promise_read = promise
                continue
            if closed:
                boundary = (position, chain, epoch)
                closed = False
            header_bytes = words * 8
            if kind == DATA:
                shape_fits = words == DATA_HEADER_BYTES // 8
            elif kind < FIRST_SKIPPABLE_TYPE:
                shape_fits = words == BOUNDARY_HEADER_BYTES // 8
            else:
                shape_fits = DATA_HEADER_BYTES <= header_bytes <= BOUNDARY_HEADER_BYTES
            payload = at + header_bytes
            payload_end = payload + length
            if not shape_fits or payload_end > size_left:
                self._invalid("the frame's header has an impossible size")
                break
            if checksum(block[at + 4 : payload], seed) != header_crc:
                self._invalid("the checksum of the frame's header does not match")
                break
            frame_end = payload_end + (-length % ALIGNMENT)
            if frame_end > block_end:
                if found:
                    break
                if not self._load(self._block_offset + at, frame_end - at, end_offset):
                    self._invalid("the frame does not end inside of what is written")
                    break
                block = self._block
                block_end = len(block)
                size_left = self._size - self._block_offset
                payload -= at
                payload_end -= at
                frame_end -= at
                at = 0
            data = block[payload:payload_end]
            if checksum(data) != payload_crc:
                self._invalid("the checksum of the frame's payload does not match")
                break
            if length & 7 and block[payload_end:frame_end] != PADDING[length & 7]:
                self._invalid("the zeros behind the frame's payload are not zeros")
                break
            if frame_epoch != epoch:
                if kind != RECOVERY or frame_epoch != epoch + 1:
                    self._invalid("the frame has the epoch of another lap")
                    break
                epoch = frame_epoch
            position += frame_end - at
            at = frame_end
            chain = header_crc
            if kind == COMMIT:
                if entry_id != next_id:
                    position = frame_position
                    chain = frame_chain
                    self._invalid(f"the frame commits entry {entry_id} where {next_id} is due")
                    break
                if self._headless:
                    self._headless = False
                elif not self._open_count:
                    if flags == FIRST | LAST | INLINE and chunk_count == 1 and entry_bytes == length:
                        found.append((entry_id, frame_position, position, length, 1, data))
                    elif not flags and not chunk_count and not length and not entry_bytes:
                        found.append((entry_id, frame_position, position, 0, 0, []))
                    else:
                        position = frame_position
                        chain = frame_chain
                        self._invalid("the entry's summary does not match its frames")
                        break
                elif not self._finish_entry(
                    found, frame_position, position, flags, data, entry_id, first_position, chunk_count, entry_bytes
                ):
                    position = frame_position
                    chain = frame_chain
                    self._invalid("the entry's summary does not match its frames")
                    break
                next_id += 1
                if promise > promise_read:
                    promise_read = promise
                closed = True
            elif kind == DATA:
                taken = self._headless or self._take_data(frame_position, flags, data)
                if entry_id != next_id or not taken:
                    position = frame_position
                    chain = frame_chain
                    self._invalid("a fragment of a chunk is out of place")
                    break
            elif kind in (RECOVERY, HINT, SEAL):
                if kind != SEAL and self.entry_is_open:
                    position = frame_position
                    chain = frame_chain
                    self._invalid("the log goes on inside of an entry that was not committed")
                    break
                if promise > promise_read:
                    promise_read = promise
                closed = not self.entry_is_open
                if kind == SEAL:
                    self.stop = Stop.SEALED
                    break
            elif kind < FIRST_SKIPPABLE_TYPE:
                raise LogVersionError(
                    f"a frame of type {kind} lies at position {frame_position}; it was written by a newer walsync. "
                    "Open the log with that"
                )
        self.position = position
        self.chain = chain
        self.epoch = epoch
        self.next_id = next_id
        self.promise = promise_read
        self.boundary = (position, chain, epoch) if closed else boundary

    def _take_data(self, position: int, flags: int, data: bytes) -> bool:
        first = bool(flags & FIRST)
        if first == self._open_fragment or flags & ~(FIRST | LAST):
            return False
        if not self._open_count:
            self._open_first = position
        if first:
            self._open_count += 1
        self._open_bytes += len(data)
        self._open_fragment = not flags & LAST
        parts = self._open_parts
        if parts is not None:
            if self._open_bytes > KEPT_ENTRY_BYTES:
                self._open_parts = None
            elif first:
                parts.append((position, data))
            else:
                parts[-1] = (parts[-1][0], parts[-1][1] + data)
        return True

    def _finish_entry(
        self,
        found: list[RawEntry],
        position: int,
        end: int,
        flags: int,
        data: bytes,
        entry_id: int,
        first_position: int,
        chunk_count: int,
        entry_bytes: int,
    ) -> bool:
        if self._open_fragment:
            return False
        inline = bool(flags)
        count = self._open_count + inline
        total = self._open_bytes + len(data)
        if flags not in (0, FIRST | LAST | INLINE) or (data and not inline):
            return False
        if (first_position, chunk_count, entry_bytes) != (self._open_first, count, total):
            return False
        parts = self._open_parts
        if parts is not None and inline:
            if total > KEPT_ENTRY_BYTES:
                parts = None
            else:
                parts.append((position, data))
        found.append((entry_id, first_position, end, total, count, parts))
        self._reset_entry()
        return True

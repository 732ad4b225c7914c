"""The only writer of frames: gives entries their ids and places, fills segments and goes on in the next one.

Owns the log's tail. Never syncs on its own, and never decides when: that is `group_commit`.

Invariants: everything here is called under `lock`. An entry gets all of its segments before its first byte is
written, so that a full disk rejects it whole. After a failed write the log is poisoned: what of it reached the disk is
unknown, and nothing is written behind it. `written` moves only behind a whole entry, so no promise ever ends inside of
one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from walsync.wal.checksum import ChecksumFunction
from walsync.wal.config import LogConfig
from walsync.wal.format import (
    BOUNDARY_HEADER_BYTES,
    BOUNDARY_REST,
    COMMIT,
    CRC,
    DATA,
    DATA_HEADER_BYTES,
    DATA_REST,
    FIRST,
    FRAMES_OFFSET,
    HINT,
    INLINE,
    LAST,
    PADDING,
    RECOVERY,
    SEAL,
    SegmentHeader,
    aligned,
    fragment_bytes,
    pack_boundary,
)
from walsync.wal.pending import PendingEntry
from walsync.wal.segment import Segment
from walsync.wal.segments import SlotFiles, write_all
from walsync.wal.storage.protocol import StorageFile

__all__ = ["RESERVED_BYTES", "Appender", "Tail"]

RESERVED_BYTES = 4 * BOUNDARY_HEADER_BYTES
"""Room at a segment's end that entries leave: for HINT, RECOVERY and SEAL."""

_COPIED_BYTES = 64 * 1024
"""A payload up to this size is joined with its header for one write; a larger one is written by itself, uncopied."""

_JOINED_BYTES = _COPIED_BYTES + BOUNDARY_HEADER_BYTES
"""How much of frames is joined for one write."""

_WHOLE = FIRST | LAST | INLINE
_COMMIT_WORDS = BOUNDARY_HEADER_BYTES // 8
_DATA_WORDS = DATA_HEADER_BYTES // 8


class Tail:
    """Where an open log ends, as recovery found it."""

    __slots__ = ("chain", "epoch", "next_id", "position", "segment")

    def __init__(self, segment: Segment, position: int, chain: int, epoch: int, next_id: int) -> None:
        self.segment = segment
        self.position = position
        self.chain = chain
        self.epoch = epoch
        self.next_id = next_id


class Appender:
    """Writes at the log's tail. `durable` is told by group commit: `(position, entry id)` of the last sync."""

    def __init__(
        self,
        tail: Tail,
        *,
        config: LogConfig,
        pool: SlotFiles,
        open_file: Callable[[str], StorageFile],
        checksum: ChecksumFunction,
        seed: int,
        clock_ns: Callable[[], int],
        on_segment: Callable[[Segment], None],
    ) -> None:
        self.lock = threading.Lock()
        """Guards the tail. Held during the write of an entry, for that is what gives it its place; never during a sync.
        Order of locks: this one, then the pool's."""
        self._config = config
        self._pool = pool
        self._open_file = open_file
        self._checksum = checksum
        self._seed = seed
        self._clock_ns = clock_ns
        self._on_segment = on_segment
        self._chain = tail.chain
        self._epoch = tail.epoch
        self.next_id = tail.next_id
        self.durable = (0, tail.next_id - 1)
        self.written = (tail.position, tail.next_id - 1)
        self.promised = 0
        """The highest promise that is on its way to the disk."""
        self._last_durable = (0, 0)
        """How far the log was durable when its last entry was first seen to be. HINTs come behind it."""
        self.retired: list[StorageFile] = []
        """Files of sealed segments that no sync has covered yet."""
        self._enter(tail.segment, tail.position - tail.segment.base)

    def _enter(self, segment: Segment, offset: int) -> None:
        self.segment = segment
        self.file = self._open_file(segment.name)
        self._pwrite = self.file.pwrite
        self._pwrite_to_sync: Callable[[bytes, int], int] = getattr(self.file, "pwrite_to_sync", self._pwrite)
        self._base = segment.base
        self._offset = offset
        self._limit = segment.size - RESERVED_BYTES
        self._fragment_bytes = fragment_bytes(segment.size)

    # ------------------------------------------------------------------------------------------------- entries

    def write_chunk_entry(self, data: bytes, to_sync: bool = False) -> int:
        """Write an entry of one chunk, in one frame if it fits; this is the hot path. Returns the entry's id.

        `to_sync`: a sync comes next. The disk begins at once then, and what is done before that sync costs no time.

        The same bytes as `write_chunk_entries` writes, without its loop: see `GroupCommit.commit` for why that counts.
        """
        length = len(data)
        offset = self._offset
        end = offset + BOUNDARY_HEADER_BYTES + length
        end += -end & 7
        if end > self._limit or length > _COPIED_BYTES:
            return self.write_entry(PendingEntry([data]))
        entry_id = self.next_id
        position = self._base + offset
        promise = self.durable[0]
        checksum = self._checksum
        rest = BOUNDARY_REST.pack(
            COMMIT, _WHOLE, _COMMIT_WORDS, position, length, self._epoch, self._chain, checksum(data), entry_id,
            promise, position, 1, 0, length,
        )  # fmt: skip
        crc = checksum(rest, self._seed)
        frame = b"".join((CRC.pack(crc), rest, data, PADDING[length & 7]))
        if (self._pwrite_to_sync if to_sync else self._pwrite)(frame, offset) != end - offset:
            write_all(self.file, frame, offset)
        self._offset = end
        self._chain = crc
        self.next_id = entry_id + 1
        self.written = (self._base + end, entry_id)
        self.promised = promise
        return entry_id

    def write_chunk_entries(self, chunks: Sequence[bytes]) -> int:
        """Write entries of one chunk each, in one frame each, and all of them in one write. A sync comes next.

        Returns how many were written: those from the beginning that fit into the segment and into one write. Their ids
        are the last ones given out.
        """
        begin = offset = self._offset
        limit = min(self._limit, begin + _JOINED_BYTES)
        base, epoch, chain, entry_id = self._base, self._epoch, self._chain, self.next_id
        checksum, seed, promise = self._checksum, self._seed, self.durable[0]
        pieces: list[bytes] = []
        for data in chunks:
            length = len(data)
            end = offset + BOUNDARY_HEADER_BYTES + length
            end += -end & 7
            if end > limit:
                break
            position = base + offset
            rest = BOUNDARY_REST.pack(
                COMMIT, _WHOLE, _COMMIT_WORDS, position, length, epoch, chain, checksum(data), entry_id,
                promise, position, 1, 0, length,
            )  # fmt: skip
            chain = checksum(rest, seed)
            pieces += (CRC.pack(chain), rest, data, PADDING[length & 7])
            offset = end
            entry_id += 1
        count = entry_id - self.next_id
        if not count:
            return 0
        written = b"".join(pieces)
        if self._pwrite_to_sync(written, begin) != offset - begin:
            write_all(self.file, written, begin)
        self._offset = offset
        self._chain = chain
        self.next_id = entry_id
        self.written = (base + offset, entry_id - 1)
        self.promised = promise
        return count

    def write_entry(self, entry: PendingEntry) -> int:
        """Write an entry of any size and number of chunks. Returns its id; its chunks' positions are in `entry`.

        Raises `LogFullError` with nothing written and nothing changed. Whatever else it raises poisons the log.
        """
        lengths = entry.lengths
        size = self._compact_size(lengths)
        entry_id = self.next_id
        if size is None or self._offset + size > self._limit:
            self._reserve(lengths)
            self._write_fragments(entry, entry_id)
        else:
            self._write_compact(entry, entry_id)
        self.next_id = entry_id + 1
        self.written = (self._base + self._offset, entry_id)
        return entry_id

    def _compact_size(self, lengths: Sequence[int]) -> int | None:
        """The bytes of an entry whose frames can be joined for one write; None for a larger one."""
        if not lengths:
            return BOUNDARY_HEADER_BYTES
        size = BOUNDARY_HEADER_BYTES - DATA_HEADER_BYTES
        for length in lengths:
            size += DATA_HEADER_BYTES + length + (-length & 7)
        return size if size <= _COPIED_BYTES and size <= self._fragment_bytes else None

    def _write_compact(self, entry: PendingEntry, entry_id: int) -> None:
        checksum, seed, epoch = self._checksum, self._seed, self._epoch
        lengths, positions = entry.lengths, entry.positions
        pieces: list[bytes | memoryview] = []
        first = position = self._base + self._offset
        chain = self._chain
        byte_length = 0
        for index in range(len(lengths) - 1):
            length = lengths[index]
            data = entry.piece(index, 0, length)
            byte_length += length
            rest = DATA_REST.pack(
                DATA, FIRST | LAST, _DATA_WORDS, position, length, epoch, chain, checksum(data), entry_id
            )  # fmt: skip
            chain = checksum(rest, seed)
            pieces += (CRC.pack(chain), rest, data, PADDING[length & 7])
            positions.append(position)
            position += DATA_HEADER_BYTES + length + (-length & 7)
        length = lengths[-1] if lengths else 0
        data = entry.piece(len(lengths) - 1, 0, length) if lengths else b""
        promise = self.durable[0]
        rest = BOUNDARY_REST.pack(
            COMMIT, _WHOLE if lengths else 0, _COMMIT_WORDS, position, length, epoch, chain, checksum(data), entry_id,
            promise, first, len(lengths), 0, byte_length + length,
        )  # fmt: skip
        chain = checksum(rest, seed)
        pieces += (CRC.pack(chain), rest, data, PADDING[length & 7])
        if lengths:
            positions.append(position)
        write_all(self.file, b"".join(pieces), self._offset)
        self._offset = position + BOUNDARY_HEADER_BYTES + length + (-length & 7) - self._base
        self._chain = chain
        self.promised = promise

    # ----------------------------------------------------------------------------------------- large entries

    def _segments_needed(self, lengths: Sequence[int]) -> int:
        """How many segments beyond this one the entry needs: its frames laid out without writing them."""
        offset, limit, segments = self._offset, self._limit, 0
        size = self._config.segment_bytes
        for kind, length in self._layout(lengths):
            frame = (DATA_HEADER_BYTES if kind == DATA else BOUNDARY_HEADER_BYTES) + aligned(length)
            if offset + frame > limit:
                segments += 1
                offset, limit = FRAMES_OFFSET, size - RESERVED_BYTES
            offset += frame
        return segments

    def _layout(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        # One size for all fragments of an entry, though segments may be of two sizes when the setting was changed.
        fragment = self._entry_fragment_bytes()
        layout = []
        last = len(lengths) - 1
        inline = bool(lengths) and lengths[last] <= fragment
        for index, length in enumerate(lengths):
            if index == last and inline:
                break
            while length > fragment:
                layout.append((DATA, fragment))
                length -= fragment
            layout.append((DATA, length))
        layout.append((COMMIT, lengths[last] if inline else 0))
        return layout

    def _entry_fragment_bytes(self) -> int:
        return min(self._fragment_bytes, fragment_bytes(self._config.segment_bytes))

    def _reserve(self, lengths: Sequence[int]) -> None:
        needed = self._segments_needed(lengths)
        if needed:
            self._pool.reserve(needed)

    def _write_fragments(self, entry: PendingEntry, entry_id: int) -> None:
        lengths = entry.lengths
        fragment = self._entry_fragment_bytes()
        first_position = 0
        byte_length = 0
        last = len(lengths) - 1
        inline = bool(lengths) and lengths[last] <= fragment
        for index, length in enumerate(lengths):
            if index == last and inline:
                break
            byte_length += length
            start = 0
            while True:
                piece = entry.piece(index, start, min(fragment, length - start))
                flags = (FIRST if start == 0 else 0) | (LAST if start + len(piece) == length else 0)
                self._room_for(DATA_HEADER_BYTES + aligned(len(piece)), entry_id, begun=first_position > 0)
                position = self._base + self._offset
                rest = DATA_REST.pack(
                    DATA, flags, _DATA_WORDS, position, len(piece), self._epoch, self._chain, self._checksum(piece),
                    entry_id,
                )  # fmt: skip
                self._put(rest, piece)
                first_position = first_position or position
                if start == 0:
                    entry.positions.append(position)
                start += len(piece)
                if start == length:
                    break
        data = entry.piece(last, 0, lengths[last]) if inline else b""
        byte_length += len(data)
        self._room_for(BOUNDARY_HEADER_BYTES + aligned(len(data)), entry_id, begun=first_position > 0)
        position = self._base + self._offset
        promise = self.durable[0]
        rest = BOUNDARY_REST.pack(
            COMMIT, _WHOLE if inline else 0, _COMMIT_WORDS, position, len(data), self._epoch, self._chain,
            self._checksum(data), entry_id, promise, first_position or position, len(lengths), 0, byte_length,
        )  # fmt: skip
        self._put(rest, data)
        if inline:
            entry.positions.append(position)
        self.promised = promise

    def _room_for(self, frame_bytes: int, entry_id: int, *, begun: bool) -> None:
        if self._offset + frame_bytes > self._limit:
            self.next_segment(last_id=entry_id if begun else entry_id - 1)

    def _put(self, rest: bytes, data: bytes | memoryview) -> None:
        """Write the frame whose header but for its CRC is `rest`."""
        crc = self._checksum(rest, self._seed)
        header = CRC.pack(crc) + rest
        length = len(data)
        padding = PADDING[length & 7]
        offset = self._offset
        if length <= _COPIED_BYTES:
            write_all(self.file, b"".join((header, data, padding)), offset)
        else:
            write_all(self.file, header, offset)
            write_all(self.file, memoryview(data), offset + len(header))
            if padding:
                write_all(self.file, padding, offset + len(header) + length)
        self._offset = offset + len(header) + length + len(padding)
        self._chain = crc

    # --------------------------------------------------------------------------------- other frames, segments

    def write_boundary(self, kind: int) -> None:
        """Write a RECOVERY, SEAL or HINT; room for it is always there (`RESERVED_BYTES`)."""
        if kind == RECOVERY:
            self._epoch += 1
        promise = self.durable[0]
        frame, crc = pack_boundary(
            kind,
            self._base + self._offset,
            self._epoch,
            self._chain,
            self.next_id - 1,
            promise,
            self._checksum,
            self._seed,
        )
        write_all(self.file, frame, self._offset)
        self._offset += len(frame)
        self._chain = crc
        self.promised = max(self.promised, promise)

    def mark_written(self) -> None:
        """What was written so far ends between two entries, and may be promised once it is synced."""
        self.written = (self._base + self._offset, self.next_id - 1)

    def has_room_for(self, frames: int) -> bool:
        """Whether so many frames without payload fit into this segment."""
        return self._offset + frames * BOUNDARY_HEADER_BYTES <= self.segment.size

    def next_segment(self, last_id: int) -> None:
        """Seal this segment, whose last byte belongs to entry `last_id`, and go on in a file that was reserved."""
        self.write_boundary(SEAL)
        self.segment.last_id = last_id
        self.segment.committed_id = self.next_id - 1
        self.start_segment()

    def start_segment(self) -> None:
        """Go on in a file that was reserved; this segment ends with SEAL, or was moved aside."""
        old = self.segment
        old.end = self._base + self._offset
        name = self._pool.take(old.sequence + 1)
        header = SegmentHeader(
            checksum_kind=old.header.checksum_kind,
            log_uuid=old.header.log_uuid,
            sequence=old.sequence + 1,
            base=old.base + old.size,
            previous_end=old.end,
            previous_chain=self._chain,
            epoch=self._epoch,
            segment_bytes=self._config.segment_bytes,
            created_ns=self._clock_ns(),
            next_id=self.next_id,
            version_info=self._config.version_info,
            continues=old.last_id == self.next_id,
        )
        segment = Segment(name, header)
        # The order matters to a concurrent sync: it looks at the active file first, then at the retired ones.
        if not old.abandoned:
            self.retired.append(self.file)
        self._enter(segment, FRAMES_OFFSET)
        write_all(self.file, header.pack_area(), 0)
        self._on_segment(segment)

    def write_hint(self) -> bool:
        """Record how far the log is durable, if there is room and an entry is not promised. True if a HINT was written.

        RECOVERY and SEAL find room behind it. Its own bytes need no promise: an idle log writes one HINT and no more.
        """
        if self.is_promised or self.durable[0] != self.written[0] or not self.has_room_for(3):
            return False
        self.write_boundary(HINT)
        self.mark_written()
        return True

    @property
    def is_promised(self) -> bool:
        """Whether a frame promises every durable entry, as far as is known here."""
        durable = self.durable
        if durable[1] != self._last_durable[1]:
            self._last_durable = durable
        return self.promised >= self._last_durable[0]

    def take_from(self, pool: SlotFiles, on_segment: Callable[[Segment], None]) -> None:
        """Take files from this pool from now on, and tell each new segment to this callback."""
        self._pool = pool
        self._on_segment = on_segment

    def adopt(self, segment: Segment, position: int, chain: int, epoch: int, next_id: int, promised: int) -> None:
        """Go on where another process stopped. `segment` may be the one that is being appended to."""
        if segment is not self.segment:
            self._enter(segment, position - segment.base)
        else:
            self._offset = position - segment.base
        self._chain = chain
        self._epoch = epoch
        self.next_id = next_id
        self.written = (position, next_id - 1)
        self.promised = promised

    def place(self) -> tuple[int, int, int, int, int, int]:
        """Position, next entry id, chain, epoch, promise, base: what `adopt` needs elsewhere."""
        return self._base + self._offset, self.next_id, self._chain, self._epoch, self.promised, self._base

    def sync(self) -> tuple[int, int]:
        """Sync everything written so far. Called without the lock, by one thread at a time; returns what is durable."""
        target = self.written
        active = self.file
        retired = len(self.retired)
        for file in self.retired[:retired]:
            file.sync()
        active.sync()
        del self.retired[:retired]
        return target

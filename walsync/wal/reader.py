"""Reading a log that is open, or a list of its segments: entries in order, chunks by position.

Owns the cursors that make reading on cheap. Never reads past what is durable, and never writes. A segment may be
recycled while it is read: then what is found there does not fit its position, and the reader says that the entry was
released.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

from walsync.exceptions import DamagedLogError, EntryNotFoundError
from walsync.wal.checksum import ChecksumFunction
from walsync.wal.entry import Entry
from walsync.wal.format import (
    BOUNDARY_HEADER_BYTES,
    COMMIT,
    DATA,
    DATA_HEADER,
    DATA_HEADER_BYTES,
    FIRST,
    INLINE,
    LAST,
    SEAL,
    aligned,
)
from walsync.wal.positions import LogPosition
from walsync.wal.scanner import RawEntry, Scanner, Stop
from walsync.wal.segment import Segment
from walsync.wal.storage.protocol import StorageFile

__all__ = ["LogReader", "ReadableLog"]

_IDLE_CURSORS = 4
_READ_AHEAD_BYTES = 4096


class ReadableLog(Protocol):
    """What a reader asks of the log. Every answer may be newer than the one before."""

    @property
    def readable_segments(self) -> tuple[Segment, ...]:
        """The segments, in order."""

    @property
    def readable_through(self) -> tuple[int, int]:
        """The position and the entry id up to which everything is durable."""

    @property
    def released_through(self) -> int:
        """The last entry that was released."""

    def file_of(self, segment: Segment) -> StorageFile:
        """The segment's file."""

    def path_of(self, segment: Segment) -> str:
        """What messages call it."""

    def reading_failed(self, segment: Segment, error: OSError) -> Exception:
        """What to raise when the system cannot read the segment's file."""


class _Cursor:
    """A place in the log: a scanner, and what it has read that nobody took yet."""

    __slots__ = ("entries", "index", "scanner", "segment")

    def __init__(self, scanner: Scanner, segment: Segment) -> None:
        self.scanner = scanner
        self.segment = segment
        self.entries: list[RawEntry] = []
        self.index = 0

    def reaches(self, entry_id: int) -> bool:
        """Whether the entry is among those read, or comes after them."""
        return self.scanner.next_id <= entry_id or (bool(self.entries) and self.entries[0][0] <= entry_id)

    def next_known(self) -> int:
        return self.entries[0][0] if self.entries else self.scanner.next_id

    def rewind_to(self, entry_id: int) -> None:
        entries = self.entries
        if not entries or entry_id > entries[-1][0]:
            self.index = len(entries)
            return
        # Ids are dense but for segments that were moved aside, and a list is of one segment.
        self.index = min(max(0, entry_id - entries[0][0]), len(entries))


class LogReader:
    """Reads from a `ReadableLog`. Usable from many threads at once; each iteration has a cursor of its own."""

    def __init__(self, log: ReadableLog, checksum: ChecksumFunction, seed: int) -> None:
        self._log = log
        self._checksum = checksum
        self._seed = seed
        self._idle: list[_Cursor] = []
        # Guards `_idle`.
        self._mutex = threading.Lock()

    def forget_in_child(self) -> None:
        """In a forked child: the parent's threads may have held the lock."""
        self._mutex = threading.Lock()
        self._idle = []

    # -------------------------------------------------------------------------------------------------- entries

    def entries(self, after: int, through: int | None) -> Iterator[Entry]:
        """The durable entries after `after`; see `WriteAheadLog.entries`."""
        log = self._log
        after = max(after, log.released_through)
        last = log.readable_through[1] if through is None else min(through, log.readable_through[1])
        if after >= last:
            return
        cursor = self._take_cursor(after + 1)
        expected_id = after + 1
        try:
            while True:
                entries = cursor.entries
                segment = cursor.segment
                if cursor.index < len(entries):
                    first_id = entries[cursor.index][0]
                    if first_id > expected_id:
                        self._explain_gap(expected_id, first_id)
                    expected_id = entries[-1][0] + 1
                while cursor.index < len(entries):
                    raw = entries[cursor.index]
                    entry_id = raw[0]
                    if through is not None and entry_id > through:
                        return
                    cursor.index += 1
                    if entry_id > after:
                        yield Entry(raw, segment, self)
                if not self._advance(cursor):
                    return
        finally:
            with self._mutex:
                self._idle.append(cursor)
                del self._idle[:-_IDLE_CURSORS]

    def _explain_gap(self, expected_id: int, found_id: int) -> None:
        """Entries are released, or were abandoned with their segment; there is no other way for them to go missing."""
        log = self._log
        if log.released_through >= found_id - 1 or any(segment.abandoned for segment in log.readable_segments):
            return
        first = log.readable_segments[0]
        if first.header.continues and expected_id == first.first_id == found_id - 1:
            # Its beginning was abandoned, with a segment that has been recycled since.
            return
        if log.released_through >= expected_id:
            # Some of them while this was read; the rest must be there.
            raise EntryNotFoundError(
                f"entries from {expected_id} on were released while they were read; entries up to "
                f"{log.released_through} are checkpointed. Begin again after that one"
            )
        raise DamagedLogError(
            f"entries {expected_id} to {found_id - 1} are missing from the log, and were neither released nor "
            "abandoned. Nothing was changed; close the log in every process, and look at it with `walsync verify`"
        )

    def _take_cursor(self, entry_id: int) -> _Cursor:
        segments = self._log.readable_segments
        # Segments' first ids only grow; the last segment that begins at or before the entry holds it.
        segment = segments[max(0, bisect_right([segment.first_id for segment in segments], entry_id) - 1)]
        # An entry whose fragments begin in one segment and end in the next is read from its beginning.
        index = segments.index(segment)
        while index > 0 and segments[index - 1].last_id >= entry_id:
            index -= 1
        segment = segments[index]
        with self._mutex:
            best = None
            for cursor in self._idle:
                usable = cursor.segment.sequence >= segments[0].sequence and cursor.reaches(entry_id)
                # One that the segment's beginning is behind of is no help.
                usable = usable and cursor.next_known() >= segment.first_id
                if usable and (best is None or cursor.next_known() > best.next_known()):
                    best = cursor
            if best is not None:
                self._idle.remove(best)
                best.rewind_to(entry_id)
                return best
        scanner = Scanner(self._checksum, self._seed)
        if segment.abandoned:
            scanner.skip_abandoned(segment.header)
        else:
            scanner.enter(segment.header, self._log.file_of(segment))
        return _Cursor(scanner, segment)

    def _advance(self, cursor: _Cursor) -> bool:
        """Read the next entries; False if there are no more that are durable."""
        log, scanner = self._log, cursor.scanner
        while True:
            limit, _ = log.readable_through
            try:
                entries = scanner.read(limit)
            except OSError as error:
                raise log.reading_failed(cursor.segment, error) from error
            if entries:
                cursor.entries, cursor.index = entries, 0
                return True
            if scanner.stop is Stop.LIMIT:
                return False
            if scanner.stop is Stop.SEALED:
                following = self._segment_of_sequence(cursor.segment.sequence + 1)
                if following is None:
                    if log.readable_segments[0].sequence > cursor.segment.sequence:
                        raise self._released(cursor.segment)
                    return False
                cursor.segment = following
                cursor.entries, cursor.index = [], 0
                if following.abandoned:
                    scanner.skip_abandoned(following.header)
                else:
                    scanner.enter(following.header, log.file_of(following), resume=True)
                continue
            if log.readable_segments[0].sequence > cursor.segment.sequence:
                raise self._released(cursor.segment)
            raise DamagedLogError(
                f"{log.path_of(cursor.segment)} is damaged at offset {scanner.position - cursor.segment.base}, after "
                f"entry {scanner.next_id - 1}: {scanner.reason}. It was written and synced whole; look at the disk, "
                "and restore the directory from a copy"
            )

    def _released(self, segment: Segment) -> EntryNotFoundError:
        return EntryNotFoundError(
            f"segment {segment.sequence} was released while it was read; entries up to {self._log.released_through} "
            "are checkpointed. Begin again after that one"
        )

    def _segment_of_sequence(self, sequence: int) -> Segment | None:
        segments = self._log.readable_segments
        index = sequence - segments[0].sequence
        return segments[index] if 0 <= index < len(segments) else None

    # --------------------------------------------------------------------------------------------------- chunks

    def fragments(self, position: LogPosition) -> Iterator[bytes]:
        """The fragments of the chunk that begins at `position`, each verified before it is given out."""
        frame_position, entry_id = position
        first = True
        while True:
            kind, flags, data, end, found_id = self._frame_at(frame_position, entry_id, with_data=True)
            if kind == SEAL and not first:
                frame_position = self._next_start(frame_position, entry_id)
                continue
            if found_id != entry_id or bool(flags & FIRST) != first or (kind == COMMIT and not flags & INLINE):
                raise EntryNotFoundError(f"no chunk of entry {entry_id} begins at position {frame_position}")
            yield data
            if flags & LAST:
                return
            first = False
            frame_position = end

    def chunks_of(self, first_position: int, entry_id: int) -> Iterator[bytes]:
        """The chunks of an entry, read again from its first frame on."""
        pieces: list[bytes] = []
        for _, flags, data in self._frames_of(first_position, entry_id, with_data=True):
            pieces.append(data)
            if flags & LAST:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces = []

    def positions_of(self, first_position: int, entry_id: int) -> list[int]:
        """Where the chunks of an entry lie; reads its frames' headers."""
        frames = self._frames_of(first_position, entry_id, with_data=False)
        return [position for position, flags, _ in frames if flags & FIRST]

    def _frames_of(self, position: int, entry_id: int, *, with_data: bool) -> Iterator[tuple[int, int, bytes]]:
        while True:
            kind, flags, data, end, found_id = self._frame_at(position, entry_id, with_data=with_data)
            if kind == SEAL:
                position = self._next_start(position, entry_id)
                continue
            if found_id != entry_id:
                raise EntryNotFoundError(f"the frame at position {position} does not belong to entry {entry_id}")
            if kind == DATA or flags & INLINE:
                yield position, flags, data
            if kind == COMMIT:
                return
            position = end

    def _locate(self, position: int, entry_id: int) -> Segment:
        segments = self._log.readable_segments
        limit, _ = self._log.readable_through
        index = bisect_right([segment.base for segment in segments], position) - 1
        if index < 0:
            raise EntryNotFoundError(
                f"position {position} of entry {entry_id} was released: entries up to {self._log.released_through} are "
                "checkpointed"
            )
        segment = segments[index]
        if position >= limit or segment.abandoned or position < segment.start or position % 8:
            raise EntryNotFoundError(f"no durable chunk of entry {entry_id} lies at position {position}")
        return segment

    def _next_start(self, position: int, entry_id: int) -> int:
        following = self._segment_of_sequence(self._locate(position, entry_id).sequence + 1)
        if following is None:
            raise EntryNotFoundError(f"entry {entry_id} does not go on behind position {position}")
        return following.start

    def _frame_at(self, position: int, entry_id: int, *, with_data: bool) -> tuple[int, int, bytes, int, int]:
        """`(type, flags, payload, end, entry id)` of the frame at a position."""
        segment = self._locate(position, entry_id)
        try:
            return self._read_frame(segment, position, entry_id, with_data=with_data)
        except OSError as error:
            raise self._log.reading_failed(segment, error) from error

    def _read_frame(
        self, segment: Segment, position: int, entry_id: int, *, with_data: bool
    ) -> tuple[int, int, bytes, int, int]:
        file = self._log.file_of(segment)
        offset = position - segment.base
        limit = min(segment.size, self._log.readable_through[0] - segment.base)
        block = file.pread(min(_READ_AHEAD_BYTES, limit - offset), offset)
        reason = "no whole frame lies there"
        if len(block) >= DATA_HEADER_BYTES:
            crc, kind, flags, words, found, length, _, _, payload_crc, found_id = DATA_HEADER.unpack_from(block)
            header_bytes = words * 8
            if (
                found == position
                and DATA_HEADER_BYTES <= header_bytes <= BOUNDARY_HEADER_BYTES <= len(block)
                and offset + header_bytes + length <= limit
                and self._checksum(block[4:header_bytes], self._seed) == crc
            ):
                data = b""
                if with_data:
                    data = block[header_bytes : header_bytes + length]
                    while len(data) < length:
                        more = file.pread(length - len(data), offset + header_bytes + len(data))
                        if not more:
                            break
                        data += more
                if not with_data or (len(data) == length and self._checksum(data) == payload_crc):
                    return kind, flags, data, position + header_bytes + aligned(length), found_id
                reason = "the checksum of its payload does not match"
        # Recycled in the meantime? Then it is no damage.
        self._locate(position, entry_id)
        raise DamagedLogError(
            f"{self._log.path_of(segment)} has no readable frame of entry {entry_id} at offset {offset} (position "
            f"{position}): {reason}. If the position came from this log, its bytes were durable and have changed: "
            "look at the disk"
        )

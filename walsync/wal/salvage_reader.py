"""Reading the entries of a damaged log from the runs of whole frames that were found in it.

Owns the way over the breaks between runs: what is put together, what is counted as lost, where the log ends. An entry
is given out only if every one of its frames is whole and chained to the one before it. Never writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from walsync.wal.format import (
    BOUNDARY_HEADER_BYTES,
    COMMIT,
    DATA,
    FIRST,
    FRAMES_OFFSET,
    HINT,
    INLINE,
    LAST,
    RECOVERY,
    SEAL,
    SegmentHeader,
)
from walsync.wal.pending import PendingEntry, SpilledEntry
from walsync.wal.positions import EntryId
from walsync.wal.salvage_frames import FoundFrame, FrameFinder, Run
from walsync.wal.salvage_plan import id_limits, promises_from
from walsync.wal.salvage_source import LogSource
from walsync.wal.storage.protocol import StorageFile

__all__ = ["EntryFinder", "LostBytes", "LostEntries"]

_WHOLE = FIRST | LAST | INLINE
_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class LostBytes:
    """A stretch of a file in which no whole frame lies though the log went through it."""

    file: str
    """The file's path."""
    offset: int
    """Where in the file it begins."""
    length: int
    """Its bytes."""


@dataclass(frozen=True, kw_only=True)
class LostEntries:
    """Entries, one after another, of which no whole copy was found."""

    first_id: EntryId
    """The first one."""
    last_id: EntryId
    """The last one; it may be the same."""
    certain: bool
    """False: they may never have been acknowledged, or have been released after they were applied; see `reason`."""
    reason: str
    """Why, in a sentence."""
    where: list[LostBytes] = field(default_factory=list)
    """The unreadable stretches that they may have been in. Empty: their files are not there."""


class _OpenEntry:
    """An entry whose COMMIT was not read yet. Its chunks are kept in memory up to a bound, then in a temporary file."""

    def __init__(self, frame: FoundFrame) -> None:
        self.id = frame.entry_id
        self.first_position = frame.position
        self.content = SpilledEntry(_BUFFER_BYTES)
        self.fragment_open = False

    def take(self, frame: FoundFrame) -> bool:
        """Add a fragment; False if it is out of place."""
        first = bool(frame.flags & FIRST)
        if frame.entry_id != self.id or first == self.fragment_open or frame.flags & ~(FIRST | LAST):
            return False
        if first:
            self.content.begin_chunk()
        self.content.add(memoryview(frame.payload))
        self.fragment_open = not frame.flags & LAST
        return True

    def finish(self, frame: FoundFrame) -> bool:
        """Add what COMMIT carries; False if its summary does not fit."""
        inline = frame.flags == _WHOLE
        if self.fragment_open or frame.entry_id != self.id or frame.flags not in (0, _WHOLE):
            return False
        if frame.payload and not inline:
            return False
        if inline:
            self.content.begin_chunk()
            self.content.add(memoryview(frame.payload))
        summary = (frame.first_position, frame.chunk_count, frame.entry_bytes)
        return summary == (self.first_position, len(self.content.lengths), self.content.size)


def _abandoned_ranges(headers: dict[int, SegmentHeader]) -> list[tuple[int, int]]:
    ranges = []
    for header in headers.values():
        if header.abandoned:
            following = headers.get(header.sequence + 1)
            # An entry that goes on in the next segment has lost its beginning.
            goes_on = following is not None and following.continues and not following.abandoned
            last_id = header.end_next_id - 1 + goes_on
            if last_id >= header.next_id:
                ranges.append((header.next_id, last_id))
    return sorted(ranges)


class EntryFinder:
    """Goes through the runs once. `give(id, content, version info)` is called for each entry, in order."""

    def __init__(
        self,
        source: LogSource,
        runs: list[Run],
        headers: dict[int, SegmentHeader],
        give: Callable[[int, bytes | PendingEntry, bytes | None], None],
        *,
        released_id: int | None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._source = source
        self._runs = runs
        self._headers = headers
        self._by_base = {header.base: header for header in headers.values()}
        self._give = give
        self._progress = progress
        self._released_id = released_id or 0
        checkpoint = source.checkpoint
        self._head = headers.get(checkpoint.head_sequence) if checkpoint is not None else None
        self._open: _OpenEntry | None = None
        # Where the next frame is due, its chain value, and whether that is the beginning of a segment.
        self._position: int | None = None
        self._chain = self._epoch = 0
        self._at_segment_start = False
        self._last: tuple[str, int] | None = None
        self._stretches: list[LostBytes] = []
        self._doubtful = False
        self.expected_id: int | None = None if released_id is None else released_id + 1
        """The entry that comes next."""
        self._promise = 0 if checkpoint is None else checkpoint.promise
        self.known_next_id = max(self.expected_id or 1, 1 if checkpoint is None else checkpoint.promised_id + 1)
        """Entries before this one were in the log."""
        self.lost: list[LostEntries] = []
        self.damage: list[LostBytes] = []
        self.abandoned = _abandoned_ranges(headers)
        """Entries in segments that were moved aside when the log was opened: the first and last id of each."""
        self.torn_bytes = 0
        """Whole frames behind the log's end: of commits that nobody was told of."""
        self.doubtful_id: int | None = None
        """From this entry on up to the next loss, nothing but the frames themselves says that they were durable."""

    # ------------------------------------------------------------------------------------------------- runs

    def read(self) -> None:
        """Find all entries."""
        limits, promises = id_limits(self._runs), promises_from(self._runs)
        self._start()
        for index, run in enumerate(self._runs):
            if self._is_released(run) or (self._position is not None and run.end <= self._position):
                # Or a copy of what was read.
                continue
            if not self._read_run(run, limits[index], max(self._promise, promises[index])):
                self.torn_bytes = sum(later.end - later.start for later in self._runs[index:])
                break
        self._end()

    def _start(self) -> None:
        head = self._head
        if head is None:
            return
        if head.abandoned:
            self._position, self._chain = head.end, head.end_chain
        else:
            self._position, self._chain = head.base + FRAMES_OFFSET, head.previous_chain
            if head.continues and head.next_id == self.expected_id:
                # Its beginning was moved aside, or it would be where the log begins.
                self.abandoned = sorted([*self.abandoned, (head.next_id, head.next_id)])
                self.expected_id += 1
        self._at_segment_start = True

    @property
    def ends_with_seal(self) -> bool:
        """Whether the log goes on in a segment of which nothing could be read, or never did."""
        return self._last is not None and self._at_segment_start

    def _is_released(self, run: Run) -> bool:
        if self._head is not None:
            return run.start < self._head.base
        return run.next_id_after <= self._released_id

    def _read_run(self, run: Run, limit: int | None, promise: int) -> bool:
        """False if the log ends before this run."""
        try:
            file = self._source.storage.open(run.name, read_only=True)
        except OSError:
            # It could be opened a moment ago. What is not read is counted as lost.
            return True
        try:
            return self._read_frames(run, file, limit, promise)
        finally:
            file.close()

    def _read_frames(self, run: Run, file: StorageFile, limit: int | None, promise: int) -> bool:
        source = self._source
        finder = FrameFinder(file, file.size(), frozenset([run.base]), source.checksum, source.seed)
        header = self._by_base.get(run.base)
        version_info = header.version_info if header is not None else None
        offset = run.start - run.base
        while run.base + offset < run.end:
            frame = finder.frame_at(offset)
            if not isinstance(frame, FoundFrame):
                # As above: the file is another one than a moment ago.
                break
            end = run.base + frame.end
            if run.limit is not None and end > run.limit:
                break
            offset = frame.end
            if self._position is not None and not self._at_segment_start and frame.position < self._position:
                continue
            if limit is not None and frame.next_id_after > limit:
                break
            if not self._continues(frame):
                # The rule of `recovery`: without a promise past the break, the log ended there.
                if self._position is not None and promise <= self._position:
                    return False
                if not self._only_seal_is_missing(frame):
                    self._break(run, frame)
                    self._doubtful = promise <= frame.position
            self._take(frame, version_info)
            self._position, self._chain, self._epoch = end, frame.crc, frame.epoch
            self._at_segment_start = frame.kind == SEAL
            self._last = (run.name, run.base)
            self._progress(frame.end - frame.start)
        return True

    def _continues(self, frame: FoundFrame) -> bool:
        if self._position is None:
            # Nothing says where the log begins.
            return self.expected_id is None or frame.next_id_before <= self.expected_id
        if not self._at_segment_start:
            return frame.position == self._position and frame.chain == self._chain
        if frame.start != FRAMES_OFFSET:
            return False
        place = (self._position, self._chain)
        # Over the segments that were moved aside.
        for _ in self._headers:
            if frame.chain == place[1]:
                break
            bridges = (header for header in self._headers.values() if header.abandoned)
            following = [header for header in bridges if (header.previous_end, header.previous_chain) == place]
            if not following:
                break
            place = (following[0].end, following[0].end_chain)
            self._forget_open()
        return frame.chain == place[1]

    def _only_seal_is_missing(self, frame: FoundFrame) -> bool:
        """Whether the next segment's header says that nothing but a SEAL lay between the last frame and this one."""
        header = self._by_base.get(frame.base)
        position = self._position
        if header is None or self._last is None or position is None or self._at_segment_start:
            return False
        if frame.start != FRAMES_OFFSET or frame.chain != header.previous_chain:
            return False
        if (header.previous_end - BOUNDARY_HEADER_BYTES, header.epoch) != (position, self._epoch):
            return False
        name, base = self._last
        self._stretch(name, position - base, header.previous_end - base)
        return True

    # -------------------------------------------------------------------------------------------------- gaps

    def _break(self, run: Run, frame: FoundFrame) -> None:
        """Note what lies between the last frame and this one."""
        self._forget_open()
        if self._position is not None and self._last == (run.name, run.base):
            self._stretch(run.name, self._position - run.base, frame.start)
            return
        last_base = -1
        if self._last is not None and self._position is not None:
            name, last_base = self._last
            if not self._at_segment_start:
                self._stretch(name, self._position - last_base, self._segment_end(name, last_base))
        used = {other.name for other in self._runs}
        for file in self._source.files:
            bases = file.bases
            between = bases is None or any(last_base < base < run.base for base in bases)
            if file.name not in used and between and self._segments_are_missing(last_base, run.base):
                self._stretch(file.name, FRAMES_OFFSET if bases else 0, file.size)
        if frame.start > FRAMES_OFFSET:
            self._stretch(run.name, FRAMES_OFFSET, frame.start)

    def _segments_are_missing(self, last_base: int, base: int) -> bool:
        before = self._by_base.get(last_base)
        return before is None or before.base + before.segment_bytes < base

    def _segment_end(self, name: str, base: int) -> int:
        """The offset at which a segment's frames end."""
        header = self._by_base.get(base)
        following = self._headers.get(header.sequence + 1) if header is not None else None
        if following is not None and base < following.previous_end <= following.base:
            return following.previous_end - base
        return next((file.size for file in self._source.files if file.name == name), 0)

    def _stretch(self, name: str, start: int, end: int) -> None:
        if end > start:
            lost = LostBytes(file=self._source.storage.describe(name), offset=start, length=end - start)
            self.damage.append(lost)
            self._stretches.append(lost)

    def _forget_open(self) -> None:
        if self._open is not None:
            self._open.content.close()
            self._open = None

    # ------------------------------------------------------------------------------------------------- entries

    def _take(self, frame: FoundFrame, version_info: bytes | None) -> None:
        self.known_next_id = max(self.known_next_id, frame.next_id_after)
        if frame.kind == DATA:
            if self._open is None and frame.flags & FIRST:
                self._open = _OpenEntry(frame)
            if self._open is not None and not self._open.take(frame):
                self._forget_open()
        elif frame.kind in (RECOVERY, HINT):
            self._forget_open()
        elif frame.kind == COMMIT:
            entry, self._open = self._open, None
            if entry is None:
                self._take_single(frame, version_info)
                return
            try:
                if entry.finish(frame):
                    self._emit(frame.entry_id, entry.content, version_info)
            finally:
                entry.content.close()

    def _take_single(self, frame: FoundFrame, version_info: bytes | None) -> None:
        """A COMMIT without fragments before it: a whole entry, or the end of one whose beginning is lost."""
        summary = (frame.flags, frame.chunk_count, frame.entry_bytes)
        if frame.first_position == frame.position and summary == (_WHOLE, 1, len(frame.payload)):
            self._emit(frame.entry_id, frame.payload, version_info)
        elif summary == (0, 0, 0) and not frame.payload:
            self._emit(frame.entry_id, PendingEntry([]), version_info)

    def _emit(self, entry_id: int, content: bytes | PendingEntry, version_info: bytes | None) -> None:
        expected_id = self.expected_id or 1
        if entry_id < expected_id:
            return
        if entry_id > expected_id:
            self._lose(expected_id, entry_id - 1)
        if self._doubtful and self.doubtful_id is None:
            self.doubtful_id = entry_id
        self._stretches = []
        self.expected_id = entry_id + 1
        self._give(entry_id, content, version_info)

    def _lose(self, first_id: int, last_id: int) -> None:
        certain, reason = (
            True,
            "no whole copy of them was found, and what was written after them says that they were durable",
        )
        if not self._source.checkpoint_is_newest:
            certain = False
            reason = (
                "no whole copy of them was found. What would say how far the log was released is damaged, so they may "
                "be in the target already: its watermark tells"
            )
        for begin, end in [*self.abandoned, (last_id + 1, last_id)]:
            # What was moved aside is not lost by damage.
            gap_end = min(last_id, begin - 1)
            if first_id <= gap_end:
                self.lost.append(
                    LostEntries(
                        first_id=EntryId(first_id),
                        last_id=EntryId(gap_end),
                        certain=certain,
                        reason=reason,
                        where=list(self._stretches),
                    )
                )
            first_id = max(first_id, end + 1)

    def _end(self) -> None:
        self._forget_open()
        if self._last is not None and self._position is not None and self._position < self._promise:
            # The checkpoint file knows that the log went on.
            name, base = self._last
            if not self._at_segment_start:
                self._stretch(name, self._position - base, min(self._segment_end(name, base), self._promise - base))
        if self.expected_id is not None and self.known_next_id > self.expected_id:
            self._lose(self.expected_id, self.known_next_id - 1)

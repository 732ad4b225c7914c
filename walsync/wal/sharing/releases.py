"""Releases over processes: the list of segments follows what others append and release.

Owns the lock under which the checkpoint file is written. The list is brought up to date when it is asked for, from the
headers of the segments that are new in the slot files' table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from walsync.exceptions import LogError
from walsync.wal.checkpoint_file import CheckpointFile
from walsync.wal.control_block import Record
from walsync.wal.directory import read_exactly
from walsync.wal.format import FRAMES_OFFSET, SECOND_HEADER_OFFSET, SEGMENT_HEADER_BYTES, unpack_segment_header
from walsync.wal.group_commit import GroupCommit
from walsync.wal.open_files import OpenFiles
from walsync.wal.releases import Releases
from walsync.wal.segment import Segment, slot_name
from walsync.wal.sharing.locks import TimedLock
from walsync.wal.sharing.slot_files import SharedSlotFiles
from walsync.wal.storage.protocol import Storage

__all__ = ["SegmentList", "SharedReleases"]

_LOOK_S: Final = 0.02


class SegmentList:
    """The segments in use, in order. Not for several threads at once."""

    def __init__(self, storage: Storage, files: OpenFiles, slot_files: SharedSlotFiles) -> None:
        self._storage = storage
        self._files = files
        self._slot_files = slot_files

    def followed(self, segments: tuple[Segment, ...], first: int, last: int) -> tuple[Segment, ...]:
        """The list from the segment with the sequence `first` to that with the sequence `last`.

        Raises `LogError` if a header cannot be read: then it is not the log's fault alone, and nothing was changed.
        """
        kept = [segment for segment in segments if first <= segment.sequence <= last]
        if kept and (kept[0].sequence != first or kept[-1].sequence - first + 1 != len(kept)):
            # Never a list with a hole: what is missing in it would be passed over.
            kept = []
        following = kept[-1].sequence + 1 if kept else first
        for sequence in range(following, last + 1):
            segment = self._read(sequence)
            if segment is None:
                # Released since `first` was read, or just being released: whoever asks finds nothing there either.
                kept = []
                continue
            if kept:
                _close(kept[-1], segment)
            kept.append(segment)
        return tuple(kept)

    def _read(self, sequence: int) -> Segment | None:
        number = self._slot_files.number_of(sequence)
        if number is None:
            return None
        name = slot_name(number)
        # Another file may have had the name.
        self._files.drop(name)
        try:
            area = read_exactly(self._files.get(name), FRAMES_OFFSET, 0)
        except FileNotFoundError:
            # Released and removed since the table was read.
            return None
        except OSError as error:
            raise LogError(f"{self._storage.describe(name)} cannot be read: {error}. Look at the disk") from error
        where = self._storage.describe(name)
        for offset in (0, SECOND_HEADER_OFFSET):
            header = unpack_segment_header(area[offset : offset + SEGMENT_HEADER_BYTES], where)
            if header is not None and header.sequence == sequence:
                return Segment(name, header)
        return None


def _close(segment: Segment, following: Segment) -> None:
    """What is known of a segment by the header of the one behind it."""
    header = following.header
    segment.end = header.previous_end
    segment.committed_id = header.next_id - 1
    segment.last_id = header.next_id if header.continues else header.next_id - 1


class SharedReleases(Releases):
    """Usable from many threads at once."""

    def __init__(
        self,
        storage: Storage,
        segments: list[Segment],
        checkpoint_file: CheckpointFile,
        *,
        segment_bytes: int,
        durable: Callable[[], tuple[int, int]],
        commits: GroupCommit,
        pool: SharedSlotFiles,
        files: OpenFiles,
        released: Record,
        last_sequence: Callable[[], int],
        lock: TimedLock,
    ) -> None:
        self._released = released
        self._last_sequence = last_sequence
        self._lock = lock
        self._list = SegmentList(storage, files, pool)
        self._known: tuple[Segment, ...] = ()
        super().__init__(
            storage,
            segments,
            checkpoint_file,
            segment_bytes=segment_bytes,
            durable=durable,
            commits=commits,
            pool=pool,
            files=files,
        )
        self.look_s = _LOOK_S

    # --------------------------------------------------------------------------------------------- the segments

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in use, as any process has left them."""
        known = self._known
        first, last = self._released.read()[2], self._last_sequence()
        if known and known[0].sequence == first and known[-1].sequence >= last:
            return known
        with self._segments_mutex:
            known = self._known
            if not known or known[-1].sequence < last:
                followed = self._list.followed(known, first, last)
            else:
                followed = tuple(segment for segment in known if segment.sequence >= first)
            # One that is being appended to is always there.
            if followed:
                self._known = followed
            return self._known

    @segments.setter
    def segments(self, segments: tuple[Segment, ...]) -> None:
        self._known = segments

    def add_segment(self, segment: Segment) -> None:
        """The appender of this process goes on in this segment, which is not published yet."""
        with self._segments_mutex:
            known = self._known
            if not known or known[-1].sequence != segment.sequence - 1:
                known = self._list.followed(known, self._released.read()[2], segment.sequence - 1)
            self._known = (*known, segment)

    def segment_of(self, sequence: int) -> Segment:
        """The segment with this sequence. Raises `LogError` if there is none."""
        for segment in reversed(self.segments):
            if segment.sequence == sequence:
                return segment
        raise LogError(
            f"segment {sequence} of the log in {self._storage.describe('')} is not there: its file was removed or "
            "overwritten while the log was open. Restore the directory from a copy"
        )

    def forget_after(self, sequence: int) -> None:
        """Segments behind this one were never published."""
        with self._segments_mutex:
            self._known = tuple(segment for segment in self._known if segment.sequence <= sequence)

    # --------------------------------------------------------------------------------------------- releasing

    @property
    def through(self) -> tuple[int, int]:
        """About where the released entries end, and the last of them, as any process has said."""
        position, entry_id, _, _ = self._released.read()
        return position, entry_id

    @through.setter
    def through(self, through: tuple[int, int]) -> None:
        _, last_id, head, generation = self._released.read()
        # The checkpoint slot that this process begins with may be older than what others have said.
        if through[1] > last_id:
            self._released.write(*through, head, generation)

    def release(self, through: int) -> None:
        """The durable entries up to `through` are needed no more."""
        if through <= self.through[1]:
            return
        with self._lock:
            self._catch_up()
            super().release(through)

    def record_end(self) -> None:
        """This process ends its part: whoever recovers the log finds it whole up to here, or damaged."""
        with self._lock:
            self._catch_up()
            super().record_end()
            self._say(self._released.read()[2])

    def _catch_up(self) -> None:
        if self._released.read()[3] != self._checkpoint_file.slot.generation:
            self._checkpoint_file.reload()

    def _begin_with(self, first: Segment) -> None:
        self._say(first.sequence)
        with self._segments_mutex:
            self._known = tuple(segment for segment in self._known if segment.sequence >= first.sequence)

    def _say(self, head: int) -> None:
        self._released.write(*self.through, head, self._checkpoint_file.slot.generation)

    def close(self) -> None:
        """Close the checkpoint file, and give up the lock."""
        super().close()
        self._lock.close()

    def forget_in_child(self) -> None:
        """In a forked child, where the threads that held these locks are not."""
        super().forget_in_child()
        self._lock.forget_in_child()

"""The segments in use, and how far the log is released: moves the beginning of the log as `appender` moves its end.

Owns the list of segments, the checkpoint file, and the giving back of segment files. Never reads an entry and never
writes a frame. A segment is given back only after the checkpoint slot that releases it is on stable storage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from walsync.exceptions import LogError, LogTimeoutError
from walsync.wal.checkpoint_file import CheckpointFile
from walsync.wal.group_commit import GroupCommit
from walsync.wal.open_files import OpenFiles
from walsync.wal.segment import Segment
from walsync.wal.segments import SlotFiles
from walsync.wal.storage.protocol import Storage

__all__ = ["Releases"]

LOOK_S = 1.0
"""How often a thread that waits for a release looks whether the log was closed."""


class Releases:
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
        pool: SlotFiles,
        files: OpenFiles,
    ) -> None:
        """`durable` tells the position and the entry up to which the log is durable."""
        self._storage = storage
        self._checkpoint_file = checkpoint_file
        self._segment_bytes = segment_bytes
        self._durable = durable
        self._commits = commits
        self._pool = pool
        self._files = files
        self._mutex = threading.Lock()
        """Guards the beginning of `segments`, `through`, and the checkpoint file; held while that is synced, because a
        segment may be recycled only afterwards. Order of locks: this one, then the pool's."""
        self.segments: tuple[Segment, ...] = tuple(segments)
        """Replaced as a whole; readers take the tuple as it is."""
        self._segments_mutex = threading.Lock()
        """Guards the replacing of `segments`."""
        slot = checkpoint_file.slot
        self.through = (slot.position, slot.checkpointed_id)
        """About where the released entries end, and the last of them."""
        self._changed = threading.Condition()
        """Notified when `through` moves."""
        self._waiters = 0
        self.look_s = LOOK_S

    def add_segment(self, segment: Segment) -> None:
        """The appender goes on in this segment."""
        with self._segments_mutex:
            self.segments = (*self.segments, segment)

    def release(self, through: int) -> None:
        """The durable entries up to `through` are needed no more. Recycles the segments that only held such."""
        durable_position, durable_id = self._durable()
        with self._mutex:
            if through <= self.through[1]:
                return
            position = durable_position if through == durable_id else self._position_behind(through)
            self.through = (position, through)
            self._recycle(durable_position)
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def _position_behind(self, entry_id: int) -> int:
        """About where the entry ends: between its segment's ends, by its number. Only the backlog's size needs it."""
        for segment in self.segments:
            if segment is self.segments[-1]:
                end, last_id = self._durable()
            else:
                end, last_id = segment.end, segment.committed_id
            if entry_id <= last_id:
                count = last_id - segment.first_id + 1
                done = max(0, entry_id - segment.first_id + 1)
                return segment.start + (end - segment.start) * done // max(1, count)
        return self._durable()[0]

    def _recycle(self, durable_position: int) -> None:
        position, through = self.through
        segments = self.segments
        count = 0
        for segment in segments[:-1]:
            # A sealed segment's end is durable as well: nobody writes to the file or syncs it any more.
            if segment.last_id > through or segment.end > durable_position:
                break
            count += 1
        if not count or self._commits.poison_cause is not None:
            return
        try:
            self._checkpoint_file.write(through, position, segments[count].sequence, self._durable())
        except BaseException as error:
            raise self._commits.poison(error, "write of the checkpoint file") from error
        self._begin_with(segments[count])
        reusable, useless = [], []
        for segment in segments[:count]:
            if segment.size == self._segment_bytes and not segment.abandoned:
                reusable.append(segment.name)
            else:
                self._files.drop(segment.name)
                useless.append(segment.name)
        self._pool.forget(useless)
        self._pool.give_back(reusable)
        if not self._pool.threaded:
            self._pool.trim()

    def _begin_with(self, first: Segment) -> None:
        """The segments before `first` are released, durably."""
        with self._segments_mutex:
            self.segments = tuple(segment for segment in self.segments if segment.sequence >= first.sequence)

    def wait(self, through: int, timeout_s: float, *, urge: Callable[[], None], check: Callable[[], None]) -> None:
        """Return when the entries up to `through` are released; `urge` asks for that, `check` raises if it is in vain.

        Raises `LogTimeoutError`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._waiters += 1
        try:
            urge()
            with self._changed:
                while self.through[1] < through:
                    check()
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        raise LogTimeoutError(
                            f"entries up to {through} were not checkpointed within {timeout_s} s "
                            f"(LogConfig.checkpoint_timeout_s); {self.through[1]} is. The checkpointer goes on"
                        )
                    self._changed.wait(min(left_s, self.look_s))
        finally:
            with self._changed:
                self._waiters -= 1

    def record_end(self) -> None:
        """The log is being closed: whoever opens it finds it whole up to here, or says that it is damaged."""
        with self._mutex:
            slot = self._checkpoint_file.slot
            position, through = self.through
            end = self._durable()
            if through <= slot.checkpointed_id and end[0] <= slot.promise:
                return
            try:
                self._checkpoint_file.write(through, position, self.segments[0].sequence, end)
            except OSError as error:
                raise LogError(
                    f"the checkpoint file in {self._storage.describe('')} could not be written while closing: "
                    f"{error}. Nothing is lost; entries that are applied already are handed out again after the "
                    "next opening"
                ) from error

    def close(self) -> None:
        """Close the checkpoint file."""
        self._checkpoint_file.close()

    def forget_in_child(self) -> None:
        """In a forked child, where the threads that held these locks are not."""
        self._mutex = threading.Lock()
        self._segments_mutex = threading.Lock()
        self._changed = threading.Condition()

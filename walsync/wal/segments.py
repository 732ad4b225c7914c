"""The pool of slot files: prepared ahead of need, taken into use, recycled in place.

Owns the making and removing of slot files. A file is made of real zeros, written in large pieces and synced together
with its directory before anybody gets it, in the housekeeping thread, so that a commit creates no file once a spare one
is there. Never renames a file, and never touches one that it has given out.

A full disk is an error for whoever asks for a file, and for nobody else: the pool goes on and tries again when asked.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from typing import Protocol

from walsync.exceptions import LogError, LogFullError
from walsync.wal.config import LogConfig
from walsync.wal.segment import slot_name
from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = [
    "SegmentPool",
    "SlotFiles",
    "log_is_at_its_bound",
    "make_slot_file",
    "making_failed",
    "no_segment_in_time",
    "write_all",
]

_ZEROS = bytes(128 * 1024)
"""Linux keeps what one call has written in pages of up to that size, and goes through all of such a page for each small
write into it, and for each sync. Filled in pieces of 1 MiB, a commit of 256 bytes takes 10 us longer than with 128 KiB;
filled in pieces of 16 KiB, one of 1 MiB takes 1.4 times as long."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_all(file: StorageFile, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`, however short the single writes are."""
    written = file.pwrite(data, offset)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        count = file.pwrite(view[written:], offset + written)
        if count <= 0:
            raise OSError(errno.EIO, f"the system wrote {count} of {len(view) - written} bytes")
        written += count


def make_slot_file(storage: Storage, size: int, number: int) -> str:
    """Make a slot file of real zeros, durably, and return its name."""
    name = slot_name(number)
    file = storage.create(name)
    try:
        for offset in range(0, size, len(_ZEROS)):
            write_all(file, memoryview(_ZEROS)[: min(len(_ZEROS), size - offset)], offset)
        file.sync()
        storage.sync_directory()
    except BaseException:
        # Half a file is of no use and takes the room that others need.
        with contextlib.suppress(OSError):
            storage.remove(name)
        raise
    finally:
        file.close()
    return name


def making_failed(storage: Storage, size: int, number: int, error: OSError) -> LogError:
    """What an error of `make_slot_file` is to whoever needs the file."""
    kind = LogFullError if error.errno in _FULL else LogError
    failure = kind(
        f"cannot make the segment file {storage.describe(slot_name(number))} of {size} bytes: {error}. The entry was "
        "not written and the log is well; commit again when there is room"
    )
    failure.__cause__ = error
    return failure


def log_is_at_its_bound(storage: Storage, limit: int) -> LogFullError:
    """What `LogConfig.max_log_bytes` is to whoever needs a file beyond it."""
    return LogFullError(
        f"the log in {storage.describe('')} is at its bound of {limit} bytes (LogConfig.max_log_bytes). The entry was "
        "not written; it can be committed again when entries were checkpointed"
    )


def no_segment_in_time(storage: Storage, timeout_s: float) -> LogFullError:
    """What `LogConfig.segment_timeout_s` is to whoever waited for a file."""
    return LogFullError(
        f"no segment became ready in {storage.describe('')} within {timeout_s} s (LogConfig.segment_timeout_s). The "
        "entry was not written; commit it again, or look for a disk that does not keep up"
    )


class SlotFiles(Protocol):
    """What the appender and the releases ask of a pool of slot files."""

    threaded: bool
    wake: Callable[[], None]

    @property
    def free_count(self) -> int:
        """Files that are ready to be taken."""

    @property
    def free_names(self) -> tuple[str, ...]:
        """Their names."""

    def reserve(self, count: int) -> None:
        """Return when `count` files are ready. Raises `LogFullError`."""

    def take(self, sequence: int) -> str:
        """A file that `reserve` has made sure of, for the segment with this sequence."""

    def give_back(self, names: list[str]) -> None:
        """Files whose segments are released."""

    def forget(self, names: list[str]) -> None:
        """Files whose segments are released and that nobody can use again: remove them."""

    def prepare(self) -> None:
        """Make the files that are missing and remove those that are too many."""

    def trim(self, kept: int | None = None) -> None:
        """Remove free files beyond `kept`, by default `LogConfig.max_free_segments`."""

    def close(self) -> None:
        """Whoever waits for a file stops waiting."""

    def forget_in_child(self) -> None:
        """In a forked child, where the threads that held its locks are not."""


class SegmentPool:
    """Free slot files of one log. Usable from many threads at once.

    `_changed` guards every field; it is never held during I/O. Order of locks: the appender's, then this one.
    """

    def __init__(self, storage: Storage, config: LogConfig, *, threaded: bool) -> None:
        self._storage = storage
        self._config = config
        self.threaded = threaded
        """Whether another thread calls `prepare`."""
        self._changed = threading.Condition()
        self._free: list[str] = []
        self._used = 0
        self._next_number = 1
        self._wanted = 0
        """Files that the appender waits for, or has been promised and has not taken yet."""
        self._failure: LogError | None = None
        self._closed = False
        self.wake: Callable[[], None] = lambda: None
        """Tells the housekeeping thread that there is work."""

    def adopt(self, free: list[str], used: int, next_number: int) -> None:
        """What recovery found: free files of the right size, the count of files in use, the first number never used."""
        with self._changed:
            self._free.extend(free)
            self._used = used
            self._next_number = next_number

    @property
    def free_count(self) -> int:
        """Files that are ready to be taken."""
        return len(self._free)

    @property
    def free_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._free)

    def reserve(self, count: int) -> None:
        """Return when `count` files are ready. Raises `LogFullError` if there is no room for them.

        The appender, which alone takes files, asks under its lock before it writes the first byte of an entry: an entry
        that does not fit is rejected whole.
        """
        with self._changed:
            if len(self._free) >= count:
                self._wanted = count
                return
            limit = self._config.max_log_bytes
            if limit is not None and (self._used + count) * self._config.segment_bytes > limit:
                raise log_is_at_its_bound(self._storage, limit)
            self._wanted = count
            self._failure = None
        self._wait_for(count)

    def _wait_for(self, count: int) -> None:
        if not self.threaded:
            self.prepare()
        deadline = time.monotonic() + self._config.segment_timeout_s
        self.wake()
        with self._changed:
            while len(self._free) < count:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    self._wanted = 0
                    raise failure
                left_s = deadline - time.monotonic()
                if self._closed or not self.threaded or left_s <= 0 or not self._changed.wait(left_s):
                    self._wanted = 0
                    raise no_segment_in_time(self._storage, self._config.segment_timeout_s)

    def take(self, sequence: int) -> str:
        """A file that `reserve` has made sure of, for the segment with this sequence."""
        with self._changed:
            name = self._free.pop(0)
            self._wanted = max(0, self._wanted - 1)
            self._used += 1
        self.wake()
        return name

    def give_back(self, names: list[str]) -> None:
        """Files whose segments are released. They are reused as they are; what is beyond the bound is removed."""
        with self._changed:
            self._free.extend(names)
            self._used -= len(names)
            self._changed.notify_all()
        self.wake()

    def forget(self, names: list[str]) -> None:
        """Files whose segments are released and that nobody can use again: remove them."""
        with self._changed:
            self._used -= len(names)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._storage.remove(name)

    def prepare(self) -> None:
        """Make the files that are missing and remove those that are too many. Called by one thread at a time.

        Raises nothing for a full disk: whoever waits for a file gets that error.
        """
        while True:
            with self._changed:
                target = max(self._config.preallocated_segments, self._wanted)
                missing = target - len(self._free) if not self._closed else 0
                limit = self._config.max_log_bytes
                if (
                    limit is not None
                    and (self._used + len(self._free) + 1) * self._config.segment_bytes > limit
                    and self._wanted <= len(self._free)
                ):
                    # A spare one beyond the bound would only be in the way.
                    missing = 0
                if missing <= 0 or self._failure is not None:
                    break
                number = self._next_number
                self._next_number += 1
            try:
                name = make_slot_file(self._storage, self._config.segment_bytes, number)
            except OSError as error:
                failure = making_failed(self._storage, self._config.segment_bytes, number, error)
                with self._changed:
                    self._failure = failure if self._wanted > len(self._free) else None
                    self._changed.notify_all()
                return
            with self._changed:
                self._free.append(name)
                self._changed.notify_all()
        # Far too many, after a backlog: now. A few too many, between two checkpoints: when the log is idle, or a file
        # would be removed and made again on every lap.
        self.trim(2 * self._config.max_free_segments + 2)

    def trim(self, kept: int | None = None) -> None:
        """Remove free files beyond `kept`, by default `LogConfig.max_free_segments`."""
        with self._changed:
            if kept is None:
                kept = self._config.max_free_segments
            kept = max(kept, self._config.preallocated_segments, self._wanted)
            surplus = self._free[kept:]
            del self._free[kept:]
        # Not synced: a removed file that a crash brings back is a free slot again.
        for name in surplus:
            with contextlib.suppress(OSError):
                self._storage.remove(name)

    def close(self) -> None:
        """Whoever waits for a file stops waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def forget_in_child(self) -> None:
        """In a forked child: it makes no files there."""
        self._changed = threading.Condition()
        self._closed = True

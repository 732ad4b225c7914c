"""What processes share that have one directory open: locks, and words of memory. For systems with `flock`.

Owns every call to the system that this takes. A lock is on a file of its own that is never renamed, removed or
replaced; POSIX record locks are not used, for they are lost when any descriptor of the file is closed. The kernel
releases a lock when its process ends, however it ends. The words are a mapped file, written with real zeros before it
is mapped and never truncated: a hole in it could end a process by a signal when the disk is full.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn, cast

from walsync.wal.storage.bells import bells_for
from walsync.wal.storage.protocol import SharedBells, SharedWords

__all__ = ["FileShare", "SharedFileLock"]

_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)


class SharedFileLock:
    """A lock of which this object holds nothing, a share, or all. For one thread at a time, but for `unlock`.

    `try_exclusive` raises `BlockingIOError` if others have it; `unlock` may be called by one who holds nothing. Both
    are the system's own calls, on the commit's path.
    """

    __slots__ = ("_descriptor", "path", "try_exclusive", "unlock")

    try_exclusive: Callable[[], None]
    unlock: Callable[[], None]

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        self.reopen()

    def reopen(self) -> None:
        """Hold nothing, through a descriptor of this process's own; a forked child's copy of the parent's is closed.

        Closing does not unlock while the parent has the descriptor; unlocking would.
        """
        import fcntl

        old = self._descriptor
        self._descriptor = os.open(self.path, _OPEN_FLAGS, 0o644)
        self.try_exclusive = partial(fcntl.flock, self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.unlock = partial(fcntl.flock, self._descriptor, fcntl.LOCK_UN)
        if old >= 0:
            os.close(old)

    def try_shared(self) -> bool:
        """Have a share of it, in the place of what is held; False if somebody has all of it."""
        import fcntl

        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give up what is held. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self.try_exclusive = partial(_refuse, self.path)
            self.unlock = _nothing
            os.close(descriptor)


def _refuse(path: str) -> NoReturn:
    raise OSError(errno.EBADF, "the lock was closed", path)


def _nothing() -> None:
    return


class FileShare:
    """Locks and words in one directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @staticmethod
    def is_available() -> bool:
        """Whether this system has what it takes."""
        return sys.platform != "win32"

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def lock(self, name: str) -> SharedFileLock:
        """The lock kept in the file `name`, which is made if it is missing. Nothing of it is held."""
        return SharedFileLock(self._path(name))

    def make_words(self, name: str, count: int) -> SharedWords:
        """Words, all zero, under this name. Only for one who knows that nobody uses those that had it before."""
        path = self._path(name)
        descriptor = os.open(path, _OPEN_FLAGS, 0o600)
        try:
            if os.fstat(descriptor).st_size != 8 * count:
                # Not truncated: another version's process that is about to end may have it mapped.
                os.close(descriptor)
                descriptor = -1
                os.remove(path)
                descriptor = os.open(path, _OPEN_FLAGS | os.O_EXCL, 0o600)
            # In its place where there is one: that takes no room on a full disk.
            view = memoryview(bytes(8 * count))
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return self._map(name, count)

    def map_words(self, name: str, count: int) -> SharedWords | None:
        """The words that somebody else made; None if there are none of this number."""
        try:
            return self._map(name, count)
        except (FileNotFoundError, ValueError):
            return None

    def bells(self, words: SharedWords) -> SharedBells:
        """Futexes where there are any."""
        return bells_for(words)

    def _map(self, name: str, count: int) -> SharedWords:
        descriptor = os.open(self._path(name), os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        try:
            if os.fstat(descriptor).st_size != 8 * count:
                raise ValueError("not of this size")
            mapped = mmap.mmap(descriptor, 8 * count)
        finally:
            os.close(descriptor)
        # The mapping lives as long as a view of it does.
        return cast("SharedWords", memoryview(mapped).cast("Q"))

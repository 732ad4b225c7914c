"""Locks between processes, each on a file of its own that is never renamed, removed or replaced.

Owns `FileLock`: `flock` where there is one, `msvcrt.locking` on Windows. POSIX record locks are not used: they are lost
when any descriptor of the file is closed. The kernel releases a lock when its process ends, however it ends.

A forked child shares its parent's descriptors, and a lock belongs to the descriptor: it would last as long as the child
has its copy. So it is unlocked before it is closed, and children close their copies.
"""

from __future__ import annotations

import os
import sys
import time
import weakref

__all__ = ["FileLock"]

_POLL_S = 0.02

_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()
"""Held, or being waited for."""


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class FileLock:
    """An exclusive lock that this process holds. Make one with `acquire`."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _open_locks.add(self)

    @classmethod
    def acquire(cls, path: str, timeout_s: float) -> FileLock | None:
        """The lock on `path`, waiting at most `timeout_s` for others; None if they keep it. Makes the file."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        lock = cls(path, descriptor)
        try:
            deadline = time.monotonic() + timeout_s
            while not _try_lock(descriptor):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    lock.forget_in_child()
                    return None
                time.sleep(min(_POLL_S, left_s))
        except BaseException:
            lock.forget_in_child()
            raise
        return lock

    def release(self) -> None:
        """Let others have it. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if sys.platform == "win32":
                import msvcrt

                os.lseek(descriptor, 0, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def forget_in_child(self) -> None:
        """Close the descriptor without unlocking: in a forked child, what the parent still holds."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _after_fork_in_child() -> None:
    for lock in list(_open_locks):
        lock.forget_in_child()
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Locks between processes, each on a file of its own that is never renamed, removed or replaced.

Owns `FileLock`: `flock` where there is one, `msvcrt.locking` on Windows. POSIX record locks are not used: they are lost
when any descriptor of the file is closed. The kernel releases a lock when its process ends, however it ends.

One process has a directory at a time; the name of the lock says what it guards, so that sharing a directory can add
locks beside it.
"""

from __future__ import annotations

import os
import sys
import time

__all__ = ["FileLock"]

_POLL_S = 0.02


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

    @classmethod
    def acquire(cls, path: str, timeout_s: float) -> FileLock | None:
        """The lock on `path`, waiting at most `timeout_s` for others; None if they keep it. Makes the file."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            deadline = time.monotonic() + timeout_s
            while not _try_lock(descriptor):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    os.close(descriptor)
                    return None
                time.sleep(min(_POLL_S, left_s))
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def release(self) -> None:
        """Let others have it. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if sys.platform == "win32":
                import msvcrt

                os.lseek(descriptor, 0, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
            os.close(descriptor)

    def forget_in_child(self) -> None:
        """In a forked child: close the copy, without unlocking what the parent still holds."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

"""Locks among the threads of this process and all others, with a bound on the wait."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Final

from walsync.exceptions import LogError, LogTimeoutError
from walsync.wal.storage.protocol import SharedLock

__all__ = ["ProcessLease", "TimedLock", "give_way", "locking_failed", "wait_for"]

_FIRST_PAUSE_S: Final = 0.00005
_LONGEST_PAUSE_S: Final = 0.005


def give_way() -> None:
    """Let somebody else have the processor, if anybody wants it."""
    time.sleep(0)


if hasattr(os, "sched_yield"):
    give_way = os.sched_yield


def wait_for(lock: SharedLock, timeout_s: float, longest_pause_s: float = _LONGEST_PAUSE_S) -> bool:
    """Take all of a lock that others may have, and look again and again if they do. False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            lock.try_exclusive()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        except OSError as error:
            raise locking_failed(error) from error
        else:
            return True
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, longest_pause_s)


def locking_failed(error: OSError) -> LogError:
    """What it is to its caller that the system does not lock or unlock."""
    return LogError(
        f"a lock of the log cannot be taken or given back: {error}. Nothing was written under it; look at the disk and "
        "at the system's limits, then repeat this"
    )


class TimedLock:
    """A lock to be held for a while: not on a commit's path. `what` is what its holder does, for messages."""

    def __init__(self, shared: SharedLock, timeout_s: float, what: str) -> None:
        self._mutex = threading.Lock()
        self._shared = shared
        self._timeout_s = timeout_s
        self._what = what

    def try_acquire(self) -> bool:
        """Take it if it is free."""
        if not self._mutex.acquire(False):
            return False
        try:
            self._shared.try_exclusive()
        except BlockingIOError:
            self._mutex.release()
            return False
        except OSError as error:
            self._mutex.release()
            raise locking_failed(error) from error
        except BaseException:
            self._mutex.release()
            raise
        return True

    def acquire(self, timeout_s: float) -> bool:
        """Take it; False if others keep it for `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        if not self._mutex.acquire(timeout=timeout_s):
            return False
        try:
            taken = wait_for(self._shared, max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._mutex.release()
            raise
        if not taken:
            self._mutex.release()
        return taken

    def release(self) -> None:
        """Let others have it."""
        try:
            self._shared.unlock()
        except OSError as error:
            raise locking_failed(error) from error
        finally:
            self._mutex.release()

    def __enter__(self) -> None:
        if not self.acquire(self._timeout_s):
            raise LogTimeoutError(
                f"another process did not finish {self._what} within {self._timeout_s} s. Look whether one that has "
                "the log open was stopped, or waits for its disk; then repeat this"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def close(self) -> None:
        """Give it up for good."""
        self._shared.close()

    def forget_in_child(self) -> None:
        """In a forked child: it is not held, whatever the parent's threads did."""
        self._mutex = threading.Lock()
        self._shared.reopen()


class ProcessLease:
    """The applier's lease, held from `try_acquire` to `release` or to the process's end. Thread-safe."""

    def __init__(self, shared: SharedLock) -> None:
        self._mutex = threading.Lock()  # guards `held`; the system calls under it do not wait
        self._shared = shared
        self.held = False

    def try_acquire(self) -> bool:
        """Have it, if nobody else does."""
        with self._mutex:
            if not self.held:
                try:
                    self._shared.try_exclusive()
                except BlockingIOError:
                    return False
                except OSError as error:
                    raise locking_failed(error) from error
                self.held = True
        return True

    def release(self) -> None:
        """Let others have it. May be called twice."""
        with self._mutex:
            if self.held:
                self.held = False
                self._shared.unlock()

    def close(self) -> None:
        """Give it up for good."""
        with self._mutex:
            self.held = False
            self._shared.close()

    def forget_in_child(self) -> None:
        """In a forked child: it stays the parent's."""
        self._mutex = threading.Lock()
        self.held = False
        self._shared.reopen()

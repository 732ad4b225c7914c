"""How a process wakes another that waits for a word of memory that they share.

On Linux by futexes (futex(2); Franke, Russell and Kirkwood, "Fuss, Futexes and Furwocks", 2002): who waits sleeps in
the kernel until the word is rung, and is awake some microseconds later. Elsewhere, and where the kernel refuses, who
waits sleeps for the time it gives and nobody can wake it: a bell may always be missed, and whoever waits for one has to
look again after a while. So neither kind needs to know whether the other process lives.
"""

from __future__ import annotations

import platform
import sys
import time
from types import BuiltinFunctionType
from typing import Any, Final

from walsync.wal.storage.protocol import SharedBells, SharedWords

__all__ = ["FutexBells", "PausingBells", "SleepingBells", "bells_for"]

_FUTEX_CALL: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221}
"""The number of the call, on machines of 64 bits on which a word's lower half comes first."""
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
_HALF_MASK: Final = 0xFFFFFFFF
_EAGAIN: Final = 11


class PausingBells:
    """Nobody is woken: who waits looks again after its time."""

    wakes: Final = False

    def wait(self, index: int, seen: int, timeout_s: float) -> None:
        """Sleep for the whole time."""
        time.sleep(timeout_s)

    def ring(self, index: int) -> None:
        """Does nothing: the word itself says it."""


class SleepingBells(PausingBells):
    """Wakes others, and sleeps itself as Python's `time.sleep` does.

    For a process in which a library has put switches of its own in the place of threads (gevent, eventlet): who slept
    in the kernel would keep all others from running, and that library's `sleep` does not.
    """

    def __init__(self, bells: SharedBells) -> None:
        self._bells = bells

    def ring(self, index: int) -> None:
        """Wake one who waits for the word."""
        self._bells.ring(index)


class FutexBells:
    """Waits in the kernel. Any number of threads and processes may wait for one word, or ring it."""

    wakes: Final = True

    def __init__(self, words: SharedWords, call_number: int) -> None:
        """Raises `OSError` where the kernel does not allow it, `ImportError` where Python has no ctypes."""
        import ctypes

        class _Time(ctypes.Structure):
            _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

        # Waiting lets this process's other threads run; ringing takes less time than that does.
        self._call_waiting: Any = ctypes.CDLL(None, use_errno=True).syscall
        self._call: Any = ctypes.PyDLL(None).syscall
        for call in (self._call_waiting, self._call):
            call.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
        self._number = call_number
        self._time = _Time
        self._address_of = ctypes.addressof
        # Keeps the memory mapped for as long as this object lives.
        self._mapped = ctypes.c_char.from_buffer(words)  # type: ignore[arg-type]
        self._address = ctypes.addressof(self._mapped)
        self._last: tuple[float, Any, int] = (-1.0, None, 0)
        """A time to wait, as the system takes it, and its address. Replaced whole: any thread may."""
        ctypes.set_errno(0)
        self.wait(0, words[0] + 1, 0.001)
        if ctypes.get_errno() != _EAGAIN:
            raise OSError(ctypes.get_errno(), "futex(2) is not to be had")

    def wait(self, index: int, seen: int, timeout_s: float) -> None:
        """Sleep until the word is rung or the time is over; not at all if it is no longer what was seen."""
        last = self._last
        if last[0] != timeout_s:
            seconds = int(timeout_s)
            time_ = self._time(seconds, int((timeout_s - seconds) * 1e9))
            last = self._last = (timeout_s, time_, self._address_of(time_))
        self._call_waiting(self._number, self._address + 8 * index, _FUTEX_WAIT, seen & _HALF_MASK, last[2])

    def ring(self, index: int) -> None:
        """Wake one who waits for the word."""
        self._call(self._number, self._address + 8 * index, _FUTEX_WAKE, 1, None)


def bells_for(words: SharedWords) -> SharedBells:
    """The best kind that this system has, and this process can use."""
    bells = _bells_for(words)
    return bells if isinstance(time.sleep, BuiltinFunctionType) else SleepingBells(bells)


def _bells_for(words: SharedWords) -> SharedBells:
    number = _FUTEX_CALL.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None
    if number is None:
        return PausingBells()
    try:
        return FutexBells(words, number)
    except (ImportError, OSError, AttributeError):
        return PausingBells()

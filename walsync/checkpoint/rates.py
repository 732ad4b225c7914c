"""How fast a counter has grown lately. Pure but for the clock, which is handed in.

The window is cut into slots; of each slot in which the counter moved, its last value is kept. So noting a value costs a
division and a comparison, memory is bounded by the number of slots, and a rate is exact to one slot: after a window
without any growth it is 0.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["RateMeter", "WINDOW_S"]

WINDOW_S: Final = 10.0
"""The window of the rates that `Journal.stats()` and the checkpointer's status tell, in seconds."""

_SLOTS: Final = 20


class RateMeter:
    """The growth of one counter, which never falls. Several threads may call `note`: the highest value counts."""

    __slots__ = ("_clock", "_first", "_noted", "_slot_s", "_started", "window_s")

    def __init__(
        self, total: int = 0, *, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.window_s = window_s
        self._clock = clock
        self._slot_s = window_s / _SLOTS
        self._started = clock()
        self._first = total
        # (slot, value at its end), a tuple that is replaced whole: at worst two threads note nearly the same.
        self._noted: deque[tuple[int, int]] = deque(maxlen=_SLOTS + 2)

    def note(self, total: int, at: float | None = None) -> None:
        """The counter was at `total` at this time of its clock, not before the last one noted; None: now."""
        slot = int(((self._clock() if at is None else at) - self._started) / self._slot_s)
        noted = self._noted
        if noted and noted[-1][0] >= slot:
            if noted[-1][1] < total:
                noted[-1] = (noted[-1][0], total)
        else:
            noted.append((slot, total))

    def slot_end(self, at: float) -> float:
        """When the slot ends in which this time lies: of all values until then the last one is enough to note."""
        return self._started + (int((at - self._started) / self._slot_s) + 1) * self._slot_s

    def per_second(self) -> float:
        """The growth within the window that ends now; of a younger counter, since it began."""
        elapsed = self._clock() - self._started
        noted = list(self._noted)
        if not noted:
            return 0.0
        now = int(elapsed / self._slot_s)
        before = self._first
        for slot, total in noted:
            if slot > now - _SLOTS:
                break
            before = total
        # The current slot is not over: the window is the slots before it, and what there is of it.
        start = max(0, now - _SLOTS + 1) * self._slot_s
        return max(0, noted[-1][1] - before) / max(elapsed - start, self._slot_s)

"""Who wants to hear of syncs: threads that wait for other threads' entries, and a call that is due after the next one.

Owns who waits, and a flag that whoever has synced looks at without a lock. Who begins to wait sets the flag before it
looks whether it has to, so none of the two misses the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["SyncWatch"]


class SyncWatch:
    """Thread-safe."""

    def __init__(self) -> None:
        self.is_wanted = False
        """Whether `tell` is to be called after the next sync. Read without a lock."""
        self._changed = threading.Condition()
        """Guards what follows, and the setting of `is_wanted`."""
        self._waiting = 0
        self._wakes = 0
        self._callback: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        return self._waiting

    @property
    def has_callback(self) -> bool:
        """Whether a call is due after the next sync."""
        return self._callback is not None

    def wait(self, look: Callable[[], bool | float | None]) -> bool:
        """Ask `look` until it answers True or False, and return that; False as well once `wake` is called.

        It is asked at once, after each `tell` and `notify`, and after as many seconds as it answers; None: no bound. It
        is called with a lock held and must not wait; what it raises is raised here.
        """
        with self._changed:
            wakes = self._wakes
            self._waiting += 1
            self.is_wanted = True
            try:
                while True:
                    answer = look()
                    if answer is True or answer is False:
                        return answer
                    if self._wakes != wakes:
                        return False
                    self._changed.wait(answer)
            finally:
                self._waiting -= 1
                self._settle()

    def call_after_next(self, callback: Callable[[], None]) -> None:
        """Call this once, after the next sync, in the thread that made it."""
        with self._changed:
            self._callback = callback
            self.is_wanted = True

    def tell(self) -> None:
        """There was a sync."""
        with self._changed:
            callback, self._callback = self._callback, None
            self._settle()
            self._changed.notify_all()
        if callback is not None:
            callback()

    def _settle(self) -> None:
        self.is_wanted = self._waiting > 0 or self._callback is not None

    def notify(self) -> None:
        """All that wait look again."""
        with self._changed:
            self._changed.notify_all()

    def wake(self) -> None:
        """Every `wait` returns."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

"""Waking the process that applies, when another one begins to wait for an entry to be applied.

Who applies waits for entries to become durable: it hears at once of its own process's, and looks now and then for those
of others, the more rarely the longer nothing came. A read in another process that has to see what was just committed
there would wait for that look. So it rings, and who applies has a thread that does nothing but hear it; from the first
time on that anybody rang, for a process that is alone needs none.

A bell may be missed, and where nobody can be woken (`SharedBells.wakes`) nobody hears it: the looks remain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from walsync.wal.control_block import URGED, WORD_MASK
from walsync.wal.storage.protocol import SharedBells, SharedWords

__all__ = ["Urging"]

_LONGEST_WAIT_S: Final = 5.0
_RETRY_S: Final = 0.005
_STOP_S: Final = 5.0


class Urging:
    """Thread-safe.

    `applies`: whether this process is the one that applies. `wake` makes everybody return who waits in this process for
    entries to become durable, `notify` makes them look again.
    """

    def __init__(
        self,
        words: SharedWords,
        bells: SharedBells,
        *,
        applies: Callable[[], bool],
        wake: Callable[[], None],
        notify: Callable[[], None],
    ) -> None:
        self._words = words
        self._bells = bells
        self._applies = applies
        self._wake = wake
        self._notify = notify
        self.forget_in_child()

    def forget_in_child(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._lock = threading.Lock()  # guards `_thread`; starting one is all that is done under it
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._seen = self._words[URGED]

    def urge(self) -> None:
        """Somebody waits here for an entry to be applied: wake who applies, wherever that is. Does not wait."""
        self._wake()
        if not self._applies():
            self._ring()

    def _ring(self) -> None:
        words = self._words
        # Of two who do it at once, both make it the same: it is another one than it was.
        words[URGED] = (words[URGED] + 1) & WORD_MASK
        self._bells.ring(URGED)

    def attend(self) -> None:
        """Called by who is about to wait for entries: from now on hear of others' urging, if there ever was any."""
        heard = self._words[URGED]
        if heard == self._seen or not self._bells.wakes or not self._applies():
            return
        with self._lock:
            if self._stopping or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._run, args=(heard,), name="walsync-urging", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # The system has no more threads, or the interpreter ends: who looks sees it as well.
                self._thread = None

    def _run(self, heard: int) -> None:
        """`heard`: what the word was before who waits looks for what there is to do."""
        words, bells = self._words, self._bells
        while not self._stopping:
            bells.wait(URGED, heard, _LONGEST_WAIT_S)
            if words[URGED] == heard:
                continue
            heard = words[URGED]
            if not self._applies():
                # Another process does by now, and it is that one who should have been woken.
                bells.ring(URGED)
                return
            self._notify()

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        if thread is None:
            return
        deadline = time.monotonic() + _STOP_S
        while thread.is_alive() and time.monotonic() < deadline:
            # It may be another process's thread that this wakes.
            self._ring()
            thread.join(_RETRY_S)

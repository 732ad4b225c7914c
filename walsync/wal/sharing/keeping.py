"""Whether a process keeps the log's locks between its commits, while no other process wants them.

Most logs are written by one process at a time, though others may come. Then a good part of what a commit costs beside
its sync is to take two locks of the system and to give them back. So a process that commits again and again, and whose
locks nobody has wanted for a while, does not give them back. Everything else it does and publishes as before: one that
dies with them leaves what it would have left in the middle of a commit, and the kernel gives them to the next one.
(Reserved or biased locks are the same idea: Kawachiya, Koseki and Onodera, "Lock Reservation", OOPSLA 2002.)

Whoever finds a lock taken says so in the control block, and rings. Who keeps the locks hears that in a thread of its
own, or sees it at the end of a commit, and gives them back at once; and keeps none before a thousand of its syncs have
gone by in which nobody wanted one. Who has not synced for `LogConfig.keep_s` gives them back as well: a process that is
idle holds nothing. Where nobody can be woken (`SharedBells.wakes`) nothing is kept.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from walsync.wal.appender import Appender
from walsync.wal.control_block import DURABLE, KEPT, WANTED, WORD_MASK
from walsync.wal.storage.protocol import SharedBells, SharedLock, SharedWords

__all__ = ["Keeping"]

_FIRST_SYNCS: Final = 8
_QUIET_SYNCS: Final = 1000
"""So many syncs in which nobody wants a lock come before it is kept: after the opening, and after somebody did."""
_RETRY_S: Final = 0.0005
_STOP_S: Final = 5.0


class Keeping:
    """Both locks of a process that has the log open: the append lock and the sync lock.

    `is_on`: the process has both of them, whether one of its threads uses them or nobody does. It becomes true for the
    thread that leads, which has the sync lock. It becomes false under the appender's lock, and either for the thread
    that leads or while none does; so it stays as it is for whoever writes, and for whoever syncs.
    """

    def __init__(
        self,
        words: SharedWords,
        bells: SharedBells,
        append_lock: SharedLock,
        sync_lock: SharedLock,
        appender: Appender,
        keep_s: float,
    ) -> None:
        self._words = words
        self._bells = bells
        self._append_lock = append_lock
        self._sync_lock = sync_lock
        self._appender = appender
        self._keep_s = keep_s
        self._keep_ns = int(keep_s * 1e9) if bells.wakes else 0
        self.is_on = False
        self.seen = words[WANTED]
        """What the word WANTED was when somebody last wanted a lock."""
        self._patience = _FIRST_SYNCS
        self._last_ns = 0
        self._is_due = False
        self.while_nobody_leads: Callable[[Callable[[], None]], bool] | None = None
        """Calls what it is given if no thread of this process leads, and keeps all from it meanwhile."""
        self._stopping = threading.Event()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """Say that another process has a lock that is wanted here."""
        words = self._words
        words[WANTED] = (words[WANTED] + 1) & WORD_MASK
        if words[KEPT]:
            self._bells.ring(WANTED)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody wants a lock since these were kept."""
        return self._words[WANTED] != self.seen  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------- for the thread that leads

    def note_sync(self, began_ns: int) -> None:
        """A sync begins, at this monotonic time; the locks are not kept. Decides whether they are after it."""
        words = self._words
        last_ns, self._last_ns = self._last_ns, began_ns
        if words[KEPT]:
            # Whoever kept them has died.
            words[KEPT] = 0
        if words[WANTED] != self.seen:
            self.seen = words[WANTED]
            self._patience = _QUIET_SYNCS
        elif self._patience:
            self._patience -= 1
        else:
            self._is_due = began_ns - last_ns < self._keep_ns

    def keep_or_release(self) -> None:
        """Give the sync lock back; or keep it, and the append lock as well."""
        if not self._is_due:
            self._sync_lock.unlock()
            return
        self._is_due = False
        try:
            self._keep()
        finally:
            if not self.is_on:
                self._sync_lock.unlock()

    def _keep(self) -> None:
        lock = self._appender.lock
        if lock.locked() or not self._has_thread():
            # There is always a next time.
            return
        with lock:
            try:
                # Not because it is not had: who releases it after an interrupt does not know that.
                self._sync_lock.try_exclusive()
                self._append_lock.try_exclusive()
            except OSError:
                return
            try:
                self._words[KEPT] = 1
                self.is_on = True
                self._begun.set()
            except BaseException:
                self.is_on = False
                raise
            finally:
                if not self.is_on:
                    self._append_lock.unlock()

    def let_go(self) -> None:
        """Give both back."""
        with self._appender.lock:
            self._give_back()

    # ------------------------------------------------------------------------------------------------- the thread

    def _give_back(self) -> None:
        if not self.is_on:
            return
        words = self._words
        wanted = words[WANTED]
        self._patience = _QUIET_SYNCS if wanted != self.seen else 0
        self.seen = wanted
        words[KEPT] = 0
        self.is_on = False
        # What a system that does not unlock means is told to whoever takes the lock next, here or elsewhere.
        with contextlib.suppress(OSError):
            self._append_lock.unlock()
        with contextlib.suppress(OSError):
            self._sync_lock.unlock()

    def _has_thread(self) -> bool:
        if self._thread is None and not self._stopping.is_set():
            thread = threading.Thread(target=self._run, name="walsync-locks", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system has no more, or the interpreter ends.
                self._keep_ns = 0
                return False
            self._thread = thread
        return not self._stopping.is_set()

    def _run(self) -> None:
        words, bells = self._words, self._bells
        while not self._stopping.is_set():
            self._begun.wait()
            self._begun.clear()
            while self.is_on:
                durable = words[DURABLE]
                bells.wait(WANTED, self.seen, self._keep_s)
                if words[DURABLE] == durable or self._is_to_end():
                    self._let_go_when_nobody_leads()

    def _is_to_end(self) -> bool:
        return self._stopping.is_set() or self.is_wanted

    def _let_go_when_nobody_leads(self) -> None:
        assert self.while_nobody_leads is not None
        while self.is_on:
            with self._appender.lock:
                # Who leads gives them back at the end of it, if they are wanted.
                done = self.while_nobody_leads(self._give_back)
            if not done:
                if not self._is_to_end():
                    return
                time.sleep(_RETRY_S)

    def stop(self) -> None:
        """Keep nothing any more. For the end, when nobody commits."""
        self._stopping.set()
        self._begun.set()
        if self._thread is not None:
            if self.is_on:
                self.want()
            self._thread.join(_STOP_S)

    def forget_in_child(self) -> None:
        """In a forked child: the parent has them."""
        self.is_on = self._is_due = False
        self._stopping = threading.Event()
        self._patience = _FIRST_SYNCS
        self._begun = threading.Event()
        self._thread = None

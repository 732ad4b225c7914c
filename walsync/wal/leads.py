"""Who leads and who waits, of the threads of one process: the lead is given from one thread to the next.

Owns who syncs, who waits, what is queued, and why nothing is committed any more. Never writes a frame itself: that is
`appender`.

The first thread that wants its entry durable leads: it writes what others have queued, syncs without the append lock,
publishes, and hands the lead to the first of those whose entries came too late. Every waiter has a lock of its own, so
that exactly the threads whose entries are durable wake up; and they do so one after the other, each woken by the one
before it: woken all at once, they would only be put to sleep again by the interpreter's lock, for which the next leader
would then wait among them. A thread that meets nobody, but was served together with others, waits a moment for their
entries (`siblings`).

The lead is given up in `finally`. An error of a write or a sync poisons the log and reaches every waiter; an entry that
is merely rejected (`LogFullError`) reaches its own caller alone. Nothing is ever synced a second time after a failure.
"""

from __future__ import annotations

import contextlib
import threading
import time
from _thread import LockType, allocate_lock
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import NoReturn

from walsync.exceptions import LogError, LogPoisonedError, WalsyncError
from walsync.wal.appender import Appender
from walsync.wal.control_block import Words
from walsync.wal.pending import PendingEntry
from walsync.wal.siblings import Siblings
from walsync.wal.sync_watch import SyncWatch

__all__ = ["Leads", "Waiter", "chunks_of"]


class Waiter:
    """A thread that waits for its entry. `entry_id` is 0 until it is written. The lock is taken from the beginning.

    `after`: whom it is to wake when it is woken itself. `is_woken`: its lock is free, or is about to be. `is_gone`:
    its thread does not wait any more.
    """

    __slots__ = ("after", "entry_id", "error", "is_gone", "is_woken", "lock", "places", "work")

    def __init__(self, work: bytes | PendingEntry | None, entry_id: int, places: tuple[int, ...] = ()) -> None:
        self.work = work
        self.places = places
        self.entry_id = entry_id
        self.error: BaseException | None = None
        self.after: Waiter | None = None
        self.is_woken = self.is_gone = False
        self.lock: LockType = allocate_lock()
        self.lock.acquire()


def chunks_of(waiters: list[Waiter]) -> list[bytes]:
    """Their entries, up to the first that is not a single chunk."""
    chunks = []
    for waiter in waiters:
        work = waiter.work
        if type(work) is not bytes:
            break
        chunks.append(work)
    return chunks


class Leads:
    """The threads of this process, of which one at a time leads."""

    def __init__(self, appender: Appender, words: Words, gather_s: float) -> None:
        """`gather_s`: see `LogConfig`."""
        self._appender = appender
        self._words = words
        self.at_tail: AbstractContextManager[object] = contextlib.nullcontext()
        """What is entered behind the append lock, where other processes write to the log as well."""
        self._append_lock = appender.lock
        self._mutex = allocate_lock()
        """Guards `_leader`, `_waiting`, `_queue`, `_siblings` and who wakes whom; held for a few instructions and never
        during I/O. Nothing else is locked under it."""
        self._leader: object | None = None
        """Who leads: a thread's `Waiter`, or an object of its own."""
        self._waiting: list[Waiter] = []
        self._queue: list[Waiter] = []
        self._siblings = Siblings(gather_s)
        self.refusal: BaseException | None = None
        """Why nothing is committed any more."""
        self.poison_cause: BaseException | None = None
        self.sync_count = 0
        self.watch = SyncWatch()
        """Who wants to hear of syncs."""

    # ---------------------------------------------------------------------------------------------- leading and waiting

    def _serve(self, waiter: Waiter, *, queued: bool) -> int:
        """Lead, or wait until somebody has; returns the entry's id when it is durable, or raises what befell it.

        `queued`: the entry is not written yet, and the next leader is to write it.
        """
        patience_s = 0.0
        try:
            with self._mutex:
                if queued:
                    self._queue.append(waiter)
                    if self._leader is None and self._siblings.expected > 1:
                        patience_s = self._siblings.patience_s(len(self._queue))
                if self._leader is None and not patience_s:
                    self._leader = waiter
                else:
                    self._waiting.append(waiter)
            if self._leader is not waiter:
                if not patience_s:
                    waiter.lock.acquire()
                elif not waiter.lock.acquire(True, patience_s):
                    self._lead_or_wait(waiter)
                if waiter.after is not None:
                    self._wake_next(waiter)
            if self._leader is waiter:
                self._lead(waiter, waiter)
        except BaseException:
            # A signal's handler raised in this thread. The lead may have been given to it in this moment.
            with self._mutex:
                leads = self._leader is waiter
                if not leads and waiter in self._waiting:
                    self._waiting.remove(waiter)
                if not leads and waiter in self._queue:
                    self._queue.remove(waiter)
                waiter.is_gone = True
            if waiter.is_woken:
                self._wake_next(waiter)
            if leads:
                self._lead_on(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.entry_id

    def _lead_or_wait(self, waiter: Waiter) -> None:
        """Nobody has woken one that waited for others, in time: take the lead, or wait for who has it."""
        with self._mutex:
            if self._leader is None and waiter in self._waiting:
                self._siblings.did_not_come()
                self._waiting.remove(waiter)
                self._leader = waiter
                return
        waiter.lock.acquire()

    def _wake_next(self, waiter: Waiter) -> None:
        """Wake the next one whom the same sync has served. May be begun again after an interrupt in its middle."""
        with self._mutex:
            following = waiter.after
            while following is not None and following.is_gone:
                following = following.after
            if following is not None:
                # Not contextlib.suppress: that is three calls, while all that were served wait for the next one.
                try:
                    following.lock.release()
                except RuntimeError:
                    pass
                following.is_woken = True
            waiter.after = None

    # --------------------------------------------------------------------------------------------------------- the lead

    def _lead(self, lead: object, own: Waiter | None, work: Callable[[], tuple[int, int] | None] | None = None) -> None:
        """Write the queue, sync, publish, wake, hand over. Errors go to the waiters; only an interrupt is raised.

        `work`: what to do in place of `_write_and_sync`.
        """
        target: tuple[int, int] | None = None
        failure: BaseException | None = None
        interrupt: BaseException | None = None
        began_s = time.monotonic()
        try:
            target = (work or self._write_and_sync)()
        except LogError as error:
            # Another process has the lock for too long, or has poisoned the log: nothing was tried here.
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody knows what is on the disk now
            failure = self.poison(error, "sync")
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            failure, interrupt = self._interrupted_sync(error), error
        if failure is None and self.poison_cause is not None:
            failure, target = self.refusal, None
        self._siblings.note_sync(time.monotonic() - began_s)
        self._end_lead(lead, target, failure, own)
        if interrupt is not None:
            raise interrupt

    def _lead_on(self, lead: object) -> None:
        """After an exception out of the middle of a lead: do what is left of it, so that nobody waits for ever."""
        if self._leader is lead:
            self._lead(lead, lead if isinstance(lead, Waiter) else None)

    def _write_and_sync(self) -> tuple[int, int] | None:
        """Write the queue, make durable what is written, and return how far that is; None if the log is poisoned."""
        if self._queue:
            self._write_queue()
        return self._sync_written()

    def _sync_written(self) -> tuple[int, int] | None:
        """Make durable what is written, without the append lock; returns how far that is, or None if it is unknown."""
        if self.poison_cause is not None:
            return None
        # While the log is being closed, another sync may have covered everything, and the files are gone.
        appender = self._appender
        return appender.durable if appender.written == appender.durable else appender.sync()

    def _interrupted_sync(self, error: BaseException) -> BaseException | None:
        """A signal's handler raised during a sync, whose outcome nobody will know."""
        return self.poison(error, "sync")

    def _end_lead(
        self, lead: object, target: tuple[int, int] | None, failure: BaseException | None, own: Waiter | None
    ) -> None:
        """Publish what is durable now, give the lead to the next, and wake whom that serves."""
        due: list[Waiter] = []
        try:
            self._publish(lead, target, failure, own, due)
            for waiter in due:
                waiter.lock.release()
        except BaseException:
            # A signal's handler raised. What was begun is finished; doing a part of it twice does no harm.
            self._publish(lead, target, failure, own, due)
            for waiter in due:
                with contextlib.suppress(RuntimeError):
                    waiter.lock.release()
            raise
        if self.watch.is_wanted:
            self.watch.tell()

    def _publish(
        self,
        lead: object,
        target: tuple[int, int] | None,
        failure: BaseException | None,
        own: Waiter | None,
        due: list[Waiter],
    ) -> None:
        """Make everybody's state what it is after this lead, and add to `due` whom to wake. Does nothing twice.

        After a failure that is everybody; otherwise the next leader, and the first of those who are served.
        """
        with self._mutex:
            if self._leader is not lead:
                return
            waiting = self._waiting
            if failure is not None:
                if own is not None and own.error is None:
                    own.error = failure
                for waiter in waiting:
                    waiter.error = waiter.error or failure
                due += waiting
                self._waiting, self._queue, self._leader = [], [], None
                return
            if target is not None:
                self._appender.durable = target
                self.sync_count += 1
            durable_id = self._appender.durable[1]
            rest = [waiter for waiter in waiting if waiter.error is None and not 0 < waiter.entry_id <= durable_id]
            served = [waiter for waiter in waiting if waiter.error is not None or 0 < waiter.entry_id <= durable_id]
            self._siblings.were_served(1 + len(served))
            for waiter, following in pairwise(served):
                waiter.after = following
            # The next leader first: its sync runs while the others wake each other.
            for waiter in (*rest[:1], *served[:1]):
                waiter.is_woken = True
                due.append(waiter)
            self._waiting, self._leader = rest[1:], rest[0] if rest else None

    # --------------------------------------------------------------------------------------------------- what is queued

    def _write_queue(self) -> None:
        """Write what others have queued, in their order, and as much of it at once as can be."""
        # The write gives the entries their places, so it is under the lock.
        with self._append_lock:
            with self._mutex:
                queue, self._queue = self._queue, []
            self._write_all(queue)

    def _write_all(self, queue: list[Waiter]) -> None:
        done = 0
        while done < len(queue):
            run = chunks_of(queue[done:])
            count = self._write_chunks(run) if run and self.refusal is None else 0
            last_id = self._appender.next_id - 1
            for index in range(count):
                self._mark(queue[done + index], last_id - (count - 1 - index))
            done += count
            if count == len(run) and done == len(queue):
                return
            # What does not go with others goes by itself, or says why not.
            waiter = queue[done]
            done += 1
            try:
                if self.refusal is not None:
                    self._refuse()
                assert waiter.work is not None
                self._mark(waiter, self._write(waiter.work))
            except WalsyncError as error:
                waiter.error = error

    def _write_chunks(self, chunks: list[bytes]) -> int:
        try:
            return self._appender.write_chunk_entries(chunks)
        except Exception as error:  # noqa: BLE001 - the log is poisoned, which each of them is told
            self.poison(error, "write")
            return 0

    def _write(self, work: bytes | PendingEntry, to_sync: bool = False) -> int:
        try:
            if type(work) is bytes:
                return self._appender.write_chunk_entry(work, to_sync)
            return self._appender.write_entry(work)  # type: ignore[arg-type]
        except LogError:
            # Rejected before its first byte was written.
            raise
        except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
            self._raise_failed(error, "write")

    def _mark(self, waiter: Waiter, entry_id: int) -> None:
        waiter.entry_id = entry_id
        for place in waiter.places:
            self._words[place] = entry_id

    # --------------------------------------------------------------------------------------------------------- refusing

    def _raise_failed(self, error: BaseException, action: str) -> NoReturn:
        """Poison the log and say so, or let the error of a signal's handler go on."""
        poison = self.poison(error, action)
        if isinstance(error, Exception):
            raise poison from error
        raise error

    def poison(self, cause: BaseException, action: str) -> LogPoisonedError:
        """Nothing more can be promised. The first cause stays."""
        where = self._appender.file
        path = getattr(where, "path", None) or self._appender.segment.name
        if self.poison_cause is None:
            offset = self._appender.written[0] - self._appender.segment.base
            error = LogPoisonedError(
                f"a {action} of {path} failed ({cause!r}), near offset {offset}, after entry "
                f"{self._appender.durable[1]}, the last one known to be durable. Nothing is committed any more: close "
                "the log and open it again, which finds out what is there; look at the disk first"
            )
            error.__cause__ = cause
            self.poison_cause = cause
            self.refusal = error
        self.watch.notify()
        assert isinstance(self.refusal, BaseException)
        return self.refusal if isinstance(self.refusal, LogPoisonedError) else LogPoisonedError(str(cause))

    def refuse(self, error: BaseException) -> None:
        """The log is closed, or this is another process: every later commit raises this."""
        if self.refusal is None:
            self.refusal = error
        self.watch.notify()

    def _refuse(self) -> None:
        refusal = self.refusal
        assert refusal is not None
        # A new object for every caller: one error with the tracebacks of many threads helps nobody.
        raise type(refusal)(*refusal.args) from refusal.__cause__

    def forget_in_child(self) -> None:
        """In a forked child, where the threads that held these locks are not."""
        self._mutex = allocate_lock()
        self._append_lock = self._appender.lock = threading.Lock()
        self.watch = SyncWatch()
        self._waiting = []
        self._queue = []
        self._leader = None

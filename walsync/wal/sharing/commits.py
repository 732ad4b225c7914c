"""The commit of a log that processes share; in particular that of a thread that meets nobody.

A thread that finds another one of its process at work queues its entry and waits (`walsync.wal.group_commit`). One that
finds none leads itself (`walsync.wal.sharing.leads`), by a path of its own: it calls next to nothing, for each function
called after a sync, with cold caches, costs a microsecond.
"""

from __future__ import annotations

from typing import NoReturn

from walsync.exceptions import LogError, LogPoisonedError, WalsyncError
from walsync.wal.control_block import BOXES_END, COMMITTING, GROUP, SYNCING, WANTED
from walsync.wal.leads import Waiter
from walsync.wal.pending import PendingEntry
from walsync.wal.sharing.leads import SharedLeads
from walsync.wal.sharing.posts import Post

__all__ = ["SharedGroupCommit"]


class SharedGroupCommit(SharedLeads):
    """Makes entries durable for the threads of this process, with those of others."""

    def commit(self, work: bytes | PendingEntry, places: tuple[int, ...] = ()) -> int:
        """Write an entry and return its id when it is durable."""
        keeping = self._keeping
        if not keeping.is_on or self._leader is not None or type(work) is not bytes or self._siblings.expected > 1:
            return self._commit_with_others(work, places)
        # The path of a thread that meets nobody, in a process that keeps both locks, and so need not look at what
        # others do.
        lead, tail = object(), self._tail
        try:
            with self._mutex:
                if self._leader is None:
                    self._leader = lead
            if self._leader is lead:
                if self._queue or self._posted is not None or not keeping.is_on:
                    return self._queue_and_lead(lead, work, places)
                try:
                    with self._append_lock:
                        try:
                            if self.refusal is not None:
                                self._refuse()
                            entry_id = tail.write_kept(work, places)
                        except BaseException as error:  # noqa: BLE001 - raised again
                            self._write_kept_failed(error)
                    try:
                        target = tail.sync_kept()
                    except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                        self._raise_failed(error, "sync")
                finally:
                    if self._words[WANTED] != keeping.seen:
                        self._let_go()
                with self._mutex:
                    if not self._waiting:
                        self._leader = None
                        self.sync_count += 1
                if self._leader is lead:
                    self._end_lead(lead, target, None, None)
                elif self.watch.is_wanted:
                    self.watch.tell()
                return entry_id
        except BaseException as error:  # noqa: BLE001 - raised again
            self._end_failed(lead, error)
        # Somebody leads.
        return self._serve(Waiter(work, 0, places), queued=True)

    def _commit_with_others(self, work: bytes | PendingEntry, places: tuple[int, ...]) -> int:
        """The commit of a thread that may meet others, or whose process has to look at what others do."""
        if self.refusal is not None:
            self._refuse()
        if self._leader is None and type(work) is bytes and self._siblings.expected == 1:
            entry_id = self._commit_alone(work, places)
            if entry_id:
                return entry_id
        return self._serve(Waiter(work, 0, places), queued=True)

    def _write_kept_failed(self, error: BaseException) -> NoReturn:
        """With the append lock."""
        self._tail.fail(nothing_written=isinstance(error, LogError))
        if isinstance(error, LogError):
            raise error
        self._raise_failed(error, "write")

    def _end_failed(self, lead: object, error: BaseException) -> NoReturn:
        """What a lead ended with that was to write one entry, and to keep the locks."""
        if isinstance(error, LogError):
            self._learn(error)
            if self.refusal is not None:
                self._end_lead(lead, None, self.refusal, None)
                self._refuse()
        # An entry that was rejected concerns nobody else.
        self._lead_on(lead)
        raise error

    def _commit_alone(self, work: bytes, places: tuple[int, ...]) -> int:
        """The commit of a thread that finds nobody in its process who waits. 0: somebody leads, and nothing was done.

        It calls next to nothing where another process syncs: see `GroupCommit.commit` for why that counts, and more so
        where many processes share a processor's caches.
        """
        tail, posts, number, lead = self._tail, self._posts, 0, object()
        try:
            with self._mutex:
                if self._leader is None:
                    self._leader = lead
            if self._leader is not lead:
                return 0
            is_alone = not self._queue and self._posted is None
            if is_alone and not self._words[SYNCING] and tail.try_sync_lock():
                return self._sync_alone(lead, work, places)
            if is_alone:
                number = posts.put_one(work, places)
                entry_id = self._sync_waiting.for_post(posts.own_box, number) if number else 0
                if entry_id:
                    with self._mutex:
                        if not self._waiting:
                            self._leader = None
                    if self._leader is lead:
                        self._end_lead(lead, tail.durable(), None, None)
                    elif self.watch.is_wanted:
                        self.watch.tell()
                    return entry_id
            waiter = Waiter(work, 0, places)
            if number:
                self._posted = (number, [waiter])
            else:
                with self._mutex:
                    self._queue.append(waiter)
            self._lead(lead, waiter)
        except LogError as error:
            self._learn(error)
            self._end_lead(lead, None, self.refusal or error, None)
            if self.refusal is not None:
                self._refuse()
            raise
        except BaseException:
            self._lead_on(lead)
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.entry_id

    def _sync_alone(self, lead: object, work: bytes, places: tuple[int, ...]) -> int:
        """Write one entry of this process, and what is posted, and sync, with the sync lock; returns the entry's id."""
        try:
            try:
                if self._words[COMMITTING] > 1:
                    self._gathering.wait()
                entry_id, rejection = self._write_alone(work, places)
                target = self._tail.sync()
            finally:
                self._tail.release_sync_lock()
                if self._words[BOXES_END] > 1 or self._posts.own_box:
                    self._posts.ring()
        except LogError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
            self._raise_failed(error, "sync")
        with self._mutex:
            if not self._waiting:
                self._appender.durable, self._leader = target, None
                self.sync_count += 1
        if self._leader is lead:
            self._end_lead(lead, target, None, None)
        elif self.watch.is_wanted:
            self.watch.tell()
        if rejection is not None:
            raise rejection
        return entry_id

    def _queue_and_lead(self, lead: object, work: bytes, places: tuple[int, ...]) -> int:
        waiter = Waiter(work, 0, places)
        with self._mutex:
            self._queue.append(waiter)
        self._lead(lead, waiter)
        if waiter.error is not None:
            raise waiter.error
        return waiter.entry_id

    def _write_alone(self, work: bytes, places: tuple[int, ...]) -> tuple[int, WalsyncError | None]:
        """The entry's id; or, where nothing of it was written and that concerns nobody else, 0 and why."""
        tail, posts, words, rejection = self._tail, self._posts, self._words, None
        with self._append_lock:
            # As `at_tail`, without its calls.
            try:
                tail.enter()
                if self.refusal is not None:
                    self._refuse()
                if posts.own_box < 0:
                    posts.claim()
                found = posts.collect() if words[BOXES_END] > 1 or posts.own_box else ()
                try:
                    if found:
                        # The posts' entries come behind this one, and so do the marks that they leave.
                        entry_id = self._write_posts_and(work, places, found)
                    else:
                        entry_id = self._write(work, to_sync=True)
                        for place in places:
                            words[place] = entry_id
                        words[GROUP] = 1
                except LogPoisonedError:
                    raise
                except WalsyncError as error:
                    entry_id, rejection = 0, error
            except BaseException as error:
                tail.fail(nothing_written=isinstance(error, LogError))
                raise
            try:
                tail.leave()
            except BaseException:
                tail.finish()
                raise
        return entry_id, rejection

    def _write_posts_and(self, work: bytes, places: tuple[int, ...], posts: list[Post]) -> int:
        own = Waiter(work, 0, places)
        self._write_with_posts([own], posts)
        if own.error is not None:
            raise own.error
        if self.refusal is not None:
            self._refuse()
        return own.entry_id

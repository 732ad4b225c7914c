"""Group commit over processes: one sync for all entries that any of them has written before it began.

Within a process it is `walsync.wal.leads`: one thread leads. It tries to have the sync lock. With it, it waits
a moment for others that are likely to come (`walsync.wal.sharing.gathering`), writes its process's entries and the
posts of all others (`walsync.wal.sharing.posts`) at the shared tail, syncs, and wakes those whom that serves, and one
who is to sync next. Without it another process syncs at this moment: it posts its process's entries, writes those that
are too large to be posted, and waits until a sync covers them or the lock is free. A failed write or sync poisons the
log for all processes.

An interrupt (a signal's handler that raises, such as a worker's that is told to stop) poisons it for none: what was
being written is overwritten by whoever writes next, and an interrupted sync is made again by whoever leads next, for
it has not failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn

from walsync.exceptions import LogError, LogPoisonedError
from walsync.wal.appender import Appender
from walsync.wal.control_block import BOXES_END, GROUP, URGENT
from walsync.wal.group_commit import GroupCommit
from walsync.wal.leads import Waiter, chunks_of
from walsync.wal.sharing.gathering import Gathering
from walsync.wal.sharing.kept_tail import KeptTail
from walsync.wal.sharing.posts import Outcome, Post, Posts
from walsync.wal.sharing.tail import SharedTail
from walsync.wal.sharing.waiting import SyncWaiting
from walsync.wal.storage.protocol import SharedWords

__all__ = ["SharedLeads"]

_FIRST_LOOK_S: Final = 0.0005
_LONGEST_LOOK_S: Final = 0.02
_LONGEST_LOOK_ALONE_S: Final = 0.1
"""How often who waits for entries looks whether another process has made one durable: the latter while this process
alone has ever committed, since the log was opened."""


class _AtTail:
    """Enters the shared tail; leaves it with what was written, or without."""

    def __init__(self, tail: SharedTail) -> None:
        self._tail = tail

    def __enter__(self) -> None:
        try:
            self._tail.enter()
        except BaseException:
            self._tail.fail(nothing_written=True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._tail.leave()
            else:
                self._tail.fail(nothing_written=isinstance(error, LogError))
        except BaseException:
            self._tail.finish()
            raise


class SharedLeads(GroupCommit):
    """The threads of this process, of which one at a time leads, and the posts of all processes."""

    def __init__(
        self,
        appender: Appender,
        words: SharedWords,
        tail: KeptTail,
        waiting: SyncWaiting,
        posts: Posts,
        gathering: Gathering,
        gather_s: float,
    ) -> None:
        super().__init__(appender, words, gather_s)
        self._tail = tail
        self._sync_waiting = waiting
        self._posts = posts
        self._gathering = gathering
        self.at_tail = _AtTail(tail)
        self._keeping = tail.keeping
        self._keeping.while_nobody_leads = self._while_nobody_leads
        self.before_waiting: Callable[[], None] | None = None
        """Called before somebody begins to wait for entries."""
        self._posted: tuple[int, list[Waiter]] | None = None
        """The number of this process's post, and those whose entries it is. For the thread that leads."""
        self._must_write = False
        """What was posted came back. For the thread that leads."""

    def _settle(self, entry_id: int) -> int:
        return self._serve(Waiter(None, entry_id), queued=False)

    def _raise_failed(self, error: BaseException, action: str) -> NoReturn:
        if isinstance(error, Exception):
            super()._raise_failed(error, action)
        raise error

    # ------------------------------------------------------------------------------------------------ a lead

    def _write_and_sync(self) -> tuple[int, int] | None:
        tail = self._tail
        try:
            if self._keeping.is_on and self._posted is None:
                return self._write_and_sync_kept()
            if not tail.try_sync_lock():
                self._hand_over()
                box = self._posts.own_box if self._posted is not None else -1
                durable = self._sync_waiting.for_sync(box, self._is_served)
                if durable is not None:
                    return durable
            try:
                self._gathering.wait()
                self._write_for_all()
                return None if self.poison_cause is not None else tail.sync()
            finally:
                tail.release_sync_lock()
                self._posts.ring()
        except LogError as error:
            self._learn(error)
            # Whether their entries come into the log shows later. The others have not been written.
            self._fail_posted(error)
            if self.refusal is not None:
                # The log was closed meanwhile, and its locks with it.
                self._refuse()
            raise

    def _write_and_sync_kept(self) -> tuple[int, int] | None:
        """While nobody else can have written or posted anything that this process would have to write."""
        try:
            with self._append_lock:
                self._write_at_tail(take_posts=False)
            return None if self.poison_cause is not None else self._tail.sync_kept()
        finally:
            if self._keeping.is_wanted:
                self._let_go()

    def _sync_written(self) -> tuple[int, int] | None:
        """Make durable what is written, unless another process does that at this moment. Waits for no lock."""
        tail = self._tail
        try:
            if not tail.try_sync_lock():
                return None
            try:
                return None if self.poison_cause is not None else tail.sync()
            finally:
                tail.release_at_once()
                self._posts.ring()
        except LogError as error:
            self._learn(error)
            raise

    def _let_go(self) -> None:
        self._tail.release_sync_lock()
        self._posts.ring()

    def _hand_over(self) -> None:
        """Post what is queued. What cannot be posted is written."""
        if self._posted is None:
            with self._mutex:
                queue = list(self._queue)
            entries = [(chunk, waiter.places) for chunk, waiter in zip(chunks_of(queue), queue, strict=False)]
            body, count = self._posts.pack(entries)
            if count:
                number = self._posts.next_number
                # If an interrupt keeps the post from being put there, `_write_at_tail` finds that.
                self._posted = (number, queue[:count])
                with self._mutex:
                    del self._queue[:count]
                self._posts.put(number, body)
        if self._queue:
            with self._append_lock:
                self._write_at_tail(take_posts=False)

    def _is_served(self, durable: tuple[int, int]) -> bool:
        """Whether what was posted is durable. What came back of it is queued, and must be written here."""
        if self._posted is not None:
            number, waiters = self._posted
            outcome = self._posts.outcome(number)
            if outcome is None or outcome.last_id > durable[1]:
                return False
            self._note(waiters, outcome)
        return not self._must_write

    def _note(self, waiters: list[Waiter], outcome: Outcome | None) -> None:
        """Give those that were written their ids, and queue the others. None: nothing of it was taken."""
        written = 0 if outcome is None else max(0, len(waiters) - outcome.refused)
        for index in range(written):
            assert outcome is not None
            waiters[index].entry_id = outcome.last_id - (written - 1 - index)
        back = waiters[written:]
        if back:
            self._must_write = True
            with self._mutex:
                self._queue[:0] = [waiter for waiter in back if waiter not in self._queue]
        self._posted = None

    def _fail_posted(self, error: LogError) -> None:
        if self._posted is not None:
            for waiter in self._posted[1]:
                waiter.error = waiter.error or error
            self._posted = None
        self._must_write = False

    def _write_for_all(self) -> None:
        """Write what is queued here, and what is posted anywhere. With the sync lock."""
        with self._append_lock:
            self._write_at_tail(take_posts=True)

    def _write_at_tail(self, *, take_posts: bool) -> None:
        queue: list[Waiter] = []
        try:
            with self.at_tail:
                self._posts.claim()
                if take_posts and self._posted is not None:
                    number, waiters = self._posted
                    outcome = self._posts.outcome(number)
                    if outcome is None:
                        self._posts.withdraw(number)
                    self._note(waiters, outcome)
                with self._mutex:
                    queue, self._queue = self._queue, []
                posts = self._posts.collect() if take_posts else ()
                if posts:
                    self._write_with_posts(queue, posts)
                else:
                    self._write_all(queue)
                    if take_posts:
                        self._words[GROUP] = 1
                self._must_write = False
        except LogError as error:
            self._learn(error)
            with self._mutex:
                queue += self._queue
                self._queue = []
            for waiter in queue:
                waiter.error = waiter.error or error
            self._fail_posted(error)
        except BaseException:
            if not self._tail.finish():
                # Interrupted, and nothing of it was published. Whoever leads next writes it.
                for waiter in queue:
                    waiter.entry_id = 0
                with self._mutex:
                    self._queue[:0] = queue
            raise

    def _write_with_posts(self, queue: list[Waiter], posts: list[Post]) -> None:
        """Write the entries of this process and of posts, all of them at once where they fit."""
        appender = self._appender
        chunks = chunks_of(queue)
        if len(chunks) < len(queue) or self.refusal is not None:
            self._write_all(queue)
            queue, chunks = [], []
        own = len(chunks)
        for post in posts:
            chunks += [data for data, _ in post.entries]
        self._words[GROUP] = len(chunks)
        count = self._write_chunks(chunks) if self.refusal is None else 0
        first_id = appender.next_id - count
        for index in range(min(own, count)):
            self._mark(queue[index], first_id + index)
        done = count - own
        if done < 0:
            self._write_all(queue[count:])
            done = 0
        first_id = appender.next_id - done
        while own + done < len(chunks) and self.refusal is None:
            count = self._write_chunks(chunks[own + done :])
            if not count and self.refusal is None:
                # It does not fit into this segment.
                try:
                    self._write(chunks[own + done])
                except LogError:
                    # Its process tries it itself, and is told the same.
                    break
                count = 1
            done += count
        if self.refusal is None:
            self._tell_posts(posts, first_id, done)

    def _tell_posts(self, posts: list[Post], entry_id: int, written: int) -> None:
        """The first of the posts' entries got this id, and so many of them were written."""
        words = self._words
        for post in posts:
            count = min(len(post.entries), written)
            written -= count
            for _, places in post.entries[:count]:
                for place in places:
                    words[place] = entry_id
                entry_id += 1
            self._posts.took(post, entry_id - 1 if count else 0, len(post.entries) - count)

    def _while_nobody_leads(self, call: Callable[[], None]) -> bool:
        """Call it, unless somebody leads."""
        with self._mutex:
            if self._leader is not None:
                return False
            call()
            return True

    def _interrupted_sync(self, error: BaseException) -> BaseException | None:
        return None

    def sync_all(self) -> None:
        """Return when everything that any process has written before the call is durable."""
        self._tail.need_all()
        super().sync_all()

    # ---------------------------------------------------------------------------------------------- refusing

    def poison(self, cause: BaseException, action: str) -> LogPoisonedError:
        """Nothing more can be promised, by no process."""
        error = super().poison(cause, action)
        self._tail.poison.tell(str(error))
        return error

    def _learn(self, error: LogError) -> None:
        """Another process has poisoned the log: so it is here."""
        if isinstance(error, LogPoisonedError) and self.poison_cause is None:
            self.poison_cause = error
            self.refusal = error
            self.watch.notify()

    def look(self) -> None:
        """Learn whether another process has poisoned the log."""
        if self._tail.poison.is_told and self.refusal is None:
            try:
                self._tail.poison.raise_told()
            except LogPoisonedError as error:
                self._learn(error)

    # ------------------------------------------------------------------------------------------ waiting for others

    def wait_durable(self, after: int, timeout: float | None) -> bool:
        """Wait until an entry after `after` is durable, whoever wrote it, or the time is over.

        Returns as well when `wake()` is called, or when somebody begins to wait for an entry to be applied. Entries of
        this process are noticed at once, those of others by looking, often at first, more and more rarely later; and
        at once when somebody begins to wait for one to be applied (`walsync.wal.sharing.urging`).
        """
        began = time.monotonic()
        if self.before_waiting is not None:
            self.before_waiting()
        while True:
            found = self._wait_durable(after, began, timeout)
            if found is not None:
                return found
            self.sync_all()

    def _wait_durable(self, after: int, began: float, timeout: float | None) -> bool | None:
        """As `wait_durable`; None when entries are written and whoever was to sync them seems to have died."""
        tail, words = self._tail, self._words
        written_at, urgent_id, is_orphaned = time.monotonic(), words[URGENT], False

        def look() -> bool | float | None:
            nonlocal written_at, is_orphaned
            if tail.durable()[1] > after:
                return True
            self.look()
            if self.refusal is not None:
                self._refuse()
            now = time.monotonic()
            is_alone = self._posts.own_box >= 0 and words[BOXES_END] == 1
            longest_s = _LONGEST_LOOK_ALONE_S if is_alone else _LONGEST_LOOK_S
            left_s = longest_s if timeout is None else timeout - (now - began)
            if words[URGENT] != urgent_id or left_s <= 0:
                return False
            if tail.written()[1] <= after:
                written_at = now
            elif now - written_at > tail.orphaned_after_s:
                is_orphaned = True
                return False
            return min(longest_s, _FIRST_LOOK_S + (now - began) / 50, left_s)

        found = self.watch.wait(look)
        return None if is_orphaned else found

    def forget_in_child(self) -> None:
        """In a forked child, where the threads that held these locks are not."""
        super().forget_in_child()
        self._tail.forget_in_child()
        self._posts.forget_in_child()
        self._posted = None
        self._must_write = False

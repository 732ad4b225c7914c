"""Group commit: one sync for all entries that were written before it began. What the log calls to commit.

While a sync runs and somebody waits already, an entry is not written by its own thread but queued, and the next leader
writes the whole queue: threads that need not run do not fight for the interpreter. Who leads, and what becomes of those
who wait, is `leads`. A thread that meets nobody takes a path of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from walsync.exceptions import LogError
from walsync.wal.appender import Appender
from walsync.wal.leads import Leads, Waiter
from walsync.wal.pending import PendingEntry

__all__ = ["GroupCommit"]


class GroupCommit(Leads):
    """Makes entries durable for many threads at once."""

    def commit(self, work: bytes | PendingEntry, places: tuple[int, ...] = ()) -> int:
        """Write an entry, one chunk of `bytes` or any other, and return its id when it is durable.

        `places`: the words of the control block that are to hold the id.
        """
        if self._leader is not None or self._append_lock.locked() or self._siblings.expected > 1:
            return self._serve(Waiter(work, 0, places), queued=True)
        # From here on, and in `_settle`, is the path of a thread that meets no other. It calls next to nothing: after a
        # sync the processor's caches are cold, and each function called then costs a microsecond.
        appender = self._appender
        with self._append_lock:
            if self.refusal is not None:
                self._refuse()
            try:
                if type(work) is bytes:
                    entry_id = appender.write_chunk_entry(work, to_sync=True)
                else:
                    entry_id = self._write(work)
                for place in places:
                    self._words[place] = entry_id
            except LogError:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                self._raise_failed(error, "write")
        return self._settle(entry_id)

    def _settle(self, entry_id: int) -> int:
        """Return the id of an entry that is written when it is durable: lead, or wait for who does."""
        appender, lead, alone = self._appender, object(), False
        try:
            with self._mutex:
                if self._leader is None:
                    self._leader = lead
            alone = self._leader is lead
            if alone:
                # What was written lies in this file, or in a retired one: the look at those comes last.
                target = appender.written
                file = appender.file
                if self._queue or appender.retired or self.refusal is not None:
                    self._lead(lead, None)
                else:
                    try:
                        file.sync()
                    except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                        self._raise_failed(error, "sync")
                    with self._mutex:
                        if not self._waiting:
                            appender.durable, self._leader = target, None
                            self.sync_count += 1
                    if self._leader is lead:
                        self._end_lead(lead, target, None, None)
                    elif self.watch.is_wanted:
                        self.watch.tell()
        except BaseException:
            self._lead_on(lead)
            raise
        if not alone:
            return self._serve(Waiter(None, entry_id), queued=False)
        # Only a failed sync may be in the way: what was written was just synced.
        if self.refusal is not None and appender.durable[1] < entry_id:
            self._refuse()
        return entry_id

    def write(self, work: bytes | PendingEntry, places: tuple[int, ...] = ()) -> int:
        """Write an entry and return its id at once: it is durable after the next sync, whoever makes that."""
        with self._append_lock, self.at_tail:
            if self.refusal is not None:
                self._refuse()
            entry_id = self._write(work)
            for place in places:
                self._words[place] = entry_id
            return entry_id

    def sync_all(self) -> None:
        """Return when everything written before the call is durable."""
        # Never served by its id: it is to lead a sync of its own, if it does not lead at once.
        self._serve(Waiter(None, 1 << 63), queued=False)

    # ----------------------------------------------------------------------- for those who write at the tail themselves

    def run_locked(self, write: Callable[[Appender], bool]) -> None:
        """Call `write` under the append lock, and make what it wrote durable if it returns True."""
        with self._append_lock, self.at_tail:
            if self.refusal is not None:
                self._refuse()
            try:
                wrote = write(self._appender)
            except LogError:
                raise
            except BaseException as error:
                raise self.poison(error, "write") from error
        if wrote:
            self.sync_all()

    def try_locked(self, write: Callable[[Appender], bool]) -> None:
        """As `run_locked`, but never waits for another committer: for a thread that committers may be waiting for.

        Where the lock is taken nothing is written; where somebody syncs, what was written is left to the next sync.
        What others have queued is left to the first of them.
        """
        if not self._append_lock.acquire(False):
            return
        try:
            if self.refusal is not None:
                self._refuse()
            with self.at_tail:
                try:
                    wrote = write(self._appender)
                except LogError:
                    raise
                except BaseException as error:
                    raise self.poison(error, "write") from error
        finally:
            self._append_lock.release()
        if not wrote:
            return
        lead = object()
        try:
            with self._mutex:
                if self._leader is None:
                    self._leader = lead
            if self._leader is lead:
                # Not what is queued: who writes may have to wait, for a segment or for who has the lock.
                self._lead(lead, None, self._sync_written)
        except BaseException:
            self._lead_on(lead)
            raise

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """The append lock, in which no entry is written and no mark is set by others."""
        with self._append_lock, self.at_tail:
            yield

    # ----------------------------------------------------------------------------------------------- waiting for others

    def wait_durable(self, after: int, timeout: float | None) -> bool:
        """Wait until an entry after `after` is durable, `wake()` is called, or the time is over."""
        if self._appender.durable[1] > after:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout

        def look() -> bool | float | None:
            if self._appender.durable[1] > after:
                return True
            if self.refusal is not None:
                self._refuse()
            left_s = None if deadline is None else deadline - time.monotonic()
            return False if left_s is not None and left_s <= 0 else left_s

        return self.watch.wait(look)

    def wake(self) -> None:
        """Every `wait_durable` returns."""
        self.watch.wake()

    def look(self) -> None:
        """Learn whether another process has poisoned the log: none has it."""

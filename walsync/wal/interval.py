"""Commits that return before they are durable, and the thread that makes them durable at intervals.

Owns the thread and the level of durability `"interval"`. Never says that an entry is durable before a sync has returned
for it: such an entry is *written* and not yet durable, is not given to a checkpointer, and is lost if the machine stops
before the next sync (not if only the process does). That stretch is the *loss window*.

Its bound does not depend on the thread alone: a commit that finds the oldest of these entries older than two intervals,
because the disk is slow or the thread is gone, syncs by itself and returns when that is done. A sync that fails poisons
the log, as any other does, and so reaches the next caller.
"""

from __future__ import annotations

import logging
import threading
import time

from walsync.exceptions import LogError, LogPoisonedError
from walsync.wal.appender import Appender
from walsync.wal.group_commit import GroupCommit
from walsync.wal.pending import PendingEntry

__all__ = ["IntervalSync"]

_logger = logging.getLogger(__name__)


class IntervalSync:
    """Writes entries at once and syncs them at intervals. `commit` is usable from many threads at once."""

    def __init__(self, commits: GroupCommit, appender: Appender, interval_s: float) -> None:
        self._commits = commits
        self._appender = appender
        self._interval_s = interval_s
        self._mutex = threading.Lock()
        """Guards the fields below. Nothing else is locked under it, and there is no I/O."""
        self._first_id = 0
        """An entry that was written and not synced since `_since`; once it is durable, the next one takes its place."""
        self._since = 0.0
        self._last_id = 0
        """The last entry that was written at an interval."""
        self._thread: threading.Thread | None = None
        self._work = threading.Event()
        self._stopping = threading.Event()

    def commit(self, work: bytes | PendingEntry, places: tuple[int, ...] = ()) -> int:
        """Write an entry and return its id. Raises as `GroupCommit.commit` does."""
        entry_id = self._commits.write(work, places)
        now = time.monotonic()
        with self._mutex:
            self._last_id = max(self._last_id, entry_id)
            if self._appender.durable[1] >= self._first_id:
                # All that came before is durable.
                self._first_id, self._since = entry_id, now
                self._work.set()
            late = now - self._since > 2 * self._interval_s
            # When the first such entry comes: a log that has none needs no thread.
            if self._thread is None and not self._stopping.is_set():
                late = not self._start()
        if late:
            self._commits.sync_all()
        return entry_id

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="walsync-sync", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The system has no thread to give. The entry is written, and is not to be less durable for that.
            _logger.warning("no thread for syncs at intervals could be started", exc_info=True)
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            self._work.wait()
            self._work.clear()
            if self._stopping.wait(self._interval_s):
                return
            try:
                self._commits.sync_all()
            except LogError:
                # The log is poisoned or closed: every caller learns it, and there is nothing left to sync.
                _logger.debug("the sync at an interval was refused", exc_info=True)
            except Exception as error:
                _logger.exception("the sync at an interval failed")
                self._commits.poison(error, "sync")
            if self._commits.refusal is None and self._appender.durable[1] < self._appender.written[1]:
                # Written during the sync, by a commit that found the entry before it not durable yet.
                self._work.set()

    def raise_if_lost(self) -> None:
        """Raise `LogPoisonedError` if the log failed before all of these entries were durable: nobody waits for one."""
        cause, durable_id = self._commits.poison_cause, self._appender.durable[1]
        if cause is not None and self._last_id > durable_id:
            raise LogPoisonedError(
                f"a write or a sync of the log failed ({cause!r}) before entries {durable_id + 1} to {self._last_id}, "
                "committed with durability='interval', were durable. Which of them survive shows when the log is "
                "opened again; look at the disk first"
            ) from cause

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it is still in a call to the system after `timeout_s`. Syncs nothing."""
        with self._mutex:
            self._stopping.set()
            thread = self._thread
        self._work.set()
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def forget_in_child(self, *, goes_on: bool) -> None:
        """In a forked child, where the thread is not and its locks may be held for ever.

        `goes_on`: the child commits to the log as well.
        """
        self._mutex = threading.Lock()
        self._work = threading.Event()
        self._stopping = threading.Event()
        if not goes_on:
            self._stopping.set()
        self._first_id = self._last_id = 0
        self._thread = None

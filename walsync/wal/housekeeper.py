"""The log's own thread: prepares segments ahead of need, and writes a HINT when the log goes idle.

Owns the thread. Never does what a commit has to wait for, except where the disk is slower than the commits.
"""

from __future__ import annotations

import logging
import threading

from walsync.exceptions import LogError
from walsync.wal.appender import Appender
from walsync.wal.group_commit import GroupCommit
from walsync.wal.segments import SlotFiles

__all__ = ["Housekeeper"]

_logger = logging.getLogger(__name__)


class Housekeeper:
    """Runs `SlotFiles.prepare` whenever it is woken, and watches for the log to go idle."""

    def __init__(self, pool: SlotFiles, appender: Appender, commits: GroupCommit, idle_hint_s: float | None) -> None:
        self._pool = pool
        self._appender = appender
        self._commits = commits
        self._idle_hint_s = idle_hint_s
        self._event = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="walsync-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._pool.wake = self._event.set
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it is still in a call to the system after `timeout_s`."""
        self._stopping.set()
        self._event.set()
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        seen, is_idle = -1, False
        appender, idle_s = self._appender, self._idle_hint_s
        while not self._stopping.is_set():
            try:
                self._pool.prepare()
            except Exception:
                # Whoever waits for a segment gets an error of its own; this thread must live to prepare the next one.
                _logger.exception("preparing a segment failed")
            timeout_s = idle_s
            if is_idle:
                # Sleep until something is committed. Not before: who commits again and again is to wake nobody.
                self._commits.watch.call_after_next(self._event.set)
                if appender.durable[0] == seen:
                    timeout_s = None
            woken = self._event.wait(timeout_s)
            self._event.clear()
            position = appender.durable[0]
            is_idle = False
            if not woken and not self._stopping.is_set() and position == seen:
                self._hint()
                self._pool.trim()
                position = appender.durable[0]
                is_idle = appender.is_promised
            seen = position

    def _hint(self) -> None:
        try:
            # Without waiting: whoever holds the lock may be waiting for this thread to prepare a segment.
            self._commits.try_locked(Appender.write_hint)
        except LogError:
            # The log is poisoned or closed: the callers know, and there is nothing to record.
            _logger.debug("no hint was written", exc_info=True)

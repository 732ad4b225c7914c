"""The thread that calls a plain checkpointer when enough is durable, or when somebody asks.

Owns that thread and its errors: an error of the checkpointer reaches the next caller of the log and the stats, and the
thread goes on and tries again after `LogConfig.checkpoint_retry_s`. A self-driven checkpointer has no driver. Of the
processes that share a log, the one whose driver first has something to do takes the lease, and keeps it until it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from walsync.exceptions import CheckpointFailedError, LogClosedError, LogError, LogTimeoutError

if TYPE_CHECKING:
    from walsync.wal.checkpointer import Checkpointer
    from walsync.wal.log import WriteAheadLog

__all__ = ["CheckpointDriver"]

_logger = logging.getLogger(__name__)

_LOOK_S = 0.1


class CheckpointDriver:
    """Drives one checkpointer for one log."""

    def __init__(self, log: WriteAheadLog, checkpointer: Checkpointer) -> None:
        self._log = log
        self._checkpointer = checkpointer
        self._config = log.config
        # Guards every field below; never held while the checkpointer runs.
        self._changed = threading.Condition()
        self._asked_through = 0
        self._stopping = False
        self._error: BaseException | None = None
        self.last_error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="walsync-checkpoint-driver", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def take_error(self) -> CheckpointFailedError | None:
        """The error of the last call, once: for the next caller of the log."""
        with self._changed:
            error, self._error = self._error, None
        if error is None:
            return None
        failed = CheckpointFailedError(
            f"the checkpointer failed ({error!r}) and entries after {self._log.checkpointed_id} stay in the log. It is "
            f"called again in {self._config.checkpoint_retry_s} s; this call did nothing and may be repeated"
        )
        failed.__cause__ = error
        return failed

    def checkpoint_through(self, through: int, timeout_s: float) -> None:
        """Have everything up to `through` checkpointed, and wait for it."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._asked_through = max(self._asked_through, through)
            self._error = None
            self._changed.notify_all()
        # Another process may be the one that applies.
        self._log.control.urge(through)
        while self._log.checkpointed_id < through:
            error = self.take_error()
            if error is not None:
                raise error
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise LogTimeoutError(
                    f"entries up to {through} were not checkpointed within {timeout_s} s "
                    f"(LogConfig.checkpoint_timeout_s); {self._log.checkpointed_id} is. The checkpointer goes on"
                )
            with self._changed:
                if self._stopping or not self._thread.is_alive():
                    raise LogClosedError("the log was closed while a checkpoint was waited for")
                if self._log.checkpointed_id < through and self._error is None:
                    self._changed.wait(min(left_s, _LOOK_S))

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the call that is under way; False if that takes longer than `timeout_s`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._log.wake()
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._log.control.release_lease()
        return True

    def _due(self) -> bool:
        log = self._log
        checkpointed_id = log.checkpointed_id
        return (
            log.durable_id > checkpointed_id
            and (
                log.backlog_bytes >= self._config.checkpoint_after_bytes
                or self._asked_through > checkpointed_id
                or log.control.urgent_id > checkpointed_id
            )
            and log.control.try_lease()
        )

    def _run(self) -> None:
        failed = False
        while True:
            with self._changed:
                if failed:
                    self._changed.wait_for(lambda: self._stopping, self._config.checkpoint_retry_s)
                # Commits do not notify: that would cost every one of them. A look ten times a second is cheap.
                while not self._changed.wait_for(lambda: self._stopping or self._due(), _LOOK_S):
                    pass
                if self._stopping:
                    return
            failed = not self._call()

    def _call(self) -> bool:
        log = self._log
        through = log.durable_id
        try:
            self._checkpointer.checkpoint_to(through, log.entries(log.checkpointed_id, through), log)
            log.checkpoint(through)
        except Exception as error:
            # The checkpointer is the user's: whatever it raises is kept for the next caller, and the thread goes on.
            if self._stopping and isinstance(error, LogError):
                return False
            _logger.warning("the checkpointer failed; it is called again", exc_info=True)
            with self._changed:
                self._error = self.last_error = error
                self._changed.notify_all()
            log.report_trouble()
            return False
        with self._changed:
            self.last_error = None
            self._changed.notify_all()
        return True

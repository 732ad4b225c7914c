"""The bound of the backlog: how much may wait for the target before commits do.

`admit` is to be called before each append; while the log is before `room_until` there is nothing to call it for. At
80 % of a bound a warning is logged, once for each time it is reached. At the bound a committer blocks until there is
room, and after `backlog_timeout_s` its commit is refused with `BacklogFullError`: nothing is written, nothing is lost.

The bound is looked at before an entry is written and not together with it: as many entries as there are committing
threads may go past it. It holds memory and disk in check, to that precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.progress import Progress
from walsync.checkpoint.status import CheckpointStatus
from walsync.exceptions import BacklogFullError
from walsync.wal import WriteAheadLog

__all__ = ["Backlog"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_WARN_AT: Final = 0.8
_CALM_AT: Final = 0.7
"""Below this share of both bounds the warning may be given again."""


class Backlog:
    """Watches one log's backlog. Thread-safe."""

    def __init__(
        self, log: WriteAheadLog, config: CheckpointConfig, progress: Progress, status: Callable[[], CheckpointStatus]
    ) -> None:
        self._log = log
        self._progress = progress
        self._status = status
        self._max_bytes = config.max_backlog_bytes
        self._max_entries = config.max_backlog_entries
        self._warn_bytes = config.max_backlog_bytes * _WARN_AT
        self._warn_entries = config.max_backlog_entries * _WARN_AT
        self.room_until: tuple[float, float] = (-1, -1)
        """Position and entry up to which the log may grow before it has to be looked at again, unless it `is_warned`.
        Replaced whole."""
        self._timeout_s = config.backlog_timeout_s
        # Two threads may both see False and both warn; that is all that can happen, so no lock.
        self.is_warned = False

    def admit(self, waited_s: float = 0.0) -> None:
        """Returns when there is room for an entry. Blocks up to `backlog_timeout_s`, then raises `BacklogFullError`.

        Raises `CheckpointFailedError` at once when the checkpointer has died and the backlog is full. `waited_s` is how
        long the caller has waited before, in seconds, which counts.
        """
        log = self._log
        position, entry_id = log.released
        if log.backlog_bytes < self._warn_bytes and log.backlog_entries < self._warn_entries:
            if self.is_warned:
                self._settle()
            # What was released stays released: until then there is room, however much is released meanwhile.
            self.room_until = (position + self._warn_bytes, entry_id + self._warn_entries)
            return
        if not self._full():
            self._warn()
            return
        self._warn()
        log.control.urge(log.durable_id)
        if not self._progress.wait_until(self._has_room, max(0.0, self._timeout_s - waited_s)):
            self._progress.raise_if_failed()
            status = self._status()
            why = f"; the checkpointer is {status.state}" + (f" ({status.last_error})" if status.last_error else "")
            if not self._progress.applies_here:
                why = f"; {status.applier}"
            raise BacklogFullError(
                f"the backlog is at its bound ({self._size()}) since {self._timeout_s:g} s{why}. This "
                "transaction was not committed. Bring the target back, or raise CheckpointConfig.max_backlog_bytes and "
                "max_backlog_entries"
            )

    def _settle(self) -> None:
        """Allows the next warning once the backlog has gone down."""
        if (
            self._log.backlog_bytes < self._max_bytes * _CALM_AT
            and self._log.backlog_entries < self._max_entries * _CALM_AT
        ):
            self.is_warned = False

    def _full(self) -> bool:
        return self._log.backlog_bytes >= self._max_bytes or self._log.backlog_entries >= self._max_entries

    def _has_room(self) -> bool:
        return not self._full()

    def _warn(self) -> None:
        if self.is_warned:
            return
        self.is_warned = True
        _logger.warning(
            "the backlog has reached %s; at its bound commits block for up to %g s and are then refused",
            self._size(),
            self._timeout_s,
        )

    def _size(self) -> str:
        return (
            f"{self._log.backlog_entries} of {self._max_entries} entries, "
            f"{self._log.backlog_bytes} of {self._max_bytes} bytes"
        )

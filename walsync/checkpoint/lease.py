"""Whose turn it is to apply: of all processes that have a log open, one at a time.

The lease is the log's (`walsync.wal.control`), and the system takes it from a process that ends, however it ends. An
applier without it stands by and asks again and again; so it takes over a moment after the other one is gone. Nothing
rests on the lease but order and economy: should two apply at once all the same, the watermark lets one of them through.

A paused applier that has the lease keeps it, so that nothing is applied; one that stands by and is paused does not take
over. The first try is made in either case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from walsync.checkpoint.progress import Progress
from walsync.exceptions import LogError
from walsync.wal.control import LogControl

__all__ = ["Turn"]


class Turn:
    """The turn of one applier. `taken` and `giving_up` are called while the lease is held, by the applier's thread."""

    def __init__(
        self,
        control: LogControl,
        progress: Progress,
        interval_s: float,
        *,
        taken: Callable[[], None] = lambda: None,
        giving_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._control = control
        self._progress = progress
        self._interval_s = interval_s
        self._taken = taken
        self._giving_up = giving_up

    def wait(self) -> bool:
        """Stands by until it is this applier's turn; False when it is to stop."""
        progress = self._progress
        first = True
        while not progress.stopping:
            if (first or not progress.paused) and self._control.try_lease():
                progress.take_over()
                self._taken()
                return True
            first = False
            progress.stand_by(self._interval_s)
        return False

    def give_up(self) -> None:
        """Lets another have it. May be called without having had it."""
        self._giving_up()
        # A log that is closed has given it up itself.
        with contextlib.suppress(LogError):
            self._control.release_lease()

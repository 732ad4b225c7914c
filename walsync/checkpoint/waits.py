"""What follows a failure: how long the checkpointer's thread waits, in which state, and what it says about it.

Nothing here knows what went wrong; `walsync.checkpoint.applier` decides that. Its decisions travel as the exceptions at
the end of this module, which never leave the checkpointer. All waits end at once on orders.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.failures import Failure, FailureKind, describe_error
from walsync.checkpoint.progress import Progress
from walsync.exceptions import LogError, LogTimeoutError, QuarantineFullError, WalsyncError
from walsync.wal import EntryId

__all__ = ["Again", "Delayed", "Halted", "Stuck", "Waits", "waiting_for"]

_logger: Final = logging.getLogger("walsync.checkpoint")


class Waits:
    """The waits of one checkpointer; its thread's alone."""

    def __init__(
        self,
        config: CheckpointConfig,
        progress: Progress,
        jitter: random.Random,
        announce_halted: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._progress = progress
        self._random = jitter
        self._announce_halted = announce_halted
        self._logged_at = 0.0
        self._logged_state = ""

    def transient(self, error: Exception, failure: Failure, entry_id: EntryId | None = None) -> None:
        """The target cannot do it now: a wait that doubles each time."""
        self._growing(
            error,
            failure.kind,
            entry_id,
            f"the target cannot apply entries now ({describe_error(error)}, {failure.reason}); trying again",
        )

    def quarantine(self, error: Exception, entry_id: EntryId | None) -> None:
        """The quarantine's files cannot be read or changed now: the same."""
        what = "entries" if entry_id is None else f"entry {entry_id}"
        self._growing(error, None, entry_id, f"{what} cannot be applied now: {describe_error(error)}; trying again")

    def _growing(self, error: Exception, kind: FailureKind | None, entry_id: EntryId | None, message: str) -> None:
        failures = self._progress.troubled("retrying", error, kind, entry_id)
        config = self._config
        # 2 ** 40 is far above any bound, and a float can hold it.
        ceiling = min(config.retry_max_s, config.retry_initial_s * 2.0 ** min(failures - 1, 40))
        wait_s = self._jittered(ceiling)
        self._report("retrying", "%s", message)
        self._progress.wait_retry(wait_s, self._config.waited_retry_max_s)

    def blocked(self, error: Exception, failure: Failure, entry_id: EntryId | None) -> None:
        """Somebody must change the target: a slow retry."""
        self._progress.troubled("blocked", error, failure.kind, entry_id)
        what = "entries cannot be applied" if entry_id is None else f"entry {entry_id} cannot be applied"
        self._report(
            "blocked",
            "%s until somebody changes the target (%s, %s); trying again every %g s",
            what,
            describe_error(error),
            failure.reason,
            self._config.blocked_retry_s,
        )
        self._progress.wait_retry(self._jittered(self._config.blocked_retry_s), self._config.blocked_retry_s)

    def halt(self, error: BaseException, kind: FailureKind | None, entry_id: EntryId | None) -> None:
        """Somebody must decide: nothing until `resume()`."""
        self._progress.troubled("halted", error, kind, entry_id)
        _logger.error("the checkpointer has halted, and waits for resume(): %s", describe_error(error))
        self._announce_halted(error)
        self._progress.wait_retry(None, 0.0)

    def well(self) -> None:
        """All is as it should be."""
        self._progress.well()
        self._logged_state = ""

    def _jittered(self, seconds: float) -> float:
        return seconds * (1.0 - self._config.retry_jitter * self._random.random())

    def _report(self, state: str, message: str, *arguments: object) -> None:
        """A line in the log when a state is new, and then at most every `log_every_s`."""
        now = time.monotonic()
        if state == self._logged_state and now - self._logged_at < self._config.log_every_s:
            return
        self._logged_state, self._logged_at = state, now
        _logger.warning(message, *arguments)


class Halted(Exception):
    """Nothing more is applied until somebody says so."""

    def __init__(self, error: WalsyncError, kind: FailureKind | None, entry_id: EntryId) -> None:
        self.error = error
        self.kind = kind
        self.entry_id = entry_id


class Stuck(Exception):
    """An entry cannot be applied until somebody changes the target."""

    def __init__(self, error: Exception, failure: Failure, entry_id: EntryId) -> None:
        self.error = error
        self.failure = failure
        self.entry_id = entry_id


class Again(Stuck):
    """An entry is refused, and a listener wants it tried again."""


class Delayed(Exception):
    """The quarantine cannot be read or changed now."""

    def __init__(self, error: LogError, entry_id: EntryId | None) -> None:
        self.error = error
        self.entry_id = entry_id


@contextmanager
def waiting_for(entry_id: EntryId | None) -> Iterator[None]:
    """Around what is done with the quarantine: says which of its failures pass, and which do not."""
    try:
        yield
    except QuarantineFullError as error:
        if entry_id is None:
            raise
        raise Halted(error, None, entry_id) from error
    except LogTimeoutError as error:
        raise Delayed(error, entry_id) from error
    except LogError as error:
        # The directory cannot be read or written. Of the classes below LogError, each means something else.
        if type(error) is not LogError:
            raise
        raise Delayed(error, entry_id) from error

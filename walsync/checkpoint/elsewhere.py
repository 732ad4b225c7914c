"""Waiting for what another process applies: what it says about itself, and whether there is one at all.

Entries that are applied show in the log's control block, at once. Why they are not, the applier writes into its report
(`walsync.checkpoint.status_file`), which may be a moment old, or a dead process's last word; so a reason not to wait is
believed when it was there at two looks.

Where this process has an applier that stands by, somebody always applies. Where it has none (`external`), nobody may:
that shows when the lease can be had, and is waited out for `CheckpointConfig.no_applier_timeout_s`.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.failures import FailureKind
from walsync.checkpoint.progress import Progress
from walsync.checkpoint.rates import RateMeter
from walsync.checkpoint.status import CheckpointStatus
from walsync.checkpoint.status_file import CheckpointReport, read_report
from walsync.checkpoint.stuck import error_of, pending, raise_if_stuck
from walsync.exceptions import ApplyTimeoutError
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["Elsewhere"]

_OVER: Final = ("stopped", "failed")
"""States in which a process has no lease any more: another one is about to have it."""

_PAUSE_LOOK_S: Final = 0.1
"""A pause that another process reports is believed when it is still reported so much later: it may have just ended."""

_NOBODY: Final = (
    "no process applies entries: start `walsync apply`, or a process that attaches without checkpoint='external'"
)


class Elsewhere:
    """The applier of another process, as this one sees it. Thread-safe."""

    def __init__(
        self, log: WriteAheadLog, config: CheckpointConfig, progress: Progress, replay_through: EntryId
    ) -> None:
        self._log = log
        self._config = config
        self._progress = progress
        self._replay_through = replay_through
        self._probing = threading.Lock()  # one probe at a time; what is done under it does not wait
        self._rate = RateMeter(log.control.applied_id)

    def report(self) -> CheckpointReport | None:
        """What the applier wrote last. Reads a small file."""
        return None if self._log.directory is None else read_report(self._log.directory)

    def nobody(self) -> bool:
        """Whether no process applies. With an applier of its own, that is never so for long."""
        control = self._log.control
        if not self._config.external:
            return False
        with self._probing:
            if control.holds_lease or not control.try_lease():
                return False
            control.release_lease()
            return True

    # --------------------------------------------------------------------------------------------- waiting

    def wait_applied(self, through: int, timeout: float | None) -> None:
        """See `SQLAlchemyCheckpointer.wait_applied`."""
        check = self._watch(through)
        check()
        if not self._log.control.wait_applied(through, timeout, check):
            raise ApplyTimeoutError(
                f"{self._pending(through)}, and {timeout} s have passed; {self.words()}. Nothing is lost: what was "
                "committed is safe in the log"
            )

    def wait_drained(self, through: int, timeout: float) -> bool:
        """Waits until the entries up to `through` are applied, or nobody gets there without help."""

        paused_at: float | None = None

        def check() -> None:
            nonlocal paused_at
            watch()
            report = self.report()
            if self._progress.applies_here or report is None or report.state != "paused":
                paused_at = None
            elif paused_at is None:
                paused_at = time.monotonic()
            elif time.monotonic() - paused_at >= _PAUSE_LOOK_S:
                raise ApplyTimeoutError("the applier is paused")

        watch = self._watch(through)
        try:
            check()
            return self._log.control.wait_applied(through, timeout, check)
        except Exception:  # noqa: BLE001  Whatever it is that holds it up, it is not drained.
            return self._log.control.applied_id >= through

    def _watch(self, through: int) -> Callable[[], None]:
        """What is called now and then by somebody who waits; raises when it is in vain."""
        seen: object = None
        nobody_since: float | None = None

        def check() -> None:
            nonlocal seen, nobody_since
            progress = self._progress
            if progress.applies_here or progress.stopping:
                # It has taken over in the meantime, or has come to its end.
                progress.raise_if_stuck(through)
                return
            if self.nobody():
                now = time.monotonic()
                nobody_since = now if nobody_since is None else nobody_since
                if now - nobody_since >= self._config.no_applier_timeout_s:
                    raise ApplyTimeoutError(
                        f"{self._pending(through)}: {self.words()}; so it has been for no_applier_timeout_s = "
                        f"{self._config.no_applier_timeout_s:g} s. What was committed is safe in the log"
                    )
                return
            nobody_since = None
            report = self.report()
            stuck = report is not None and report.state in ("blocked", "halted")
            now_seen = (report.process_id, report.host, report.state, report.entry_id) if report and stuck else None
            if report is not None and now_seen is not None and now_seen == seen:
                raise_if_stuck(
                    self._pending(through),
                    report.state,
                    error_of(report.error_type, report.last_error or ""),
                    report.entry_id,
                    f" by {_process(report)}",
                )
            seen = now_seen

        return check

    def _pending(self, through: int) -> str:
        return pending(self._log.control.applied_id, through)

    # --------------------------------------------------------------------------------------------- telling

    def words(self) -> str:
        """Who applies, for people."""
        report = self.report()
        if self.nobody():
            last = "" if report is None else f" (the last one was {_process(report)}: {_said(report)})"
            return f"{_NOBODY}{last}"
        if report is None or report.state in _OVER:
            return "another process applies, and has not said how it goes"
        return f"{_process(report)} applies since {_moment(report.applies_since)}: {_said(report)}"

    def complete_own(self, status: CheckpointStatus) -> CheckpointStatus:
        """The status of a process that applies, or did until it came to its end, with that in words."""
        this = f"this process ({os.getpid()} on {socket.gethostname()})"
        if status.state in _OVER:
            return dataclasses.replace(status, applier=f"{this} has {status.state}")
        return dataclasses.replace(status, applier=f"{this} applies since {_moment(self._progress.applies_since)}")

    def complete(self, status: CheckpointStatus, quarantined: int) -> CheckpointStatus:
        """This process's status, with what the other one says about what holds the log up."""
        applied_id = self._log.control.applied_id
        self._rate.note(applied_id)
        report = self.report()
        found = dataclasses.replace(
            status,
            applier=self.words(),
            applied_per_s=self._rate.per_second(),
            quarantined_entries=quarantined,
            replay_pending=applied_id < self._replay_through,
        )
        if report is None or report.state in _OVER or self.nobody():
            return found
        kind = report.last_error_kind
        return dataclasses.replace(
            found,
            last_error=report.last_error,
            last_error_type=report.error_type,
            last_error_kind=None if kind is None else FailureKind(kind),
            rejected_entry_id=report.entry_id,
            failures=report.failures,
        )


def _process(report: CheckpointReport) -> str:
    return f"process {report.process_id} on {report.host}"


def _said(report: CheckpointReport) -> str:
    error = "" if report.last_error is None else f" ({report.last_error})"
    return f"{report.state} since {_moment(report.since)}{error}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")

"""The file ``checkpointer.json`` of a log directory: what the checkpointer says about itself, for other processes.

`walsync status` reads it while the application runs, and after it died. It is for people: nothing is decided by it, it
is never synced, and a log without it is whole. It is replaced as a whole, by a rename, when the state changes, and at
most every `EVERY_S` seconds while entries are applied; a commit costs nothing by it.

`StatusReporter` writes it, in a thread of its own, so that a disk that does not answer holds up nobody who applies. A
write that fails is told once in the Python log, and tried again with the next change.

What is read is untrusted: bounded in size, checked field by field, and rid of what a terminal would act upon.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from walsync.checkpoint.failures import FailureKind
from walsync.checkpoint.status import CheckpointState, CheckpointStatus

__all__ = ["EVERY_S", "FILE_NAME", "CheckpointReport", "StatusReporter", "read_report"]

_logger: Final = logging.getLogger("walsync.checkpoint")

FILE_NAME: Final = "checkpointer.json"
EVERY_S: Final = 2.0
"""How often the file is written at most while the state stays the same, in seconds."""

_FORMAT: Final = 2
_MAXIMUM_BYTES: Final = 64 * 1024
_TEXT_MAX: Final = 2000
_STOP_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What a checkpointer wrote. Times are seconds since the epoch."""

    state: CheckpointState
    since: float
    applied_id: int
    last_error: str | None
    last_error_kind: str | None
    """"transient", "blocked", "rejected" or "unknown"; None where the failure did not come from the target."""

    error_type: str | None
    """The class of the failure that lasts."""

    entry_id: int | None
    """The entry that holds the log up, where one does and it is known."""

    failures: int
    replay_pending: bool
    applies_since: float
    """When it became the one that applies."""

    process_id: int
    host: str
    written_at: float


def _report(status: CheckpointStatus, applies_since: float, written_at: float) -> CheckpointReport:
    error = status.last_error
    return CheckpointReport(
        state=status.state,
        since=status.since,
        applied_id=status.applied_id,
        last_error=None if error is None else error[:_TEXT_MAX],
        last_error_kind=None if status.last_error_kind is None else status.last_error_kind.value,
        error_type=status.last_error_type,
        entry_id=status.rejected_entry_id,
        failures=status.failures,
        replay_pending=status.replay_pending,
        applies_since=applies_since,
        process_id=os.getpid(),
        host=socket.gethostname(),
        written_at=written_at,
    )


def _news(report: CheckpointReport) -> tuple[Any, ...]:
    """What makes it worth writing."""
    return tuple(value for name, value in asdict(report).items() if name != "written_at")


class StatusReporter:
    """Writes the file whenever `changed` is set, and looks every `every_s` seconds whether something else is new."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        status: Callable[[], CheckpointStatus],
        changed: threading.Event,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(directory) / FILE_NAME
        self._status = status
        self._changed = changed
        self._every_s = every_s
        self._clock = clock
        self._stopping = False
        self._written: tuple[Any, ...] | None = None
        self._told = False
        self._applies_since = clock()
        self._thread = threading.Thread(target=self._run, name="walsync-status", daemon=True)

    def start(self) -> None:
        """Begins, with what is so now."""
        self._thread.start()

    def stop(self) -> None:
        """Writes the last word and ends. Bounded, also where the disk does not answer. May be called again, and before
        it was started."""
        if self._thread.ident is None:
            return
        self._stopping = True
        self._changed.set()
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            self._changed.clear()
            self._write()
            if stopping:
                return
            self._changed.wait(self._every_s)

    def _write(self) -> None:
        report = _report(self._status(), self._applies_since, self._clock())
        news = _news(report)
        if news == self._written:
            return
        try:
            data = json.dumps({"format": _FORMAT, **asdict(report)}).encode("utf-8")
            beside = self._path.with_name(f"{FILE_NAME}.new")
            beside.write_bytes(data)
            os.replace(beside, self._path)
        except Exception as error:  # noqa: BLE001  A remark about the work must never get in its way.
            if not self._told:
                self._told = True
                _logger.warning(
                    "%s cannot be written (%s: %s); `walsync status` will not know what the checkpointer does. Entries "
                    "are applied all the same",
                    self._path,
                    type(error).__name__,
                    error,
                )
            return
        self._written = news


def read_report(directory: str | os.PathLike[str]) -> CheckpointReport | None:
    """What the checkpointer of this log wrote last; None if there is nothing, or nothing that can be understood."""
    try:
        with open(Path(directory) / FILE_NAME, "rb") as file:
            data = file.read(_MAXIMUM_BYTES + 1)
    except OSError:
        return None
    if len(data) > _MAXIMUM_BYTES:
        return None
    try:
        return _parse(json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _parse(document: Any) -> CheckpointReport:
    if type(document) is not dict or document["format"] != _FORMAT:
        raise ValueError("not a report of this format")
    if document["state"] not in get_args(CheckpointState):
        raise ValueError("no such state")
    if document["last_error_kind"] not in (None, *(kind.value for kind in FailureKind)):
        raise ValueError("no such kind of failure")
    return CheckpointReport(
        state=document["state"],
        since=_time(document["since"]),
        applied_id=_number(document["applied_id"]),
        last_error=None if document["last_error"] is None else _text(document["last_error"]),
        last_error_kind=document["last_error_kind"],
        error_type=None if document["error_type"] is None else _text(document["error_type"]),
        entry_id=None if document["entry_id"] is None else _number(document["entry_id"]),
        failures=_number(document["failures"]),
        replay_pending=document["replay_pending"] is True,
        applies_since=_time(document["applies_since"]),
        process_id=_number(document["process_id"]),
        host=_text(document["host"]),
        written_at=_time(document["written_at"]),
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("not a number of this kind")
    return value


def _time(value: Any) -> float:
    # Until the year 9999: what comes later, no calendar can show.
    if type(value) not in (int, float) or not 0 <= value < 253_402_300_800:
        raise ValueError("not a time")
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("not a text")
    return "".join([letter if letter.isprintable() else " " for letter in value[:_TEXT_MAX]])

"""What `walsync apply` shows: a bar where somebody looks at a terminal, else lines of text, or of JSON.

A line is written when the state or what it says changes, and while entries are applied at most every `EVERY_S`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Final, Protocol

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from walsync.checkpoint import CheckpointStatus
from walsync.cli.output import console, error_console
from walsync.wal import WriteAheadLog

__all__ = ["Display", "display_for"]

EVERY_S: Final = 10.0
"""How often progress is told at most, in lines, in seconds."""


class Display(Protocol):
    """One of the three ways."""

    def show(self, status: CheckpointStatus) -> None:
        """This is how it stands."""

    def end(self, status: CheckpointStatus, exit_code: int) -> None:
        """The last word."""


@contextmanager
def display_for(log: WriteAheadLog, as_json: bool) -> Iterator[Display]:
    """The way that suits where the output goes."""
    if not as_json and error_console.is_terminal:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            console=error_console,
            transient=True,
        ) as bars:
            yield _Bar(log, bars)
        return
    yield _Lines(log, as_json)


class _Bar:
    """Of all that is durable since it began, how much is applied."""

    def __init__(self, log: WriteAheadLog, bars: Progress) -> None:
        self._log = log
        self._bars = bars
        self._first = log.control.applied_id
        self._task = bars.add_task("starting", total=None, words="")

    def show(self, status: CheckpointStatus) -> None:
        durable = self._log.durable_id
        self._bars.update(
            self._task,
            description=status.state,
            total=max(1, durable - self._first),
            completed=status.applied_id - self._first if durable > self._first else 1,
            words=_words(status, durable),
        )

    def end(self, status: CheckpointStatus, exit_code: int) -> None:
        console.print(f"{status.state}: {_words(status, self._log.durable_id)}")


class _Lines:
    def __init__(self, log: WriteAheadLog, as_json: bool) -> None:
        self._log = log
        self._as_json = as_json
        self._said: tuple[Any, ...] | None = None
        self._applied_id: int = log.control.applied_id
        self._at = time.monotonic()

    def show(self, status: CheckpointStatus) -> None:
        news = (status.state, status.last_error, status.rejected_entry_id, status.applier)
        now = time.monotonic()
        if news != self._said:
            self._write("state", status)
        elif status.applied_id != self._applied_id and now - self._at >= EVERY_S:
            self._write("progress", status)
        else:
            return
        self._said, self._applied_id, self._at = news, status.applied_id, now

    def end(self, status: CheckpointStatus, exit_code: int) -> None:
        self._write("ended", status, exit_code)

    def _write(self, event: str, status: CheckpointStatus, exit_code: int | None = None) -> None:
        durable = self._log.durable_id
        moment = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        if not self._as_json:
            typer.echo(f"{moment} {status.state}: {_words(status, durable)}")
            return
        document = {
            "time": moment,
            "event": event,
            "state": status.state,
            "applier": status.applier,
            "applied_id": status.applied_id,
            "durable_id": durable,
            "backlog_entries": max(0, durable - status.applied_id),
            "backlog_bytes": self._log.backlog_bytes,
            "applied_per_s": round(status.applied_per_s, 1),
            "quarantined_entries": status.quarantined_entries,
            "last_error": status.last_error,
            "entry_id": status.rejected_entry_id,
        }
        if exit_code is not None:
            document["exit_code"] = exit_code
        typer.echo(json.dumps(document))


def _words(status: CheckpointStatus, durable: int) -> str:
    words = [f"entries to {status.applied_id:,} of {durable:,} are applied"]
    if status.applied_per_s >= 1:
        words.append(f"{status.applied_per_s:,.0f} a second")
    if status.quarantined_entries:
        words.append(f"{status.quarantined_entries:,} in the quarantine")
    if status.last_error is not None:
        where = "" if status.rejected_entry_id is None else f"entry {status.rejected_entry_id}: "
        words.append(f"{where}{status.last_error}")
    if status.state == "standby":
        words.append(status.applier)
    return "; ".join(words)

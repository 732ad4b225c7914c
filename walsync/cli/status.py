"""`walsync status`: what waits in a log, whether it is healthy, who has it open, what the checkpointer does, and what
the target says.

The log alone knows which entries it has released, and it writes that down only now and then. So without `--target` the
backlog is an upper bound; with it, the watermark in the target says exactly what is applied. What the checkpointer
does, or why it does not, it writes down itself (`walsync.checkpoint.status_file`).
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from walsync.changes import decode_change_set
from walsync.checkpoint.status_file import CheckpointReport, read_report
from walsync.checkpoint.watermark import resume_after
from walsync.cli.examine import LEASE_LOCK, examine, holders_of
from walsync.cli.output import (
    EXIT_DAMAGED,
    EXIT_OK,
    EXIT_TARGET,
    console,
    count_of,
    print_error,
    print_facts,
    print_json,
    reported_errors,
)
from walsync.cli.quarantine import quarantined_entries
from walsync.cli.target import WatermarkSchema, read_watermark
from walsync.exceptions import CorruptEntryError, DamagedLogError, EntryNotFoundError, TargetError, WatermarkGapError
from walsync.wal import Entry, LogVerification, read_log

__all__ = ["status"]

_HOLDERS_ARE_SEEN: bool = sys.platform == "linux"


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Entries behind the last one that is known to be applied."""

    backlog_entries: int
    backlog_bytes: int
    oldest_commit: datetime | None
    """None if nothing waits, or the entry is not walsync's own kind."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the target says, or why it says nothing."""

    applied_id: int | None = None
    error: str | None = None
    gap: bool = False


def status(
    directory: Annotated[Path, typer.Argument(help="The directory of the log.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this database what is applied.", show_default=False),
    ] = None,
    schema: WatermarkSchema = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show backlog, entries, segments and health of a log, and who has it open.

    Changes nothing and takes no lock: the log may be in use. Exit code 0: nothing wrong; 1: the log is damaged, or log
    and target do not fit together; 2: there is no log; 3: the target could not be asked.
    """
    with reported_errors():
        found = examine(directory)
        asked = None
        if target is not None and found.uuid is not None:
            asked, found = _ask(directory, found, target, schema)
        applied_id = asked.applied_id if asked is not None else None
        backlog = _backlog(directory, max(found.checkpointed_id, applied_id or 0))
        quarantined = quarantined_entries(directory)
    holders = holders_of(directory)
    applier = next(iter(holders_of(directory, LEASE_LOCK)), None)
    report = read_report(directory)
    if as_json:
        print_json(
            {
                "directory": str(directory),
                "healthy": found.ok,
                "open_in_process": applier or next(iter(holders), None),
                "open_in_processes": holders,
                "applying_process": applier,
                **asdict(found),
                **asdict(backlog),
                "quarantined_entries": quarantined,
                "backlog_is_exact": applied_id is not None,
                "checkpointer": None
                if report is None
                else {
                    **asdict(report),
                    "process": _process_of(report, holders),
                    "age_s": _seconds_since(report.written_at),
                },
                "target": None if asked is None else asdict(asked),
            }
        )
    else:
        _print(directory, found, backlog, asked, holders, quarantined)
        if report is not None:
            nobody = bool(holders) and applier is None and (directory / LEASE_LOCK).exists()
            _print_report(report, _process_of(report, holders), applier, nobody=nobody)
    raise typer.Exit(_exit_code(found, asked))


def _exit_code(found: LogVerification, asked: Target | None) -> int:
    if not found.ok or (asked is not None and asked.gap):
        return EXIT_DAMAGED
    return EXIT_TARGET if asked is not None and asked.error is not None else EXIT_OK


def _ask(directory: Path, found: LogVerification, url: str, schema: str | None) -> tuple[Target, LogVerification]:
    assert found.uuid is not None
    try:
        watermark = read_watermark(url, found.uuid, schema)
    except TargetError as error:
        return Target(error=str(error)), found
    last_id = max(found.last_id or 0, found.checkpointed_id)
    if watermark is not None and watermark > last_id and holders_of(directory):
        # Committed and applied since the log was read.
        found = examine(directory)
        last_id = max(found.last_id or 0, found.checkpointed_id)
    try:
        applied_id = resume_after(watermark, found.checkpointed_id, last_id, log=f"log {found.uuid} ({directory})")
    except WatermarkGapError as error:
        return Target(applied_id=watermark, error=str(error), gap=True), found
    return Target(applied_id=applied_id or 0), found


def _backlog(directory: Path, applied_id: int) -> Backlog:
    entries, entry_bytes, oldest = 0, 0, None
    # Damage ends it, and is reported already; so does an entry that was released meanwhile, which is no backlog.
    with suppress(DamagedLogError, EntryNotFoundError):
        for entry in read_log(directory):
            if entry.id <= applied_id:
                continue
            if entries == 0:
                oldest = _commit_time(entry)
            entries += 1
            entry_bytes += entry.byte_length
    return Backlog(backlog_entries=entries, backlog_bytes=entry_bytes, oldest_commit=oldest)


def _commit_time(entry: Entry) -> datetime | None:
    try:
        change_set = decode_change_set(entry.id, entry.chunks())
    except CorruptEntryError:
        # Whole, but not a session's transaction: a program's that uses WriteAheadLog by itself.
        return None
    return datetime.fromtimestamp(change_set.commit_time_ns / 1e9, timezone.utc)


def _print(
    directory: Path,
    found: LogVerification,
    backlog: Backlog,
    asked: Target | None,
    holders: list[int],
    quarantined: int,
) -> None:
    print_facts(
        log=directory,
        identity=found.uuid,
        entries=f"{found.first_id:,} to {found.last_id:,} in {count_of(found.segments, 'segment')}"
        if found.entries
        else "none",
        backlog=_backlog_text(backlog, exact=asked is not None and asked.applied_id is not None),
        quarantine=f"{count_of(quarantined, 'entry', 'entries')} (walsync quarantine list)" if quarantined else None,
        torn_tail=f"{found.torn_tail_bytes:,} bytes (normal after a crash)" if found.torn_tail_bytes else None,
        open_in=_processes(holders),
        target=f"has entries 1 to {asked.applied_id:,}" if asked and asked.applied_id else None,
        health="healthy" if found.ok else "DAMAGED",
    )
    for damage in found.damage:
        console.print(Text("Damaged: ", style="bold red").append(damage, style="default"))
    if asked is not None and asked.error is not None:
        print_error(asked.error)


def _processes(holders: list[int]) -> str:
    if not holders:
        return "no process"
    return f"{'process' if len(holders) == 1 else 'processes'} {', '.join(map(str, holders))}"


def _process_of(report: CheckpointReport, holders: list[int]) -> str:
    """ "alive": it has the log open; "closed": it runs, and has not; "gone"; "unknown": not to be seen from here."""
    if report.process_id in holders:
        return "alive"
    if report.host != socket.gethostname():
        # Process ids are counted differently where it runs.
        return "unknown"
    try:
        os.kill(report.process_id, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        return "unknown"
    # Where nobody can say who has the log open, a process that runs is taken to have it.
    return "closed" if _HOLDERS_ARE_SEEN else "alive"


def _seconds_since(moment: float) -> float:
    return max(0.0, datetime.now(timezone.utc).timestamp() - moment)


def _print_report(report: CheckpointReport, process: str, applier: int | None, *, nobody: bool) -> None:
    words = (
        f"{report.state} since {_age(_seconds_since(report.since))}, by process {report.process_id} on {report.host}"
    )
    if applier is not None and applier != report.process_id:
        words = f"by process {applier}, which has not said how it goes"
    elif process != "alive":
        whose = {
            "gone": f"process {report.process_id}, which is gone",
            "closed": f"process {report.process_id}, which has closed the log",
        }.get(process, f"process {report.process_id} on {report.host}, which cannot be seen from here")
        words = f"was {report.state} {_age(_seconds_since(report.written_at))} ago, in {whose}"
    if nobody:
        words = f"nobody applies; process {report.process_id} on {report.host} said last that it is {report.state}"
    style = "default" if report.state in ("running", "paused", "stopped") else "bold red"
    line = Text(f"{'applying':<10} ", style="bold").append(words, style=style)
    if report.last_error is not None:
        where = f"entry {report.entry_id}: " if report.entry_id is not None else ""
        line.append(f"; {where}{report.last_error}", style="default")
    console.print(line)


def _backlog_text(backlog: Backlog, *, exact: bool) -> str:
    if not backlog.backlog_entries:
        return "none"
    count = count_of(backlog.backlog_entries, "entry", "entries")
    words = [count if exact else f"at most {count}", f"{backlog.backlog_bytes:,} bytes"]
    if backlog.oldest_commit is not None:
        age_s = (datetime.now(timezone.utc) - backlog.oldest_commit).total_seconds()
        words.append(f"the oldest committed {_age(age_s)} ago")
    text = ", ".join(words)
    return text if exact else f"{text} (--target tells exactly)"


def _age(seconds: float) -> str:
    for unit, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"

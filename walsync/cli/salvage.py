"""`walsync salvage`: copies what can be read of a damaged log into a new one, and says what is lost."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from walsync.checkpoint.quarantine.store import copy_files
from walsync.checkpoint.watermark import resume_after
from walsync.cli.examine import holders_of, reading_progress, require_directory
from walsync.cli.output import (
    EXIT_DAMAGED,
    EXIT_OK,
    console,
    count_of,
    print_error,
    print_facts,
    print_json,
    reported_errors,
)
from walsync.cli.target import WatermarkSchema, read_watermark
from walsync.exceptions import LogLockedError, WatermarkGapError
from walsync.wal import EntryId, LostEntries, SalvageReport, salvage_log
from walsync.wal.salvage_source import read_source
from walsync.wal.storage.file import FileStorage

__all__ = ["salvage"]


def salvage(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The damaged log.", show_default=False)],
    new_directory: Annotated[
        Path, typer.Argument(metavar="NEW_DIR", help="A new or empty directory.", show_default=False)
    ],
    target: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this database what is applied already.", show_default=False),
    ] = None,
    schema: WatermarkSchema = None,
    through: Annotated[
        int | None, typer.Option(metavar="ID", min=0, help="End the new log with this entry.", show_default=False)
    ] = None,
    log_uuid: Annotated[
        uuid.UUID | None,
        typer.Option("--uuid", metavar="UUID", help="The log's identity, if nothing in DIR says it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Copy everything that can be read of a damaged log into a new one, and say exactly what is lost.

    Changes nothing in DIR. Exit code 0: nothing is lost; 1: something is, and the new log has the rest; 2: there is no
    new log: no log in DIR, NEW_DIR is not empty, or nothing can be read; 3: the target could not be asked, and nothing
    was done.
    """
    with reported_errors():
        require_directory(directory)
        holder = next(iter(holders_of(directory)), None)
        if holder is not None:
            raise LogLockedError(
                f"process {holder} has {directory} open; end it first, or it goes on in the damaged log"
            )
        watermark = None
        if target is not None:
            found = read_source(FileStorage(directory), log_uuid)
            watermark = read_watermark(target, found.log_uuid, schema)
        report = _salvage(directory, new_directory, log_uuid, through, watermark)
        quarantined = copy_files(directory, new_directory)
    gap = _gap(report, watermark, new_directory) if target is not None else None
    if as_json:
        document: dict[str, Any] = {
            "directory": str(directory),
            "new_directory": str(new_directory),
            "complete": report.ok,
            **dataclasses.asdict(report),
            "quarantine_files": quarantined,
            "target": None if target is None else {"applied_id": watermark, "gap": gap},
        }
        print_json(document)
    else:
        _print(directory, new_directory, report, watermark, gap)
        if quarantined:
            console.print(f"The quarantine is copied: {count_of(quarantined, 'file')}.")
    raise typer.Exit(EXIT_OK if report.ok and gap is None else EXIT_DAMAGED)


def _salvage(
    directory: Path, new_directory: Path, log_uuid: uuid.UUID | None, through: int | None, watermark: int | None
) -> SalvageReport:
    with reading_progress() as show:
        return salvage_log(
            directory,
            new_directory,
            log_uuid=log_uuid,
            through=None if through is None else EntryId(through),
            known_id=EntryId(watermark or 0),
            progress=show,
        )


def _gap(report: SalvageReport, watermark: int | None, new_directory: Path) -> str | None:
    """Why the application would refuse to apply the new log to the target; None if it would not."""
    try:
        resume_after(watermark, report.checkpointed_id, report.next_id - 1, log=f"log {report.uuid} ({new_directory})")
    except WatermarkGapError as error:
        return str(error)
    return None


def _ids(first: int, last: int) -> str:
    return f"entry {first:,}" if first == last else f"entries {first:,} to {last:,}"


def _print(directory: Path, new_directory: Path, report: SalvageReport, watermark: int | None, gap: str | None) -> None:
    copied = "nothing"
    if report.first_id is not None and report.last_id is not None:
        count = count_of(report.entries, "entry", "entries")
        copied = f"{count}, from {report.first_id:,} to {report.last_id:,}, {report.copied_bytes:,} bytes"
    print_facts(
        log=directory,
        new_log=new_directory,
        identity=report.uuid,
        copied=copied,
        released=f"entries up to {report.checkpointed_id:,} (not copied: the target has them)"
        if report.checkpointed_id
        else None,
        next_id=f"{report.next_id:,}",
        target=f"has entries up to {watermark:,}" if watermark is not None else None,
    )
    for lost in report.lost:
        _print_loss(lost)
    for first, last in report.abandoned:
        console.print(Text(f"Moved aside before, and not lost now: {_ids(first, last)}."))
    if report.left_out is not None:
        console.print(Text(f"Left out because of --through: {_ids(*report.left_out)}."))
    where = [place for place in report.damage if not any(place in lost.where for lost in report.lost)]
    for place in where:
        console.print(
            Text(f"Unreadable, without a loss: {place.file}, offset {place.offset}, {count_of(place.length, 'byte')}.")
        )
    if report.torn_bytes:
        console.print(Text(f"Torn tail: {report.torn_bytes:,} bytes (normal after a crash: never acknowledged)."))
    for note in report.notes:
        console.print(Text("Note: ", style="yellow").append(f"{note}.", style="default"))
    if report.doubtful_id is not None:
        console.print(
            Text("Look at: ", style="yellow").append(
                f"from entry {report.doubtful_id:,} on, nothing behind them says that they were durable. They are "
                "whole, and may be of a commit that was never acknowledged.",
                style="default",
            )
        )
    _print_advice(report, watermark)
    if gap is not None:
        print_error(gap)


def _print_loss(lost: LostEntries) -> None:
    word = "Lost: " if lost.certain else "Not found: "
    text = Text(word, style="bold red").append(f"{_ids(lost.first_id, lost.last_id)}: {lost.reason}.", style="default")
    console.print(text)
    for place in lost.where:
        console.print(Text(f"  {place.file}, offset {place.offset}, {count_of(place.length, 'byte')}"))


def _print_advice(report: SalvageReport, watermark: int | None) -> None:
    if report.ok:
        console.print("Nothing is lost. Use the new directory in place of the old one.", style="green")
        return
    missing = [lost for lost in report.lost if watermark is None or lost.last_id > watermark]
    if not missing:
        console.print("The target has all of them: nothing is lost. Use the new directory.", style="green")
        return
    first = max(missing[0].first_id, (watermark or 0) + 1)
    behind = report.last_id is not None and report.last_id > first
    if watermark is not None:
        console.print(Text(f"The target does not have the lost ones from entry {first:,} on."))
    if behind:
        console.print(
            Text(
                "Now decide. If the application is given the new directory, walsync passes over what is lost and "
                "applies the entries behind it. If they may build on it, bring the lost changes into the target first, "
                f"or salvage again into another directory with --through {first - 1}, which ends the log before the "
                "loss."
            )
        )

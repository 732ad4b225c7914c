"""`walsync verify`: reads every frame of a log, and names file and offset of what is damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from walsync.cli.examine import examine
from walsync.cli.output import EXIT_DAMAGED, EXIT_OK, console, count_of, print_facts, print_json, reported_errors
from walsync.wal import LogVerification

__all__ = ["verify"]


def verify(
    directory: Annotated[Path, typer.Argument(help="The directory of the log.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check every byte of a log: exit code 0 if it is whole, 1 if it is damaged.

    Changes nothing and takes no lock: the log may be in use.
    """
    with reported_errors():
        found = examine(directory)
    if as_json:
        print_json(_document(directory, found))
    else:
        _print(directory, found)
    raise typer.Exit(EXIT_OK if found.ok else EXIT_DAMAGED)


def _document(directory: Path, found: LogVerification) -> dict[str, Any]:
    return {"directory": str(directory), "healthy": found.ok, **dataclasses.asdict(found)}


def _print(directory: Path, found: LogVerification) -> None:
    print_facts(
        log=directory,
        identity=found.uuid,
        read=f"{count_of(found.entries, 'entry', 'entries')} in {count_of(found.segments, 'segment')}, "
        f"{found.bytes_read:,} bytes",
        entries=f"{found.first_id:,} to {found.last_id:,}" if found.entries else "none",
        torn_tail=f"{found.torn_tail_bytes:,} bytes (normal after a crash: never acknowledged)"
        if found.torn_tail_bytes
        else None,
    )
    for note in found.notes:
        console.print(Text("Note: ", style="yellow").append(note, style="default"))
    for damage in found.damage:
        console.print(Text("Damaged: ", style="bold red").append(damage, style="default"))
    if found.ok:
        console.print("Healthy: every frame is whole, and nothing is missing between them.", style="green")

"""`walsync quarantine`: the entries that the target refused and that were put aside; look at them, and decide.

Works while the application runs: each change takes the quarantine's own lock for one entry.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet
from walsync.changes.json_form import change_to_json, value_to_json
from walsync.checkpoint import CheckpointConfig
from walsync.checkpoint.engine import make_engine
from walsync.checkpoint.events import EventSource
from walsync.checkpoint.quarantine import Quarantine, QuarantinedEntry, QuarantineStore
from walsync.checkpoint.transaction import Target
from walsync.checkpoint.watermark import Watermark
from walsync.cli.examine import log_uuid_of
from walsync.cli.inspect import commit_time_of, print_change, visible
from walsync.cli.output import (
    EXIT_DAMAGED,
    EXIT_KEPT,
    EXIT_OK,
    EXIT_USAGE,
    console,
    count_of,
    error_console,
    print_error,
    print_json,
    reported_errors,
)
from walsync.cli.target import WatermarkSchema, target_engine
from walsync.exceptions import DamagedLogError, EntryNotFoundError
from walsync.wal import EntryId

__all__ = ["app", "open_quarantine", "quarantined_entries"]

Directory = Annotated[Path, typer.Argument(help="The directory of the log.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Discarded = Annotated[bool, typer.Option("--discarded", help="Those that were discarded, in place of the others.")]

_LONGEST_REASON: Final = 300

app = typer.Typer(
    help="Look at the entries that the target refused and that were put aside; retry or discard them.",
    no_args_is_help=True,
)


@app.command(name="list")
def list_entries(directory: Directory, discarded: Discarded = False, as_json: AsJson = False) -> None:
    """List the entries in the quarantine, with the reason of each.

    Exit code 0, also if there are none; 1: a file of the quarantine is damaged, and the others were listed; 2: there is
    no log.
    """
    with reported_errors():
        quarantine = open_quarantine(directory)
        found, damage = _read_all(quarantine, discarded)
    if as_json:
        print_json({"directory": str(directory), "entries": [_document(entry) for entry in found], "damage": damage})
    else:
        for entry in found:
            _print_entry(entry)
        if not found and not damage:
            console.print(f"Nothing is {'discarded' if discarded else 'in the quarantine'}.")
        for sentence in damage:
            print_error(sentence)
    raise typer.Exit(EXIT_DAMAGED if damage else EXIT_OK)


def _read_all(quarantine: Quarantine, discarded: bool) -> tuple[list[QuarantinedEntry], list[str]]:
    found: list[QuarantinedEntry] = []
    damage: list[str] = []
    for entry_id in quarantine.ids(discarded=discarded):
        try:
            found.append(quarantine.show(entry_id, discarded=discarded))
        except DamagedLogError as error:
            damage.append(str(error))
        except EntryNotFoundError:
            # Taken out in this moment.
            continue
    return found, damage


@app.command()
def show(
    directory: Directory,
    entry_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The entry.", show_default=False)],
    discarded: Discarded = False,
    as_json: AsJson = False,
) -> None:
    """Show an entry of the quarantine and the changes in it.

    Exit code 0; 1: its file is damaged; 2: there is no log, or no such entry in the quarantine.
    """
    with reported_errors():
        quarantine = open_quarantine(directory)
        entry = quarantine.show(entry_id, discarded=discarded)
        parts = quarantine.changes(entry_id, discarded=discarded)
        header = next(parts)
        assert isinstance(header, ChangeSet)
        if as_json:
            metadata = {name: value_to_json(value) for name, value in header.metadata.items()}
            # Piece by piece, for an entry may be large.
            sys.stdout.write(json.dumps({**_document(entry), "metadata": metadata})[:-1] + ', "changes": [')
        else:
            _print_entry(entry)
        separator = ""
        for part in parts:
            assert not isinstance(part, ChangeSet)
            if as_json:
                sys.stdout.write(separator + json.dumps(change_to_json(part)))
                separator = ", "
            else:
                print_change(part)
        if as_json:
            sys.stdout.write("]}\n")


@app.command()
def retry(
    directory: Directory,
    target: Annotated[str, typer.Option(metavar="URL", help="The database to apply them to.", show_default=False)],
    entry_ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID]...", help="The entries; without, all.", show_default=False)
    ] = None,
    schema: WatermarkSchema = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for a target that is away.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Apply entries of the quarantine to the target, in order, each exactly once.

    Those that are refused again stay, and so do those that depend on them. Exit code 0: all are applied; 4: some are
    still in the quarantine; 1: a file is damaged; 2: there is no log, or no such entry; 3: the target could not apply
    them now. May be repeated at any time.
    """
    with reported_errors():
        engine = target_engine(target)
        applying = make_engine(engine, CheckpointConfig())
        try:
            done = open_quarantine(directory, engine=applying, schema=schema).retry(entry_ids or None, timeout)
        finally:
            applying.dispose()
            engine.dispose()
    if as_json:
        print_json({"directory": str(directory), **dataclasses.asdict(done)})
    else:
        console.print(f"Applied: {count_of(len(done.applied), 'entry', 'entries')}.")
        for entry_id, reason in done.refused.items():
            _print_kept(entry_id, "refused again", reason)
        for entry_id, reason in done.waiting.items():
            _print_kept(entry_id, "not tried", reason)
    raise typer.Exit(EXIT_OK if done.complete else EXIT_KEPT)


@app.command()
def discard(
    directory: Directory,
    entry_ids: Annotated[list[int], typer.Argument(metavar="ID...", help="The entries.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give entries up: they are never applied. Their files are kept for the record.

    Exit code 0; 2: there is no log, no such entry, or you said no.
    """
    with reported_errors():
        quarantine = open_quarantine(directory)
        present = set(quarantine.ids())
        if not yes and present.issuperset(map(EntryId, entry_ids)):
            error_console.print(
                f"{count_of(len(set(entry_ids)), 'entry', 'entries')} will never be applied: "
                f"{', '.join(map(str, sorted(set(entry_ids))))}."
            )
            if not typer.confirm("Discard?", err=True):
                print_error("nothing was discarded")
                raise typer.Exit(EXIT_USAGE)
        dependents = quarantine.discard(entry_ids)
    if as_json:
        print_json({"directory": str(directory), "discarded": sorted(dependents), "dependents": dependents})
        return
    for entry_id, others in dependents.items():
        words = f"Discarded: entry {entry_id}."
        if others:
            words += f" Still in the quarantine because of it: {', '.join(map(str, others))}."
        console.print(words)


def open_quarantine(directory: Path, *, engine: Any = None, schema: str | None = None) -> Quarantine:
    """The quarantine of a log, to look at; with an engine, also to retry. Takes no lock."""
    log_uuid = log_uuid_of(directory)
    config = CheckpointConfig(watermark_schema=schema)
    store = QuarantineStore.of_log(
        directory, log_uuid, max_entries=config.max_quarantine_entries, max_bytes=config.max_quarantine_bytes
    )

    def connect() -> Target:
        watermark = Watermark(log_uuid, "walsync quarantine retry", schema)
        return Target(
            engine,
            lambda bind: Session(bind, expire_on_commit=False),
            EventSource(),
            watermark,
            f"log {log_uuid}",
            config,
        )

    return Quarantine(store, connect, config)


def quarantined_entries(directory: Path) -> int:
    """How many entries are in the quarantine of a log; 0 if it has none."""
    # Counting names needs neither the log's identity nor its bounds.
    return len(QuarantineStore.of_log(directory, uuid.UUID(int=0), max_entries=1, max_bytes=1).ids())


def _document(entry: QuarantinedEntry) -> dict[str, Any]:
    return {
        **dataclasses.asdict(entry),
        "tables": [list(table) for table in entry.tables],
        "commit_time": commit_time_of(entry.commit_time_ns),
        "quarantined_at": _moment(entry.quarantined_at),
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _print_entry(entry: QuarantinedEntry) -> None:
    words = f", {entry.kind}, {count_of(entry.change_count, 'change')} of {', '.join(map(str, entry.tables))}, "
    words += f"committed {commit_time_of(entry.commit_time_ns)}"
    console.print(Text(f"Entry {entry.entry_id}", style="bold").append(visible(words), style="default"))
    console.print(Text(f"  {_short(entry.reason)}"))


def _print_kept(entry_id: int, what: str, reason: str) -> None:
    text = Text(f"Entry {entry_id} ", style="bold").append(f"{what}: {_short(reason)}", style="default")
    console.print(text)


def _short(reason: str) -> str:
    words = visible(reason)
    return words if len(words) <= _LONGEST_REASON else f"{words[: _LONGEST_REASON - 1]}…"

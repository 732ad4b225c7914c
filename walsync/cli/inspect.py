"""`walsync inspect`: the entries of a log and the changes in them, for people or as JSON lines.

Keeps one chunk of one entry in memory, however long the log and however large the transaction (a journal's chunk has at
most 4,096 rows). Changes nothing and takes no lock.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.text import Text

from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName
from walsync.changes.codec import decode_parts
from walsync.changes.json_form import change_to_json, value_to_json
from walsync.changes.model import Change
from walsync.cli.examine import holders_of
from walsync.cli.output import EXIT_OK, EXIT_USAGE, console, count_of, print_error, reported_errors
from walsync.exceptions import CorruptEntryError, DamagedLogError, EntryNotFoundError, LogError
from walsync.wal import Entry, read_log

__all__ = ["commit_time_of", "inspect", "print_change", "visible"]

_LOOKS_AT_A_LOG_IN_USE: Final = 3
_SHOWN_ROWS: Final = 20
_SHOWN_VALUE: Final = 80
_SHOWN_SQL: Final = 400


@dataclass(frozen=True, kw_only=True)
class _Filter:
    """What is asked for. An entry is shown if one of its changes is, and with those alone."""

    table: str | None
    kind: str | None
    after: int
    through: int | None

    @property
    def asks_for_changes(self) -> bool:
        return self.table is not None or self.kind is not None

    def wants(self, change: Change) -> bool:
        kind, tables = _kind_and_tables(change)
        return (self.kind is None or kind == self.kind) and (
            self.table is None or any(self.table in (str(table), table.name) for table in tables)
        )


def inspect(
    directory: Annotated[Path, typer.Argument(help="The directory of the log.", show_default=False)],
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only changes of this table, with or without its schema.")
    ] = None,
    kind: Annotated[
        Literal["insert", "update", "delete", "statement"] | None,
        typer.Option(help="Only changes of this kind."),
    ] = None,
    entry: Annotated[int | None, typer.Option(metavar="ID", min=1, help="Only this entry.")] = None,
    after: Annotated[int, typer.Option(metavar="ID", min=0, help="Only entries after this one.")] = 0,
    through: Annotated[int | None, typer.Option(metavar="ID", min=1, help="Only entries up to this one.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many entries.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line for each entry.")] = False,
) -> None:
    """Show the entries of a log and the changes in them, those included that are released and still there.

    Changes nothing and takes no lock: the log may be in use. Exit code 0: all that was asked for was shown; 1: the log
    is damaged, and what lies before the damage was shown; 2: there is no log, or no such entry.
    """
    if entry is not None:
        after, through = max(after, entry - 1), entry if through is None else min(through, entry)
    wanted = _Filter(table=table, kind=kind, after=after, through=through)
    with reported_errors():
        shown = _show_all(directory, wanted, limit, as_json=as_json)
    if entry is not None and not shown:
        print_error(
            f"entry {entry} is not in {directory}: it was released, never written, or is not what was asked for"
        )
        raise typer.Exit(EXIT_USAGE)


def _show_all(directory: Path, wanted: _Filter, limit: int | None, *, as_json: bool) -> int:
    """How many entries were shown."""
    if not directory.is_dir():
        raise LogError(f"{directory} is not a directory; give the directory of a log")
    shown = 0
    try:
        for found in _entries(directory, wanted):
            if _show(found, wanted, as_json=as_json):
                shown += 1
                if shown == limit:
                    break
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough (`walsync inspect … | head`). Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_OK) from None
    return shown


def _entries(directory: Path, wanted: _Filter) -> Iterator[Entry]:
    """The entries in the range. In a log in use, a segment that is recycled while it is read is no damage."""
    last_id = wanted.after
    for look in range(_LOOKS_AT_A_LOG_IN_USE):
        try:
            for entry in read_log(directory, released=True):
                if entry.id <= last_id:
                    continue
                if wanted.through is not None and entry.id > wanted.through:
                    return
                yield entry
                last_id = entry.id
        except (DamagedLogError, EntryNotFoundError):
            if look == _LOOKS_AT_A_LOG_IN_USE - 1 or not holders_of(directory):
                raise
        else:
            return


def _show(entry: Entry, wanted: _Filter, *, as_json: bool) -> bool:
    """Print the entry, chunk by chunk, if it is asked for."""
    printer = _JsonPrinter(entry) if as_json else _TextPrinter(entry)
    parts = decode_parts(entry.id, entry.chunks())
    try:
        header = next(parts)
    except CorruptEntryError:
        # Whole, but not a session's transaction: a program's that uses WriteAheadLog by itself.
        if wanted.asks_for_changes:
            return False
        printer.raw()
        return True
    assert isinstance(header, ChangeSet)
    if not wanted.asks_for_changes:
        printer.begin(header)
    error: str | None = None
    try:
        for change in parts:
            assert not isinstance(change, ChangeSet)
            if wanted.wants(change):
                printer.begin(header)
                printer.change(change)
    except CorruptEntryError as found:
        # The first chunk was a change set, a later one is not.
        printer.begin(header)
        error = str(found)
    return printer.end(error)


def _kind_and_tables(change: Change) -> tuple[str, list[TableName]]:
    if isinstance(change, StatementChange):
        return "statement", change.tables
    return change.kind, [change.table]


def commit_time_of(commit_time_ns: int) -> str:
    """A commit time in words, to the nanosecond."""
    seconds, nanoseconds = divmod(commit_time_ns, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return f"{commit_time_ns} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


class _JsonPrinter:
    """One line for the entry, written piece by piece."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._begun = False
        self._separator = ""

    def _facts(self, kind: str) -> dict[str, Any]:
        entry = self._entry
        return {
            "entry_id": entry.id,
            "kind": kind,
            "segment": entry.segment.name,
            "position": entry.position.position,
            "byte_length": entry.byte_length,
            "chunk_count": entry.chunk_count,
        }

    def raw(self) -> None:
        lengths = [len(chunk) for chunk in self._entry.chunks()]
        sys.stdout.write(json.dumps({**self._facts("raw"), "chunk_lengths": lengths}) + "\n")

    def begin(self, header: ChangeSet) -> None:
        if self._begun:
            return
        self._begun = True
        facts = {
            **self._facts("change_set"),
            "commit_time": commit_time_of(header.commit_time_ns),
            "commit_time_ns": header.commit_time_ns,
            "origin": header.origin,
            "metadata": {name: value_to_json(value) for name, value in header.metadata.items()},
        }
        sys.stdout.write(json.dumps(facts)[:-1] + ', "changes": [')

    def change(self, change: Change) -> None:
        sys.stdout.write(self._separator + json.dumps(change_to_json(change)))
        self._separator = ", "

    def end(self, error: str | None) -> bool:
        if self._begun:
            rest = "" if error is None else ', "error": ' + json.dumps(error)
            sys.stdout.write("]" + rest + "}\n")
        return self._begun


class _TextPrinter:
    """A paragraph for the entry."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._begun = False

    def _title(self, *words: str) -> None:
        entry = self._entry
        size = f"{count_of(entry.byte_length, 'byte')} in {entry.segment.name}"
        console.print(Text(f"Entry {entry.id}", style="bold").append(", ".join(("", *words, size)), style="default"))

    def raw(self) -> None:
        lengths = [len(chunk) for chunk in self._entry.chunks()]
        self._title("no change set", count_of(len(lengths), "chunk"))
        for number, length in enumerate(lengths, 1):
            console.print(f"  chunk {number}: {count_of(length, 'byte')}")

    def begin(self, header: ChangeSet) -> None:
        if self._begun:
            return
        self._begun = True
        self._title(commit_time_of(header.commit_time_ns), f"by {visible(header.origin)}")
        if header.metadata:
            console.print(Text(f"  metadata {_short(header.metadata)}"))

    def change(self, change: Change) -> None:
        print_change(change)

    def end(self, error: str | None) -> bool:
        if error is not None:
            print_error(error)
        return self._begun


def print_change(change: Change) -> None:
    """A change, for people."""
    if isinstance(change, RowChanges):
        _print_rows(change)
        return
    console.print(Text("  statement ", style="cyan").append(_cut(visible(change.sql), _SHOWN_SQL), style="default"))
    for name, value in change.parameters.items():
        console.print(Text(f"    {visible(name)}={_short(value)}"))


def _print_rows(change: RowChanges) -> None:
    where = f"{visible(str(change.table))}, {count_of(len(change.rows), 'row')}"
    console.print(Text(f"  {change.kind} ", style="cyan").append(where, style="default"))
    split = len(change.columns)
    for row in change.rows[:_SHOWN_ROWS]:
        values = _pairs(change.columns, row[:split])
        keys = _pairs(change.keys, row[split:])
        joined = " where ".join(part for part in (values, keys) if part) if values else f"where {keys}"
        console.print(Text(f"    {joined}"))
    if len(change.rows) > _SHOWN_ROWS:
        console.print(Text(f"    and {count_of(len(change.rows) - _SHOWN_ROWS, 'more row')} (--json shows all)"))


def _pairs(names: tuple[str, ...], values: list[Any]) -> str:
    return ", ".join(f"{visible(name)}={_short(value)}" for name, value in zip(names, values, strict=True))


def _short(value: Any) -> str:
    return _cut(visible(repr(value)), _SHOWN_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def visible(text: str) -> str:
    """The text in one line, without what a terminal would obey."""
    words = " ".join(text.split()) if "\n" in text else text
    return words if words.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)

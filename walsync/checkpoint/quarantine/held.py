"""What the entries of the quarantine touch, and whether a later entry touches the same. In memory, no I/O.

An entry that touches a row of one that is kept back would be applied out of order. So it is kept back as well, whole,
and with it everything else that it touches. Touching is told by table and primary key; where that cannot be told, and
where a change says so itself (a recorded statement, an action of a foreign key), the whole table is touched.

Two entries are in conflict when one writes what the other reads or writes. A statement reads its `read_tables`; a row
change reads nothing but its own rows.

Memory: a row is some 200 bytes; past `MAX_HELD_ROWS` rows, an entry's tables are held whole in place of its rows,
which keeps back more than need be, and never less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from walsync.changes import ChangeSet, RowChanges, TableName
from walsync.changes.model import Change

__all__ = ["MAX_HELD_ROWS", "Footprint", "HeldRows", "RowsTouched", "footprint_of"]

RowsTouched: TypeAlias = Callable[[RowChanges], Iterable[Iterable[Hashable]] | None]
"""For each row of a change, what it touches, as values that are equal where the target may find them equal; None: it
cannot be told which rows."""

MAX_HELD_ROWS: Final = 250_000


@dataclass(slots=True)
class Footprint:
    """What an entry touches."""

    rows: dict[TableName, set[Hashable]] = field(default_factory=dict)
    whole: set[TableName] = field(default_factory=set)
    """Tables of which any row may be written."""
    reads: set[TableName] = field(default_factory=set)
    """Tables of which any row may be read."""

    def add(self, change: Change, rows_touched: RowsTouched) -> None:
        """Also what this change touches."""
        if not isinstance(change, RowChanges):
            self.whole.update(change.tables)
            self.reads.update(change.read_tables)
            return
        self.whole.update(change.acts_on)
        if change.table in self.whole:
            return
        touched = rows_touched(change)
        if touched is None:
            self.whole.add(change.table)
            return
        rows = self.rows.setdefault(change.table, set())
        for identities in touched:
            rows.update(identities)

    @property
    def row_count(self) -> int:
        """How many rows it names."""
        return sum(map(len, self.rows.values()))

    def by_table(self) -> Footprint:
        """The same, coarser: whole tables."""
        return Footprint({}, self.whole | self.rows.keys(), self.reads)


def footprint_of(changes: Iterable[Change | ChangeSet], rows_touched: RowsTouched) -> Footprint:
    """What all of these changes touch. The header among an entry's parts is passed over."""
    footprint = Footprint()
    for change in changes:
        if not isinstance(change, ChangeSet):
            footprint.add(change, rows_touched)
    return footprint


class HeldRows:
    """Which entry of the quarantine touches what. Not thread-safe."""

    def __init__(self, max_rows: int = MAX_HELD_ROWS) -> None:
        self._max_rows = max_rows
        self._row_count = 0
        self._footprints: dict[int, Footprint] = {}
        self._rows: dict[TableName, dict[Hashable, set[int]]] = {}
        self._whole: defaultdict[TableName, set[int]] = defaultdict(set)
        self._reads: defaultdict[TableName, set[int]] = defaultdict(set)
        self._in_table: defaultdict[TableName, set[int]] = defaultdict(set)
        """Those that touch single rows of a table."""

    def __len__(self) -> int:
        return len(self._footprints)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._footprints

    def ids(self) -> set[int]:
        """The entries."""
        return set(self._footprints)

    def add(self, entry_id: int, footprint: Footprint) -> None:
        """Keep back what the entry touches."""
        if entry_id in self._footprints:
            self.remove(entry_id)
        if self._row_count + footprint.row_count > self._max_rows:
            footprint = footprint.by_table()
        self._row_count += footprint.row_count
        self._footprints[entry_id] = footprint
        for table, rows in footprint.rows.items():
            self._in_table[table].add(entry_id)
            index = self._rows.setdefault(table, {})
            for row in rows:
                index.setdefault(row, set()).add(entry_id)
        for table in footprint.whole:
            self._whole[table].add(entry_id)
        for table in footprint.reads:
            self._reads[table].add(entry_id)

    def remove(self, entry_id: int) -> None:
        """The entry is in the target, or given up."""
        footprint = self._footprints.pop(entry_id, None)
        if footprint is None:
            return
        self._row_count -= footprint.row_count
        for table, rows in footprint.rows.items():
            self._in_table[table].discard(entry_id)
            index = self._rows[table]
            for row in rows:
                holders = index[row]
                holders.discard(entry_id)
                if not holders:
                    del index[row]
            if not index:
                del self._rows[table]
        for table in footprint.whole:
            self._whole[table].discard(entry_id)
        for table in footprint.reads:
            self._reads[table].discard(entry_id)

    def conflicts(
        self, changes: Iterable[Change], rows_touched: RowsTouched, before: int | None = None, *, any_one: bool = False
    ) -> set[int]:
        """The entries (those before `before`) that touch what these changes touch; `any_one`: as soon as one is found.

        Rows are looked up as they come, and not collected: an entry may have a million.
        """
        found: set[int] = set()

        def note(holders: Iterable[int]) -> None:
            found.update(holders if before is None else [holder for holder in holders if holder < before])

        for change in changes:
            if isinstance(change, RowChanges):
                for table in change.acts_on:
                    self._note_whole(table, note)
                self._note_rows(change, rows_touched, note)
            else:
                for table in change.tables:
                    self._note_whole(table, note)
                for table in change.read_tables:
                    note(self._whole.get(table, ()))
                    note(self._in_table.get(table, ()))
            if found and any_one:
                break
        return found

    def _note_whole(self, table: TableName, note: Callable[[Iterable[int]], None]) -> None:
        for index in (self._whole, self._reads, self._in_table):
            note(index.get(table, ()))

    def _note_rows(
        self, change: RowChanges, rows_touched: RowsTouched, note: Callable[[Iterable[int]], None]
    ) -> None:
        table = change.table
        note(self._whole.get(table, ()))
        note(self._reads.get(table, ()))
        index = self._rows.get(table)
        if not index:
            return
        touched = rows_touched(change)
        if touched is None:
            note(self._in_table.get(table, ()))
            return
        for identities in touched:
            for identity in identities:
                holders = index.get(identity)
                if holders is not None:
                    note(holders)

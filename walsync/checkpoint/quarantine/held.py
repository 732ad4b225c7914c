"""What the entries of the quarantine touch, and whether a later entry touches the same. In memory, no I/O.

An entry that touches a row of one that is kept back would be applied out of order. So it is kept back as well, whole,
and with it everything else that it touches. Rows are told apart as `walsync.checkpoint.footprint` does, by primary key;
where that cannot be done, and where a change says so itself (a recorded statement, an action of a foreign key), the
whole table is touched.

Two entries are in conflict when one writes what the other reads or writes. A statement reads its `read_tables`. A row
change reads nothing but its own rows; the rows that its foreign keys point to, the target sees to.

Tables are told apart by what the target's catalogue says they are, and by the names under which they were recorded: a
catalogue that could not be read, or that has changed since, makes more entries wait and never fewer.

Memory: a row is some 200 bytes; past `MAX_HELD_ROWS` rows, an entry's tables are held whole in place of its rows,
which keeps back more than need be, and never less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from walsync.changes import ChangeSet, RowChanges, TableName
from walsync.changes.model import Change
from walsync.checkpoint.catalog import TableFacts
from walsync.checkpoint.catalog.catalog import Facts
from walsync.checkpoint.footprint import RowId, rows_touched

__all__ = ["MAX_HELD_ROWS", "Footprint", "HeldRows", "tables_of"]

MAX_HELD_ROWS: Final = 250_000

TableKey: TypeAlias = Hashable
"""A table: its identity in the target's catalogue, or its recorded name where that is not known."""

Scheme: TypeAlias = tuple[TableKey, Hashable]
"""A table and how its rows are told apart; rows of different schemes cannot be compared."""


def tables_of(changes: Iterable[Change | ChangeSet]) -> set[TableName]:
    """Every table that the changes name, as something that is written or read."""
    found: set[TableName] = set()
    for change in changes:
        if isinstance(change, RowChanges):
            found.add(change.table)
            found.update(change.acts_on)
        elif not isinstance(change, ChangeSet):
            found.update(change.tables)
            found.update(change.read_tables)
    return found


@dataclass(slots=True)
class Footprint:
    """What an entry touches."""

    rows: dict[Scheme, set[RowId]] = field(default_factory=dict)
    whole: set[TableKey] = field(default_factory=set)
    """Tables of which any row may be written."""
    reads: set[TableKey] = field(default_factory=set)
    """Tables of which any row may be read."""
    names: dict[TableName, TableKey] = field(default_factory=dict)
    """The tables by their recorded names."""

    @property
    def row_count(self) -> int:
        """How many rows it names."""
        return sum(map(len, self.rows.values()))

    def add(self, change: Change, facts: Facts | None) -> None:
        """Also what this change touches."""
        if not isinstance(change, RowChanges):
            self.whole.update([self._key(table, facts) for table in change.tables])
            self.reads.update([self._key(table, facts) for table in change.read_tables])
            return
        self.whole.update([self._key(table, facts) for table in change.acts_on])
        known = _known(change.table, facts)
        key = self._key(change.table, facts)
        if known is not None and _acts(change, known):
            self.whole.update(known.acted_on)
        if key in self.whole:
            return
        rows = rows_touched(change, known)
        if known is None or rows is None:
            self.whole.add(key)
            return
        found = self.rows.setdefault((key, _scheme(known)), set())
        for identities in rows:
            found.update(identities)

    def _key(self, table: TableName, facts: Facts | None) -> TableKey:
        known = _known(table, facts)
        key = table if known is None else known.identity
        self.names[table] = key
        return key

    def by_table(self) -> Footprint:
        """The same, coarser: whole tables."""
        return Footprint({}, self.whole | {key for key, _ in self.rows}, self.reads, self.names)


class HeldRows:
    """Which entry of the quarantine touches what. Not thread-safe; `in` may be asked by any thread."""

    def __init__(self, max_rows: int = MAX_HELD_ROWS) -> None:
        self._max_rows = max_rows
        self._row_count = 0
        self._footprints: dict[int, Footprint] = {}
        self._rows: defaultdict[TableKey, dict[Hashable, dict[RowId, set[int]]]] = defaultdict(dict)
        self._whole: defaultdict[TableKey, set[int]] = defaultdict(set)
        self._reads: defaultdict[TableKey, set[int]] = defaultdict(set)
        self._in_table: defaultdict[TableKey, set[int]] = defaultdict(set)
        """Those that touch single rows of a table."""
        self._names: defaultdict[TableName, set[TableKey]] = defaultdict(set)
        """What each name has ever stood for."""

    def __len__(self) -> int:
        return len(self._footprints)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._footprints

    def ids(self) -> set[int]:
        """The entries."""
        return set(self._footprints)

    def add(self, entry_id: int, footprint: Footprint) -> None:
        """Keep back what the entry touches."""
        self.remove(entry_id)
        if self._row_count + footprint.row_count > self._max_rows:
            footprint = footprint.by_table()
        self._row_count += footprint.row_count
        self._footprints[entry_id] = footprint
        for name, key in footprint.names.items():
            self._names[name].add(key)
        for (key, scheme), rows in footprint.rows.items():
            self._in_table[key].add(entry_id)
            index = self._rows[key].setdefault(scheme, {})
            for row in rows:
                index.setdefault(row, set()).add(entry_id)
        for key in footprint.whole:
            self._whole[key].add(entry_id)
        for key in footprint.reads:
            self._reads[key].add(entry_id)

    def remove(self, entry_id: int) -> None:
        """The entry is in the target, or given up."""
        footprint = self._footprints.pop(entry_id, None)
        if footprint is None:
            return
        self._row_count -= footprint.row_count
        for (key, scheme), rows in footprint.rows.items():
            self._in_table[key].discard(entry_id)
            index = self._rows[key][scheme]
            for row in rows:
                holders = index[row]
                holders.discard(entry_id)
                if not holders:
                    del index[row]
            if not index:
                del self._rows[key][scheme]
        for key in footprint.whole:
            self._whole[key].discard(entry_id)
        for key in footprint.reads:
            self._reads[key].discard(entry_id)
        if not self._footprints:
            for index_by_name in (self._rows, self._whole, self._reads, self._in_table, self._names):
                index_by_name.clear()

    def conflicts(
        self, changes: Iterable[Change | ChangeSet], facts: Facts | None, before: int | None = None
    ) -> set[int]:
        """The entries (None: all; else those before `before`) that touch what these changes touch.

        Rows are looked up as they come, and not collected: an entry may have a million.
        """
        found: set[int] = set()
        for change in changes:
            if not isinstance(change, ChangeSet):
                for holders in self._holders(change, facts):
                    found.update(holders)
        return found if before is None else {entry_id for entry_id in found if entry_id < before}

    def _holders(self, change: Change, facts: Facts | None) -> Iterator[Iterable[int]]:
        if not isinstance(change, RowChanges):
            for table in change.tables:
                yield from self._of_table(self._keys(table, facts))
            for table in change.read_tables:
                for key in self._keys(table, facts):
                    yield self._whole.get(key, ())
                    yield self._in_table.get(key, ())
            return
        known = _known(change.table, facts)
        for table in change.acts_on:
            yield from self._of_table(self._keys(table, facts))
        if known is not None and _acts(change, known):
            yield from self._of_table(known.acted_on)
        indexes = []
        for key in self._keys(change.table, facts):
            yield self._whole.get(key, ())
            yield self._reads.get(key, ())
            if self._rows.get(key):
                indexes.append((key, self._rows[key]))
        if indexes:
            # Only now, because it is dear.
            rows = rows_touched(change, known)
            scheme = None if known is None else _scheme(known)
            for key, by_scheme in indexes:
                for held_scheme, index in by_scheme.items():
                    if rows is None or held_scheme != scheme:
                        yield self._in_table[key]
                        continue
                    for identities in rows:
                        for identity in identities:
                            yield index.get(identity, ())

    def _of_table(self, keys: Iterable[TableKey]) -> Iterator[Iterable[int]]:
        for key in keys:
            for index in (self._whole, self._reads, self._in_table):
                yield index.get(key, ())

    def _keys(self, table: TableName, facts: Facts | None) -> set[TableKey]:
        known = _known(table, facts)
        keys: set[TableKey] = {table, *self._names.get(table, ())}
        if known is not None:
            keys.add(known.identity)
        return keys


def _known(table: TableName, facts: Facts | None) -> TableFacts | None:
    return None if facts is None else facts.get(table)


def _scheme(facts: TableFacts) -> Hashable:
    folds = dict(facts.folds)
    return facts.primary_key, tuple(folds.get(column) for column in facts.primary_key)


def _acts(change: RowChanges, facts: TableFacts) -> bool:
    """Whether the target may change rows of other tables with it: when a row goes, or a key that others point to."""
    if change.kind == "delete":
        return True
    if change.kind == "insert":
        return False
    written = {facts.column(name) for name in change.columns}
    return any(not unique.known or written.intersection(unique.columns) for unique in facts.unique)

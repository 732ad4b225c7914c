"""What the entries of the quarantine touch, and whether a later entry touches the same. In memory, no I/O.

An entry that touches a row of one that is kept back would be applied out of order. So it is kept back as well, whole,
and with it everything else that it touches. Rows are told apart as `walsync.checkpoint.footprint` does, by primary key;
where that cannot be done, and where a change says so itself (a recorded statement, an action of a foreign key), the
whole table is touched.

Two entries are in conflict when one writes what the other reads or writes:

- the same row, or any row of a table that the other touches whole; a statement also reads its `read_tables`;
- the same value of a unique key: what an entry in the quarantine is going to write must still be free for it;
- a row that the other's foreign key points to, when it is deleted or its key changes: it must still be there.

The last two keep a retry from being refused for what came after it. They are looked at as far as the values can be
told; where they cannot, the target's own constraints still decide. A row that is missing because its insert is in the
quarantine needs nothing here: the target refuses what points to it.

Tables are told apart by what the target's catalogue says they are, and by the names under which they were recorded: a
catalogue that could not be read, or that has changed since, makes more entries wait and never fewer.

Memory: a row is some 200 bytes; past `MAX_HELD_ROWS` rows, an entry's tables are held whole in place of its rows,
which keeps back more than need be, and never less.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName
from walsync.changes.model import Change
from walsync.checkpoint.catalog import UNKNOWN, Facts, TableFacts
from walsync.checkpoint.footprint import rows_touched, value_places, values_at

__all__ = ["MAX_HELD_ROWS", "Footprint", "HeldRows", "tables_of"]

MAX_HELD_ROWS: Final = 250_000

TableKey: TypeAlias = Hashable
"""A table: its identity in the target's catalogue, or its recorded name where that is not known."""

Scheme: TypeAlias = tuple[tuple[str, ...], Hashable]
"""How values are told apart: columns and folds. Values of different schemes cannot be compared."""


class Kind(enum.Enum):
    """What values stand for."""

    ROW = "the primary key of a row that is written"
    UNIQUE = "a unique key that is written"
    POINTED = "the key of a row that a foreign key points to"


Place: TypeAlias = tuple[TableKey, Kind, Scheme]


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

    values: dict[Place, set[Hashable]] = field(default_factory=dict)
    whole: set[TableKey] = field(default_factory=set)
    """Tables of which any row may be written."""
    reads: set[TableKey] = field(default_factory=set)
    """Tables of which any row may be read."""
    names: dict[TableName, TableKey] = field(default_factory=dict)
    """The tables by their recorded names."""

    @property
    def value_count(self) -> int:
        """How many rows and keys it names."""
        return sum(map(len, self.values.values()))

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
        rows = None if key in self.whole else rows_touched(change, known)
        if known is None or rows is None:
            self.whole.add(key)
        else:
            found = self.values.setdefault((key, Kind.ROW, _row_scheme(known)), set())
            for identities in rows:
                found.update(identities)
        if known is not None:
            for place, values in (*_unique_values(change, known), *_pointed_values(change, known)):
                self.values.setdefault(place, set()).update(values)

    def _key(self, table: TableName, facts: Facts | None) -> TableKey:
        known = _known(table, facts)
        key = table if known is None else known.identity
        self.names[table] = key
        return key

    def by_table(self) -> Footprint:
        """The same, coarser: whole tables."""
        written = {key for key, kind, _ in self.values if kind is not Kind.POINTED}
        read = {key for key, kind, _ in self.values if kind is Kind.POINTED}
        return Footprint({}, self.whole | written, self.reads | read, self.names)


class HeldRows:
    """Which entry of the quarantine touches what. Not thread-safe; `in` may be asked by any thread."""

    def __init__(self, max_values: int = MAX_HELD_ROWS) -> None:
        self._max_values = max_values
        self._value_count = 0
        self._footprints: dict[int, Footprint] = {}
        self._values: defaultdict[tuple[TableKey, Kind], dict[Scheme, dict[Hashable, set[int]]]] = defaultdict(dict)
        self._whole: defaultdict[TableKey, set[int]] = defaultdict(set)
        self._reads: defaultdict[TableKey, set[int]] = defaultdict(set)
        self._in_table: defaultdict[TableKey, set[int]] = defaultdict(set)
        """Those that write single rows of a table."""
        self._pointing: defaultdict[TableKey, set[int]] = defaultdict(set)
        """Those whose foreign keys point to rows of a table."""
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
        if self._value_count + footprint.value_count > self._max_values:
            footprint = footprint.by_table()
        self._value_count += footprint.value_count
        self._footprints[entry_id] = footprint
        for name, key in footprint.names.items():
            self._names[name].add(key)
        for (key, kind, scheme), values in footprint.values.items():
            if not values:
                continue
            if kind is not Kind.UNIQUE:
                self._of(kind)[key].add(entry_id)
            index = self._values[key, kind].setdefault(scheme, {})
            for value in values:
                index.setdefault(value, set()).add(entry_id)
        for key in footprint.whole:
            self._whole[key].add(entry_id)
        for key in footprint.reads:
            self._reads[key].add(entry_id)

    def remove(self, entry_id: int) -> None:
        """The entry is in the target, or given up."""
        footprint = self._footprints.pop(entry_id, None)
        if footprint is None:
            return
        self._value_count -= footprint.value_count
        for (key, kind, scheme), values in footprint.values.items():
            if not values:
                continue
            if kind is not Kind.UNIQUE:
                self._of(kind)[key].discard(entry_id)
            index = self._values[key, kind][scheme]
            for value in values:
                holders = index[value]
                holders.discard(entry_id)
                if not holders:
                    del index[value]
            if not index:
                del self._values[key, kind][scheme]
        for key in footprint.whole:
            self._whole[key].discard(entry_id)
        for key in footprint.reads:
            self._reads[key].discard(entry_id)
        if not self._footprints:
            # Emptied sets stay until here: there are few, one for each table.
            for emptied in (self._values, self._whole, self._reads, self._in_table, self._pointing, self._names):
                emptied.clear()

    def _of(self, kind: Kind) -> defaultdict[TableKey, set[int]]:
        """The entries that have values of this kind, by table."""
        return self._pointing if kind is Kind.POINTED else self._in_table

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
                yield from self._of_table(self._keys(table, facts), deletes=not _keeps_rows(change))
            for table in change.read_tables:
                for key in self._keys(table, facts):
                    yield self._whole.get(key, ())
                    yield self._in_table.get(key, ())
            return
        known = _known(change.table, facts)
        for table in change.acts_on:
            yield from self._of_table(self._keys(table, facts), deletes=True)
        if known is not None and _acts(change, known):
            yield from self._of_table(known.acted_on, deletes=True)
        keys = self._keys(change.table, facts)
        for key in keys:
            yield self._whole.get(key, ())
            yield self._reads.get(key, ())
        yield from self._of_rows(change, keys, known)
        if known is not None and self._values.get((known.identity, Kind.UNIQUE)):
            for (key, kind, scheme), values in _unique_values(change, known):
                index = self._values[key, kind].get(scheme, {})
                for value in values:
                    yield index.get(value, ())

    def _of_rows(
        self, change: RowChanges, keys: Iterable[TableKey], known: TableFacts | None
    ) -> Iterator[Iterable[int]]:
        """Those that write the same rows; and those that point to them, if they may go."""
        found = [
            (key, kind, schemes)
            for key in keys
            for kind in (Kind.ROW, Kind.POINTED)
            if change.kind != "insert" or kind is Kind.ROW
            if (schemes := self._values.get((key, kind)))
        ]
        if not found:
            return
        # Only now, because it is dear.
        rows = rows_touched(change, known)
        own_scheme = None if known is None else _row_scheme(known)
        for key, kind, schemes in found:
            for scheme, index in schemes.items():
                if kind is Kind.POINTED and _keeps_key(change, known, scheme):
                    continue
                if rows is None or scheme != own_scheme:
                    yield self._of(kind)[key]
                    continue
                for identities in rows:
                    for identity in identities:
                        yield index.get(identity, ())

    def _of_table(self, keys: Iterable[TableKey], *, deletes: bool) -> Iterator[Iterable[int]]:
        for key in keys:
            for index in (self._whole, self._reads, self._in_table):
                yield index.get(key, ())
            if deletes:
                yield self._pointing.get(key, ())

    def _keys(self, table: TableName, facts: Facts | None) -> set[TableKey]:
        known = _known(table, facts)
        keys: set[TableKey] = {table, *self._names.get(table, ())}
        if known is not None:
            keys.add(known.identity)
        return keys


def _known(table: TableName, facts: Facts | None) -> TableFacts | None:
    return None if facts is None else facts.get(table)


def _scheme(columns: Sequence[str], facts: TableFacts, of: Sequence[str] = ()) -> Scheme:
    """The columns' names, or those that they stand for, and their folds."""
    folds = dict(facts.folds)
    return tuple(of or columns), tuple([folds.get(column) for column in columns])


def _row_scheme(facts: TableFacts) -> Scheme:
    return _scheme(facts.primary_key, facts)


def _written(change: RowChanges, columns: Sequence[str], facts: TableFacts) -> Iterator[Hashable]:
    """The folded values that rows get in these columns, as far as they can be told; none where one is NULL."""
    if change.kind == "delete" or not any(facts.column(name) in columns for name in change.columns):
        return
    read = values_at(facts, columns, value_places(change, facts))
    if read is not None:
        for row in change.rows:
            value = read(row)
            if value is not None and value is not UNKNOWN:
                yield value


def _unique_values(change: RowChanges, facts: TableFacts) -> Iterator[tuple[Place, Iterable[Hashable]]]:
    for unique in facts.unique:
        if unique.known and unique.columns != facts.primary_key:
            place = (facts.identity, Kind.UNIQUE, _scheme(unique.columns, facts))
            yield place, _written(change, unique.columns, facts)


def _pointed_values(change: RowChanges, facts: TableFacts) -> Iterator[tuple[Place, Iterable[Hashable]]]:
    for reference in facts.references:
        place = (reference.parent, Kind.POINTED, _scheme(reference.columns, facts, reference.parent_columns))
        yield place, _written(change, reference.columns, facts)


def _acts(change: RowChanges, facts: TableFacts) -> bool:
    """Whether the target may change rows of other tables with it: when a row goes, or its key changes.

    What foreign keys to other columns than the primary key do, the change says itself where the mapping knows of them.
    """
    return change.kind == "delete" or (
        change.kind == "update" and any(facts.column(name) in facts.primary_key for name in change.columns)
    )


def _keeps_key(change: RowChanges, facts: TableFacts | None, scheme: Scheme) -> bool:
    """Whether an update leaves the columns alone that foreign keys point to."""
    if facts is None or change.kind == "delete":
        return False
    columns, _ = scheme
    return not any(facts.column(name) in columns for name in change.columns)


def _keeps_rows(statement: StatementChange) -> bool:
    """Whether a statement surely deletes nothing."""
    return statement.sql.lstrip()[:6].upper() in ("INSERT", "UPDATE")

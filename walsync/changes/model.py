"""The model of a committed transaction.

Invariants: names are plain `str` (never SQLAlchemy's `quoted_name`, which strict encoders refuse); every row of a
`RowChanges` has the length that its kind asks for; values are plain (see `walsync.changes.codec`); the order of
`ChangeSet.changes` is the order in which the session flushed them, and applying them in that order is always right.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from walsync.changes.places import RowPlaces, RowVersion
from walsync.changes.types import TypeSpec
from walsync.wal import EntryId

__all__ = ["Change", "ChangeKind", "ChangeSet", "RowChanges", "StatementChange", "TableName", "tables_of"]

ChangeKind: TypeAlias = Literal["insert", "update", "delete"]

CHANGE_KINDS: Final = ("insert", "update", "delete")


class TableName(NamedTuple):
    """A table as the target knows it. `schema` is None for the connection's default schema."""

    schema: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


@dataclass(slots=True)
class RowChanges:
    """Rows of one table changed in one way: same kind, same columns.

    `rows` is a list of lists. A row of an insert holds the values of `columns`; of an update the values of `columns`,
    then those of `keys`; of a delete the values of `keys`. `keys` are the columns that find the row: its primary key,
    and its version where the mapping has one. `types` and `key_types` run parallel to them.

    `commit_times` names columns that are not in the rows and that get the time of the commit.
    `must_match` says that each row must find exactly one row of the target, or the entry is rejected.
    `acts_on` are the other tables that the target changes with it, by the actions of foreign keys.

    Everything but the rows is the change's *shape*, and immutable: changes of one shape share it. To change it, make
    another object (`dataclasses.replace`).
    """

    kind: ChangeKind
    table: TableName
    columns: tuple[str, ...]
    types: tuple[TypeSpec, ...]
    keys: tuple[str, ...]
    key_types: tuple[TypeSpec, ...]
    rows: list[list[Any]]
    must_match: bool = False
    commit_times: tuple[str, ...] = ()
    acts_on: tuple[TableName, ...] = ()
    header: bytes | None = field(default=None, init=False, compare=False, repr=False)
    """The codec's: the encoded shape, kept from one change to the next."""
    places: RowPlaces | None = field(default=None, init=False, compare=False, repr=False)
    """The journal's: where key and version lie in a row; None for a change that was read from a log."""
    _written: frozenset[TableName] | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def written(self) -> frozenset[TableName]:
        """The tables that this writes, also by the actions of foreign keys: of one shape always the same object."""
        if self._written is None:
            self._written = frozenset((self.table, *self.acts_on))
        return self._written

    def with_rows(self, rows: list[list[Any]], must_match: bool) -> RowChanges:
        """A change of the same shape with other rows."""
        change = RowChanges(
            self.kind,
            self.table,
            self.columns,
            self.types,
            self.keys,
            self.key_types,
            rows,
            must_match,
            self.commit_times,
            self.acts_on,
        )
        change.header = self.header
        change.places = self.places
        change._written = self.written
        return change

    def shape_key(self) -> tuple[Any, ...]:
        """Everything but the rows and `must_match`, as a hashable value."""
        return (
            self.kind,
            self.table,
            self.columns,
            self.types,
            self.keys,
            self.key_types,
            self.commit_times,
            self.acts_on,
        )

    @property
    def row_width(self) -> int:
        """How many values each row has."""
        return len(self.columns) + len(self.keys)

    def row_dicts(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each row as (new values, key values), both by column name."""
        split = len(self.columns)
        for row in self.rows:
            yield (
                dict(zip(self.columns, row[:split], strict=True)),
                dict(zip(self.keys, row[split:], strict=True)),
            )


@dataclass(slots=True)
class StatementChange:
    """DML that is not a set of plain rows, as SQL of the target's dialect.

    `sql` has its parameters as ``%(name)s`` and every literal percent sign doubled, whatever the driver's own style
    is. `tables` are those written (also by the actions of foreign keys), `read_tables` those that are only read.
    `expected_rows`, where it is not None, is the number of rows that the statement must match, or the entry is
    rejected.
    """

    sql: str
    parameters: dict[str, Any]
    types: dict[str, TypeSpec]
    tables: list[TableName]
    read_tables: list[TableName]
    dialect: str
    expected_rows: int | None = None
    row: RowVersion | None = field(default=None, compare=False, repr=False)
    """The journal's: the one row with a version that this changes; None where it is another, or not known."""


Change: TypeAlias = RowChanges | StatementChange


def tables_of(changes: list[Change]) -> AbstractSet[TableName]:
    """The tables that these changes write, also by the actions of foreign keys that are known."""
    if len(changes) == 1 and type(changes[0]) is RowChanges:
        return changes[0]._written or changes[0].written
    found: set[TableName] = set()
    for change in changes:
        if isinstance(change, RowChanges):
            found.add(change.table)
            found.update(change.acts_on)
        else:
            found.update(change.tables)
    return found


@dataclass(slots=True)
class ChangeSet:
    """One committed transaction.

    `commit_time_ns` is the time of the commit in nanoseconds since the epoch, `origin` tells the process that made it,
    `metadata` is what the user put into ``session.info["walsync.metadata"]``. `entry_id` is None until it is logged.
    """

    commit_time_ns: int
    origin: str
    metadata: dict[str, Any]
    changes: list[Change]
    entry_id: EntryId | None = None

    @property
    def tables(self) -> AbstractSet[TableName]:
        """The tables that this transaction writes, also by the actions of foreign keys that are known."""
        return tables_of(self.changes)

    @property
    def change_count(self) -> int:
        """Rows plus statements: the unit in which batches are measured."""
        return sum(len(change.rows) if isinstance(change, RowChanges) else 1 for change in self.changes)

"""Applies change sets through a connection, in order, and checks what the target says about each. Never commits.

The checkpointer runs its batches through `apply_changes`; the session layer runs the changes of its own transaction
through it when that goes on directly on the target.

Changes of the same shape that stand next to each other, within an entry or across entries, become one executemany: the
rows are executed in order, in as few round trips as the driver can (PostgreSQL's sends them in a pipeline; for MariaDB
see `walsync.checkpoint.multirow`). With the facts of the tables, changes are first moved to others of their shape,
where that changes nothing (`walsync.checkpoint.ordering`). Nothing is folded: states in between matter to unique
constraints, triggers and foreign keys. A recorded statement is a barrier.

An update or delete with `must_match` is counted: as many rows as were asked for, or `EntryRejectedError`. Where a
driver does not count an executemany, such rows are executed one by one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName
from walsync.checkpoint.catalog import Facts
from walsync.checkpoint.lookup import look_up
from walsync.checkpoint.ordering import Step, arrange
from walsync.checkpoint.statements import PreparedRows, Shape, prepare_rows, prepare_statement, shape_cache, shape_of
from walsync.exceptions import EntryRejectedError, TargetUnavailableError

__all__ = ["apply_changes"]

_ROWS_MAX: Final = 5000
"""Rows handed to the driver at once, so that an entry of a million rows is not held in a second copy."""

_KEEP_ROWCOUNT: Final = {"preserve_rowcount": True}

# What Python raises while a value is turned into a parameter: the value's fault, and so the entry's.
_VALUE_ERRORS: Final = (ArithmeticError, LookupError, TypeError, ValueError)

# Dialects whose driver answered an executemany without a count. Guards: only the lock's holder changes the set.
_uncounted_lock = threading.Lock()
_uncounted: weakref.WeakSet[Dialect] = weakref.WeakSet()


def apply_changes(
    target: Connection | Session,
    change_sets: ChangeSet | Iterable[ChangeSet],
    *,
    row_by_row: bool = False,
    facts: Facts | None = None,
) -> int:
    """Executes the changes and returns how many rows and statements that were. Does not commit.

    In order; with `facts` (see `walsync.checkpoint.catalog`) in one that does the same in fewer steps. `row_by_row`
    executes the rows that are counted one at a time, so that an error names the very row: for finding out what is wrong
    with an entry, not for every day.

    Raises `EntryRejectedError` for a row that is not there or a value that cannot be bound; what SQLAlchemy raises for
    everything that the driver refuses (see `walsync.checkpoint.failures`); `CorruptEntryError` for a malformed record.
    After an exception the transaction must be rolled back. Blocks for as long as the target does.
    """
    connection = target.connection() if isinstance(target, Session) else target
    run = _Run(connection, row_by_row)
    sets = (change_sets,) if isinstance(change_sets, ChangeSet) else change_sets
    if facts is not None and not run.translates:
        for step in arrange(sets, facts, lambda question: look_up(connection, question)):
            run.take(step)
    else:
        for change_set in sets:
            run.apply(change_set)
        run.flush()
    return run.count


def _same_shape(a: RowChanges, b: RowChanges) -> bool:
    """Whether two row changes differ in nothing but their rows. The same as equal `shape_of`, and cheaper."""
    if a.header is not None and a.header is b.header:
        return a.must_match is b.must_match
    return (
        a.kind == b.kind
        and a.table == b.table
        and a.columns == b.columns
        and a.types == b.types
        and a.keys == b.keys
        and a.key_types == b.key_types
        and a.must_match == b.must_match
        and a.commit_times == b.commit_times
    )


class _Run:
    """One call of `apply_changes`: collects rows of one shape, and executes them when the shape changes."""

    __slots__ = (
        "_cache",
        "_connection",
        "_dialect",
        "_last",
        "_prepared",
        "_row_by_row",
        "_rows",
        "_shape",
        "_translate",
        "count",
    )

    def __init__(self, connection: Connection, row_by_row: bool) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._cache = shape_cache(connection.dialect)
        self._row_by_row = row_by_row
        self._translate: Mapping[str | None, str | None] = (
            connection.get_execution_options().get("schema_translate_map") or {}
        )
        self._last: RowChanges | None = None
        self._shape: Shape | None = None
        self._prepared: PreparedRows | None = None
        self._rows: list[Any] = []
        self.count = 0

    @property
    def translates(self) -> bool:
        """The names of tables are not those of the target, so that facts do not fit them."""
        return bool(self._translate)

    def apply(self, change_set: ChangeSet) -> None:
        microseconds = change_set.commit_time_ns // 1000
        for change in change_set.changes:
            if isinstance(change, RowChanges):
                self._add(change, microseconds)
            else:
                self.flush()
                self._execute_statement(change)

    def take(self, step: Step) -> None:
        """Executes one step of an arrangement."""
        if isinstance(step.change, StatementChange):
            self._execute_statement(step.change)
            return
        self._turn_to(step.change)
        self._rows = step.rows
        self.flush()

    def _turn_to(self, change: RowChanges) -> None:
        """The rows that follow are of this change's shape."""
        shape = shape_of(change)
        if self._translate:
            # SQLAlchemy translates the schema of a Table only; the statements here have none.
            table = change.table
            shape = (shape[0], TableName(self._translate.get(table.schema, table.schema), table.name), *shape[2:])
        self._shape = shape
        self._prepared = prepare_rows(self._dialect, self._cache, shape)
        self._last = change

    def _add(self, change: RowChanges, microseconds: int) -> None:
        last = self._last
        if last is None or not _same_shape(change, last):
            self.flush()
            self._turn_to(change)
        assert self._prepared is not None
        if self._prepared.with_commit_time:
            self._rows.extend([(*row, microseconds) for row in change.rows])
        else:
            self._rows.extend(change.rows)
        if len(self._rows) >= _ROWS_MAX:
            self.flush()

    def flush(self) -> None:
        """Executes what has been collected."""
        rows = self._rows
        if not rows:
            return
        self._rows = []
        prepared, shape = self._prepared, self._shape
        assert prepared is not None
        assert shape is not None
        kind, must_match = shape[0], shape[2]
        counted = must_match and kind != "insert"
        step = _ROWS_MAX
        if counted and (self._row_by_row or not (prepared.multi_row is not None or self._counts_many())):
            step = 1
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            matched = self._execute(prepared, part, counted)
            if counted and matched != len(part):
                self._refuse(shape, part, matched)
        self.count += len(rows)

    def _execute(self, prepared: PreparedRows, rows: list[Any], counted: bool) -> int:
        connection = self._connection
        options = _KEEP_ROWCOUNT if counted else None
        try:
            if prepared.sql is None:
                named = prepared.bind_named(rows)
                result = connection.execute(
                    prepared.construct, named if len(named) > 1 else named[0], execution_options=options
                )
            elif prepared.multi_row is not None and len(rows) > 1:
                found = 0
                for sql, values in prepared.multi_row.statements(prepared.bind(rows)):
                    result = connection.exec_driver_sql(sql, values)
                    if result.returns_rows:
                        found += result.scalar_one()
                return found
            else:
                bound = prepared.bind(rows)
                result = connection.exec_driver_sql(
                    prepared.sql, bound if len(bound) > 1 else bound[0], execution_options=options
                )
        except _VALUE_ERRORS as error:
            raise EntryRejectedError(
                f"a value cannot be handed to the target's driver: {type(error).__name__}: {error}"
            ) from error
        return result.rowcount if counted else len(rows)

    def _execute_statement(self, change: StatementChange) -> None:
        expected = change.expected_rows
        options = None if expected is None else _KEEP_ROWCOUNT
        try:
            sql, parameters = prepare_statement(self._dialect, change)
            result = self._connection.exec_driver_sql(sql, parameters, execution_options=options)
        except _VALUE_ERRORS as error:
            raise EntryRejectedError(
                f"a recorded statement cannot be handed to the target's driver: {type(error).__name__}: {error}"
            ) from error
        if expected is not None and result.rowcount != expected:
            raise EntryRejectedError(
                f"a statement on {', '.join(map(str, change.tables))} was to find {expected} rows and found "
                f"{result.rowcount}; they were deleted or changed in the target by somebody else"
            )
        self.count += 1

    def _counts_many(self) -> bool:
        return self._dialect.supports_sane_multi_rowcount and self._dialect not in _uncounted

    def _refuse(self, shape: Shape, rows: list[Any], matched: int) -> None:
        kind, table, _, columns, _, keys, *_ = shape
        if matched < 0:
            # The driver did not count. The rows are executed, and whether they were there is not known: undo it, and
            # do it again one by one.
            if len(rows) == 1:
                raise EntryRejectedError(
                    f"the driver {self._dialect.driver!r} does not count the rows of an {kind}, so the {kind} of "
                    f"{table} cannot be checked; use a driver that does"
                )
            with _uncounted_lock:
                _uncounted.add(self._dialect)
            raise TargetUnavailableError(
                f"the driver {self._dialect.driver!r} does not count the rows of an executemany; the transaction is to "
                "be repeated, and its rows will then be executed one by one"
            )
        if len(rows) == 1:
            if self._connection.engine.hide_parameters:
                place = f"the row with this {', '.join(keys)}"
            else:
                values = rows[0][len(columns) : len(columns) + len(keys)]
                place = "the row with " + ", ".join(
                    f"{key} = {value!r:.80}" for key, value in zip(keys, values, strict=True)
                )
            raise EntryRejectedError(
                f"{kind} of {table}: {place} was found {matched} times in place of once; it was deleted or changed in "
                "the target by somebody else"
            )
        raise EntryRejectedError(
            f"{kind} of {table}: {matched} of {len(rows)} rows were found; the others were deleted or changed in the "
            "target by somebody else"
        )

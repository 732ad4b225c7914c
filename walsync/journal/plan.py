"""From a compiled construct to what is recorded of each of its executions.

A plan is made once per compiled construct (SQLAlchemy caches those) and kept beside it. Most constructs are *rows*: an
INSERT of plain values, or an UPDATE or DELETE whose WHERE says nothing but "primary key = value", with plain values.
For these a plan is a `RowChanges` without rows and an order of parameters, so that recording a row is copying a tuple.
Everything else is a *statement*, compiled for the target's dialect at each execution.

The rule errs to the side of statements: whatever a plan does not positively know to be plain rows is one, and
replaying it as SQL in commit order, exactly once, is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, Table
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, ClauseElement, Grouping

from walsync.changes import ChangeKind, RowChanges, TableName, TypeSpec, describe_type
from walsync.exceptions import NotCapturedError
from walsync.journal.commit_time import has_commit_time_default, has_commit_time_on_update, is_current_time
from walsync.journal.foreign_keys import acted_on
from walsync.journal.marks import ANY_TABLE
from walsync.journal.names import hides_tables, table_name
from walsync.journal.versioned import VersionParameters

__all__ = ["Plan", "RowPlan", "StatementPlan", "generated_key", "make_plan", "missing_key"]


class RowPlan:
    """The construct is plain rows of one table.

    `order` picks a row's values out of the positional parameters; None where they are in order already.
    `key_column` is the autoincrement column whose value the construct leaves to the database, and that is to be
    appended; `explicit_key` is the index of that column where the construct gives it.
    `not_null` are (index, column name) of values that must not be None, `missing` a NOT NULL column without any value.
    """

    __slots__ = ("explicit_key", "key_column", "missing", "not_null", "order", "shape", "table")

    def __init__(
        self,
        shape: RowChanges,
        table: Table,
        order: tuple[int, ...] | None,
        key_column: Column[Any] | None,
        explicit_key: tuple[Column[Any], int] | None,
        not_null: tuple[tuple[int, str], ...],
        missing: str | None,
    ) -> None:
        self.shape = shape
        self.table = table
        self.order = order
        self.key_column = key_column
        self.explicit_key = explicit_key
        self.not_null = not_null
        self.missing = missing


class StatementPlan:
    """The construct is recorded as SQL. `tables` are the tables that it writes.

    `key_column` is the autoincrement column of an INSERT that leaves its key to the database: the recorded one has it.
    `versioned` says where the parameters have the row and its version, if it is an UPDATE of such a row.
    """

    __slots__ = ("key_column", "tables", "versioned")

    def __init__(
        self,
        tables: list[TableName],
        key_column: Column[Any] | None = None,
        versioned: VersionParameters | None = None,
    ) -> None:
        self.tables = tables
        self.key_column = key_column
        self.versioned = versioned


Plan = RowPlan | StatementPlan

_DELETE_OR_INSERT_EXTRAS: Final = ("_prefixes", "_suffixes", "_hints", "_independent_ctes", "_returning")


def make_plan(compiled: SQLCompiler, target_dialect: Dialect) -> Plan:
    """The plan of a compiled INSERT, UPDATE or DELETE. Raises `NotCapturedError` for anything else."""
    state = compiled.compile_state
    statement = getattr(state, "statement", None)
    if not isinstance(statement, UpdateBase):
        raise NotCapturedError(
            "only INSERT, UPDATE and DELETE constructs can be executed on the journal's engine, not "
            f"{type(compiled.statement).__name__}; read through an attached session or the target's own engine"
        )
    if statement._returning:
        raise NotCapturedError(
            "a statement with RETURNING cannot be recorded: its rows are known only when it is applied. "
            "Execute it through an attached session, where it runs directly on the target"
        )
    if compiled.schema_translate_map:
        raise NotCapturedError("schema_translate_map is not supported by the journal; give the table its schema")
    # A construct made of a mapped class has an annotated copy of the table; what counts is the table itself.
    table = statement.table._deannotate()
    plan: Plan | None = None
    if isinstance(table, Table) and compiled.positional and not _has_extras(statement, compiled, target_dialect):
        if isinstance(statement, Insert):
            plan = _insert_plan(statement, table, compiled, target_dialect)
        elif isinstance(statement, Update):
            plan = _update_plan(statement, table, compiled, target_dialect)
        elif isinstance(statement, Delete):
            plan = _delete_plan(statement, table, compiled, target_dialect)
    if plan is not None:
        return plan
    key_column = None
    if isinstance(statement, Insert):
        key_column = missing_key(statement, compiled.column_keys or ())
        if key_column is not None and statement.select is not None:
            if target_dialect.name == "postgresql":
                # The sequence gives each key out once, whoever asks.
                return StatementPlan(_written_tables(statement))
            raise NotCapturedError(
                f"INSERT ... SELECT without the key {key_column} cannot be recorded, because the target would give out "
                "keys that are reserved for others. Execute it through an attached session, where it runs directly on "
                "the target, or select the keys as well"
            )
    versioned = None
    if (
        isinstance(statement, Update)
        and isinstance(table, Table)
        and not _has_extras(statement, compiled, target_dialect)
    ):
        versioned = _version_parameters(statement, table, compiled, target_dialect)
    return StatementPlan(_written_tables(statement), key_column, versioned)


def generated_key(table: Table) -> Column[Any] | None:
    """The column of the primary key whose value the target makes, an integer, where a row leaves it open."""
    column = table.primary_key._autoincrement_column  # Table.autoincrement_column, without going through properties
    if column is None:
        # One with a sequence that is its server's default, too.
        with_sequence = [part for part in table.primary_key if part.default is not None and part.default.is_sequence]
        column = with_sequence[0] if len(with_sequence) == 1 else None
    return column


def missing_key(statement: Insert, column_keys: Iterable[Any]) -> Column[Any] | None:
    """The autoincrement column of an INSERT's table, if neither the construct nor its parameters give it a value.

    `column_keys` are the keys (or columns) of the parameters.
    """
    # An ORM bulk INSERT into several tables (joined inheritance) is one construct; this says which one is meant now.
    table = statement._annotations.get("_emit_insert_table", statement.table)
    column = generated_key(table) if isinstance(table, Table) else None
    if column is None or (isinstance(column_keys, Mapping) and column.key in column_keys):
        return None
    rows = [row for rows in getattr(statement, "_multi_values", ()) for row in rows]
    keys = [
        *column_keys,
        *(statement._values or ()),
        *(key for key, _ in getattr(statement, "_ordered_values", None) or ()),
        *(statement._select_names or ()),
        *(rows[0] if rows and isinstance(rows[0], dict) else ()),
    ]
    given = {key if isinstance(key, str) else getattr(key, "key", None) for key in keys}
    if rows and not isinstance(rows[0], dict) and len(rows[0]) == len(table.c):
        # A positional row of full width names every column.
        return None
    return None if column.key in given else column


def _written_tables(statement: UpdateBase) -> list[TableName]:
    """The tables a DML construct writes, with those of DML inside of its CTEs; `ANY_TABLE` if it may write others."""
    found = _written_by(statement)
    pending: list[Any] = [statement, *statement._independent_ctes]
    for column in statement.table.c:
        # Those that it leaves to SQLAlchemy.
        pending += [default.arg for default in (column.default, column.onupdate) if _inline_default(default)]
    for element in (part for root in pending for part in visitors.iterate(root)):
        if isinstance(element, UpdateBase) and element is not statement:
            found.update(_written_by(element))
        elif hides_tables(element):
            found[ANY_TABLE] = None
    return list(found)


def _written_by(statement: UpdateBase) -> dict[TableName, None]:
    """Of one construct. Of a joined table each part counts, for MySQL updates several at once."""
    found: dict[TableName, None] = {
        table_name(part): None for part in visitors.iterate(statement.table) if isinstance(part, Table)
    }
    if not found:
        found[table_name(statement.table)] = None  # type: ignore[arg-type]
    values = getattr(statement, "_values", None) or {}
    ordered = getattr(statement, "_ordered_values", None) or ()
    for column in [*values, *(pair[0] for pair in ordered)]:
        if isinstance(column, Column) and column.table is not None:
            found[table_name(column.table)] = None
    kind: ChangeKind = "delete" if isinstance(statement, Delete) else "update"
    for part in visitors.iterate(statement.table):
        if isinstance(part, Table) and not (isinstance(statement, Insert) and statement._post_values_clause is None):
            # Of an upsert any column may be set.
            found.update(dict.fromkeys(_acted_on(part, kind, part.c)))
    return found


def _acted_on(table: Table, kind: ChangeKind, columns: Iterable[Column[Any]]) -> tuple[TableName, ...]:
    return tuple(sorted(acted_on(table, kind, [_name(column) for column in columns]), key=str))


def _has_extras(statement: UpdateBase, compiled: SQLCompiler, dialect: Dialect) -> bool:
    """Whether the construct has parts that rows cannot express, or parameters rendered late or inside of SQL."""
    if compiled.literal_execute_params or compiled.post_compile_params or compiled.ctes:
        return True
    if any(bind.type.dialect_impl(dialect)._has_bind_expression for bind in compiled.bind_names):
        return True
    return any(getattr(statement, name, None) for name in _DELETE_OR_INSERT_EXTRAS)


class _Columns:
    """Collects the columns of a shape with their types."""

    def __init__(self, compiled: SQLCompiler, dialect: Dialect) -> None:
        self.dialect = dialect
        self.bind_types: dict[str, Any] = {name: bind.type for bind, name in compiled.bind_names.items()}

    def spec(self, column: Column[Any], parameter: str | None) -> TypeSpec:
        type_ = self.bind_types.get(parameter, column.type) if parameter is not None else column.type
        return describe_type(type_, self.dialect)[0]


def _name(column: Column[Any]) -> str:
    return str.__str__(column.name)


def _explicit_values(statement: Any) -> dict[str, Any] | None:
    """The values given in the construct itself, by column key; None where they have a form that rows cannot have."""
    if getattr(statement, "_multi_values", None) or getattr(statement, "_select_names", None):
        return None
    if getattr(statement, "select", None) is not None or getattr(statement, "_post_values_clause", None) is not None:
        return None
    values: dict[str, Any] = {}
    pairs = list((getattr(statement, "_values", None) or {}).items())
    pairs += list(getattr(statement, "_ordered_values", None) or ())
    for column, value in pairs:
        key = column if isinstance(column, str) else getattr(column, "key", None)
        if key is None:
            return None
        values[str.__str__(key)] = value
    return values


def _split_values(
    statement: Any, table: Table, compiled: SQLCompiler
) -> tuple[dict[str, Column[Any]], list[Column[Any]]] | None:
    """Parameter names to columns, and the columns set to the current time; None if there are other expressions."""
    values = _explicit_values(statement)
    if values is None:
        return None
    by_name: dict[str, Column[Any]] = {str.__str__(column.key): column for column in table.c}
    times: list[Column[Any]] = []
    for key, value in values.items():
        column = by_name.get(key)
        if column is None:
            return None
        if isinstance(value, BindParameter):
            # The compiler may have put a copy in its place, with the column's type; the key stays.
            for bind, name in compiled.bind_names.items():
                if bind is value or bind.key == value.key:
                    by_name[name] = column
        elif isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
            if not is_current_time(value):
                return None
            times.append(column)
    return by_name, times


def _columns_of(names: Sequence[str], by_name: dict[str, Column[Any]], table: Table) -> list[Column[Any]] | None:
    """The columns of these parameters, or None if one is not a column's or two are the same column's."""
    columns = [by_name.get(name) for name in names]
    if any(column is None or column.table is not table for column in columns):
        return None
    found = [column for column in columns if column is not None]
    return found if len(set(found)) == len(found) else None


def _inline_default(default: Any) -> bool:
    """Whether SQLAlchemy renders this default as SQL inside of the statement."""
    return default is not None and default.is_clause_element


# -------------------------------------------------------------------------------------------------- INSERT


def _insert_plan(statement: Insert, table: Table, compiled: SQLCompiler, dialect: Dialect) -> RowPlan | None:
    split = _split_values(statement, table, compiled)
    if split is None:
        return None
    by_name, times = split
    names = list(compiled.positiontup or ())
    columns = _columns_of(names, by_name, table)
    if columns is None:
        return None
    given = {*columns, *times}
    autoincrement = generated_key(table)
    key_column: Column[Any] | None = None
    missing: str | None = None
    for column in table.c:
        if column in given:
            continue
        if column is autoincrement:
            key_column = column
        elif _inline_default(column.default):
            if not is_current_time(column.default.arg):  # type: ignore[union-attr]
                return None
            times.append(column)
        elif column.default is not None and column.default.is_sequence:
            return None
        elif has_commit_time_default(column):
            times.append(column)
        elif column.primary_key and not _filled_by_target(column):
            missing = missing or _name(column)
        elif column.primary_key:
            raise NotCapturedError(
                f"the primary key {table.fullname}.{column.name} is made by the target, so the row cannot be known "
                "before it is applied. Give the column a Python-side default (uuid.uuid4, for one), or run this "
                "transaction directly on the target (session.info['walsync.mode'] = 'direct')"
            )
        elif not column.nullable and not _filled_by_target(column):
            missing = missing or _name(column)
    collected = _Columns(compiled, dialect)
    row_columns = [*columns, *([] if key_column is None else [key_column])]
    parameters = [*names, *([] if key_column is None else [None])]
    shape = RowChanges(
        "insert",
        table_name(table),
        tuple([_name(column) for column in row_columns]),
        tuple([collected.spec(column, name) for column, name in zip(row_columns, parameters, strict=True)]),
        (),
        (),
        [],
        commit_times=tuple([_name(column) for column in times]),
    )
    explicit = None
    if autoincrement is not None and autoincrement in columns:
        explicit = (autoincrement, columns.index(autoincrement))
    return RowPlan(shape, table, None, key_column, explicit, _not_null(columns), missing)


def _filled_by_target(column: Column[Any]) -> bool:
    return column.server_default is not None or column.computed is not None or column.identity is not None


def _not_null(columns: Sequence[Column[Any]]) -> tuple[tuple[int, str], ...]:
    return tuple((index, _name(column)) for index, column in enumerate(columns) if not column.nullable)


# --------------------------------------------------------------------------------------- UPDATE and DELETE


def _key_parameters(statement: Any, table: Table, compiled: SQLCompiler) -> list[tuple[Column[Any], str]] | None:
    """The WHERE as (column, parameter) if it is "column = value AND ..." with the whole primary key; else None."""
    pending = list(statement._where_criteria)
    found: list[tuple[Column[Any], str]] = []
    while pending:
        element = pending.pop(0)
        if isinstance(element, Grouping):
            pending.insert(0, element.element)
        elif isinstance(element, BooleanClauseList) and element.operator is operators.and_:
            pending[:0] = list(element.clauses)
        elif isinstance(element, BinaryExpression) and element.operator is operators.eq:
            column, value = element.left, element.right
            if not isinstance(value, BindParameter) or not isinstance(column, Column):
                return None
            name = compiled.bind_names.get(value)
            # An annotated column is a copy; the table's own is found by key.
            own = table.c.get(column.key)
            if name is None or own is None or own.name != column.name or table_name(column.table) != table_name(table):
                return None
            found.append((own, name))
        else:
            return None
    columns = {column for column, _ in found}
    if not table.primary_key.columns or len(columns) != len(found):
        return None
    return found if columns.issuperset(table.primary_key.columns) else None


def _row_order(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | bool | None:
    """Where each wanted parameter lies; None if they are in order already, False if the two do not fit."""
    if len(names) != len(wanted):
        return False
    if list(names) == list(wanted):
        return None
    positions = {name: index for index, name in enumerate(names)}
    if len(positions) != len(names) or set(positions) != set(wanted):
        return False
    return tuple(positions[name] for name in wanted)


def _version_parameters(
    statement: Update, table: Table, compiled: SQLCompiler, dialect: Dialect
) -> VersionParameters | None:
    """Of an UPDATE that sets SQL expressions, and finds one row by its primary key and its version."""
    keys = _key_parameters(statement, table, compiled)
    if keys is None:
        return None
    places = dict(keys)
    primary_key = [(column, places[column]) for column in table.primary_key.columns]
    versions = [(column, name) for column, name in keys if not column.primary_key]
    names = set(compiled.bind_names.values())
    if len(versions) != 1 or any(column.key in names for column, _ in primary_key):
        return None  # or the statement changes the key
    ((version, _),) = versions
    new = str.__str__(version.key)
    return VersionParameters([*primary_key, *versions], new if new in names - set(places.values()) else None, dialect)


def _update_plan(statement: Update, table: Table, compiled: SQLCompiler, dialect: Dialect) -> RowPlan | None:
    keys = _key_parameters(statement, table, compiled)
    split = _split_values(statement, table, compiled)
    if keys is None or split is None:
        return None
    by_name, times = split
    names = list(compiled.positiontup or ())
    key_names = [name for _, name in keys]
    set_names = [name for name in names if name not in key_names]
    columns = _columns_of(set_names, by_name, table)
    if columns is None:
        return None
    given = {*columns, *times}
    for column in table.c:
        if column not in given and _inline_default(column.onupdate):
            if not is_current_time(column.onupdate.arg):  # type: ignore[union-attr]
                return None
            times.append(column)
        elif column not in given and has_commit_time_on_update(column):
            times.append(column)
    order = _row_order(names, [*set_names, *key_names])
    if order is False or not (columns or times):
        return None
    collected = _Columns(compiled, dialect)
    shape = RowChanges(
        "update",
        table_name(table),
        tuple([_name(column) for column in columns]),
        tuple([collected.spec(column, name) for column, name in zip(columns, set_names, strict=True)]),
        tuple([_name(column) for column, _ in keys]),
        tuple([collected.spec(column, name) for column, name in keys]),
        [],
        commit_times=tuple([_name(column) for column in times]),
        acts_on=_acted_on(table, "update", [*columns, *times]),
    )
    return RowPlan(shape, table, None if order is True else order, None, None, _not_null(columns), None)


def _delete_plan(statement: Delete, table: Table, compiled: SQLCompiler, dialect: Dialect) -> RowPlan | None:
    keys = _key_parameters(statement, table, compiled)
    if keys is None:
        return None
    key_names = [name for _, name in keys]
    order = _row_order(list(compiled.positiontup or ()), key_names)
    if order is False:
        return None
    collected = _Columns(compiled, dialect)
    shape = RowChanges(
        "delete",
        table_name(table),
        (),
        (),
        tuple([_name(column) for column, _ in keys]),
        tuple([collected.spec(column, name) for column, name in keys]),
        [],
        acts_on=_acted_on(table, "delete", ()),
    )
    return RowPlan(shape, table, None if order is True else order, None, None, (), None)

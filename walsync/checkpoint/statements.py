"""From a recorded change to what a driver executes: the SQL, made once per shape, and the parameters, made per row.

The *shape* of a row change is everything but its rows: kind, table, columns, types, keys, commit times. The SQL of a
shape comes from SQLAlchemy's own compiler for the target's dialect (quoting, casts, type expressions), over a
lightweight `sqlalchemy.table()` with the recorded types: no application, no reflection. It is compiled once; after
that a row costs a tuple (or a dict) and the bind processors of those columns that have one, and whole lists of rows
go to the driver through `Connection.exec_driver_sql`, which keeps SQLAlchemy's events, error wrapping and disconnect
handling.

Dialects that must tell the driver each parameter's type (`setinputsizes`) go the long way, through
`Connection.execute` and SQLAlchemy's processing of each row.

What is not SQLAlchemy's:

- the time of the commit, an expression that writes what the server's own "now" would have written at that moment;
- ``OVERRIDING SYSTEM VALUE`` on PostgreSQL, without which a recorded key of a GENERATED ALWAYS identity is refused;
  the server ignores it where there is no such column;
- recorded statements, whose parameters are put into the driver's own style left to right.

NULL in a key finds no row, as always in SQL: keys are primary keys and version columns, which are never NULL. A row
change that has one all the same matches nothing, and `must_match` rejects its entry.

Nothing here does any I/O.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import bindparam, column, delete, func, insert, literal_column, table, update
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.sql import ColumnElement
from sqlalchemy.types import BigInteger, TypeEngine

from walsync.changes import RowChanges, StatementChange, TypeSpec, restore_type
from walsync.checkpoint.multirow import CompoundStatement, MultiRowInsert, compound_statement, multi_row_insert
from walsync.exceptions import CorruptEntryError, EntryRejectedError, TargetBlockedError

__all__ = ["BindRows", "PreparedRows", "Shape", "prepare_rows", "prepare_statement", "shape_of"]

Shape: TypeAlias = tuple[Any, ...]
BindRows: TypeAlias = Callable[[Sequence[Sequence[Any]]], list[Any]]

_SHAPES_MAX: Final = 1024
"""Prepared shapes kept per dialect; past it all are dropped and made anew."""

# Drivers of MariaDB that put the values into the text: the server takes no parameters in a compound statement.
_WRITES_OUT_PARAMETERS: Final = ("pymysql", "mysqldb", "aiomysql", "asyncmy")

# A name that no column has: SQLAlchemy refuses a parameter named like a column of the statement.
_PREFIX: Final = "walsync__"
_COMMIT_TIME: Final = f"{_PREFIX}commit_us"


def shape_of(change: RowChanges) -> Shape:
    """Everything but the rows, hashable. Changes of equal shape, next to each other, are one executemany."""
    return (
        change.kind,
        change.table,
        change.must_match,
        change.columns,
        change.types,
        change.keys,
        change.key_types,
        change.commit_times,
    )


@dataclass(frozen=True)
class PreparedRows:
    """A shape, ready to run on one dialect.

    Rows handed to `bind` have one more value than the recorded ones if `with_commit_time`: the time of the commit in
    microseconds since the epoch.
    """

    construct: Any
    """The SQLAlchemy statement, for the long way."""

    sql: str | None
    """The driver's SQL; None where only the long way is right."""

    bind: BindRows
    """From rows to the driver's parameters. Raises what a bind processor raises."""

    bind_named: BindRows
    """From rows to the parameters of `construct`: dicts, not processed."""

    with_commit_time: bool

    multi_row: MultiRowInsert | CompoundStatement | None = None
    """For several rows, where the driver's executemany would send them one by one."""


# Guards the WeakKeyDictionary itself; the dicts in it are only read and written whole, which the interpreter makes
# atomic: at worst two threads prepare the same shape.
_caches_lock = threading.Lock()
_caches: weakref.WeakKeyDictionary[Dialect, dict[Shape, PreparedRows]] = weakref.WeakKeyDictionary()


def shape_cache(dialect: Dialect) -> dict[Shape, PreparedRows]:
    """The prepared shapes of one dialect object; pass it to `prepare_rows`."""
    with _caches_lock:
        return _caches.setdefault(dialect, {})


def prepare_rows(dialect: Dialect, cache: dict[Shape, PreparedRows], shape: Shape) -> PreparedRows:
    """The prepared form of a shape, from the cache or made. Thread-safe."""
    prepared = cache.get(shape)
    if prepared is None:
        prepared = _prepare(dialect, shape)
        if len(cache) >= _SHAPES_MAX:
            cache.clear()
        cache[shape] = prepared
    return prepared


# ----------------------------------------------------------------------------------------------- row changes


def _prepare(dialect: Dialect, shape: Shape) -> PreparedRows:
    kind, name, _, columns, type_specs, keys, key_specs, commit_times = shape
    types: list[TypeEngine[Any]] = [restore_type(spec) for spec in (*type_specs, *key_specs)]
    names = [f"{_PREFIX}{index}" for index in range(len(types))]
    parameters: list[Any] = [bindparam(name, type_=type_) for name, type_ in zip(names, types, strict=True)]
    width = len(columns)

    commit_columns: list[Any] = [column(time_column) for time_column in commit_times]
    value_columns = [column(column_name, type_) for column_name, type_ in zip(columns, types[:width], strict=True)]
    key_columns = [column(column_name, type_) for column_name, type_ in zip(keys, types[width:], strict=True)]
    # A version column is both written and compared; a table has each column once.
    all_columns = {col.name: col for col in (*key_columns, *value_columns, *commit_columns)}
    target = table(name.name, *all_columns.values(), schema=name.schema)

    values: dict[str, ColumnElement[Any]] = dict(zip(columns, parameters[:width], strict=True))
    if commit_times:
        names.append(_COMMIT_TIME)
        types.append(BigInteger())
        for time_column in commit_times:
            values[time_column] = _commit_time(dialect)
    found = [target.c[key] == parameter for key, parameter in zip(keys, parameters[width:], strict=True)]

    construct: Any
    if kind == "insert":
        construct = insert(target).values(values) if values else insert(target)
        construct = construct.inline()
    elif kind == "update":
        construct = update(target).values(values).where(*found)
    else:
        construct = delete(target).where(*found)
    return _finish(dialect, construct, kind, names, types, bool(commit_times))


def _finish(
    dialect: Dialect,
    construct: Any,
    kind: str,
    names: list[str],
    types: list[TypeEngine[Any]],
    with_commit_time: bool,
) -> PreparedRows:
    def bind_named(rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [dict(zip(names, row, strict=True)) for row in rows]

    if dialect.bind_typing is BindTyping.SETINPUTSIZES:
        return PreparedRows(construct, None, bind_named, bind_named, with_commit_time)
    # An insert is compiled for the columns of its values alone: without column_keys the compiler would make a parameter
    # for each column of the table.
    compiled = construct.compile(dialect=dialect)
    sql = str(compiled)
    if kind == "insert" and dialect.name == "postgresql" and (dialect.server_version_info or (10,)) >= (10,):
        # The last ") VALUES (" is the statement's own: what follows it are parameters and casts, never names.
        head, found, tail = sql.rpartition(") VALUES (")
        if found:
            sql = f"{head}) OVERRIDING SYSTEM VALUE VALUES ({tail}"
    processors = [type_.dialect_impl(dialect).bind_processor(dialect) for type_ in types]
    if dialect.positional:
        places = {name: index for index, name in enumerate(names)}
        bind = _positional(len(names), [places[name] for name in compiled.positiontup], processors)
    else:
        # SQLAlchemy may have to escape names for the driver; these have nothing to escape.
        bind = _named(names, processors)
    multi_row: MultiRowInsert | CompoundStatement | None = None
    if dialect.name in ("mysql", "mariadb"):
        if kind == "insert":
            multi_row = multi_row_insert(sql, dialect.paramstyle) if with_commit_time else None
        elif getattr(dialect, "is_mariadb", False) and dialect.driver in _WRITES_OUT_PARAMETERS:
            multi_row = compound_statement(sql, dialect.paramstyle)
    return PreparedRows(construct, sql, bind, bind_named, with_commit_time, multi_row)


def _positional(width: int, order: list[int], processors: Sequence[Callable[[Any], Any] | None]) -> BindRows:
    if order == list(range(width)):
        work = [(index, processor) for index, processor in enumerate(processors) if processor is not None]
        if not work:
            return lambda rows: list(map(tuple, rows))

        def bind_in_order(rows: Sequence[Sequence[Any]]) -> list[Any]:
            bound = []
            for row in rows:
                values = list(row)
                for index, process in work:
                    values[index] = process(values[index])
                bound.append(tuple(values))
            return bound

        return bind_in_order

    steps = [(index, processors[index]) for index in order]

    def bind(rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [
            tuple([row[index] if process is None else process(row[index]) for index, process in steps]) for row in rows
        ]

    return bind


def _named(names: list[str], processors: Sequence[Callable[[Any], Any] | None]) -> BindRows:
    work = [(name, processor) for name, processor in zip(names, processors, strict=True) if processor is not None]
    if not work:
        return lambda rows: [dict(zip(names, row, strict=True)) for row in rows]

    def bind(rows: Sequence[Sequence[Any]]) -> list[Any]:
        bound = []
        for row in rows:
            values = dict(zip(names, row, strict=True))
            for name, process in work:
                values[name] = process(values[name])
            bound.append(values)
        return bound

    return bind


def _commit_time(dialect: Dialect) -> ColumnElement[Any]:
    """The time of the commit as this target's "now" would have written it at that moment.

    PostgreSQL: a timestamptz, which the assignment to the column turns into the session's zone where the column has
    none, as it does with now(). MySQL and MariaDB: the session's zone, to the second, as CURRENT_TIMESTAMP has it.
    SQLite: UTC, to the second, as CURRENT_TIMESTAMP has it.
    """
    microseconds: ColumnElement[int] = bindparam(_COMMIT_TIME, type_=BigInteger())
    if dialect.name == "postgresql":
        epoch: ColumnElement[Any] = literal_column("TIMESTAMP WITH TIME ZONE 'epoch'")
        return epoch.op("+")(microseconds.op("*")(literal_column("INTERVAL '1 microsecond'")))
    if dialect.name in ("mysql", "mariadb"):
        return func.from_unixtime(microseconds.op("DIV")(literal_column("1000000")))
    if dialect.name == "sqlite":
        return func.datetime(microseconds.op("/")(literal_column("1000000")), literal_column("'unixepoch'"))
    raise TargetBlockedError(
        f"walsync does not know how to write the time of a commit on {dialect.name!r}; give the column a Python-side "
        "default in place of a server default"
    )


# ----------------------------------------------------------------------------------------------- statements

_TOKEN: Final = re.compile(r"%(?:\(([^)]*)\)s|(%))?")


def prepare_statement(dialect: Dialect, change: StatementChange) -> tuple[str, Any]:
    """A recorded statement in the driver's own style, and its parameters, processed.

    The recorded SQL is walked once, left to right: a parameter, a doubled percent sign, or text that is copied. Nothing
    inside quotes is looked for, because the recording doubled every percent sign wherever it stands.
    Raises `EntryRejectedError` when the statement was recorded for another dialect, or a value cannot be bound, and
    `CorruptEntryError` when the SQL is not in the recorded style.
    """
    if not _same_family(change.dialect, dialect.name):
        raise EntryRejectedError(
            f"the entry holds a statement recorded for {change.dialect!r}, and the target is {dialect.name!r}; apply "
            "it to a target of the kind that it was recorded for"
        )
    style = dialect.paramstyle
    percent = "%%" if style in ("format", "pyformat") else "%"
    order: list[str] = []
    numbers: dict[str, int] = {}
    parts: list[str] = []
    position = 0
    for token in _TOKEN.finditer(change.sql):
        parts.append(change.sql[position : token.start()])
        position = token.end()
        name = token.group(1)
        if name is None:
            if token.group(2) is None:
                raise CorruptEntryError(f"a lone percent sign at character {token.start()} of a recorded statement")
            parts.append(percent)
            continue
        if name not in change.parameters:
            raise CorruptEntryError(f"a recorded statement has no value for its parameter {name!r:.100}")
        parts.append(_placeholder(style, name, order, numbers))
    parts.append(change.sql[position:])
    values = {name: _processed(dialect, name, value, change.types) for name, value in change.parameters.items()}
    if dialect.positional:
        return "".join(parts), tuple([values[name] for name in order])
    return "".join(parts), {numbered: values[name] for name, numbered in _names(order)}


def _names(order: list[str]) -> list[tuple[str, str]]:
    """Recorded names and those given to the driver, which are plain: recorded ones may hold what a driver refuses."""
    return [(name, f"{_PREFIX}{index}") for index, name in enumerate(order)]


def _placeholder(style: str, name: str, order: list[str], numbers: dict[str, int]) -> str:
    """The next parameter in the driver's style. Numbered styles use one number for one name."""
    if style in ("numeric", "numeric_dollar"):
        if name not in numbers:
            order.append(name)
            numbers[name] = len(order)
        return f"{'$' if style == 'numeric_dollar' else ':'}{numbers[name]}"
    order.append(name)
    if style == "qmark":
        return "?"
    if style == "format":
        return "%s"
    own = f"{_PREFIX}{len(order) - 1}"
    return f"%({own})s" if style == "pyformat" else f":{own}"


def _processed(dialect: Dialect, name: str, value: Any, types: dict[str, TypeSpec]) -> Any:
    spec = types.get(name)
    if spec is None:
        return value
    process = restore_type(spec).dialect_impl(dialect).bind_processor(dialect)
    return value if process is None else process(value)


def _same_family(recorded: str, target: str) -> bool:
    if recorded == target:
        return True
    return {recorded, target} <= {"mysql", "mariadb"}

"""Blocks of keys from a table's own AUTO_INCREMENT counter, on MariaDB and MySQL.

Whoever else inserts into the table gets keys from the same counter, so that it can never give out a key of a block. A
block is claimed by an INSERT of one row, in a session whose `auto_increment_increment` is the length of the block, and
its ROLLBACK: InnoDB moves the counter by a whole step, at once and for everybody, before it looks at the row, and never
moves it back. What a table demands of its rows is switched off in that session for this one statement (strict mode,
foreign keys, and MariaDB's CHECK constraints); nobody ever sees the row. A trigger of the table is executed, and rolled
back as well.

It takes no privilege but that of inserting, and no lock that outlives the statement.

Where that is not possible (a table of another storage engine, a view, a trigger or a constraint that refuses the row),
the answer is None, and the caller has to see to the keys in another way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Column, Connection, Table, text
from sqlalchemy.exc import DBAPIError

from walsync.journal.key_file import KeyRange

__all__ = ["HAVE_COUNTERS", "claim", "counter_of", "has_counter"]

HAVE_COUNTERS: Final = ("mysql", "mariadb")
"""The dialects whose tables have such counters."""

_STEP_MAX: Final = 65_535
"""The largest `auto_increment_increment`."""

_ROWS_TRIED: Final = 4

_DUPLICATE: Final = 1062
_REFUSALS: Final = frozenset({1048, 1264, 1292, 1364, 1366, 1406, 1416, 1442, 1471, 1526, 1644, 3819, 4025, _DUPLICATE})
"""Errors by which a table refuses a row. Any other is not the row's fault: the claim fails with it."""


def has_counter(connection: Connection, column: Column[Any]) -> bool:
    """Whether this is an AUTO_INCREMENT column of a table with transactions."""
    found = connection.execute(
        text(
            "SELECT 1 FROM information_schema.tables AS t JOIN information_schema.columns AS c"
            " ON c.table_schema = t.table_schema AND c.table_name = t.table_name"
            " WHERE t.table_schema = COALESCE(:schema, DATABASE()) AND t.table_name = :table"
            " AND c.column_name = :column AND t.engine = 'InnoDB' AND c.extra LIKE '%auto_increment%'"
        ),
        _names(column),
    )
    return found.first() is not None


def counter_of(connection: Connection, column: Column[Any]) -> int:
    """The key that the table would give out next, 0 if it has no counter."""
    found = connection.execute(
        text(
            "SELECT auto_increment FROM information_schema.tables"
            " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
        ),
        {name: value for name, value in _names(column).items() if name != "column"},
    )
    return int(found.scalar() or 0)


def claim(connection: Connection, column: Column[Any], count: int, above: int) -> list[KeyRange] | None:
    """Claim `count` keys, all greater than `above`; None if the table does not take the row that this needs.

    `connection` may be in a transaction, which goes on. Raises what the driver raises; a lock that somebody holds on
    the end of the table is waited for, as by every INSERT.
    """
    settings = connection.execute(text("SELECT @@SESSION.auto_increment_increment, @@SESSION.autocommit")).one()
    step, autocommit = (int(value) for value in settings)
    ranges: list[KeyRange] = []
    with _undemanding(connection):
        # An explicit key moves the counter past itself.
        is_below = above > 0 and above >= counter_of(connection, column)
        if is_below and _insert(connection, column, step, bool(autocommit), above) is None:
            return None
        keys_max = _STEP_MAX // step
        while count > 0:
            keys = min(count, keys_max)
            first = _insert(connection, column, step * keys, bool(autocommit), None)
            if first is None:
                return None
            last = first + step * (keys - 1)
            # Servers that share the keys among them (Galera, two masters) each have those of one remainder.
            ranges += [(first, last)] if step == 1 else [(key, key) for key in range(first, last + 1, step)]
            count -= keys
    return ranges


@contextmanager
def _undemanding(connection: Connection) -> Iterator[None]:
    """A session in which a row of nothing but default values is taken; as it was afterwards."""
    names = ["auto_increment_increment", "sql_mode", "foreign_key_checks"]
    values: list[Any] = [1, "", 0]
    if getattr(connection.dialect, "is_mariadb", False):
        names.append("check_constraint_checks")
        values.append(0)
    before = list(connection.execute(text("SELECT " + ", ".join(f"@@SESSION.{name}" for name in names))).one())
    assign = text("SET " + ", ".join(f"SESSION {name} = :v{index}" for index, name in enumerate(names)))
    connection.execute(assign, {f"v{index}": value for index, value in enumerate(values)})
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.execute(assign, {f"v{index}": value for index, value in enumerate(before)})


def _insert(connection: Connection, column: Column[Any], step: int, autocommit: bool, key: int | None) -> int | None:
    """Insert a row and take it back; the key that it had, or None if it was refused."""
    connection.execute(text("SET SESSION auto_increment_increment = :step"), {"step": step})
    for tried in range(_ROWS_TRIED):
        row: dict[str, int] = {} if key is None else {str.__str__(column.name): key}
        if tried:
            row.update(dict.fromkeys(_unique_columns(connection, column), random.getrandbits(31)))
        _plain(connection, "START TRANSACTION" if autocommit else "SAVEPOINT walsync_keys")
        try:
            _plain(connection, "SELECT LAST_INSERT_ID(0)")
            _plain(connection, _insert_sql(column, row))
            found = key or int(connection.execute(text("SELECT LAST_INSERT_ID()")).scalar_one())
        except DBAPIError as error:
            code = error.orig.args[0] if error.orig is not None and error.orig.args else None
            if code not in _REFUSALS or connection.invalidated:
                raise
            if code == _DUPLICATE and key is not None and not tried:
                return key  # it is there: the counter is past it
            if code != _DUPLICATE:
                return None
        else:
            return found or None
        finally:
            if not connection.invalidated:
                _plain(connection, "ROLLBACK" if autocommit else "ROLLBACK TO SAVEPOINT walsync_keys")
    return None


def _unique_columns(connection: Connection, column: Column[Any]) -> list[str]:
    """The columns of unique keys, other than the key itself."""
    found = connection.execute(
        text(
            "SELECT DISTINCT s.column_name FROM information_schema.statistics AS s"
            " JOIN information_schema.columns AS c ON c.table_schema = s.table_schema"
            " AND c.table_name = s.table_name AND c.column_name = s.column_name"
            " WHERE s.table_schema = COALESCE(:schema, DATABASE()) AND s.table_name = :table AND s.non_unique = 0"
            " AND s.column_name <> :column AND c.extra NOT LIKE '%GENERATED%'"
        ),
        _names(column),
    )
    return [str(name) for (name,) in found]


def _insert_sql(column: Column[Any], row: dict[str, int]) -> str:
    table = column.table
    assert isinstance(table, Table)
    name = _quoted(table.name) if table.schema is None else f"{_quoted(table.schema)}.{_quoted(table.name)}"
    columns = ", ".join(_quoted(key) for key in row)
    return f"INSERT INTO {name} ({columns}) VALUES ({', '.join(map(str, row.values()))})"


def _quoted(name: str) -> str:
    # By hand: the dialect's own quotes may be those of the sql_mode ANSI_QUOTES, which is off in this session.
    return "`" + str.__str__(name).replace("`", "``") + "`"


def _plain(connection: Connection, sql: str) -> None:
    connection.exec_driver_sql(sql, execution_options={"no_parameters": True}).close()


def _names(column: Column[Any]) -> dict[str, Any]:
    table = column.table
    assert isinstance(table, Table)
    schema = None if table.schema is None else str.__str__(table.schema)
    return {"schema": schema, "table": str.__str__(table.name), "column": str.__str__(column.name)}

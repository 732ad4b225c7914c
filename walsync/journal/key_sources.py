"""Where blocks of keys come from: the counter that the database itself has for the column, or a table of walsync's own.

A sequence (PostgreSQL: SERIAL, identity, or a `Sequence`; MariaDB: a `Sequence`): by ``nextval`` once per key. An
AUTO_INCREMENT counter (MariaDB and MySQL): see `walsync.journal.key_counter`. Other writers use the same counter, so
that they can never get the same key.

Elsewhere (SQLite, and columns without a counter): the table ``walsync_keys``, one row per table, starting above the
largest key that is in the table. On SQLite the counter of an AUTOINCREMENT table is moved past the block. Other
programs that insert into any other table and leave the key to the database do not look there, and can collide with
reserved keys: see the promises page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    Select,
    Sequence,
    String,
    Table,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError

from walsync.journal.key_counter import HAVE_COUNTERS, claim, counter_of, has_counter
from walsync.journal.key_file import KeyRange
from walsync.journal.own_tables import create_if_missing

__all__ = ["TargetKeySource", "column_id"]

logger = logging.getLogger("walsync.keys")

_T = TypeVar("_T")

_METADATA: Final = MetaData()

KEYS_TABLE: Final = Table(
    "walsync_keys",
    _METADATA,
    Column("name", String(250), primary_key=True),
    Column("next_key", BigInteger, nullable=False),
)

_HAVE_SOURCES: Final = ("postgresql", *HAVE_COUNTERS)
"""The dialects whose columns may have a source of keys of their own."""

_TRIES: Final = 5
"""How often a block is asked for while other processes do so at the same moment."""


def column_id(column: Column[Any]) -> str:
    """What identifies a key column in the target, in files and in messages: "schema.table.column"."""
    table = column.table
    assert isinstance(table, Table)
    return f"{table.fullname}.{column.name}"


class RunOn(Protocol):
    """Calls a function that uses an engine, where the engine's connections can be used."""

    def __call__(self, engine: Engine, function: Callable[[], _T], /) -> _T: ...


def _run_here(_: Engine, function: Callable[[], _T], /) -> _T:
    return function()


class TargetKeySource:
    """Reserves blocks in the target, on the Engine that `engine` returns. Thread-safe; each fetch is a transaction.

    The Engine should have a pool of its own: readers that hold a connection may be waiting for the keys. `run_on` is
    how that Engine is used.
    """

    def __init__(self, engine: Callable[[], Engine], run_on: RunOn = _run_here) -> None:
        self._engine = engine
        self._run_on = run_on
        self._table_exists = False
        self._sequences: dict[Column[Any], str | None] = {}
        # Of columns with a counter: the last key that was reserved elsewhere.
        self._counters: dict[Column[Any], int] = {}

    def fetch(self, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        """Reserve `count` keys. From walsync_keys they lie above `above`; a sequence goes its own way."""
        engine = self._engine()
        return self._run_on(engine, lambda: self._fetch(engine, column, count, above))

    def _fetch(self, engine: Engine, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        if engine.dialect.name in _HAVE_SOURCES:
            ranges = self._try(engine, lambda connection: self._own_source(connection, column, count, above))
            if ranges is not None:
                return ranges
        self._ensure_table(engine)
        return [self._try(engine, lambda connection: _reserve(connection, column, count, above))]

    def reserve_on(self, connection: Connection, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        """Reserve inside of a transaction that the caller has begun, and will end."""
        if connection.dialect.name in _HAVE_SOURCES:
            ranges = self._own_source(connection, column, count, above)
            if ranges is not None:
                return ranges
        if connection.dialect.name == "sqlite":
            # The caller may hold SQLite's only write lock; and its DDL is a part of the transaction.
            KEYS_TABLE.create(connection, checkfirst=True)
        else:
            # On another connection: MySQL's and MariaDB's DDL commits whatever transaction it is in.
            engine = self._engine()
            self._run_on(engine, lambda: self._ensure_table(engine))
        return [_reserve(connection, column, count, above)]

    # ------------------------------------------------------------------------------------ the database's own

    def _own_source(self, connection: Connection, column: Column[Any], count: int, above: int) -> list[KeyRange] | None:
        """From the column's sequence or counter; None if it has none."""
        if column not in self._sequences:
            self._sequences[column] = _find_sequence(connection, column)
        sequence = self._sequences[column]
        if sequence is not None:
            return _from_sequence(connection, sequence, count)
        if connection.dialect.name not in HAVE_COUNTERS:
            return None
        if column not in self._counters:
            if not has_counter(connection, column):
                return None
            # From before, or from when the table refused a claim: keys that the counter does not know of.
            self._counters[column] = _reserved_before(connection, column)
        ranges = claim(connection, column, count, max(above, self._counters[column]))
        if ranges is None:
            logger.warning(
                "%s: the table does not take the row by which keys are claimed from its AUTO_INCREMENT counter, so "
                "they are taken from %s; other programs that leave their keys to the table can collide with them",
                column_id(column),
                KEYS_TABLE.name,
            )
        return ranges

    # ---------------------------------------------------------------------------------------------- table

    def _try(self, engine: Engine, action: Callable[[Connection], _T]) -> _T:
        """In a transaction, again where several processes do this at the same moment."""
        with engine.connect() as connection:
            for _ in range(_TRIES - 1):
                try:
                    with connection.begin():
                        return action(connection)
                except IntegrityError:
                    # Another process inserted the row at the same moment; it is there now.
                    continue
                except OperationalError as error:
                    # The same on MariaDB and MySQL, where both wait for each other's gap lock, and one is chosen to
                    # give way. SQLite has waited for its lock, for as long as it was told to.
                    if error.connection_invalidated or engine.dialect.name == "sqlite":
                        raise
            with connection.begin():
                return action(connection)

    def _ensure_table(self, engine: Engine) -> None:
        if self._table_exists:
            return
        create_if_missing(engine, KEYS_TABLE)
        self._table_exists = True


def _find_sequence(connection: Connection, column: Column[Any]) -> str | None:
    table = column.table
    assert isinstance(table, Table)
    preparer = connection.dialect.identifier_preparer
    default = column.default
    if isinstance(default, Sequence) and connection.dialect.supports_sequences:
        return preparer.format_sequence(default)
    if connection.dialect.name != "postgresql":
        return None
    found = connection.execute(
        text("SELECT pg_get_serial_sequence(:table, :column)"),
        {"table": preparer.format_table(table), "column": str.__str__(column.name)},
    ).scalar()
    return None if found is None else str(found)


def _from_sequence(connection: Connection, sequence: str, count: int) -> list[KeyRange]:
    if connection.dialect.name == "postgresql":
        rows = connection.execute(
            text("SELECT nextval(CAST(:sequence AS regclass)) FROM generate_series(1, :count)"),
            {"sequence": sequence, "count": count},
        )
    else:
        # MariaDB has a table for each number, which counts up to it.
        rows = connection.execute(text(f"SELECT NEXT VALUE FOR {sequence} FROM seq_1_to_{int(count)}"))
    ranges: list[KeyRange] = []
    for (key,) in rows:
        if ranges and ranges[-1][1] + 1 == key:
            ranges[-1] = (ranges[-1][0], key)
        else:
            ranges.append((key, key))
    return ranges


def _reserved_before(connection: Connection, column: Column[Any]) -> int:
    """The last key that was reserved of `walsync_keys`, 0 if there is none."""
    if not inspect(connection).has_table(KEYS_TABLE.name):
        return 0
    return int(connection.execute(_next_key(column)).scalar() or 1) - 1


def _next_key(column: Column[Any]) -> Select[Any]:
    return select(KEYS_TABLE.c.next_key).where(KEYS_TABLE.c.name == column_id(column))


def _reserve(connection: Connection, column: Column[Any], count: int, above: int) -> KeyRange:
    """Move the row's counter and return what lies between. The UPDATE comes first: it takes the lock."""
    name = column_id(column)
    moved = connection.execute(
        update(KEYS_TABLE).where(KEYS_TABLE.c.name == name).values(next_key=KEYS_TABLE.c.next_key + count)
    )
    highest = connection.execute(select(func.max(column))).scalar() or 0
    floor = max(int(highest), above) + 1
    if connection.dialect.name in HAVE_COUNTERS:
        floor = max(floor, counter_of(connection, column))
    counter = _autoincrement(connection, column) if connection.dialect.name == "sqlite" else None
    if counter is not None:
        floor = max(floor, counter + 1)
    first = floor
    if moved.rowcount == 0:
        connection.execute(KEYS_TABLE.insert().values(name=name, next_key=floor + count))
    else:
        first = int(connection.execute(_next_key(column)).scalar_one()) - count
        if first < floor:
            connection.execute(update(KEYS_TABLE).where(KEYS_TABLE.c.name == name).values(next_key=floor + count))
            first = floor
    last = first + count - 1
    if counter is not None:
        _move_autoincrement(connection, column, last)
    return first, last


# ------------------------------------------------------------------------------------------- SQLite's AUTOINCREMENT


def _autoincrement(connection: Connection, column: Column[Any]) -> int | None:
    """The largest key that SQLite has given out for an AUTOINCREMENT table; None for any other."""
    schema, name = _sqlite_names(connection, column)
    sql = connection.execute(
        text(f"SELECT sql FROM {schema}sqlite_master WHERE type = 'table' AND lower(name) = lower(:name)"),
        {"name": name},
    ).scalar()
    if sql is None or "AUTOINCREMENT" not in sql.upper() or not _has_sqlite_sequence(connection, schema):
        return None
    found = connection.execute(
        text(f"SELECT seq FROM {schema}sqlite_sequence WHERE lower(name) = lower(:name)"), {"name": name}
    ).scalar()
    return int(found or 0)


def _has_sqlite_sequence(connection: Connection, schema: str) -> bool:
    # A comment may have the word, too; the table is made with the first table that means it.
    found = connection.execute(text(f"SELECT 1 FROM {schema}sqlite_master WHERE name = 'sqlite_sequence'"))
    return found.first() is not None


def _move_autoincrement(connection: Connection, column: Column[Any], last: int) -> None:
    """From here on SQLite gives out larger keys. The transaction has SQLite's only write lock."""
    schema, name = _sqlite_names(connection, column)
    parameters = {"name": name, "last": last}
    moved = connection.execute(
        text(f"UPDATE {schema}sqlite_sequence SET seq = :last WHERE lower(name) = lower(:name)"), parameters
    )
    if moved.rowcount == 0:
        connection.execute(text(f"INSERT INTO {schema}sqlite_sequence (name, seq) VALUES (:name, :last)"), parameters)


def _sqlite_names(connection: Connection, column: Column[Any]) -> tuple[str, str]:
    table = column.table
    assert isinstance(table, Table)
    schema = "" if table.schema is None else connection.dialect.identifier_preparer.quote_schema(table.schema) + "."
    return schema, str.__str__(table.name)

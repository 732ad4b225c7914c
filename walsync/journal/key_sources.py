"""Where blocks of keys come from: the sequence of the column, or a table of walsync's own.

PostgreSQL: the column's real sequence (SERIAL, identity, or a `Sequence`), by ``nextval`` once per key, so that other
writers, which use the same sequence, can never get the same key.

Elsewhere (SQLite, MariaDB, MySQL, and PostgreSQL columns without a sequence): the table ``walsync_keys``, one row per
table, starting above the largest key that is in the table. Other programs that insert into the same table and leave the
key to the database do not look there, and can collide with reserved keys: see the promises page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    Sequence,
    String,
    Table,
    func,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from walsync.journal.key_file import KeyRange
from walsync.journal.own_tables import create_if_missing

__all__ = ["TargetKeySource", "column_id"]

_METADATA: Final = MetaData()

KEYS_TABLE: Final = Table(
    "walsync_keys",
    _METADATA,
    Column("name", String(250), primary_key=True),
    Column("next_key", BigInteger, nullable=False),
)


def column_id(column: Column[Any]) -> str:
    """What identifies a key column in the target, in files and in messages: "schema.table.column"."""
    table = column.table
    assert isinstance(table, Table)
    return f"{table.fullname}.{column.name}"


class TargetKeySource:
    """Reserves blocks in the target, on the Engine that `engine` returns. Thread-safe; each fetch is a transaction.

    The Engine should have a pool of its own: readers that hold a connection may be waiting for the keys.
    """

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._table_exists = False
        self._sequences: dict[Column[Any], str | None] = {}

    def fetch(self, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        """Reserve `count` keys. From walsync_keys they lie above `above`; a sequence goes its own way."""
        engine = self._engine()
        if engine.dialect.name == "postgresql":
            with engine.begin() as connection:
                sequence = self._sequence(connection, column)
                if sequence is not None:
                    return _from_sequence(connection, sequence, count)
        return self._from_table(engine, column, count, above)

    def reserve_on(self, connection: Connection, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        """Reserve inside of a transaction that the caller has begun, and will end."""
        if connection.dialect.name == "postgresql":
            sequence = self._sequence(connection, column)
            if sequence is not None:
                return _from_sequence(connection, sequence, count)
        if connection.dialect.name == "sqlite":
            # The caller may hold SQLite's only write lock; and its DDL is a part of the transaction.
            KEYS_TABLE.create(connection, checkfirst=True)
        else:
            # On another connection: MySQL's and MariaDB's DDL commits whatever transaction it is in.
            self._ensure_table(self._engine())
        return [_reserve(connection, column, column_id(column), count, above)]

    # ------------------------------------------------------------------------------------------ sequences

    def _sequence(self, connection: Connection, column: Column[Any]) -> str | None:
        if column not in self._sequences:
            self._sequences[column] = _find_sequence(connection, column)
        return self._sequences[column]

    # ---------------------------------------------------------------------------------------------- table

    def _from_table(self, engine: Engine, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        self._ensure_table(engine)
        name = column_id(column)
        try:
            with engine.begin() as connection:
                return [_reserve(connection, column, name, count, above)]
        except IntegrityError:
            # Another process inserted the row at the same moment; it is there now.
            with engine.begin() as connection:
                return [_reserve(connection, column, name, count, above)]

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
    if isinstance(default, Sequence):
        return preparer.format_sequence(default)
    found = connection.execute(
        text("SELECT pg_get_serial_sequence(:table, :column)"),
        {"table": preparer.format_table(table), "column": str.__str__(column.name)},
    ).scalar()
    return None if found is None else str(found)


def _from_sequence(connection: Connection, sequence: str, count: int) -> list[KeyRange]:
    rows = connection.execute(
        text("SELECT nextval(CAST(:sequence AS regclass)) FROM generate_series(1, :count)"),
        {"sequence": sequence, "count": count},
    )
    ranges: list[KeyRange] = []
    for (key,) in rows:
        if ranges and ranges[-1][1] + 1 == key:
            ranges[-1] = (ranges[-1][0], key)
        else:
            ranges.append((key, key))
    return ranges


def _reserve(connection: Connection, column: Column[Any], name: str, count: int, above: int) -> KeyRange:
    """Move the row's counter and return what lies between. The UPDATE comes first: it takes the lock."""
    moved = connection.execute(
        update(KEYS_TABLE).where(KEYS_TABLE.c.name == name).values(next_key=KEYS_TABLE.c.next_key + count)
    )
    highest = connection.execute(select(func.max(column))).scalar() or 0
    floor = max(int(highest), above) + 1
    if moved.rowcount == 0:
        connection.execute(KEYS_TABLE.insert().values(name=name, next_key=floor + count))
        return floor, floor + count - 1
    next_key = connection.execute(select(KEYS_TABLE.c.next_key).where(KEYS_TABLE.c.name == name)).scalar_one()
    first = int(next_key) - count
    if first < floor:
        connection.execute(update(KEYS_TABLE).where(KEYS_TABLE.c.name == name).values(next_key=floor + count))
        first = floor
    return first, first + count - 1

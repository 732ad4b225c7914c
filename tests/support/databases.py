"""Databases for a test: made under a name of their own and dropped afterwards; and the comparison of two of them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

__all__ = [
    "assert_databases_equal",
    "compare_databases",
    "empty_database",
    "fresh_database",
    "make_transactions_real",
    "rendered",
    "without_syncs",
]

MAX_DIFFERENCES = 50
UNKNOWN_THREAD = 1094  # MariaDB's number for KILL of a session that is not there


def rendered(url: URL) -> str:
    """The URL as a string that connects, the password included."""
    return url.render_as_string(hide_password=False)


@contextmanager
def _administrator(server: URL) -> Iterator[Connection]:
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


@contextmanager
def fresh_database(server: str | URL) -> Iterator[str]:
    """Create an empty database on the server and yield its URL; drop it in the end, whoever is still connected."""
    url = make_url(server)
    name = f"walsync_test_{os.getpid()}_{secrets.token_hex(4)}"
    is_postgresql = url.get_backend_name() == "postgresql"
    with _administrator(url) as connection:
        connection.execute(text(f"CREATE DATABASE {name}" + ("" if is_postgresql else " CHARACTER SET utf8mb4")))
    try:
        yield rendered(url.set(database=name))
    finally:
        with _administrator(url) as connection:
            if is_postgresql:
                connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            else:
                _end_other_sessions(connection, name)
                connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))


def _end_other_sessions(connection: Connection, database: str) -> None:
    """End the MariaDB sessions that use the database: one of them in a transaction would block DROP DATABASE."""
    sessions = connection.execute(
        text("SELECT id FROM information_schema.processlist WHERE db = :database AND id <> CONNECTION_ID()"),
        {"database": database},
    ).scalars()
    for session in sessions.all():
        try:
            connection.exec_driver_sql(f"KILL {session}")
        except DBAPIError as error:
            if error.orig is None or error.orig.args[0] != UNKNOWN_THREAD:  # it ended by itself in the meantime
                raise


def make_transactions_real(engine: Engine) -> None:
    """On SQLite, by the listeners that SQLAlchemy's documentation describes, from its next connection on.

    Python's driver begins no transaction before the first DML, and knows nothing of savepoints.
    """
    if engine.dialect.name != "sqlite":
        return
    engine.dispose()

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


def empty_database(url: str | URL) -> None:
    """Drop everything that a test may have left in a database made by `fresh_database`."""
    url = make_url(url)
    with _administrator(url) as connection:
        if url.get_backend_name() == "postgresql":
            schemas = connection.execute(
                text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'")
            ).scalars()
            for schema in schemas.all():
                connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
            connection.execute(text("CREATE SCHEMA public"))
        else:
            assert url.database is not None
            _end_other_sessions(connection, url.database)
            connection.execute(text(f"DROP DATABASE {url.database}"))
            connection.execute(text(f"CREATE DATABASE {url.database} CHARACTER SET utf8mb4"))


def without_syncs(engine: Engine) -> Engine:
    """The engine; if it is SQLite's it does not wait for the disk, which no test needs that pulls no plug."""

    def relax(dbapi_connection: Any, _: Any) -> None:
        dbapi_connection.execute("PRAGMA synchronous=OFF")

    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", relax)
    return engine


def compare_databases(a: Engine, b: Engine, tables: Iterable[Table]) -> list[str]:
    """Compare the tables row by row and column by column; the differences, one sentence each, none when equal.

    Rows belong together by primary key, or by all of their columns where a table has none. Values must be equal and of
    the same Python type. At most `MAX_DIFFERENCES` are told.
    """
    differences: list[str] = []
    with a.connect() as connection_a, b.connect() as connection_b:
        for table in tables:
            differences += _compare_table(connection_a, connection_b, table)
    return differences[:MAX_DIFFERENCES]


def assert_databases_equal(a: Engine, b: Engine, tables: Iterable[Table]) -> None:
    """Raise `AssertionError` with the differences that `compare_databases` finds."""
    differences = compare_databases(a, b, tables)
    if differences:
        raise AssertionError("the databases differ:\n" + "\n".join(differences))


Row = Sequence[Any]


def _rows_by_key(connection: Connection, table: Table) -> dict[str, list[Row]]:
    """The rows under their key's repr: servers sort text differently, and not every key can be compared in Python."""
    names = [column.name for column in table.columns]
    key_indices = [names.index(column.name) for column in table.primary_key.columns] or list(range(len(names)))
    found: dict[str, list[Row]] = {}
    for row in connection.execute(select(*table.columns)):
        found.setdefault(repr(tuple(row[index] for index in key_indices)), []).append(tuple(row))
    return found


def _compare_table(a: Connection, b: Connection, table: Table) -> Iterator[str]:
    names = [column.name for column in table.columns]
    rows_a, rows_b = _rows_by_key(a, table), _rows_by_key(b, table)
    for key in sorted(rows_a.keys() | rows_b.keys()):
        found_a, found_b = rows_a.get(key, []), rows_b.get(key, [])
        if len(found_a) != len(found_b):
            yield f"{table.fullname} {key}: {len(found_a)} rows in the first, {len(found_b)} in the second"
            continue
        for row_a, row_b in zip(found_a, found_b, strict=True):
            for name, value_a, value_b in zip(names, row_a, row_b, strict=True):
                if not _same(value_a, value_b):
                    yield f"{table.fullname} {key}.{name}: {value_a!r} in the first, {value_b!r} in the second"


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    return bool(a == b) or (a != a and b != b)  # not-a-number is not equal to itself

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.default import DefaultDialect

from tests.unit.checkpoint.entries import delete, insert, statement, update
from walsync.changes import RowChanges, TableName
from walsync.checkpoint.statements import PreparedRows, prepare_rows, prepare_statement, shape_cache, shape_of
from walsync.exceptions import CorruptEntryError, EntryRejectedError, TargetBlockedError


def psycopg() -> Dialect:
    dialect = create_engine("postgresql+psycopg://").dialect
    dialect.server_version_info = (15,)
    return dialect


def pymysql() -> Dialect:
    return create_engine("mysql+pymysql://").dialect


def pysqlite() -> Dialect:
    return create_engine("sqlite://").dialect


def prepared(dialect: Dialect, change: RowChanges) -> PreparedRows:
    return prepare_rows(dialect, {}, shape_of(change))


def sql(dialect: Dialect, change: RowChanges) -> str:
    made = prepared(dialect, change).sql
    assert made is not None
    return " ".join(made.split())


def test_sql_of_each_kind_on_sqlite() -> None:
    dialect = pysqlite()
    assert sql(dialect, insert((1, "a"))) == "INSERT INTO items (id, name) VALUES (?, ?)"
    assert sql(dialect, update(("a", 1))) == "UPDATE items SET name=? WHERE items.id = ?"
    assert sql(dialect, delete(1)) == "DELETE FROM items WHERE items.id = ?"


def test_postgresql_overrides_identity_and_casts() -> None:
    made = sql(psycopg(), insert((1, "a")))
    assert made == (
        "INSERT INTO items (id, name) OVERRIDING SYSTEM VALUE VALUES (%(walsync__0)s::INTEGER, %(walsync__1)s::VARCHAR)"
    )


def test_names_with_everything_in_them_are_quoted_and_do_not_mislead() -> None:
    change = insert((1, "a"), table=TableName("My Schema", 'order ") VALUES ('))
    change = dataclasses.replace(change, columns=("id", "a%b) VALUES (c:d"))
    made = sql(psycopg(), change)
    head, found, tail = made.partition(" OVERRIDING SYSTEM VALUE ")
    assert found
    assert '"My Schema"."order "") VALUES ("' in head
    assert '"a%%b) VALUES (c:d"' in head
    assert tail == "VALUES (%(walsync__0)s::INTEGER, %(walsync__1)s::VARCHAR)"


def test_a_version_column_is_written_and_compared() -> None:
    change = RowChanges(
        "update",
        TableName(None, "t"),
        ("version",),
        (("integer",),),
        ("id", "version"),
        (("integer",),) * 2,
        [[2, 7, 1]],
    )
    made = prepared(pysqlite(), change)
    assert made.sql == "UPDATE t SET version=? WHERE t.id = ? AND t.version = ?"
    assert made.bind(change.rows) == [(2, 7, 1)]


def test_an_insert_without_columns_takes_the_defaults() -> None:
    change = RowChanges("insert", TableName(None, "t"), (), (), (), (), [[], []])
    assert prepared(pysqlite(), change).sql == "INSERT INTO t DEFAULT VALUES"
    assert prepared(pysqlite(), change).bind(change.rows) == [(), ()]
    assert prepared(psycopg(), change).sql == "INSERT INTO t DEFAULT VALUES"
    assert prepared(pymysql(), change).sql == "INSERT INTO t () VALUES ()"


def test_bind_processors_run_for_the_columns_that_have_one() -> None:
    import datetime

    change = RowChanges(
        "insert",
        TableName(None, "t"),
        ("id", "day"),
        (("integer",), ("date",)),
        (),
        (),
        [[1, datetime.date(2020, 2, 3)], [2, None]],
    )
    assert prepared(pysqlite(), change).bind(change.rows) == [(1, "2020-02-03"), (2, None)]


def test_commit_times_by_dialect() -> None:
    change = insert((1, "a"), commit_times=("created", "changed"))
    row = [(1, "a", 1_700_000_000_123_456)]
    on_sqlite = prepared(pysqlite(), change)
    assert on_sqlite.with_commit_time
    assert on_sqlite.sql == (
        "INSERT INTO items (id, name, created, changed) "
        "VALUES (?, ?, datetime(? / 1000000, 'unixepoch'), datetime(? / 1000000, 'unixepoch'))"
    )
    assert on_sqlite.bind(row) == [(1, "a", 1_700_000_000_123_456, 1_700_000_000_123_456)]
    assert "from_unixtime(%(walsync__commit_us)s DIV 1000000)" in sql(pymysql(), change)
    assert "TIMESTAMP WITH TIME ZONE 'epoch' + (%(walsync__commit_us)s::BIGINT * INTERVAL '1 microsecond')" in sql(
        psycopg(), change
    )


def test_commit_times_on_an_unknown_dialect_are_blocked_and_not_wrong() -> None:
    with pytest.raises(TargetBlockedError, match="commit"):
        prepared(DefaultDialect(), insert((1, "a"), commit_times=("created",)))


def test_shapes_are_prepared_once_per_dialect() -> None:
    dialect = pysqlite()
    cache = shape_cache(dialect)
    first = prepare_rows(dialect, cache, shape_of(insert((1, "a"))))
    assert prepare_rows(dialect, shape_cache(dialect), shape_of(insert((2, "b"), (3, "c")))) is first
    assert prepare_rows(dialect, cache, shape_of(update(("a", 1)))) is not first
    assert shape_cache(pysqlite()) is not cache


# ----------------------------------------------------------------------------------------------- statements


def dialect_of_style(style: str) -> Dialect:
    dialect = sqlite.dialect(paramstyle=style)
    assert dialect.paramstyle == style
    return dialect


PLACEHOLDERS = {
    "qmark": "?, ?, ?",
    "format": "%s, %s, %s",
    "pyformat": "%(walsync__0)s, %(walsync__1)s, %(walsync__2)s",
    "named": ":walsync__0, :walsync__1, :walsync__2",
    "numeric": ":1, :2, :1",
    "numeric_dollar": "$1, $2, $1",
}


@pytest.mark.parametrize("style", PLACEHOLDERS)
def test_parameters_in_the_drivers_style_left_to_right(style: str) -> None:
    change = statement("VALUES (%(a)s, %(b)s, %(a)s)", "sqlite", a=1, b="x")
    made, parameters = prepare_statement(dialect_of_style(style), change)
    assert made == f"VALUES ({PLACEHOLDERS[style]})"
    values = list(parameters) if isinstance(parameters, tuple) else list(parameters.values())
    assert values == ([1, "x"] if style.startswith("numeric") else [1, "x", 1])


@pytest.mark.parametrize("style", PLACEHOLDERS)
def test_everything_else_is_copied(style: str) -> None:
    hostile = r"""SELECT '%%', '%%(a)s', ':b', '\:c', "a::b", 'it''s ? $1 %%%%', x::int, '\\' """
    made, parameters = prepare_statement(dialect_of_style(style), statement(hostile, "sqlite"))
    expected = hostile if style in ("format", "pyformat") else hostile.replace("%%", "%")
    assert made == expected
    assert not parameters


def test_sqlite_gets_back_what_was_recorded() -> None:
    engine = create_engine("sqlite://")
    words = ["%", "%%", ":x", "::", "\\", "'", "?", "%(p0)s", "$1", ""]
    for left, right in itertools.product(words, words):
        literal = (left + right).replace("'", "''").replace("%", "%%")
        made, parameters = prepare_statement(
            engine.dialect, statement(f"SELECT '{literal}', %(v)s, '{literal}'", "sqlite", v=left)
        )
        with engine.connect() as connection:
            assert connection.exec_driver_sql(made, parameters).one() == (left + right, left, left + right)
    engine.dispose()


@pytest.mark.parametrize("broken", ["a % b", "50%", "%d", "%(unclosed", "%s"])
def test_a_lone_percent_sign_is_a_corrupt_record(broken: str) -> None:
    with pytest.raises(CorruptEntryError, match="percent"):
        prepare_statement(pysqlite(), statement(broken, "sqlite"))


def test_a_parameter_without_a_value_is_a_corrupt_record() -> None:
    with pytest.raises(CorruptEntryError, match="nothing"):
        prepare_statement(pysqlite(), statement("SELECT %(nothing)s", "sqlite"))


def test_a_statement_for_another_dialect_is_refused() -> None:
    with pytest.raises(EntryRejectedError, match="postgresql"):
        prepare_statement(pysqlite(), statement("SELECT 1", "postgresql"))
    made: Any = prepare_statement(mysql.dialect(), statement("SELECT 1", "mariadb"))
    assert made[0] == "SELECT 1"
    with pytest.raises(EntryRejectedError):
        prepare_statement(postgresql.dialect(), statement("SELECT 1", "mysql"))

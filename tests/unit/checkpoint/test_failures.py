from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, exc, text

from walsync.checkpoint import FailureKind, classify, register_failure
from walsync.checkpoint.failures import MYSQL_ERRORS, SQLSTATES, describe_error
from walsync.exceptions import (
    ApplyTimeoutError,
    EntryRejectedError,
    LogTimeoutError,
    TargetBlockedError,
    TargetUnavailableError,
    WatermarkGapError,
)


class DriverError(Exception):
    """Has what the drivers' errors have: a SQLSTATE, or a number as its first argument."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments)
        for name, value in attributes.items():
            setattr(self, name, value)


def wrapped(orig: Exception, category: type[exc.DBAPIError] = exc.OperationalError, lost: bool = False) -> Exception:
    return category("UPDATE ...", {}, orig, connection_invalidated=lost)


def kind_of(error: BaseException, dialect: str) -> FailureKind | None:
    failure = classify(error, dialect)
    return None if failure is None else failure.kind


@pytest.mark.parametrize(
    "state, kind",
    [
        ("40001", FailureKind.TRANSIENT),
        ("40P01", FailureKind.TRANSIENT),
        ("55P03", FailureKind.TRANSIENT),
        ("53100", FailureKind.TRANSIENT),
        ("53300", FailureKind.TRANSIENT),
        ("57P01", FailureKind.TRANSIENT),
        ("25006", FailureKind.TRANSIENT),
        ("08006", FailureKind.TRANSIENT),
        ("58030", FailureKind.TRANSIENT),
        ("42P01", FailureKind.BLOCKED),
        ("42703", FailureKind.BLOCKED),
        ("42501", FailureKind.BLOCKED),
        ("3D000", FailureKind.BLOCKED),
        ("28P01", FailureKind.BLOCKED),
        ("23505", FailureKind.REJECTED),
        ("23503", FailureKind.REJECTED),
        ("22001", FailureKind.REJECTED),
        ("P0001", FailureKind.REJECTED),
        ("XX000", FailureKind.UNKNOWN),
    ],
)
@pytest.mark.parametrize("attribute", ["sqlstate", "pgcode"])
def test_postgresql_is_told_apart_by_sqlstate(state: str, kind: FailureKind, attribute: str) -> None:
    assert kind_of(wrapped(DriverError("x", **{attribute: state})), "postgresql") is kind


@pytest.mark.parametrize(
    "number, kind",
    [
        (1213, FailureKind.TRANSIENT),
        (1205, FailureKind.TRANSIENT),
        (1021, FailureKind.TRANSIENT),
        (1114, FailureKind.TRANSIENT),
        (1040, FailureKind.TRANSIENT),
        (1290, FailureKind.TRANSIENT),
        (2003, FailureKind.TRANSIENT),
        (1146, FailureKind.BLOCKED),
        (1054, FailureKind.BLOCKED),
        (1142, FailureKind.BLOCKED),
        (1049, FailureKind.BLOCKED),
        (1062, FailureKind.REJECTED),
        (1452, FailureKind.REJECTED),
        (1406, FailureKind.REJECTED),
        (4025, FailureKind.REJECTED),
        (65000, FailureKind.UNKNOWN),
    ],
)
@pytest.mark.parametrize("dialect", ["mysql", "mariadb"])
def test_mysql_is_told_apart_by_number_wherever_the_driver_puts_it(
    number: int, kind: FailureKind, dialect: str
) -> None:
    assert kind_of(wrapped(DriverError(number, "x")), dialect) is kind
    assert kind_of(wrapped(DriverError("x", errno=number)), dialect) is kind


def test_a_lost_connection_is_transient_whatever_the_code() -> None:
    assert kind_of(wrapped(DriverError("x", sqlstate="23505"), lost=True), "postgresql") is FailureKind.TRANSIENT
    assert kind_of(wrapped(DriverError(9999, "x"), exc.InterfaceError, lost=True), "mysql") is FailureKind.TRANSIENT


def test_what_the_driver_calls_integrity_or_data_is_rejected_without_a_known_code() -> None:
    assert kind_of(wrapped(DriverError("x"), exc.IntegrityError), "oracle") is FailureKind.REJECTED
    assert kind_of(wrapped(DriverError("x"), exc.DataError), "postgresql") is FailureKind.REJECTED


@pytest.mark.parametrize(
    "category", [exc.OperationalError, exc.ProgrammingError, exc.InternalError, exc.InterfaceError]
)
def test_an_unknown_code_is_blamed_on_nobody(category: type[exc.DBAPIError]) -> None:
    assert kind_of(wrapped(DriverError("out of flux"), category), "oracle") is FailureKind.UNKNOWN


def test_sqlstates_serve_dialects_without_a_table() -> None:
    assert kind_of(wrapped(DriverError("40001", "[40001] deadlock")), "mssql") is FailureKind.TRANSIENT
    assert kind_of(wrapped(DriverError("23000", "[23000] dup")), "mssql") is FailureKind.REJECTED


def test_errors_of_walsync_and_of_python() -> None:
    assert kind_of(EntryRejectedError("x"), "sqlite") is FailureKind.REJECTED
    assert kind_of(TargetBlockedError("x"), "sqlite") is FailureKind.BLOCKED
    assert kind_of(TargetUnavailableError("x"), "sqlite") is FailureKind.TRANSIENT
    assert kind_of(exc.TimeoutError("pool"), "sqlite") is FailureKind.TRANSIENT
    assert kind_of(ConnectionRefusedError("x"), "postgresql") is FailureKind.TRANSIENT
    assert kind_of(exc.CompileError("x"), "sqlite") is FailureKind.UNKNOWN


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), AssertionError("x"), WatermarkGapError("x"), LogTimeoutError("x"), ApplyTimeoutError("x")],
)
def test_what_is_not_the_targets_is_not_claimed(error: Exception) -> None:
    assert classify(error, "sqlite") is None


@pytest.fixture
def sqlite() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    "sql, kind",
    [
        ("INSERT INTO t VALUES (1, 1)", FailureKind.REJECTED),
        ("INSERT INTO t VALUES (2, NULL)", FailureKind.REJECTED),
        ("INSERT INTO t VALUES (2, -1)", FailureKind.REJECTED),
        ("INSERT INTO child VALUES (1, 99)", FailureKind.REJECTED),
        ("INSERT INTO t VALUES ('abc', 1)", FailureKind.REJECTED),
        ("INSERT INTO guarded VALUES (1)", FailureKind.REJECTED),
        ("INSERT INTO missing VALUES (1)", FailureKind.BLOCKED),
        ("INSERT INTO t (id, nope) VALUES (3, 1)", FailureKind.BLOCKED),
        ("UPDATE t SET nope = 1", FailureKind.BLOCKED),
        ("UPDATE t SET n = nofunction(1)", FailureKind.BLOCKED),
        ("INSERT INTO v VALUES (1)", FailureKind.BLOCKED),
    ],
)
@pytest.mark.parametrize("with_code", [True, False])
def test_real_errors_of_sqlite(sqlite: Engine, sql: str, kind: FailureKind, with_code: bool) -> None:
    with sqlite.connect() as connection:
        connection.execute(text("PRAGMA foreign_keys = ON"))
        connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL CHECK (n > 0))"))
        connection.execute(text("CREATE TABLE child (id INTEGER PRIMARY KEY, t_id INTEGER REFERENCES t)"))
        connection.execute(text("CREATE VIEW v AS SELECT id FROM t"))
        connection.execute(text("CREATE TABLE guarded (id INTEGER)"))
        connection.execute(
            text("CREATE TRIGGER g BEFORE INSERT ON guarded BEGIN SELECT RAISE(ABORT, 'closed on Sundays'); END")
        )
        connection.execute(text("INSERT INTO t VALUES (1, 1)"))
        with pytest.raises(exc.DBAPIError) as caught:
            connection.execute(text(sql))
    error: exc.DBAPIError = caught.value
    if not with_code:
        # Python 3.10 has no error codes: the message, and the driver's class, must do.
        assert isinstance(error.orig, sqlite3.Error)
        error = type(error)(error.statement, error.params, type(error.orig)(str(error.orig)))
    assert kind_of(error, "sqlite") is kind


def test_a_locked_sqlite_file_is_transient(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}", connect_args={"timeout": 0})
    with engine.connect() as holder, engine.connect() as other:
        holder.exec_driver_sql("CREATE TABLE t (id INTEGER)")
        holder.commit()
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(exc.OperationalError) as caught:
            other.exec_driver_sql("BEGIN IMMEDIATE")
        assert kind_of(caught.value, "sqlite") is FailureKind.TRANSIENT
    engine.dispose()


def test_registered_codes_decide_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MYSQL_ERRORS, 64999, FailureKind.REJECTED)  # undoes what follows
    monkeypatch.setitem(SQLSTATES, "XX001", FailureKind.REJECTED)
    register_failure("mariadb", 64999, FailureKind.TRANSIENT)
    register_failure("postgresql", "XX001", FailureKind.BLOCKED)
    assert kind_of(wrapped(DriverError(64999, "x")), "mysql") is FailureKind.TRANSIENT
    assert kind_of(wrapped(DriverError("x", sqlstate="XX001")), "postgresql") is FailureKind.BLOCKED


@pytest.mark.parametrize(
    "arguments",
    [
        ("mysql", "1062", FailureKind.REJECTED),
        ("sqlite", True, FailureKind.REJECTED),
        ("postgresql", 42, FailureKind.REJECTED),
        ("postgresql", "4", FailureKind.REJECTED),
        ("mysql", 1, FailureKind.UNKNOWN),
    ],
)
def test_registering_nonsense_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError):
        register_failure(*arguments)


def test_description_is_the_drivers_words_on_one_line() -> None:
    error = wrapped(DriverError("first\n  second"))
    assert describe_error(error) == "DriverError: first second"
    assert "UPDATE" not in describe_error(error)
    assert describe_error(EntryRejectedError("as it is")) == "as it is"

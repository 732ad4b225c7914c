"""Failures as real servers report them: each cause, and whose fault it is said to be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.support.databases import rendered
from walsync.checkpoint import FailureKind, classify

TRANSIENT, BLOCKED, REJECTED = FailureKind.TRANSIENT, FailureKind.BLOCKED, FailureKind.REJECTED


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def kind_of(error: BaseException, engine: Engine) -> FailureKind | None:
    failure = classify(error, engine.dialect.name)
    return None if failure is None else failure.kind


def caught_from(engine: Engine, *statements: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as caught:
        run(engine, *statements)
    return caught.value


SCHEMA = (
    "CREATE TABLE parent (id INT PRIMARY KEY, name VARCHAR(5) NOT NULL UNIQUE, n INT CHECK (n > 0), day DATE)",
    "CREATE TABLE child (id INT PRIMARY KEY, parent_id INT NOT NULL, FOREIGN KEY (parent_id) REFERENCES parent (id))",
    "INSERT INTO parent (id, name, n) VALUES (1, 'a', 1), (2, 'b', 1)",
    "INSERT INTO child VALUES (1, 1)",
)


def deadlock(engine: Engine) -> BaseException:
    """Two transactions that each want the row of the other; what the one gets that is sacrificed."""
    both = threading.Barrier(2)
    errors: list[BaseException] = []

    def work(first: int, second: int) -> None:
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(f"UPDATE parent SET n = 5 WHERE id = {first}")
                both.wait(20)
                connection.exec_driver_sql(f"UPDATE parent SET n = 5 WHERE id = {second}")
        except DBAPIError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 1
    return errors[0]


@contextmanager
def row_locked(engine: Engine) -> Iterator[None]:
    with engine.connect() as holder:
        holder.exec_driver_sql("UPDATE parent SET n = 7 WHERE id = 1")
        yield
        holder.rollback()


# ----------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture
def postgres(empty_postgres_url: str) -> Iterator[Engine]:
    engine = create_engine(empty_postgres_url, poolclass=NullPool)
    run(engine, *SCHEMA)
    yield engine
    engine.dispose()


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "sql, kind",
    [
        ("INSERT INTO parent (id, name, n) VALUES (1, 'z', 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, 'a', 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, NULL, 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, 'too long', 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, 'c', -1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (99999999999, 'c', 1)", REJECTED),
        ("INSERT INTO parent (id, name, day) VALUES (3, 'c', '2020-02-31')", REJECTED),
        ("INSERT INTO child VALUES (2, 99)", REJECTED),
        ("DELETE FROM parent WHERE id = 1", REJECTED),
        ("UPDATE parent SET n = 1 / 0", REJECTED),
        ("INSERT INTO missing VALUES (1)", BLOCKED),
        ("INSERT INTO nowhere.parent VALUES (1)", BLOCKED),
        ("UPDATE parent SET missing = 1", BLOCKED),
        ("UPDATE parent SET n = missing(1)", BLOCKED),
        ("SET TRANSACTION READ ONLY; UPDATE parent SET n = 1", TRANSIENT),
        ("SET LOCAL statement_timeout = 10; SELECT pg_sleep(20)", TRANSIENT),
        ("UPDATE parent SET", BLOCKED),
        ("DO $$ BEGIN RAISE EXCEPTION 'closed'; END $$", REJECTED),
        ("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$", TRANSIENT),
        ("SELECT pg_terminate_backend(pg_backend_pid())", TRANSIENT),
    ],
)
def test_postgresql(postgres: Engine, sql: str, kind: FailureKind) -> None:
    assert kind_of(caught_from(postgres, *sql.split("; ") if not sql.startswith("DO") else (sql,)), postgres) is kind


@pytest.mark.postgresql
def test_postgresql_permission(postgres: Engine) -> None:
    # Roles belong to the whole server: one of this database's own.
    role = f"{postgres.url.database}_nobody"
    run(postgres, f"CREATE ROLE {role}")
    try:
        error = caught_from(postgres, f"SET ROLE {role}", "UPDATE parent SET n = 1")
        assert kind_of(error, postgres) is BLOCKED
    finally:
        run(postgres, f"DROP ROLE {role}")


@pytest.mark.postgresql
def test_postgresql_locks(postgres: Engine) -> None:
    assert kind_of(deadlock(postgres), postgres) is TRANSIENT
    with row_locked(postgres):
        error = caught_from(postgres, "SET LOCAL lock_timeout = 10", "UPDATE parent SET n = 8 WHERE id = 1")
        assert kind_of(error, postgres) is TRANSIENT


@pytest.mark.postgresql
def test_postgresql_serialisation(postgres: Engine) -> None:
    serializable = postgres.execution_options(isolation_level="REPEATABLE READ")
    with serializable.connect() as reader:
        reader.exec_driver_sql("SELECT * FROM parent").all()
        run(postgres, "UPDATE parent SET n = 9 WHERE id = 1")
        with pytest.raises(DBAPIError) as caught:
            reader.exec_driver_sql("UPDATE parent SET n = 10 WHERE id = 1")
    assert kind_of(caught.value, postgres) is TRANSIENT


@pytest.mark.postgresql
def test_postgresql_constraint_that_is_checked_at_commit(postgres: Engine) -> None:
    run(
        postgres,
        "CREATE TABLE late (id INT PRIMARY KEY, parent_id INT REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
    )
    assert kind_of(caught_from(postgres, "INSERT INTO late VALUES (1, 99)"), postgres) is REJECTED


@pytest.mark.postgresql
def test_postgresql_in_the_middle_of_an_executemany(postgres: Engine) -> None:
    with pytest.raises(DBAPIError) as caught, postgres.begin() as connection:
        connection.execute(
            text("INSERT INTO parent (id, name, n) VALUES (:id, :name, 1)"),
            [{"id": n, "name": str(n % 50)} for n in range(3, 103)],
        )
    assert kind_of(caught.value, postgres) is REJECTED


@pytest.mark.postgresql
def test_postgresql_connecting(postgres: Engine) -> None:
    missing = create_engine(postgres.url.set(database="walsync_is_not_there"), poolclass=NullPool)
    assert kind_of(caught_from(missing, "SELECT 1"), missing) is BLOCKED
    unreachable = create_engine(postgres.url.set(port=1), poolclass=NullPool)
    assert kind_of(caught_from(unreachable, "SELECT 1"), unreachable) is TRANSIENT
    nobody = create_engine(postgres.url.set(host="walsync.invalid"), poolclass=NullPool)
    assert kind_of(caught_from(nobody, "SELECT 1"), nobody) is TRANSIENT


@pytest.mark.postgresql
def test_postgresql_connection_killed_by_somebody_else(postgres: Engine) -> None:
    with postgres.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        run(postgres, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(DBAPIError) as caught:
            connection.exec_driver_sql("UPDATE parent SET n = 1")
    assert kind_of(caught.value, postgres) is TRANSIENT


@pytest.mark.postgresql
def test_postgresql_value_that_the_driver_refuses(postgres: Engine) -> None:
    with pytest.raises(DBAPIError) as caught, postgres.begin() as connection:
        connection.execute(text("UPDATE parent SET name = :name"), {"name": "a\0b"})
    assert kind_of(caught.value, postgres) is REJECTED


# -------------------------------------------------------------------------------------------------- MariaDB


@pytest.fixture
def mariadb(empty_mariadb_url: str) -> Iterator[Engine]:
    engine = create_engine(empty_mariadb_url, poolclass=NullPool)
    run(engine, *SCHEMA)
    yield engine
    engine.dispose()


@pytest.mark.mariadb
@pytest.mark.parametrize(
    "sql, kind",
    [
        ("INSERT INTO parent (id, name, n) VALUES (1, 'z', 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, 'a', 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, NULL, 1)", REJECTED),
        ("INSERT INTO parent (id, n) VALUES (3, 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, 'too long', 1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (3, 'c', -1)", REJECTED),
        ("INSERT INTO parent (id, name, n) VALUES (99999999999, 'c', 1)", REJECTED),
        ("INSERT INTO parent (id, name, day) VALUES (3, 'c', '2020-02-31')", REJECTED),
        ("INSERT INTO child VALUES (2, 99)", REJECTED),
        ("DELETE FROM parent WHERE id = 1", REJECTED),
        ("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'closed'", REJECTED),
        ("INSERT INTO missing VALUES (1)", BLOCKED),
        ("INSERT INTO nowhere.parent VALUES (1)", BLOCKED),
        ("UPDATE parent SET missing = 1", BLOCKED),
        ("UPDATE parent SET n = missing(1)", BLOCKED),
        ("UPDATE parent SET", BLOCKED),
        ("SET TRANSACTION READ ONLY; START TRANSACTION READ ONLY; UPDATE parent SET n = 1", TRANSIENT),
        ("SET max_statement_time = 0.01; SELECT SLEEP(20) FROM parent, parent AS p", TRANSIENT),
        ("KILL CONNECTION_ID()", TRANSIENT),
    ],
)
def test_mariadb(mariadb: Engine, sql: str, kind: FailureKind) -> None:
    assert kind_of(caught_from(mariadb, *sql.split("; ")), mariadb) is kind


@pytest.mark.mariadb
def test_mariadb_locks(mariadb: Engine) -> None:
    assert kind_of(deadlock(mariadb), mariadb) is TRANSIENT
    with row_locked(mariadb):
        error = caught_from(mariadb, "SET innodb_lock_wait_timeout = 1", "UPDATE parent SET n = 8 WHERE id = 1")
        assert kind_of(error, mariadb) is TRANSIENT


@pytest.mark.mariadb
def test_mariadb_permission(mariadb: Engine, mariadb_server_url: str) -> None:
    name = f"wn_{make_url(str(mariadb.url)).database}"[:60]
    run(
        mariadb,
        f"CREATE USER '{name}'@'127.0.0.1'",
        f"GRANT SELECT ON {mariadb.url.database}.* TO '{name}'@'127.0.0.1'",
    )
    try:
        nobody = create_engine(rendered(mariadb.url.set(username=name, host="127.0.0.1")), poolclass=NullPool)
        assert kind_of(caught_from(nobody, "UPDATE parent SET n = 1"), nobody) is BLOCKED
        elsewhere = create_engine(nobody.url.set(database="walsync_is_not_there"), poolclass=NullPool)
        assert kind_of(caught_from(elsewhere, "SELECT 1"), elsewhere) is BLOCKED
    finally:
        run(mariadb, f"DROP USER '{name}'@'127.0.0.1'")


@pytest.mark.mariadb
def test_mariadb_connecting(mariadb: Engine) -> None:
    missing = create_engine(mariadb.url.set(database="walsync_is_not_there"), poolclass=NullPool)
    assert kind_of(caught_from(missing, "SELECT 1"), missing) is BLOCKED
    unreachable = create_engine(mariadb.url.set(port=1), poolclass=NullPool)
    assert kind_of(caught_from(unreachable, "SELECT 1"), unreachable) is TRANSIENT
    wrong = create_engine(mariadb.url.set(username="walsync_nobody", password="wrong"), poolclass=NullPool)
    assert kind_of(caught_from(wrong, "SELECT 1"), wrong) is BLOCKED


@pytest.mark.mariadb
def test_mariadb_connection_killed_by_somebody_else(mariadb: Engine) -> None:
    with mariadb.connect() as connection:
        number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
        run(mariadb, f"KILL {number}")
        with pytest.raises(DBAPIError) as caught:
            connection.exec_driver_sql("UPDATE parent SET n = 1")
    assert kind_of(caught.value, mariadb) is TRANSIENT


# --------------------------------------------------------------------------------------------------- SQLite


def test_sqlite_connecting(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/missing/directory/x.db", poolclass=NullPool)
    assert kind_of(caught_from(engine, "SELECT 1"), engine) is TRANSIENT


def test_sqlite_read_only_file(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db", poolclass=NullPool)
    run(engine, "CREATE TABLE t (id INTEGER)")
    reading = create_engine(f"sqlite:///file:{tmp_path}/x.db?mode=ro&uri=true", poolclass=NullPool)
    assert kind_of(caught_from(reading, "INSERT INTO t VALUES (1)"), reading) is BLOCKED


def test_sqlite_busy_at_commit(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db", poolclass=NullPool, connect_args={"timeout": 0})
    run(engine, "CREATE TABLE t (id INTEGER)", "INSERT INTO t VALUES (1)")

    def hold(connection: Connection) -> Any:
        return connection.exec_driver_sql("SELECT * FROM t")

    with engine.connect() as reader:
        reader.exec_driver_sql("BEGIN")
        hold(reader).all()
        error = caught_from(engine, "INSERT INTO t VALUES (2)")
    assert kind_of(error, engine) is TRANSIENT

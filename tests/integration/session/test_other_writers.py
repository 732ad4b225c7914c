"""Other programs insert into the same tables and leave the key to the database, while walsync reserves keys there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Engine,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.orm import Session, registry, sessionmaker

import walsync
from walsync.journal.key_sources import TargetKeySource

ROWS = int(os.environ.get("WALSYNC_OTHER_WRITERS_ROWS", "48"))
"""Rows of each writer."""
ROWS_SLOW = int(os.environ.get("WALSYNC_OTHER_WRITERS_ROWS_SLOW", "3000"))

OTHERS = 3
OWN = 2
BLOCK_KEYS = 7  # many blocks, so that they are reserved in the middle of everything


class Thing:
    """A row of whatever table the test makes."""

    def __init__(self, who: str) -> None:
        self.who = who


def plain_table(metadata: MetaData, engine: Engine) -> Table:
    """As an application has it: PostgreSQL's SERIAL, MariaDB's AUTO_INCREMENT, SQLite's AUTOINCREMENT."""
    return Table(
        "thing", metadata, Column("id", Integer, primary_key=True), Column("who", String(40)), sqlite_autoincrement=True
    )


def demanding_table(metadata: MetaData, engine: Engine) -> Table:
    """A table that takes no row of default values: unique, NOT NULL, a foreign key, a check, and a trigger."""
    parent = Table("parent", metadata, Column("id", Integer, primary_key=True, autoincrement=False))
    table = Table(
        "thing",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("who", String(40), CheckConstraint("who LIKE '%-%'"), nullable=False),
        Column("parent_id", ForeignKey(parent.c.id), nullable=False, default=1),
        UniqueConstraint("who"),
        sqlite_autoincrement=True,
    )
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(parent).values(id=1))
        if engine.dialect.name == "mariadb":
            connection.execute(text("CREATE TABLE trace (thing_id INTEGER)"))
            connection.execute(
                text("CREATE TRIGGER tracing AFTER INSERT ON thing FOR EACH ROW INSERT INTO trace VALUES (NEW.id)")
            )
    return table


def always_identity(metadata: MetaData, engine: Engine) -> Table:
    return Table(
        "thing", metadata, Column("id", Integer, Identity(always=True), primary_key=True), Column("who", String(40))
    )


def with_sequence(metadata: MetaData, engine: Engine) -> Table:
    sequence = Sequence("thing_keys", metadata=metadata)
    return Table(
        "thing",
        metadata,
        Column("id", Integer, sequence, server_default=sequence.next_value(), primary_key=True),
        Column("who", String(40)),
    )


MakeTable = Callable[[MetaData, Engine], Table]


@contextmanager
def mapped(url: str, make_table: MakeTable) -> Iterator[tuple[Engine, Table]]:
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_size": 20}
    engine = create_engine(url, **arguments)
    metadata = MetaData()
    mappers = registry(metadata=metadata)
    table = make_table(metadata, engine)
    metadata.create_all(engine)
    mappers.map_imperatively(Thing, table)
    try:
        yield engine, table
    finally:
        mappers.dispose()
        engine.dispose()


def write_beside_others(engine: Engine, table: Table, directory: Path, rows: int) -> None:
    """Attached sessions and other writers insert at the same time; every row arrives, and no key is there twice."""
    failures: list[BaseException] = []
    sessions = sessionmaker(engine)
    keys = walsync.KeyConfig(block_keys=BLOCK_KEYS)
    # What others insert and how: one row, several, and as many as a SELECT finds.
    name = f"{table.name} (who)" if "parent_id" not in table.c else f"{table.name} (who, parent_id)"
    value = "" if "parent_id" not in table.c else ", 1"

    def other(number: int) -> None:
        for row in range(0, rows, 3):
            single = f"INSERT INTO {name} VALUES ('other-{number}-{row}'{value})"
            rest = ", ".join(f"('other-{number}-{row + more}'{value})" for more in (1, 2))
            selected = " UNION ALL ".join(f"SELECT 'other-{number}-{row + more}'{value}" for more in (1, 2))
            several = f"INSERT INTO {name} " + (f"VALUES {rest}" if row % 2 else selected)
            with engine.begin() as connection:
                connection.execute(text(single))
            with engine.connect() as connection:
                connection.execute(text(several))
                if row % 6 == 0:
                    # Keys that a rollback leaves out are nobody's, and no matter.
                    connection.rollback()
                    connection.execute(text(several))
                connection.commit()

    def own(number: int) -> None:
        for row in range(rows):
            with sessions() as session:
                if row % 10 == 9:
                    session.info["walsync.mode"] = "direct"
                session.add(Thing(f"own-{number}-{row}"))
                session.commit()

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    with walsync.attach(sessions, directory, keys=keys) as journal:
        threads = [threading.Thread(target=guarded, args=(other, number)) for number in range(OTHERS)]
        threads += [threading.Thread(target=guarded, args=(own, number)) for number in range(OWN)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert journal.close(timeout=100) is True, journal.stats()
    expected = {f"{kind}-{number}-{row}" for kind, count in (("other", OTHERS), ("own", OWN))
                for number in range(count) for row in range(rows)}  # fmt: skip
    with engine.connect() as connection:
        found = list(connection.execute(select(table.c.who)).scalars())
        ids = connection.execute(select(func.count(table.c.id.distinct()))).scalar()
        print(f"{len(found)} rows, keys to {connection.execute(select(func.max(table.c.id))).scalar()}")
    assert len(found) == len(expected) == ids
    assert set(found) == expected


CASES = [
    pytest.param("empty_postgres_url", plain_table, marks=pytest.mark.postgresql, id="postgresql-serial"),
    pytest.param("empty_postgres_url", always_identity, marks=pytest.mark.postgresql, id="postgresql-identity"),
    pytest.param("empty_postgres_url", with_sequence, marks=pytest.mark.postgresql, id="postgresql-sequence"),
    pytest.param("empty_mariadb_url", plain_table, marks=pytest.mark.mariadb, id="mariadb"),
    pytest.param("empty_mariadb_url", demanding_table, marks=pytest.mark.mariadb, id="mariadb-demanding"),
    pytest.param("empty_mariadb_url", with_sequence, marks=pytest.mark.mariadb, id="mariadb-sequence"),
    pytest.param("sqlite_url", plain_table, id="sqlite-autoincrement"),
]


@pytest.mark.parametrize(("url", "make_table"), CASES)
def test_no_key_is_given_out_twice(
    url: str, make_table: MakeTable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with mapped(request.getfixturevalue(url), make_table) as (engine, table):
        write_beside_others(engine, table, tmp_path / "log", ROWS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("url", "make_table"), CASES)
def test_no_key_of_thousands_is_given_out_twice(
    url: str, make_table: MakeTable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with mapped(request.getfixturevalue(url), make_table) as (engine, table):
        write_beside_others(engine, table, tmp_path / "log", ROWS_SLOW)


# ---------------------------------------------------------------------------------------- claims on MariaDB


@pytest.fixture
def claims(empty_mariadb_url: str) -> Iterator[tuple[Engine, Column[Any], TargetKeySource]]:
    """A table that demands much, and the source of its keys."""
    with mapped(empty_mariadb_url, demanding_table) as (engine, table):
        yield engine, table.c.id, TargetKeySource(lambda: engine)


def other_key(engine: Engine, who: str) -> int:
    """What another program is given."""
    with engine.begin() as connection:
        result = connection.exec_driver_sql(f"INSERT INTO thing (who, parent_id) VALUES ('{who}', 1)")
        return int(result.lastrowid)


@pytest.mark.mariadb
def test_others_get_keys_past_a_claimed_block_and_nothing_else_is_seen_of_it(
    claims: tuple[Engine, Column[Any], TargetKeySource],
) -> None:
    engine, column, source = claims
    assert source.fetch(column, 100, 0) == [(1, 100)]
    assert other_key(engine, "a-1") == 101
    ((first, last),) = source.fetch(column, 100, 0)
    assert (first > 101, last) == (True, first + 99)
    assert other_key(engine, "a-2") == last + 1
    with engine.connect() as connection:
        variables = "@@auto_increment_increment, @@sql_mode, @@foreign_key_checks, @@check_constraint_checks"
        before = connection.exec_driver_sql(f"SELECT @@GLOBAL.{variables.replace('@@', '@@GLOBAL.')[9:]}").one()
        assert connection.exec_driver_sql(f"SELECT {variables}").one() == before
        assert connection.exec_driver_sql("SELECT count(*) FROM thing").scalar() == 2
        assert connection.exec_driver_sql("SELECT count(*) FROM trace").scalar() == 2
        assert connection.exec_driver_sql("SHOW TABLES LIKE 'walsync%%'").all() == []


@pytest.mark.mariadb
def test_a_claim_lies_above_the_keys_that_the_application_chose(
    claims: tuple[Engine, Column[Any], TargetKeySource],
) -> None:
    engine, column, source = claims
    ((first, last),) = source.fetch(column, 10, 5000)
    assert first > 5000
    assert other_key(engine, "a-1") == last + 1
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO thing (id, who, parent_id) VALUES (70000, 'a-2', 1)"))
    ((first, last),) = source.fetch(column, 10, 70_000)
    assert first > 70_000
    # More than one step of the server's.
    ranges = source.fetch(column, 100_000, 0)
    keys = [key for first, last in ranges for key in range(first, last + 1)]
    assert (len(keys), len(set(keys)), min(keys) > last) == (100_000, 100_000, True)
    assert other_key(engine, "a-3") > max(keys)


@pytest.mark.mariadb
def test_a_row_of_default_values_that_is_there_already_is_no_obstacle(
    claims: tuple[Engine, Column[Any], TargetKeySource],
) -> None:
    engine, column, source = claims
    with engine.begin() as connection:
        connection.execute(text("SET STATEMENT check_constraint_checks = 0 FOR INSERT INTO thing VALUES (3, '', 1)"))
    ((first, last),) = source.fetch(column, 10, 0)
    assert first > 3
    assert other_key(engine, "a-1") == last + 1


@pytest.mark.mariadb
def test_a_key_in_the_middle_of_a_transaction_leaves_the_transaction_as_it_is(
    claims: tuple[Engine, Column[Any], TargetKeySource],
) -> None:
    engine, column, source = claims
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO thing (who, parent_id) VALUES ('a-1', 1)"))
        ((key, last),) = source.reserve_on(connection, column, 1, 0)
        assert key == last == 2
        assert other_key(engine, "a-2") == 3
        connection.execute(text(f"INSERT INTO thing VALUES ({key}, 'a-3', 1)"))
        connection.commit()
        assert connection.execute(text("SELECT id FROM thing ORDER BY id")).scalars().all() == [1, 2, 3]


@pytest.mark.mariadb
def test_an_engine_in_autocommit_mode_leaves_no_row_behind(
    claims: tuple[Engine, Column[Any], TargetKeySource],
) -> None:
    engine, column, _ = claims
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    source = TargetKeySource(lambda: autocommit)
    assert source.fetch(column, 10, 0) == [(1, 10)]
    with autocommit.connect() as connection:
        ((key, _),) = source.reserve_on(connection, column, 1, 0)
        assert key == 11
        assert connection.execute(text("SELECT count(*) FROM thing")).scalar() == 0


@pytest.mark.mariadb
def test_servers_that_share_the_keys_among_them_keep_to_their_own(
    claims: tuple[Engine, Column[Any], TargetKeySource],
) -> None:
    engine, column, source = claims
    with engine.connect() as connection:
        connection.execute(text("SET SESSION auto_increment_increment = 3, SESSION auto_increment_offset = 2"))
        connection.commit()
        keys = [key for first, last in source.reserve_on(connection, column, 50, 0) for key in range(first, last + 1)]
        assert len(set(keys)) == 50
        assert {key % 3 for key in keys} == {2}
        result = connection.exec_driver_sql("INSERT INTO thing (who, parent_id) VALUES ('a-1', 1)")
        assert result.lastrowid > max(keys)
        connection.exec_driver_sql("SET SESSION auto_increment_increment = 1, SESSION auto_increment_offset = 1")


@pytest.mark.mariadb
def test_where_a_trigger_refuses_the_row_the_table_of_keys_is_used_above_the_counter(
    claims: tuple[Engine, Column[Any], TargetKeySource], caplog: pytest.LogCaptureFixture
) -> None:
    engine, column, source = claims
    assert source.fetch(column, 100, 0) == [(1, 100)]
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER refusing BEFORE INSERT ON thing FOR EACH ROW"
                " IF COALESCE(NEW.who, '') = '' THEN SIGNAL SQLSTATE '45000'; END IF"
            )
        )
    # The counter moved before the trigger said no, or not: what was claimed before is not given out again.
    ((first, last),) = source.fetch(column, 100, 0)
    assert first > 100
    assert "AUTO_INCREMENT" in caplog.text
    assert source.fetch(column, 100, 0)[0][0] > last
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER refusing"))
    # Another process, which claims again, knows of them.
    assert TargetKeySource(lambda: engine).fetch(column, 100, 0)[0][0] > last + 100


@pytest.mark.mariadb
@pytest.mark.parametrize("ddl", ["ENGINE=Aria", "ENGINE=MyISAM"])
def test_a_table_without_transactions_is_left_alone(empty_mariadb_url: str, ddl: str) -> None:
    engine = create_engine(empty_mariadb_url)
    column = Table("thing", MetaData(), Column("id", Integer, primary_key=True)).c.id
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE thing (id INTEGER AUTO_INCREMENT PRIMARY KEY) {ddl}"))
    assert TargetKeySource(lambda: engine).fetch(column, 10, 0) == [(1, 10)]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM thing")).scalar() == 0
        assert connection.execute(text("SELECT next_key FROM walsync_keys")).scalar() == 11
    engine.dispose()


# ------------------------------------------------------------------------------------------------------- SQLite


def test_sqlite_gives_out_keys_past_a_block_where_a_table_has_autoincrement(sqlite_url: str) -> None:
    with mapped(sqlite_url, plain_table) as (engine, table):
        source = TargetKeySource(lambda: engine)

        def other() -> int:
            with engine.begin() as connection:
                return int(connection.exec_driver_sql("INSERT INTO thing (who) VALUES ('x')").lastrowid)

        assert source.fetch(table.c.id, 10, 0) == [(1, 10)]
        assert other() == 11
        assert source.fetch(table.c.id, 10, 0) == [(12, 21)]
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM thing"))
        assert other() == 22
        assert source.fetch(table.c.id, 10, 100) == [(101, 110)]
        assert other() == 111


def test_sqlite_without_autoincrement_gives_out_what_is_reserved_as_the_page_says(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    column = Table("thing", MetaData(), Column("id", Integer, primary_key=True)).c.id
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE thing (id INTEGER PRIMARY KEY /* not AUTOINCREMENT */)"))
    assert TargetKeySource(lambda: engine).fetch(column, 10, 0) == [(1, 10)]
    with engine.begin() as connection:
        assert connection.exec_driver_sql("INSERT INTO thing DEFAULT VALUES").lastrowid == 1
    engine.dispose()


def test_a_key_that_is_given_out_twice_would_be_found(sqlite_url: str, tmp_path: Path) -> None:
    """These tests can fail: with the counter moved back, others are given reserved keys."""
    with mapped(sqlite_url, plain_table) as (engine, _):
        sessions: sessionmaker[Session] = sessionmaker(engine)
        with walsync.attach(sessions, tmp_path / "log", keys=walsync.KeyConfig(block_keys=BLOCK_KEYS)) as journal:
            journal.pause()
            with sessions() as session:
                session.add(Thing("own"))
                session.commit()
            with engine.begin() as connection:
                connection.execute(text("UPDATE sqlite_sequence SET seq = 0"))
                connection.execute(text("INSERT INTO thing (who) VALUES ('other')"))
            journal.resume()
            with pytest.raises(walsync.WalsyncError):
                journal.wait_applied(timeout=30)
            journal.close(drain=False)

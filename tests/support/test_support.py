"""The helpers of the tests do what they promise: a comparison that cannot fail would make every suite green."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Float, Integer, MetaData, String, Table, create_engine, insert, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tests.support.databases import assert_databases_equal, compare_databases, fresh_database
from tests.support.line import slow_line
from tests.support.processes import run_python, start_python
from tests.support.servers import PrivateServer, ServerMissingError, find_server
from tests.support.waiting import wait_until

metadata = MetaData()
books = Table(
    "books",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("title", String(50)),
    Column("price", Float),
)
tags = Table("tags", metadata, Column("name", String(50)))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    engines = [create_engine(f"sqlite:///{tmp_path / name}", poolclass=NullPool) for name in ("a", "b")]
    for engine in engines:
        metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(insert(books), [{"id": 1, "title": "one", "price": 1.5}])
            connection.execute(insert(tags), [{"name": "red"}, {"name": "red"}])
    yield engines[0], engines[1]
    for engine in engines:
        engine.dispose()


def change(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_equal_databases_have_no_differences(pair: tuple[Engine, Engine]) -> None:
    assert_databases_equal(*pair, metadata.sorted_tables)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE books SET title = 'two'", "books (1,).title: 'one' in the first, 'two' in the second"),
        ("UPDATE books SET title = NULL", "books (1,).title: 'one' in the first, None in the second"),
        ("UPDATE books SET title = 'one '", "books (1,).title"),
        ("DELETE FROM books", "books (1,): 1 rows in the first, 0 in the second"),
        ("INSERT INTO books (id) VALUES (2)", "books (2,): 0 rows in the first, 1 in the second"),
        ("INSERT INTO tags VALUES ('red')", "tags ('red',): 2 rows in the first, 3 in the second"),
    ],
)
def test_every_difference_is_found_and_named(pair: tuple[Engine, Engine], statement: str, named: str) -> None:
    change(pair[1], statement)
    differences = compare_databases(*pair, metadata.sorted_tables)
    assert len(differences) == 1
    assert named in differences[0]
    with pytest.raises(AssertionError, match="the databases differ"):
        assert_databases_equal(*pair, metadata.sorted_tables)


def test_waiting_returns_what_the_condition_answered() -> None:
    answers = iter([None, 0, "yes"])
    assert wait_until(lambda: next(answers)) == "yes"


def test_waiting_past_the_deadline_says_for_what() -> None:
    with pytest.raises(AssertionError, match="the train to arrive"):
        wait_until(lambda: False, deadline_s=0.02, message="the train to arrive")


def test_a_process_imports_walsync_from_any_directory(tmp_path: Path) -> None:
    done = run_python("-c", "import walsync.exceptions; print('here')", cwd=tmp_path)
    assert done.stdout == "here\n"


def test_a_process_that_fails_shows_its_errors() -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("-c", "1 / 0")


def test_a_started_process_talks_over_pipes() -> None:
    with start_python("-c", "print(input())") as process:
        assert process.communicate("hello\n", timeout=60)[0] == "hello\n"


def test_target_begins_empty_and_works(target_url: str) -> None:
    engine = create_engine(target_url, poolclass=NullPool)
    assert inspect(engine).get_table_names() == []
    metadata.create_all(engine)
    assert set(inspect(engine).get_table_names()) == {"books", "tags"}


@pytest.mark.postgresql
def test_postgresql_database_is_dropped_though_connected(postgres_server_url: str) -> None:
    _dropped_though_connected(postgres_server_url)


@pytest.mark.mariadb
def test_mariadb_database_is_dropped_though_connected(mariadb_server_url: str) -> None:
    _dropped_though_connected(mariadb_server_url)


def _dropped_though_connected(server: str) -> None:
    with fresh_database(server) as url:
        engine = create_engine(url)
        metadata.create_all(engine)
        open_transaction = engine.connect()
        open_transaction.execute(insert(books).values(id=1))
    with pytest.raises(SQLAlchemyError):
        open_transaction.execute(insert(books).values(id=2))
    open_transaction.invalidate()
    open_transaction.close()
    engine.dispose()
    with pytest.raises(SQLAlchemyError):
        create_engine(url, poolclass=NullPool).connect()


def test_a_given_server_that_does_not_answer_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALSYNC_TEST_POSTGRESQL_URL", "postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(ServerMissingError, match="WALSYNC_TEST_POSTGRESQL_URL is set"), find_server("postgresql"):
        pass


def test_without_server_or_binaries_the_reason_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALSYNC_TEST_MARIADB_URL", raising=False)
    monkeypatch.setattr("tests.support.servers._why_not", lambda url: "refused")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ServerMissingError, match="apt-get install mariadb-server.*127.0.0.1:3306 as root: refused"):
        with find_server("mariadb"):
            pass


@pytest.mark.postgresql
@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
def test_private_postgresql_keeps_what_was_committed(private_postgresql: PrivateServer, immediate: bool) -> None:
    _keeps_what_was_committed(private_postgresql, immediate)


@pytest.mark.mariadb
@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
def test_private_mariadb_keeps_what_was_committed(private_mariadb: PrivateServer, immediate: bool) -> None:
    _keeps_what_was_committed(private_mariadb, immediate)


@pytest.mark.mariadb
def test_a_mariadb_that_starts_leaves_the_temporary_tables_of_others_alone(private_mariadb: PrivateServer) -> None:
    engine = create_engine(private_mariadb.url)
    with engine.connect() as connection:
        directory = Path(connection.scalar(text("SELECT @@tmpdir")))
        connection.execute(text("CREATE TEMPORARY TABLE mine ENGINE=Aria SELECT 1 AS a"))
        files = list(directory.glob("#sql-temptable*"))
        assert files, f"no temporary table under {directory}"
        with type(private_mariadb)():
            assert all(file.exists() for file in files)
        assert connection.scalar(text("SELECT a FROM mine")) == 1
    engine.dispose()


def _keeps_what_was_committed(server: PrivateServer, immediate: bool) -> None:
    with fresh_database(server.url) as url:
        engine = create_engine(url, poolclass=NullPool)
        metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(insert(books).values(id=7))
        server.stop(immediate=immediate)
        assert not server.is_running
        with pytest.raises(SQLAlchemyError):
            engine.connect()
        server.start()
        with engine.connect() as connection:
            assert connection.execute(books.select()).one().id == 7


@pytest.mark.postgresql
def test_a_slow_line_holds_back_every_question_and_ends_with_its_block(postgres_server_url: str) -> None:
    with slow_line(postgres_server_url, rtt_s=0.05) as url:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            begin = time.monotonic()
            assert connection.execute(text("SELECT 1")).scalar() == 1
            assert time.monotonic() - begin >= 0.05
    with pytest.raises(OperationalError), engine.connect():
        pass

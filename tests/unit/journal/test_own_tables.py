"""The tables that walsync keeps in the target: made once, whoever else is at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, inspect
from sqlalchemy.exc import OperationalError

from walsync.journal import create_if_missing

TABLE = Table("walsync_own", MetaData(), Column("id", Integer, primary_key=True))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """SQLite in WAL mode, with transactions that begin at their first statement, reads included."""
    engine = create_engine(f"sqlite:///{tmp_path}/target.sqlite")

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    yield engine
    engine.dispose()


def test_a_writer_between_the_look_and_the_create_is_no_failure(engine: Engine) -> None:
    others = iter([Table("other", MetaData(), Column("id", Integer, primary_key=True))])

    @event.listens_for(engine, "before_cursor_execute")
    def before(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "CREATE TABLE walsync_own" in statement:
            for other in others:
                other.create(engine)

    create_if_missing(engine, TABLE)
    assert {"other", "walsync_own"} <= set(inspect(engine).get_table_names())


def test_threads_that_create_it_at_once_all_find_it(engine: Engine) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def create() -> None:
        start.wait(30)
        try:
            create_if_missing(engine, TABLE)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert inspect(engine).has_table("walsync_own")


def test_a_target_that_refuses_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    engine = create_engine(f"sqlite:///file:{tmp_path}/empty.sqlite?mode=ro&uri=true")
    with pytest.raises(OperationalError, match="readonly"):
        create_if_missing(engine, TABLE)
    engine.dispose()

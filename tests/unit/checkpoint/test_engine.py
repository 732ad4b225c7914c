from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tests.unit.checkpoint.entries import open_log
from walsync.checkpoint import CheckpointConfig, SQLAlchemyCheckpointer
from walsync.checkpoint.engine import ApplyingEngine, begin, make_engine
from walsync.exceptions import ConfigurationError


@pytest.mark.parametrize("settings", [{}, {"poolclass": NullPool}, {"pool_size": 1, "max_overflow": 0}])
def test_the_pool_is_another_and_of_the_same_kind(sqlite_url: str, settings: dict[str, Any]) -> None:
    target = create_engine(sqlite_url, **settings)
    engine = make_engine(target, CheckpointConfig())
    assert isinstance(engine, ApplyingEngine)
    assert engine.pool is not target.pool
    assert type(engine.pool) is type(target.pool)
    with target.connect() as first, engine.connect() as second:
        assert first.connection.dbapi_connection is not second.connection.dbapi_connection
    target_pool = target.pool
    engine.dispose()
    assert target.pool is target_pool
    target.dispose()


def test_listeners_of_the_application_hear_the_checkpointer_and_not_the_other_way_round(sqlite_url: str) -> None:
    target = create_engine(sqlite_url)
    heard: list[str] = []
    event.listen(target, "connect", lambda connection, record: heard.append("connect"))
    engine = make_engine(target, CheckpointConfig())
    event.listen(target, "before_cursor_execute", lambda conn, cursor, sql, *rest: heard.append(sql))
    event.listen(engine, "before_cursor_execute", lambda conn, cursor, sql, *rest: heard.append("own " + sql))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert heard == ["connect", "own SELECT 1", "SELECT 1"]
    heard.clear()
    with target.connect() as connection:
        connection.execute(text("SELECT 2"))
    assert heard == ["connect", "SELECT 2"]
    engine.dispose()
    target.dispose()


def test_execution_options_of_the_target_are_kept(sqlite_url: str) -> None:
    target = create_engine(sqlite_url).execution_options(schema_translate_map={"a": "b"}, mine=1)
    engine = make_engine(target, CheckpointConfig())
    assert engine.get_execution_options()["mine"] == 1
    assert engine.get_execution_options()["schema_translate_map"] == {"a": "b"}


def test_the_dialect_is_initialised_by_the_applications_pool(engine: Engine) -> None:
    # Another pool's first connection would meet a dialect that is half initialised.
    target = create_engine(engine.url)
    checkpointer = SQLAlchemyCheckpointer(target)
    with open_log() as log:
        assert checkpointer.check_watermark(log)
    assert target.pool.checkedin() == 1  # type: ignore[attr-defined]
    checkpointer.stop()
    target.dispose()


def test_a_single_asynchronous_connection_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="event loop"):
        SQLAlchemyCheckpointer(create_engine("sqlite+aiosqlite://"))


def test_a_sqlite_transaction_is_begun_as_a_writer(engine: Engine) -> None:
    second = create_engine(engine.url, connect_args={"timeout": 0})
    with Session(engine) as session:
        connection = begin(session, engine)
        assert connection.connection.dbapi_connection is not None
        assert connection.connection.dbapi_connection.in_transaction
        with Session(second) as other, pytest.raises(Exception, match="locked"):
            begin(other, second)
        session.rollback()
        with Session(second) as other:
            begin(other, second)
    second.dispose()

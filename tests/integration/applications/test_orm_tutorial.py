"""SQLAlchemy's documented ORM flows give the same answers, and leave the same database, on attached sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import greenlet_spawn

import walsync
from tests.integration.applications.session_flows import SESSION_FLOWS
from tests.integration.applications.tutorial_flows import TUTORIAL_FLOWS, Flow
from tests.integration.applications.tutorial_models import Base
from tests.support.databases import without_syncs

FLOWS = [*TUTORIAL_FLOWS, *SESSION_FLOWS]


@contextmanager
def database(url: str) -> Iterator[Engine]:
    engine = without_syncs(create_engine(url))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()


def content(engine: Engine) -> dict[str, list[str]]:
    """Every row of every table, with the keys that the database or the log has given counted from 1."""
    places: dict[str, dict[Any, int]] = {}
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            rows = connection.execute(select(table).order_by(*table.primary_key)).mappings().all()
            if "id" in table.c and not table.c.id.foreign_keys:
                places[table.name] = {row["id"]: place for place, row in enumerate(rows, 1)}
            found[table.name] = sorted(
                repr([_value(column, row[column.name], places) for column in table.c]) for row in rows
            )
    return found


def _value(column: Any, value: Any, places: dict[str, dict[Any, int]]) -> Any:
    for key in column.foreign_keys:
        return places[key.column.table.name][value] if value is not None else None
    return places[column.table.name][value] if column.name == "id" else value


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.__name__)
def test_a_flow_answers_as_without_the_log(flow: Flow, target_url: str, tmp_path: Path) -> None:
    plain: list[str] = []
    with database(target_url) as engine:
        flow(sessionmaker(engine), lambda value: plain.append(repr(value)))
        expected = content(engine)
    attached: list[str] = []
    with database(target_url) as engine:
        sessions: sessionmaker[Session] = sessionmaker(engine)
        keys = walsync.KeyConfig(block_keys=50)
        # The flows rely on SQLAlchemy's default: what was committed is read again.
        with walsync.attach(sessions, tmp_path / "log", keys=keys, expire_on_commit=True) as journal:
            flow(sessions, lambda value: attached.append(repr(value)))
            assert journal.stats().buffered_transactions + journal.stats().direct_transactions > 0
        assert journal.close()
        found = content(engine)
    assert attached == plain
    assert found == expected
    assert plain


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.__name__)
def test_a_flow_answers_as_without_the_log_inside_of_asyncio(flow: Flow, sqlite_url: str, tmp_path: Path) -> None:
    """The sessions are those that asynchronous ones have inside of them, in their greenlet."""

    async def run() -> list[str]:
        answers: list[str] = []
        engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
        inner: sessionmaker[Session] = sessionmaker(engine.sync_engine)
        outer = async_sessionmaker(engine, sync_session_class=inner)
        async with await asyncio.to_thread(walsync.attach, outer, tmp_path / "log") as journal:
            await greenlet_spawn(flow, inner, lambda value: answers.append(repr(value)))
            assert journal.stats().buffered_transactions + journal.stats().direct_transactions > 0
        await engine.dispose()
        return answers

    plain: list[str] = []
    with database(sqlite_url) as engine:
        flow(sessionmaker(engine), lambda value: plain.append(repr(value)))
        expected = content(engine)
    with database(sqlite_url) as engine:
        assert asyncio.run(run()) == plain
        assert content(engine) == expected

"""What can be attached of SQLAlchemy's asynchronous sessions, what is refused, and what is left when it is detached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, event, select
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.asynchronous.application import Application
from tests.integration.asynchronous.models import Author


class Sync(Session):
    """A synchronous session class of the application's."""


class Own(AsyncSession):
    """A class of asynchronous sessions that is attached itself."""


class OwnWithClass(AsyncSession):
    sync_session_class = Sync


@asynccontextmanager
async def attached(sessions: Any, app: Application, **arguments: Any) -> AsyncIterator[walsync.Journal]:
    journal = await asyncio.to_thread(walsync.attach, sessions, app.directory, **arguments)
    async with journal:
        yield journal


@pytest.fixture
def engine(sqlite_app: Application) -> AsyncEngine:
    return create_async_engine(sqlite_app.url)


async def count_in(session: AsyncSession) -> int:
    found = len((await session.scalars(select(Author))).all())
    await session.rollback()
    return found


@pytest.mark.parametrize(
    "kind", ["factory", "unbound", "class in factory", "sessionmaker in factory", "subclass", "subclass with class"]
)
async def test_what_makes_sessions_is_attached_and_given_back(
    sqlite_app: Application, engine: AsyncEngine, kind: str
) -> None:
    target: AsyncEngine | None = None if kind in ("factory", "class in factory", "sessionmaker in factory") else engine
    sessions: Any = {
        "factory": async_sessionmaker(engine),
        "unbound": async_sessionmaker(),
        "class in factory": async_sessionmaker(engine, sync_session_class=Sync),
        "sessionmaker in factory": async_sessionmaker(engine, sync_session_class=sessionmaker()),
        "subclass": Own,
        "subclass with class": OwnWithClass,
    }[kind]
    before = dict(vars(sessions)) if isinstance(sessions, type) else dict(sessions.kw)

    async with attached(sessions, sqlite_app, target=target) as journal:
        async with sessions() if target is None or kind == "unbound" else sessions(engine) as session:
            assert isinstance(session.sync_session, Sync) == ("class" in kind and kind != "subclass")
            session.add(Author(name="a"))
            await session.commit()
            assert journal.last_entry(session) == 1
            assert await count_in(session) == 1
        assert journal.stats().buffered_transactions == 1

    after = dict(vars(sessions)) if isinstance(sessions, type) else dict(sessions.kw)
    assert {name: value for name, value in after.items() if value is not None} == {
        name: value for name, value in before.items() if value is not None
    }
    if kind != "unbound":
        async with sessions(bind=engine) as session:
            session.add(Author(id=1000, name="b"))
            await session.commit()
            assert journal.last_entry(session) is None, "the journal is closed: it went to the target"
            assert await count_in(session) == 2
    await engine.dispose()


async def test_a_scoped_session_is_attached(sqlite_app: Application, engine: AsyncEngine) -> None:
    sessions = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    async with attached(sessions, sqlite_app) as journal:
        sessions.add(Author(name="a"))
        await sessions.commit()
        assert journal.last_entry(sessions) == 1
        with pytest.raises(walsync.AttachError, match="remove"):
            walsync.attach(sessions, sqlite_app.directory)
        await sessions.remove()
    await engine.dispose()


async def test_a_single_session_is_attached_and_given_back(sqlite_app: Application, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        async with attached(session, sqlite_app) as journal:
            session.add(Author(name="a"))
            await session.commit()
            assert journal.last_entry(session) == 1
            assert await count_in(session) == 1
        assert type(session.sync_session) is Session
        assert await count_in(session) == 1
    await engine.dispose()


async def test_events_of_the_synchronous_class_fire_in_both_sessions(
    sqlite_app: Application, engine: AsyncEngine
) -> None:
    heard: list[str] = []

    class Heard(Session):
        pass

    event.listen(Heard, "before_commit", lambda session: heard.append("commit"))
    event.listen(Heard, "after_begin", lambda session, *_: heard.append("begin"))
    sessions = async_sessionmaker(engine, sync_session_class=Heard)
    async with attached(sessions, sqlite_app) as journal:
        async with sessions.begin() as session:
            session.add(Author(name="a"))
        await journal.await_applied(timeout=30)
        assert sorted(heard) == ["begin", "begin", "commit", "commit"], "once in the task, once when it is applied"
    await engine.dispose()


async def test_listeners_of_the_journal_read_the_target(sqlite_app: Application, engine: AsyncEngine) -> None:
    seen: list[Any] = []
    sessions = async_sessionmaker(engine)
    async with attached(sessions, sqlite_app, checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        event.listen(journal, "after_append", lambda journal, entry_id, changes: seen.append(int(entry_id)))
        event.listen(
            journal,
            "before_checkpoint",
            lambda session, first, last: seen.append(session.scalars(select(Author.name)).all()),
        )
        async with sessions.begin() as session:
            session.add(Author(name="a"))
        journal.resume()
        await journal.await_applied(timeout=30)
    assert seen == [1, []]
    await engine.dispose()


async def test_attaching_without_a_thread_works_too(sqlite_app: Application, engine: AsyncEngine) -> None:
    sessions = async_sessionmaker(engine)
    with walsync.attach(sessions, sqlite_app.directory) as journal:
        async with sessions.begin() as session:
            session.add(Author(name="a"))
        journal.wait_applied(timeout=30)
    await engine.dispose()


async def test_one_journal_serves_several_event_loops(sqlite_app: Application, engine: AsyncEngine) -> None:
    sessions = async_sessionmaker(engine)

    async def work(name: str) -> None:
        async with sessions.begin() as session:
            session.add(Author(name=name))

    async with attached(sessions, sqlite_app) as journal:
        await work("here")
        await asyncio.to_thread(lambda: asyncio.run(work("there")))
        await journal.await_applied(timeout=30)
        assert journal.stats().buffered_transactions == 2
    await engine.dispose()


@pytest.mark.parametrize(
    "wrong", ["AsyncSession", "nothing bound", "synchronous engine", "asynchronous engine", "connection", "binds",
              "two-phase", "callable", "in memory"]
)  # fmt: skip
async def test_what_cannot_be_attached_is_refused(sqlite_app: Application, engine: AsyncEngine, wrong: str) -> None:
    sync_engine = create_engine(sqlite_app.url.replace("+aiosqlite", ""))
    memory = create_async_engine("sqlite+aiosqlite://")
    connection = AsyncConnection(engine)
    sessions: Any
    sessions, target = {
        "AsyncSession": (AsyncSession, engine),
        "nothing bound": (async_sessionmaker(), None),
        "synchronous engine": (async_sessionmaker(), sync_engine),
        "asynchronous engine": (sessionmaker(), engine),
        "connection": (async_sessionmaker(connection), None),
        "binds": (async_sessionmaker(engine, binds={Author: memory}), None),
        "two-phase": (async_sessionmaker(engine, twophase=True), None),
        "callable": (async_sessionmaker(engine, sync_session_class=lambda **kw: Session(**kw)), None),  # type: ignore[arg-type]
        "in memory": (async_sessionmaker(memory), None),
    }[wrong]
    with pytest.raises((walsync.AttachError, walsync.ConfigurationError)):
        walsync.attach(sessions, sqlite_app.directory, target)
    assert not sqlite_app.directory.exists()
    sync_engine.dispose()
    await engine.dispose()
    await memory.dispose()

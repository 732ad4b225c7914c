"""Asynchronous sessions: one implementation with the others, so a few programs are enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, selectinload, sessionmaker

import walsync
from tests.contract.captured.model import Author, Book, Tag
from tests.contract.captured.registry import SQLITE, buffered, direct, error

ON: Any = {"on": (SQLITE,), "asynchronous": True}


async def _author(session: AsyncSession, label: str) -> Author:
    return (await session.scalars(select(Author).where(Author.label == label))).one()


@buffered("`await session.commit()`, `async with session.begin()`", entries=2, **ON)
async def commits(session: AsyncSession) -> Any:
    async with session.begin():
        (await _author(session, "bob")).visits = 9
        session.add(Author(label="new", books=[Book(label="one")]))
        await session.flush()
        await session.execute(insert(Author), [{"label": "bulk"}])
        await session.execute(update(Tag).values(weight=Tag.weight + 1))
    async with session.begin_nested() as savepoint:
        session.add(Tag(name="gone"))
        await session.flush()
        await savepoint.rollback()
    session.add(Tag(name="kept"))
    await session.commit()
    return await session.scalar(select(func.count()).select_from(Author))


@buffered("`session.stream()`, `session.run_sync()`, `AsyncAttrs`, `await session.refresh()`", **ON)
async def reads(session: AsyncSession) -> Any:
    session.add(Author(label="new", books=[Book(label="one")]))
    await session.commit()
    streamed = [label async for label in await session.stream_scalars(select(Author.label).order_by(Author.label))]
    ada = await _author(session, "ada")
    await session.refresh(ada, ["books"])
    found = await session.scalars(select(Author).options(selectinload(Author.books)).where(Author.label == "new"))
    lazy = await session.run_sync(lambda inner: [book.label for book in inner.scalars(select(Author)).all()[1].books])
    return streamed, [book.label for book in ada.books], [book.label for book in found.one().books], lazy


@direct('`walsync.direct(session)`, `session.info["walsync.mode"]` of an `AsyncSession`', "asked for", **ON)
async def a_block_is_direct(session: AsyncSession) -> Any:
    session.add(Author(label="before"))
    await session.flush()
    with walsync.direct(session):
        found = await session.execute(delete(Tag).where(Tag.name == "unused"))
    return found.rowcount  # type: ignore[attr-defined]


@direct("`AsyncSession` bound to an `AsyncConnection` to the target", "bound to a connection", **ON)
async def a_connection_is_given(session: AsyncSession) -> Any:
    engine = session.bind
    assert isinstance(engine, AsyncEngine)
    async with engine.begin() as connection:
        session.sync_session.bind = connection.sync_connection
        session.add(Author(label="new", books=[Book(label="one")]))
        await session.commit()
    session.sync_session.bind = engine.sync_engine
    return None


@error(
    "`sync_session_class=` of another kind (a function)",
    walsync.AttachError,
    "subclass of Session",
    on=(SQLITE,),
    attaches=True,
)
def a_function_makes_sessions(target: Engine, directory: Path) -> None:
    engine = create_async_engine(target.url.set(drivername="sqlite+aiosqlite"))
    makes: Any = lambda **settings: Session(**settings)  # noqa: E731
    walsync.attach(async_sessionmaker(engine, sync_session_class=makes), directory)


MIXED = "asynchronous sessions on an engine without asyncio, or the other way round"


@error(MIXED, walsync.AttachError, "create_async_engine", on=(SQLITE,), attaches=True)
def asynchronous_sessions_of_a_synchronous_engine(target: Engine, directory: Path) -> None:
    walsync.attach(async_sessionmaker(), directory, target)


@error(MIXED, walsync.AttachError, "create_engine", on=(SQLITE,), attaches=True)
def synchronous_sessions_of_an_asynchronous_engine(target: Engine, directory: Path) -> None:
    engine = create_async_engine(target.url.set(drivername="sqlite+aiosqlite"))
    walsync.attach(sessionmaker(), directory, engine)


@error(
    "`sqlite+aiosqlite://` in memory, with its single connection",
    walsync.ConfigurationError,
    "Use a file",
    on=(SQLITE,),
    attaches=True,
)
def a_database_in_memory(target: Engine, directory: Path) -> None:
    walsync.attach(async_sessionmaker(create_async_engine("sqlite+aiosqlite://")), directory)

"""An application with asynchronous sessions on one target, as these tests use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

import walsync
from tests.integration.asynchronous.models import Author, Base

__all__ = ["PAUSED", "Application", "Running"]

PAUSED = walsync.CheckpointConfig(paused=True)


class Running:
    """In its event loop: an engine, a factory of sessions, and the journal that is attached to it."""

    def __init__(self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.engine = engine
        self.sessions = sessions
        self.journal: walsync.Journal

    async def add(self, *names: str) -> walsync.EntryId | None:
        """Commit authors of these names in one transaction; the entry."""
        async with self.sessions() as session:
            session.add_all([Author(name=name) for name in names])
            await session.commit()
            return self.journal.last_entry(session)

    async def in_target(self) -> list[str]:
        """The names that are in the target, without the journal."""
        async with self.engine.connect() as connection:
            return list((await connection.scalars(select(Author.name).order_by(Author.name))).all())


class Application:
    """Its target and its log; started as often as a test likes."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory

    async def make_tables(self) -> None:
        engine = create_async_engine(self.url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
        await engine.dispose()

    @asynccontextmanager
    async def unattached(self, **settings: Any) -> AsyncIterator[Running]:
        engine = create_async_engine(self.url, **settings)
        try:
            yield Running(engine, async_sessionmaker(engine))
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def attached(self, *, drain: bool = False, **arguments: Any) -> AsyncIterator[Running]:
        arguments.setdefault("keys", walsync.KeyConfig(block_keys=100))
        async with self.unattached() as running:
            running.journal = await asyncio.to_thread(walsync.attach, running.sessions, self.directory, **arguments)
            try:
                yield running
            finally:
                await running.journal.aclose(drain=drain)

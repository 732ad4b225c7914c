"""What an asynchronous session does through a journal: the same as a synchronous one, on every asynchronous driver."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import selectinload

import walsync
from tests.integration.asynchronous.application import PAUSED, Application
from tests.integration.asynchronous.models import Author, Book


async def test_a_commit_needs_no_target_and_arrives_there(app: Application) -> None:
    async with app.attached(checkpoint=PAUSED) as running:
        entry_id = await running.add("a", "b")
        assert entry_id == 1
        assert running.journal.log.durable_id == 1
        assert await running.in_target() == []
        running.journal.resume()
        await running.journal.await_applied(entry_id, timeout=30)
        assert await running.in_target() == ["a", "b"]
        assert running.journal.stats().buffered_transactions == 1


async def test_another_session_reads_what_was_committed(app: Application) -> None:
    async with app.attached() as running:
        for number in range(20):
            await running.add(str(number))
            async with running.sessions() as session:
                assert await session.scalar(select(func.count()).select_from(Author)) == number + 1


async def test_what_was_rolled_back_is_nowhere(app: Application) -> None:
    async with app.attached() as running:
        async with running.sessions() as session:
            session.add(Author(name="gone"))
            await session.flush()
            await session.rollback()
            session.add(Author(name="kept"))
            async with session.begin_nested() as savepoint:
                session.add(Author(name="gone"))
                await session.flush()
                await savepoint.rollback()
            async with session.begin_nested():
                session.add(Author(name="nested"))
            await session.commit()

        async def fail() -> None:
            async with running.sessions.begin() as session:
                session.add(Author(name="gone"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await running.journal.await_applied(timeout=30)
        assert await running.in_target() == ["kept", "nested"]
        assert running.journal.stats().direct_transactions == 0


async def test_updates_and_deletes_arrive(app: Application) -> None:
    async with app.attached() as running:
        await running.add(*"abcdefgh")
        async with running.sessions.begin() as session:
            authors = (await session.scalars(select(Author).order_by(Author.name))).all()
            for author in authors[:4]:
                author.visits += 1
            for author in authors[6:]:
                await session.delete(author)
        async with running.sessions.begin() as session:
            await session.execute(update(Author).where(Author.visits == 1).values(visits=Author.visits + 1))
            await session.execute(insert(Author), [{"name": "x"}, {"name": "y"}])
        async with running.sessions() as session:
            found = (await session.execute(select(Author.name, Author.visits).order_by(Author.name))).all()
        assert [tuple(row) for row in found] == [
            ("a", 2), ("b", 2), ("c", 2), ("d", 2), ("e", 0), ("f", 0), ("x", 0), ("y", 0),
        ]  # fmt: skip
        assert running.journal.stats().direct_transactions == 0


@pytest.mark.parametrize("way", ["own writes", "for update", "text", "returning", "asked for"])
async def test_a_transaction_becomes_direct(app: Application, way: str) -> None:
    if way == "returning" and "mariadb" in app.url:
        pytest.skip("MariaDB has no UPDATE ... RETURNING")
    async with app.attached() as running:
        await running.add("a")
        async with running.sessions() as session:
            session.add(Author(name="b"))
            await session.flush()
            names = select(Author.name).order_by(Author.name)
            if way == "own writes":
                found = (await session.scalars(names)).all()
            elif way == "for update":
                found = (await session.scalars(names.with_for_update())).all()
            elif way == "text":
                found = (await session.scalars(text("SELECT name FROM async_author ORDER BY name"))).all()
            elif way == "returning":
                returned = await session.scalars(update(Author).values(visits=7).returning(Author.name))
                found = sorted(returned.all())
            else:
                with walsync.direct(session):
                    found = (await session.scalars(names)).all()
            assert list(found) == ["a", "b"]
            await session.commit()
        assert await running.in_target() == ["a", "b"], "a direct transaction is in the target when it is committed"
        assert running.journal.stats().direct_transactions == 1


async def test_a_savepoint_before_an_upgrade_can_be_rolled_back_after_it(app: Application) -> None:
    async with app.attached() as running:
        async with running.sessions() as session:
            session.add(Author(name="outer"))
            await session.flush()
            savepoint = await session.begin_nested()
            session.add(Author(name="inner"))
            await session.flush()
            assert (await session.scalars(select(Author.name).order_by(Author.name))).all() == ["inner", "outer"]
            await savepoint.rollback()
            await session.commit()
        assert await running.in_target() == ["outer"]


async def test_a_stale_read_does_not_wait_and_a_fresh_one_has_its_bound(app: Application) -> None:
    config = walsync.SessionConfig(read_timeout_s=0.2)
    async with app.attached(checkpoint=PAUSED, session=config) as running:
        await running.add("a")
        async with running.sessions() as session:
            stale = select(Author.name).execution_options(walsync_read="stale")
            assert (await session.scalars(stale)).all() == []
        async with running.sessions() as session:
            with pytest.raises(walsync.ReadTimeoutError):
                await session.scalars(select(Author.name))


async def test_relationships_are_loaded_in_every_way(app: Application) -> None:
    async with app.attached() as running:
        async with running.sessions.begin() as session:
            session.add(Author(name="a", books=[Book(title="first"), Book(title="second")]))
        async with running.sessions() as session:
            author = (await session.scalars(select(Author).options(selectinload(Author.books)))).one()
            assert [book.title for book in author.books] == ["first", "second"]
        async with running.sessions() as session:
            author = (await session.scalars(select(Author))).one()
            assert [book.title for book in await author.awaitable_attrs.books] == ["first", "second"]
            author.visits = 9
            await session.commit()
            assert author.visits == 9, "not expired: expire_on_commit is False"
            await session.refresh(author, ["visits"])
            assert author.visits == 9
            author.books.pop()
            await session.commit()
        async with running.sessions() as session:
            assert (await session.scalars(select(Book.title))).all() == ["first"]


async def test_streams_and_synchronous_functions_work(app: Application) -> None:
    async with app.attached() as running:
        await running.add(*"abc")
        async with running.sessions() as session:
            seen = []
            async for name in await session.stream_scalars(select(Author.name).order_by(Author.name)):
                seen.append(name)
            assert seen == ["a", "b", "c"]

            def work(inner: object) -> int:
                assert session.sync_session is inner
                session.sync_session.add(Author(name="d"))
                session.sync_session.commit()
                return len(session.sync_session.scalars(select(Author)).all())

            assert await session.run_sync(work) == 4


async def test_fifty_tasks_commit_and_read_at_once(app: Application) -> None:
    async with app.attached(keys=walsync.KeyConfig(block_keys=7)) as running:

        async def work(number: int) -> int:
            async with running.sessions() as session:
                author = Author(name=str(number), books=[Book(title=str(number))])
                session.add(author)
                await session.commit()
                found = await session.scalar(select(Author.name).where(Author.id == author.id))
                assert found == str(number)
                return author.id

        ids = await asyncio.gather(*map(work, range(50)))
        assert len(set(ids)) == 50
        await running.journal.await_applied(timeout=30)
        assert Counter(await running.in_target()) == Counter(map(str, range(50)))


async def test_counting_in_twenty_tasks_is_exact(app: Application) -> None:
    async with app.attached() as running:
        await running.add("a")

        async def count(session: AsyncSession) -> None:
            await session.execute(update(Author).values(visits=Author.visits + 1))
            await session.commit()

        async def work() -> None:
            async with running.sessions() as session:
                for _ in range(5):
                    await count(session)

        await asyncio.gather(*[work() for _ in range(20)])
        async with running.sessions() as session:
            assert await session.scalar(select(Author.visits)) == 100


async def test_a_session_in_its_callers_transaction(app: Application) -> None:
    async with app.attached() as running:
        await running.add("committed")
        async with running.engine.connect() as connection:
            outer = await connection.begin()
            async with running.sessions(bind=connection) as session:
                # It waits for what is committed, and what it writes is its caller's to take back.
                assert (await session.scalars(select(Author.name))).all() == ["committed"]
                session.add(Author(name="gone", books=[Book(title="gone, too")]))
                await session.commit()
                assert await session.scalar(select(func.count()).select_from(Author)) == 2
            await outer.rollback()
        assert await running.in_target() == ["committed"]
        stats = running.journal.stats()
        assert stats.buffered_transactions == 1
        assert stats.direct_reasons == {"bound to a connection": 2}


async def test_a_session_of_several_engines(app: Application, tmp_path: Path) -> None:
    other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite'}")
    async with other.begin() as connection:
        await connection.run_sync(Book.metadata.create_all)
    async with app.unattached() as running:
        sessions = async_sessionmaker(binds={Author: running.engine, Book: other})
        journal = await asyncio.to_thread(walsync.attach, sessions, app.directory, running.engine)
        async with sessions() as session:
            session.add(Author(name="buffered"))
            await session.commit()
            assert (await session.scalars(select(Book))).all() == []
        async with sessions() as session:
            session.add_all([Author(name="direct"), Book(title="direct", author_id=1)])
            await session.commit()
            assert (await session.scalars(select(Book.title))).all() == ["direct"]
        stats = journal.stats()
        await journal.aclose()
        assert await running.in_target() == ["buffered", "direct"]
        assert stats.buffered_transactions == 1
        assert stats.direct_reasons == {"writes to another engine as well": 1}
    await other.dispose()

"""The target is away: commits of tasks go on, what the driver raises is known for what it is, and all arrives later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

import walsync
from tests.integration.asynchronous.application import Application
from tests.support.databases import fresh_database, rendered
from tests.support.servers import PrivateServer

QUICK = walsync.CheckpointConfig(retry_initial_s=0.02, retry_max_s=0.1, check_timeout_s=5.0)


async def until_state(journal: walsync.Journal, state: str) -> walsync.JournalStats:
    for _ in range(600):
        stats = await asyncio.to_thread(journal.stats)
        assert stats.state != "failed", stats.last_error
        if stats.state == state:
            return stats
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {state}: {journal.stats()}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "driver"),
    [
        pytest.param("private_postgresql", "postgresql+asyncpg", marks=pytest.mark.postgresql, id="asyncpg"),
        pytest.param("private_postgresql", "postgresql+psycopg", marks=pytest.mark.postgresql, id="psycopg"),
        pytest.param("private_mariadb", "mariadb+asyncmy", marks=pytest.mark.mariadb, id="asyncmy"),
    ],
)
def test_a_server_that_stops_and_starts_again(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, driver: str
) -> None:
    server: PrivateServer = request.getfixturevalue(fixture)
    with fresh_database(server.url) as url:
        app = Application(rendered(make_url(url).set(drivername=driver)), tmp_path / "log")
        asyncio.run(_stop_and_start(app, server))


async def _stop_and_start(app: Application, server: PrivateServer) -> None:
    await app.make_tables()
    async with app.attached(checkpoint=QUICK) as running:
        await running.add("before")
        await running.journal.await_applied(timeout=30)
        for round_ in range(2):
            await asyncio.to_thread(server.stop, immediate=bool(round_))
            await asyncio.gather(*[running.add(f"{round_}.{number}") for number in range(10)])
            stats = await until_state(running.journal, "retrying")
            print(f"\n{stats.last_error}")
            assert stats.backlog_entries == 10
            async with running.sessions() as session:
                with pytest.raises(Exception, match=r"."):
                    await session.execute(text("SELECT 1"))
            await asyncio.to_thread(server.start)
            await running.journal.await_applied(timeout=60)
    async with app.attached(checkpoint=QUICK) as running:
        # The application's own pool has met the end of the server as well.
        assert len(await running.in_target()) == 21


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_attaching_while_the_target_is_away(tmp_path: Path, driver: str) -> None:
    app = Application(f"postgresql+{driver}://nobody@127.0.0.1:1/none", tmp_path / "log")
    async with app.attached(checkpoint=QUICK) as running:
        await until_state(running.journal, "retrying")


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_database_that_is_missing_is_waited_for(postgres_server_url: str, tmp_path: Path, driver: str) -> None:
    url = make_url(postgres_server_url).set(drivername=f"postgresql+{driver}", database="walsync_no_such_database")

    async def main() -> None:
        async with Application(rendered(url), tmp_path / "log").attached(checkpoint=QUICK) as running:
            stats = await until_state(running.journal, "blocked")
            assert "does not exist" in str(stats.last_error)

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.mariadb
def test_a_password_that_is_wrong_is_waited_for(mariadb_server_url: str, tmp_path: Path) -> None:
    url = make_url(mariadb_server_url).set(drivername="mariadb+asyncmy", username="walsync_nobody", password="no")

    async def main() -> None:
        async with Application(rendered(url), tmp_path / "log").attached(checkpoint=QUICK) as running:
            await until_state(running.journal, "blocked")

    asyncio.run(main())


async def test_an_engine_that_is_closed_leaves_the_checkpointer_its_own(sqlite_app: Application) -> None:
    async with sqlite_app.attached() as running:
        await running.add("a")
        await running.engine.dispose()
        await running.add("b")
        await running.journal.await_applied(timeout=30)
        other = create_async_engine(sqlite_app.url)
        async with other.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM async_author"))).scalar_one() == 2
        await other.dispose()

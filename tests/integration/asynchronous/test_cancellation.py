"""A task that is cancelled: its transaction is in the log or it is not, and its session knows which."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

import walsync
from tests.integration.asynchronous.application import PAUSED, Application, Running
from tests.integration.asynchronous.models import Author

NoneType: Final = type(None)
TASKS = int(os.environ.get("WALSYNC_CANCELLED_TASKS", "60"))


class Disk:
    """Syncs of the log take `delay_s` longer; `reached` counts those that came."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.reached = 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        disk.reached += 1
        time.sleep(disk.delay_s)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    return disk


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_a_commit_that_is_cancelled_during_its_sync_is_committed(sqlite_app: Application, disk: Disk) -> None:
    async with sqlite_app.attached() as running:
        await running.add("before")
        disk.delay_s = 0.2
        session = running.sessions()
        session.add(author := Author(name="cancelled"))
        await session.flush()
        reached = disk.reached
        task = asyncio.create_task(session.commit())
        await until(lambda: disk.reached > reached)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert running.journal.last_entry(session) == 2
        assert running.journal.log.durable_id == 2
        assert not session.in_transaction()
        assert author in session, "the session is as after any commit"
        disk.delay_s = 0.0
        author.visits = 1
        await session.commit()
        await session.close()
        await running.journal.await_applied(timeout=30)
        assert await running.in_target() == ["before", "cancelled"]


async def test_a_commit_that_is_cancelled_before_it_begins_is_not(sqlite_app: Application, disk: Disk) -> None:
    async with sqlite_app.attached(session=walsync.SessionConfig(async_threads=1)) as running:
        await running.add("before")
        disk.delay_s = 0.3
        reached = disk.reached
        first = asyncio.create_task(running.add("first"))
        await until(lambda: disk.reached > reached)
        session = running.sessions()
        session.add(Author(name="cancelled"))
        await session.flush()
        second = asyncio.create_task(session.commit())
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done(), "it did not wait for the sync of another"
        assert running.journal.last_entry(session) is None
        await session.rollback()
        await session.close()
        assert await first == 2
        await running.journal.await_applied(timeout=30)
        assert await running.in_target() == ["before", "first"]


async def test_a_commit_that_takes_too_long_for_its_caller_says_so(sqlite_app: Application, disk: Disk) -> None:
    async with sqlite_app.attached() as running:
        await running.add("before")
        disk.delay_s = 0.2
        async with running.sessions() as session:
            session.add(Author(name="late"))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(session.commit(), 0.1)
            assert running.journal.last_entry(session) == 2


async def test_a_sync_that_fails_under_a_cancelled_commit_is_no_commit(
    sqlite_app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, failing, reached = os.fdatasync, [False], [False]

    def fail(descriptor: int) -> None:
        if failing[0]:
            reached[0] = True
            time.sleep(0.1)
            raise OSError(5, "broken")
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail)
    async with sqlite_app.attached() as running:
        await running.add("before")
        failing[0] = True
        async with running.sessions() as session:
            session.add(Author(name="lost"))
            causes: list[BaseException | None] = []

            async def commit() -> None:
                try:
                    await session.commit()
                except asyncio.CancelledError as error:
                    causes.append(error.__cause__)
                    raise

            task = asyncio.create_task(commit())
            await until(lambda: reached[0])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert isinstance(causes[0], walsync.LogPoisonedError)
            assert running.journal.last_entry(session) is None
            await session.rollback()
        with pytest.raises(walsync.LogPoisonedError):
            await running.add("after")


async def test_a_read_that_is_cancelled_is_let_go_at_once(app: Application) -> None:
    async with app.attached(checkpoint=PAUSED) as running:
        await running.add("a")
        async with running.sessions() as session:
            task = asyncio.create_task(session.scalars(select(Author.name)))  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            assert not task.done()
            task.cancel()
            began = time.perf_counter()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.perf_counter() - began < walsync.SessionConfig().read_timeout_s / 2
        running.journal.resume()
        async with running.sessions() as session:
            assert (await session.scalars(select(Author.name))).all() == ["a"]


@pytest.fixture
def careless_drivers() -> Iterator[None]:
    """Drivers leave a connection behind, unclosed, whose making was cancelled. It is collected here, and not later."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("careless_drivers")
@pytest.mark.parametrize("reads", [False, True], ids=["writes", "reads and writes"])
async def test_whenever_tasks_are_cancelled_their_sessions_know_the_outcome(
    app: Application, disk: Disk, reads: bool
) -> None:
    chance = random.Random(7)
    disk.delay_s = 0.002
    outcomes: dict[str, walsync.EntryId | None] = {}

    async def work(running: Running, name: str) -> None:
        session = running.sessions()
        try:
            if reads:
                # Its connection to the target is to be ended with the transaction.
                await session.scalars(select(Author.id).limit(1).execution_options(walsync_read="stale"))
            session.add(Author(name=name))
            await session.commit()
        finally:
            outcomes[name] = running.journal.last_entry(session)
            await session.close()

    async with app.attached(keys=walsync.KeyConfig(block_keys=1000)) as running:
        if "sqlite" in app.url:
            # A read that is cancelled leaves its cursor behind in aiosqlite, with a lock that keeps every writer out.
            async with running.engine.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        await running.add("first")
        tasks = {}
        for number in range(TASKS):
            name = str(number)
            task = tasks[name] = asyncio.create_task(work(running, name))
            if number % 10:
                latest_s = 0.15 if reads else 0.04
                asyncio.get_running_loop().call_later(chance.uniform(0, latest_s), task.cancel)
            await asyncio.sleep(0.001)
        await asyncio.wait(tasks.values())
        completed = {name for name, task in tasks.items() if not task.cancelled()}
        for name in completed:
            assert tasks[name].exception() is None
            assert outcomes[name] is not None
        await running.journal.await_applied(timeout=30)
        in_target = set(await running.in_target())
        assert in_target == {name for name, entry_id in outcomes.items() if entry_id is not None} | {"first"}
    print(f"\n{len(tasks) - len(completed)} of {len(tasks)} were cancelled, {len(in_target) - 1} committed")
    assert 0 < len(completed) < len(tasks)


async def test_a_journal_is_closed_while_tasks_commit(sqlite_app: Application) -> None:
    acknowledged: list[str] = []

    async def work(running: Running, task: int) -> None:
        for number in range(10_000):
            if running.journal.closed:
                return
            name = f"{task}.{number}"
            await running.add(name)
            acknowledged.append(name)

    async with sqlite_app.attached() as running:
        await running.add("first")
        tasks = [asyncio.create_task(work(running, task)) for task in range(8)]
        await until(lambda: len(acknowledged) > 20)
        await running.journal.aclose(drain=False)
        # The last of each is refused, or goes to the target, where several at once may find it locked; none hangs.
        done, pending = await asyncio.wait(tasks, timeout=60)
        assert not pending
        for task in done:
            assert isinstance(task.exception(), (walsync.WalsyncError, SQLAlchemyError, NoneType)), task.exception()
    async with sqlite_app.attached() as running:
        await running.journal.await_applied(timeout=30)
        in_target = await running.in_target()
    assert set(acknowledged) <= set(in_target)
    assert len(set(in_target)) == len(in_target)

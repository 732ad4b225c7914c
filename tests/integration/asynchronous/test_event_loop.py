"""The event loop is never blocked: a ticker on it is not late, however slow the disk and however long a wait.

A sync of the disk takes 50 ms here, and a read waits for an applier that is held back. A blocked loop would be late by
the 50 ms of a sync, or by the whole wait. What this machine, SQLAlchemy, the driver and the interpreter's lock make
late by themselves is told, in turns, by an unattached session that does as much, with as many syncs in threads. Where
that is late already, the machine is too busy for its ticker to tell anything; what is looked at in any case is that no
sync and no wait was ever called in a thread that runs an event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

import walsync
from tests.integration.asynchronous.application import Application, Running
from tests.integration.asynchronous.models import Author

SYNC_S = 0.05
TICK_S = 0.001
LATE_S = float(os.environ.get("WALSYNC_LATE_MS", "25")) / 1000
"""How late is too late. Half of a sync tells a blocked loop from a busy machine; a quiet one can be asked for 10 ms."""

RUNS = int(os.environ.get("WALSYNC_TICKER_RUNS", "3"))


async def longest_lateness_s(work: Callable[[], Awaitable[None]]) -> float:
    """By how much a ticker on this loop was late at most while `work` was done."""
    longest = 0.0
    done = asyncio.create_task(work())  # type: ignore[arg-type]
    while not done.done():
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        longest = max(longest, time.perf_counter() - due)
    await done
    return longest


def on_a_loop() -> bool:
    return asyncio._get_running_loop() is not None


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What blocked a thread that runs an event loop. Each sync of a file takes `SYNC_S` longer."""
    found: list[str] = []
    wait_applied = walsync.SQLAlchemyCheckpointer.wait_applied

    def wait(*arguments: Any) -> None:
        if on_a_loop():
            found.append("wait_applied")
        wait_applied(*arguments)

    monkeypatch.setattr(walsync.SQLAlchemyCheckpointer, "wait_applied", wait)
    for name in ("fdatasync", "fsync"):
        sync = getattr(os, name)

        def slow(descriptor: int, name: str = name, sync: Callable[[int], None] = sync) -> None:
            if on_a_loop():
                found.append(name)
            time.sleep(SYNC_S)
            sync(descriptor)

        monkeypatch.setattr(os, name, slow)
    return found


async def commits(running: Running) -> None:
    for _ in range(3):
        await running.add("one after the other")
    await asyncio.gather(*[running.add("at once") for _ in range(5)])


def held_back(running: Running, wait_s: float) -> Callable[[], Awaitable[None]]:
    """Waits for an applier that goes on only after `wait_s`: a read, and a transaction that becomes direct."""

    async def read() -> None:
        async with running.sessions() as session:
            assert (await session.scalars(select(Author.id).limit(1))).all()

    async def upgrade() -> None:
        async with running.sessions() as session:
            session.add(Author(name="direct"))
            await session.flush()
            assert (await session.scalars(select(Author.id).where(Author.name == "direct"))).all()
            await session.commit()

    async def work() -> None:
        running.journal.pause()
        await commits(running)
        began = time.perf_counter()
        # From a thread, which goes on even if the loop does not.
        threading.Timer(wait_s, running.journal.resume).start()
        await asyncio.gather(read(), upgrade())
        assert time.perf_counter() - began >= wait_s

    return work


async def compare(app: Application, wait_s: float, **arguments: Any) -> None:
    attached: list[float] = []
    plain: list[float] = []
    numbers = itertools.count(1)
    file = app.directory.with_name("synced").open("wb")
    async with app.attached(**arguments) as running, app.unattached() as other:

        async def plain_commit() -> None:
            async with other.sessions.begin() as session:
                # A key of its own: the database's next one may be reserved for the journal.
                session.add(Author(id=-next(numbers), name="plain"))
            await asyncio.to_thread(os.fdatasync, file.fileno())

        async def plain_commits() -> None:
            for _ in range(3):
                await plain_commit()
            if "sqlite" not in app.url:  # There the unattached would wait for each other, and then give up.
                await asyncio.gather(*[plain_commit() for _ in range(5)])
            async with other.sessions() as session:
                await session.scalars(select(Author.id).limit(1))

        # The first time, SQLAlchemy compiles statements and the drivers look around.
        await held_back(running, 0.0)()
        await plain_commits()
        for _ in range(RUNS):
            plain.append(await longest_lateness_s(plain_commits))
            attached.append(await longest_lateness_s(held_back(running, wait_s)))
        assert running.journal.stats().buffered_transactions >= 8 * RUNS
    file.close()
    middle, usual = statistics.median(attached), statistics.median(plain)
    print(
        f"\n{app.url.partition(':')[0]}, sync {SYNC_S * 1000:.0f} ms, wait {wait_s:g} s: longest lateness, median of "
        f"{RUNS}: {middle * 1000:.1f} ms (most {max(attached) * 1000:.1f}); unattached {usual * 1000:.1f} ms (most "
        f"{max(plain) * 1000:.1f})"
    )
    if usual < LATE_S / 2:
        assert middle < max(LATE_S, 3 * usual)


async def test_the_loop_goes_on_during_syncs_and_waits(app: Application, blocked: list[str]) -> None:
    # One key in a block: every new row needs one from the target, by way of a file that is synced.
    await compare(app, 0.2, keys=walsync.KeyConfig(block_keys=1))
    assert blocked == []


@pytest.mark.slow
async def test_the_loop_goes_on_during_a_wait_of_two_seconds(app: Application, blocked: list[str]) -> None:
    await compare(app, 2.0)
    assert blocked == []


async def test_attaching_and_closing_block_no_loop(app: Application, blocked: list[str]) -> None:
    async with app.attached(drain=True) as running:
        await running.add("a")
    assert blocked == []


async def test_the_ticker_sees_a_loop_that_is_blocked() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        time.sleep(SYNC_S)  # noqa: ASYNC251  That is what must not be.

    assert await longest_lateness_s(work) > SYNC_S / 2

"""What blocks runs in threads of the bridge's when a greenlet calls, and in the caller's own when it does not."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from walsync.exceptions import LogClosedError
from walsync.session.bridge import Bridge, await_in_thread

greenlet_spawn: Any = pytest.importorskip("sqlalchemy.util.concurrency").greenlet_spawn


def this_thread() -> str:
    return threading.current_thread().name


def test_a_caller_without_a_greenlet_waits_itself() -> None:
    bridge = Bridge(1, is_async=True)
    assert not bridge.is_needed
    assert bridge.wait(this_thread) == this_thread()
    bridge.close()


def test_a_greenlet_waits_in_a_thread_and_commits_in_another() -> None:
    bridge = Bridge(1, is_async=True)

    def work() -> tuple[str, str]:
        assert bridge.is_needed
        committed, cancelled = bridge.finish(this_thread)
        assert cancelled is None
        return bridge.wait(this_thread), committed

    waited, committed = asyncio.run(greenlet_spawn(work))
    assert waited.startswith("walsync-wait")
    assert committed.startswith("walsync-commit")
    bridge.close()


def test_a_synchronous_target_needs_no_bridge() -> None:
    bridge = Bridge(1, is_async=False)
    assert asyncio.run(greenlet_spawn(lambda: bridge.is_needed)) is False


def test_an_error_is_the_callers() -> None:
    bridge = Bridge(1, is_async=True)

    def fail() -> None:
        raise ZeroDivisionError

    for call in (bridge.wait, bridge.finish):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(greenlet_spawn(call, fail))
    bridge.close()


def test_waits_that_fill_their_threads_leave_those_of_commits_free() -> None:
    bridge, end = Bridge(1, is_async=True), threading.Event()

    async def main() -> None:
        waits = [asyncio.create_task(greenlet_spawn(bridge.wait, end.wait)) for _ in range(5)]
        await asyncio.sleep(0)
        assert (await greenlet_spawn(bridge.finish, lambda: "done"))[0] == "done"
        assert not any(task.done() for task in waits)
        end.set()
        await asyncio.gather(*waits)

    asyncio.run(main())
    bridge.close()


def test_a_commit_that_has_begun_is_finished_however_often_it_is_cancelled() -> None:
    bridge, begun, end = Bridge(1, is_async=True), threading.Event(), threading.Event()

    def commit() -> str:
        begun.set()
        end.wait(30)
        return "done"

    async def main() -> None:
        task = asyncio.create_task(greenlet_spawn(bridge.finish, commit))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        end.set()
        value, cancelled = await task
        assert value == "done"
        assert isinstance(cancelled, asyncio.CancelledError)

    asyncio.run(main())
    bridge.close()


def test_a_commit_that_has_no_thread_yet_is_given_up() -> None:
    bridge, end, called = Bridge(1, is_async=True), threading.Event(), []

    async def main() -> None:
        first = asyncio.create_task(greenlet_spawn(bridge.finish, end.wait))
        await asyncio.sleep(0)
        second = asyncio.create_task(greenlet_spawn(bridge.finish, lambda: called.append("no")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        end.set()
        await first

    asyncio.run(main())
    bridge.close()
    assert called == []


def test_a_closed_bridge_begins_nothing() -> None:
    bridge = Bridge(1, is_async=True)
    bridge.close()
    with pytest.raises(LogClosedError):
        asyncio.run(greenlet_spawn(bridge.finish, this_thread))
    assert bridge.wait(this_thread) == this_thread()


def test_a_coroutine_awaits_a_thread_of_its_own() -> None:
    assert asyncio.run(await_in_thread(this_thread, "mine")).startswith("mine")

"""The checkpointer's event loop: what runs there, what comes back, and what ends it."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from walsync.checkpoint.loop import TargetLoop
from walsync.exceptions import TargetUnavailableError

await_only: Any = pytest.importorskip("sqlalchemy.util.concurrency").await_only


@pytest.fixture
def loop() -> Any:
    loop = TargetLoop()
    yield loop
    loop.stop()


def test_what_runs_there_may_await(loop: TargetLoop) -> None:
    def work() -> str:
        await_only(asyncio.sleep(0))
        return threading.current_thread().name

    assert not loop.is_running
    assert loop.run(work) == "walsync-target-loop"
    assert loop.is_running


def test_many_threads_share_it(loop: TargetLoop) -> None:
    meeting: Any = None
    lock = threading.Lock()

    def meet() -> None:
        nonlocal meeting
        meeting = meeting or asyncio.Event()
        with lock:
            arrived.append(1)
        if len(arrived) == 3:
            meeting.set()
        await_only(asyncio.wait_for(meeting.wait(), 30))

    arrived: list[int] = []
    threads = [threading.Thread(target=loop.run, args=(meet,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(arrived) == 3


def test_a_call_from_there_is_made_at_once(loop: TargetLoop) -> None:
    assert loop.run(lambda: loop.run(lambda: "inner")) == "inner"


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_an_error_is_the_callers_and_does_not_end_it(loop: TargetLoop, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(error):
        loop.run(fail)
    assert loop.run(lambda: 1) == 1


def test_a_time_out_of_asyncio_is_a_time_out(loop: TargetLoop) -> None:
    # Before Python 3.11 asyncio's is another class, which would not be known for the target's failure.
    with pytest.raises(TimeoutError):
        loop.run(lambda: await_only(asyncio.wait_for(asyncio.sleep(30), 0.001)))


def test_stopping_interrupts_what_runs_and_it_can_be_started_again(loop: TargetLoop) -> None:
    begun = threading.Event()
    errors: list[BaseException] = []

    def wait() -> None:
        begun.set()
        await_only(asyncio.sleep(3600))

    def call() -> None:
        try:
            loop.run(wait)
        except TargetUnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(30)
    loop.stop()
    thread.join(30)
    assert len(errors) == 1
    assert not loop.is_running
    assert loop.run(lambda: "again") == "again"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_one_of_its_own(loop: TargetLoop) -> None:
    assert loop.run(lambda: 1) == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if not loop.is_running and loop.run(lambda: 2) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loop.run(lambda: 3) == 3

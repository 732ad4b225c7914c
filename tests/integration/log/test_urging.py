"""Who applies is woken when another process begins to wait for an entry to be applied."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import start_python
from tests.support.waiting import wait_until
from tests.unit.wal.logs import quiet_config
from walsync.wal import EntryId, WriteAheadLog
from walsync.wal.control_block import URGED
from walsync.wal.sharing import leads, urging
from walsync.wal.storage import shared as shared_module
from walsync.wal.storage.bells import PausingBells

LONG_S = 1000.0
"""Longer than a test may take: who looks after that time has been woken."""
TIMEOUT_S = 60.0


FORKED = """
import os, sys, threading
from walsync.wal import LogConfig, WriteAheadLog
log = WriteAheadLog.recover(sys.argv[1], config=LogConfig(keep_s=0.0))
log.append(b"parent")
if pid := os.fork():
    os.waitpid(pid, 0)
    os._exit(0)
assert log.control.try_lease()
print("applies", flush=True)
while not any(thread.name == "walsync-urging" for thread in threading.enumerate()):
    if log.wait_durable(log.control.applied_id, 1000.0):
        log.control.note_applied(log.durable_id)
print("hears", flush=True)
os._exit(0)
"""


@pytest.fixture
def _rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_LOOK_S", "_LONGEST_LOOK_S", "_LONGEST_LOOK_ALONE_S"):
        monkeypatch.setattr(leads, name, LONG_S)
    monkeypatch.setattr(urging, "_LONGEST_WAIT_S", LONG_S)


@pytest.fixture
def _futexes() -> None:
    if not shared_module.bells_for(memoryview(bytearray(4096)).cast("Q")).wakes:  # type: ignore[arg-type]
        pytest.skip("nobody can be woken where a process cannot wake another one: futexes, on a 64-bit Linux")


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Callable[[], WriteAheadLog]]:
    """A log of the same directory with each call, as another process would have it."""
    logs: list[WriteAheadLog] = []

    def open_log() -> WriteAheadLog:
        logs.append(WriteAheadLog.recover(tmp_path / "log", config=quiet_config(keep_s=0.0)))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


class Applier:
    """What an applier does, in a thread: waits for entries, and says that they are applied."""

    def __init__(self, log: WriteAheadLog) -> None:
        assert log.control.try_lease()
        self.log = log
        self.rounds = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        control = self.log.control
        while not self._ended:
            if self.log.wait_durable(control.applied_id, LONG_S):
                control.note_applied(self.log.durable_id)
            self.rounds += 1

    def end(self) -> None:
        self._ended = True
        while self._thread.is_alive():
            self.log.wake()
            self._thread.join(0.01)


def threads_that_hear() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "walsync-urging"]


def commit_and_wait(log: WriteAheadLog) -> bool:
    return log.control.wait_applied(log.append(b"x"), TIMEOUT_S)


@pytest.mark.usefixtures("_futexes", "_rare_looks")
def test_who_waits_in_another_process_is_not_left_to_a_look(open_log: Callable[[], WriteAheadLog]) -> None:
    applying, other = open_log(), open_log()
    other.control.urge(1)  # the first time ever nobody hears
    applier = Applier(applying)
    try:
        wait_until(lambda: bool(threads_that_hear()), message="a thread that hears")
        for _ in range(20):
            assert commit_and_wait(other)
    finally:
        applier.end()


@pytest.mark.usefixtures("_futexes")
def test_the_first_who_urges_is_heard_by_a_look_and_makes_a_thread_begin(
    open_log: Callable[[], WriteAheadLog],
) -> None:
    applying, other = open_log(), open_log()
    applier = Applier(applying)
    try:
        assert commit_and_wait(applying)
        assert not threads_that_hear()
        assert commit_and_wait(other)
        wait_until(lambda: len(threads_that_hear()) == 1, message="a thread that hears")
    finally:
        applier.end()
    applying.close()
    assert not threads_that_hear()


@pytest.mark.usefixtures("_futexes", "_rare_looks")
def test_who_applies_after_another_one_is_woken_in_its_place(open_log: Callable[[], WriteAheadLog]) -> None:
    first, second, other = open_log(), open_log(), open_log()
    other.control.urge(1)
    applier = Applier(first)
    wait_until(lambda: bool(threads_that_hear()), message="a thread that hears")
    applier.end()
    first.control.release_lease()
    # The first one's thread still waits, and is the first to be woken.
    applier = Applier(second)
    try:
        wait_until(lambda: len(threads_that_hear()) == 2, message="another thread that hears")
        for _ in range(5):
            assert commit_and_wait(other)
        wait_until(lambda: len(threads_that_hear()) == 1, message="the first one's thread ends")
    finally:
        applier.end()


@pytest.mark.usefixtures("_futexes", "_rare_looks")
def test_closing_ends_the_thread_while_that_of_another_waits_before_it(open_log: Callable[[], WriteAheadLog]) -> None:
    first, second, other = open_log(), open_log(), open_log()
    other.control.urge(1)
    applier = Applier(first)
    wait_until(lambda: bool(threads_that_hear()), message="a thread that hears")
    applier.end()
    first.control.release_lease()
    applier = Applier(second)
    wait_until(lambda: len(threads_that_hear()) == 2, message="another thread that hears")
    applier.end()
    began = time.monotonic()
    second.close()
    assert time.monotonic() - began < urging._STOP_S
    assert len(threads_that_hear()) <= 1


def test_where_nobody_can_be_woken_the_looks_remain(
    open_log: Callable[[], WriteAheadLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "bells_for", lambda words: PausingBells())
    applying, other = open_log(), open_log()
    applier = Applier(applying)
    try:
        for _ in range(5):
            assert commit_and_wait(other)
        assert not threads_that_hear()
    finally:
        applier.end()


@pytest.mark.usefixtures("_futexes")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_child_that_applies_hears_with_a_thread_of_its_own(tmp_path: Path) -> None:
    with start_python("-c", FORKED, tmp_path / "log") as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "applies\n"
            with WriteAheadLog.recover(tmp_path / "log", config=quiet_config(keep_s=0.0)) as log:
                deadline = time.monotonic() + TIMEOUT_S
                while child.poll() is None:
                    assert time.monotonic() < deadline
                    log.control.wait_applied(log.append(b"x"), 0.2)
            assert child.stdout.readline() == "hears\n"
        finally:
            child.kill()


@pytest.mark.usefixtures("_futexes")
def test_urging_in_the_process_that_applies_rings_no_bell(open_log: Callable[[], WriteAheadLog]) -> None:
    log = open_log()
    words = log._commits._words
    log.control.urge(EntryId(1))
    rung = words[URGED]
    assert log.control.try_lease()
    log.control.urge(EntryId(2))
    assert words[URGED] == rung

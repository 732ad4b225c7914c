"""An interrupt (Ctrl-C, or another signal whose handler raises) at any line of a commit leaves no log that hangs.

The interrupt is raised by a trace function before the n-th line of walsync's own code, for every n until the commit
ends without meeting one. From Python 3.12 on trace functions also raise between instructions at which no handler ever
runs, inside of inlined comprehensions for one, where the compiler does not expect it; so these tests are for 3.10 and
3.11. The engine's code is the same for all versions.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.logs import abandon, all_of, copy_of, open_log
from tests.unit.wal.test_group_commit import Gate
from walsync.exceptions import LogPoisonedError
from walsync.wal import FileStorage, MemoryStorage, WriteAheadLog
from walsync.wal.control_block import WANTED
from walsync.wal.sharing import keeping as keeping_module

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="tracing raises where no signal's handler runs")

FILES = (
    "group_commit.py",
    "leads.py",
    "sync_watch.py",
    "appender.py",
    "log.py",
    "interval.py",
    "siblings.py",
    "sharing/commits.py",
    "sharing/gathering.py",
    "sharing/keeping.py",
    "sharing/kept_tail.py",
    "sharing/leads.py",
    "sharing/tail.py",
    "sharing/posts.py",
    "sharing/waiting.py",
)
TIMEOUT_S = 20.0
LONG_S = 1000.0


class Interrupt(BaseException):
    """What a signal's handler raises."""


class InterruptAt:
    """Raises `Interrupt` before the `number`-th line of the engine that this thread comes to."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __enter__(self) -> InterruptAt:  # noqa: PYI034 - typing.Self is not in Python 3.10
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename.endswith(tuple(f"wal/{name}" for name in FILES)):
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "line" and not _runs_no_handler(frame):
            self.left -= 1
            if self.left == 0:
                self.place = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                sys.settrace(None)
                raise Interrupt
        return self._line


def _runs_no_handler(frame: FrameType) -> bool:
    """A line at which the interpreter never looks for signals, and on which the compiler relies for that.

    Of "try:" nothing is executed. The line of a "with" is come to again just before its end is called.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return line == "try:" or line.startswith("with ")


def in_time(work: Callable[[], Any], what: str) -> Any:
    """What `work` returns or raises, in a thread of its own that must come to an end."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:  # noqa: BLE001 - it is the answer
            answer.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    assert answer, f"{what} hangs"
    return answer[0]


def check_it_lives(log: WriteAheadLog, acknowledged: dict[int, bytes], where: str) -> None:
    """The next commits are made or refused, closing ends, and what was acknowledged is there."""
    for number in range(2):
        data = b"after %d" % number
        answer = in_time(lambda data=data: log.append(data), f"the commit after an interrupt in {where}")
        if isinstance(answer, int):
            acknowledged[answer] = data
        else:
            assert isinstance(answer, LogPoisonedError), f"{where}: {answer!r}"
    assert not isinstance(in_time(log.close, f"closing after an interrupt in {where}"), BaseException)


def committing(
    log: WriteAheadLog, acknowledged: dict[int, bytes], data: bytes, interrupt: InterruptAt | None = None
) -> Callable[[], None]:
    """A thread's work: to commit this, unless that is interrupted, or an interrupt elsewhere has poisoned the log."""

    def commit() -> None:
        try:
            with interrupt or contextlib.nullcontext():
                acknowledged[log.append(data)] = data
        except (Interrupt, LogPoisonedError):
            pass

    return commit


def check_contents(log: WriteAheadLog, acknowledged: dict[int, bytes], where: str, *, once: bool = False) -> None:
    """What was acknowledged is there; and nothing is there twice, where all that was committed differs."""
    found = {entry_id: b"".join(chunks) for entry_id, chunks in all_of(log).items()}
    assert acknowledged.items() <= found.items(), where
    assert not once or len(set(found.values())) == len(found), f"written twice after an interrupt in {where}"


def join(threads: list[threading.Thread], where: str) -> None:
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), f"a commit hangs after an interrupt in {where}"


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["sync", "interval"])
@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
def test_an_interrupt_at_any_line_of_a_lone_commit(durability: Any, size: int) -> None:
    number, poisoned, places = 0, 0, set()
    while True:
        number += 1
        storage = MemoryStorage()
        log = open_log(storage)
        acknowledged = {int(log.append(b"before")): b"before"}
        with InterruptAt(number) as interrupt:
            try:
                acknowledged[log.append(b"x" * size, durability=durability)] = b"x" * size
            except Interrupt:
                places.add(interrupt.place)
        if not interrupt.place:
            break
        check_it_lives(log, acknowledged, interrupt.place)
        poisoned += log.poisoned is not None
        abandon(log)
        check_contents(open_log(storage), acknowledged, interrupt.place)
    assert len(places) > 10
    # Only where nobody can know what is on the disk.
    assert poisoned < number


@pytest.mark.parametrize("place", [None, 0, 1, 2], ids=["leads", "leads next", "first served", "second served"])
def test_an_interrupt_at_any_line_of_a_commit_among_others(place: int | None) -> None:
    """One thread leads, and is in its sync; the others come in order, and the second of two syncs serves them."""
    number = 0
    while True:
        number += 1
        gate = Gate()
        log = open_log(gate.storage)
        acknowledged: dict[int, bytes] = {}
        interrupt = InterruptAt(number)
        gate.closed = True

        interrupted = committing(log, acknowledged, b"interrupted", interrupt)
        first = threading.Thread(target=interrupted if place is None else committing(log, acknowledged, b"first"))
        first.start()
        threads = [first]
        wait_until(lambda gate=gate, first=first: gate.entered.acquire(blocking=False) or not first.is_alive())
        others = [committing(log, acknowledged, b"other %d" % index) for index in range(3)]
        if place is not None:
            others.insert(place, interrupted)
        for count, work in enumerate(others, 1):
            thread = threading.Thread(target=work)
            thread.start()
            threads.append(thread)
            wait_until(
                lambda log=log, threads=threads, count=count: (
                    len(log._commits._waiting) + sum(not thread.is_alive() for thread in threads) >= count
                )
            )
        gate.closed = False
        gate.go.release()
        gate.go.release()
        join(threads, interrupt.place)
        if not interrupt.place:
            break
        check_it_lives(log, acknowledged, interrupt.place)
        abandon(log)
        check_contents(open_log(copy_of(gate.storage)), acknowledged, interrupt.place)
    assert number > 10


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("place", ["first, in vain", "first", "last"])
def test_an_interrupt_at_any_line_of_a_commit_that_waits_for_others(place: str, shared: bool, tmp_path: Path) -> None:
    """The last sync is said to have served two threads: the first to come waits for the other, which then leads."""
    number = 0
    while True:
        number += 1
        log = open_log(FileStorage(tmp_path / str(number)), shared=shared)
        siblings = log._commits._siblings
        siblings._longest_s = LONG_S
        siblings.note_sync(0.001 if place == "first, in vain" else LONG_S)
        siblings.were_served(2)
        acknowledged: dict[int, bytes] = {}
        interrupt = InterruptAt(number)

        works = [committing(log, acknowledged, b"other")]
        works.insert(place == "last", committing(log, acknowledged, b"interrupted", interrupt))
        threads = []
        for work in works[: 1 if place == "first, in vain" else 2]:
            thread = threading.Thread(target=work)
            thread.start()
            threads.append(thread)
            wait_until(lambda log=log, thread=thread: log._commits._waiting or not thread.is_alive())
        if place != "first, in vain":
            # Where the one that was interrupted does not come, somebody else does.
            siblings._until = 0.0
            answer = in_time(lambda log=log: log.append(b"third"), f"a commit after {interrupt.place}")
            assert isinstance(answer, int) or log.poisoned is not None, f"{interrupt.place}: {answer!r}"
        join(threads, interrupt.place)
        if not interrupt.place:
            break
        check_it_lives(log, acknowledged, interrupt.place)
        again = open_log(FileStorage(tmp_path / str(number)), shared=shared)
        check_contents(again, acknowledged, interrupt.place, once=True)
        again.close()
    assert number > 10


@pytest.mark.slow
@pytest.mark.parametrize("meets", ["nobody", "a sync", "nobody, and begins to keep", "nobody, and keeps", "a wish"])
def test_an_interrupt_at_any_line_of_a_commit_to_a_shared_log(
    meets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it meets another process's sync it posts its entry, which the other one writes. Where it keeps the locks,
    or begins to, the other one has them when it wants them, whatever happened; in "a wish" it does already.
    """
    keeps = meets in ("nobody, and keeps", "a wish")
    begins = meets == "nobody, and begins to keep"
    monkeypatch.setattr(keeping_module, "_FIRST_SYNCS", 0 if keeps or begins else 1000)
    number = kept = 0
    while True:
        number += 1
        storage = FileStorage(tmp_path / str(number))
        log, other = open_log(storage, keep_s=LONG_S), open_log(storage, keep_s=LONG_S)
        acknowledged = {int(log.append(b"before")): b"before"}
        keeping = log._commits._keeping
        if keeps:
            acknowledged[log.append(b"kept")] = b"kept"
        if keeping._bells.wakes:
            assert keeping.is_on == keeps
        if meets == "a wish":
            # The thread does not hear of it.
            log._commits._words[WANTED] += 1
        other_tail = other._commits._tail

        def end_the_sync(other: WriteAheadLog = other, acknowledged: dict[int, bytes] = acknowledged) -> None:
            other._commits._tail.release_sync_lock()
            acknowledged[other.append(b"other")] = b"other"

        timer = threading.Timer(0.002, end_the_sync)
        if meets == "a sync":
            assert other_tail.try_sync_lock()
            timer.start()
        with InterruptAt(number) as interrupt:
            try:
                acknowledged[log.append(b"interrupted")] = b"interrupted"
            except Interrupt:
                pass
        if meets == "a sync":
            timer.join(TIMEOUT_S)
        kept += keeping.is_on
        answer = in_time(lambda other=other: other.append(b"other's"), f"the other one after {interrupt.place}")
        assert isinstance(answer, int), f"{interrupt.place}: {answer!r}"
        acknowledged[answer] = b"other's"
        check_it_lives(log, acknowledged, interrupt.place)
        check_contents(other, acknowledged, interrupt.place, once=True)
        other.close()
        if not interrupt.place:
            break
    assert number > 30
    assert kept or not begins

"""Threads that commit at one time when the disk crashes, fails or fills: nothing is lost, and nobody hangs."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from dataclasses import replace

import pytest

from tests.simulation.watchdog import within
from tests.support.waiting import wait_until
from walsync.exceptions import LogError, LogFullError
from walsync.testing import Fault, FaultyStorage, OperationKind, SimulatedCrash, SimulatedStorage
from walsync.wal import LogConfig, Storage, WriteAheadLog

THREADS = 4
ENTRIES = 40
SEEDS = 40
# Whoever waits for a segment when the log's own thread has crashed waits for so long.
CONFIG = LogConfig(segment_bytes=32 * 1024, max_free_segments=1, idle_hint_s=0.001, segment_timeout_s=1.0)
PATIENT = replace(CONFIG, segment_timeout_s=30.0)


@pytest.fixture(autouse=True)
def _crashed_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's own thread may be the one that a crash ends; that is no fault of anybody."""
    hook = threading.excepthook

    def unless_crashed(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is not SimulatedCrash:
            hook(arguments)

    monkeypatch.setattr(threading, "excepthook", unless_crashed)


class Committers:
    """Threads that commit until they are done, or until the log refuses for good."""

    def __init__(self, log: WriteAheadLog, seed: int) -> None:
        self.log = log
        self.given: list[bytes] = []
        self.acknowledged: dict[int, bytes] = {}
        self.refused: set[bytes] = set()
        self.timeouts: list[str] = []
        self.ends: Counter[str] = Counter()
        self.mutex = threading.Lock()
        self.threads = [
            threading.Thread(target=self.commit, args=(number, random.Random(f"{seed} {number}")), daemon=True)
            for number in range(THREADS)
        ]

    def commit(self, number: int, source: random.Random) -> None:
        for count in range(ENTRIES):
            payload = f"{number}:{count}:".encode() + source.randbytes(source.choice((10, 500, 3000)))
            with self.mutex:
                self.given.append(payload)
            try:
                entry_id = self.log.append(payload)
            except LogFullError as error:
                with self.mutex:
                    self.refused.add(payload)
                    if error.__cause__ is None:
                        self.timeouts.append(str(error))
                continue
            except (LogError, SimulatedCrash) as error:
                self.ends[type(error).__name__] += 1
                return
            with self.mutex:
                self.acknowledged[entry_id] = payload
        self.ends["done"] += 1

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()


def check(disk: Storage, committers: Committers) -> None:
    log = WriteAheadLog.recover(disk, config=CONFIG)
    found = {int(entry.id): next(entry.chunks()) for entry in log.entries()}
    log.close()
    assert list(found) == list(range(1, len(found) + 1))
    for entry_id, payload in committers.acknowledged.items():
        assert found.get(entry_id) == payload, f"entry {entry_id} was acknowledged"
    assert len(set(found.values())) == len(found), "an entry is there twice"
    assert not set(found.values()) - set(committers.given)
    assert not set(found.values()) & committers.refused


@pytest.mark.slow
def test_a_crash_among_committing_threads_loses_nothing_acknowledged() -> None:
    crashed = 0
    for seed in range(SEEDS):
        source = random.Random(seed)
        disk = SimulatedStorage()
        log = WriteAheadLog.recover(disk, config=CONFIG)
        disk.crash_at = disk.changes + source.randint(1, 150)
        committers = Committers(log, seed)
        within(committers.run, f"seed {seed}")
        crashed += disk.crashed
        check(disk.crash(source), committers)
        with contextlib.suppress(SimulatedCrash):
            log.close()
    assert crashed > SEEDS // 2


def test_every_waiting_thread_hears_of_a_failed_sync() -> None:
    for at in range(1, SEEDS):
        disk = SimulatedStorage()
        storage = FaultyStorage(disk)
        log = WriteAheadLog.recover(storage, config=CONFIG)
        # The active segment's, not one that is being prepared.
        storage.faults.append(Fault.io_error(at=at, kinds=OperationKind.SYNC, name=log._appender.segment.name))
        committers = Committers(log, at)
        within(committers.run, f"sync {at}")
        if log.poisoned is not None:
            assert committers.ends == {"LogPoisonedError": THREADS}
        log.close()
        check(disk.crash(random.Random(at)), committers)


def test_threads_go_on_when_a_full_disk_has_room_again() -> None:
    for seed in range(10):
        disk = SimulatedStorage()
        full = Fault.disk_full(at=random.Random(seed).randint(1, 4), name="segment-")
        full.kinds = frozenset({OperationKind.CREATE})
        storage = FaultyStorage(disk, full)
        try:
            log = WriteAheadLog.recover(storage, config=PATIENT)
        except LogError:
            continue
        committers = Committers(log, seed)
        within(committers.run, f"seed {seed}")
        assert committers.ends == {"done": THREADS}
        # A full disk is an answer. Whoever waited for a time-out waited for somebody who waited for him.
        assert not committers.timeouts
        storage.faults.clear()
        assert log.poisoned is None
        committers.given.append(b"there is room")
        committers.acknowledged[log.append(b"there is room")] = b"there is room"
        log.close()
        check(disk.crash(random.Random(seed)), committers)


def test_a_hint_that_is_due_does_not_keep_a_commit_from_its_segment() -> None:
    """The log's thread must not wait for the commit that waits for a segment from it."""
    disk = SimulatedStorage()
    storage = FaultyStorage(disk)
    log = WriteAheadLog.recover(storage, config=PATIENT)
    housekeeper = log._housekeeper
    assert housekeeper is not None
    hint, hinting = housekeeper._hint, threading.Event()

    def hint_when_somebody_commits() -> None:
        if not hinting.is_set():
            hinting.set()
            wait_until(log._appender.lock.locked, message="nobody commits")
        hint()

    housekeeper._hint = hint_when_somebody_commits  # type: ignore[method-assign]
    # Nothing can be made, so the next but one entry has to ask.
    storage.faults.append(Fault.io_error(kinds=OperationKind.CREATE, times=None))
    while log._pool.free_count:
        log.append(bytes(15_000))
    log.append(bytes(8_000))
    assert hinting.wait(20.0)
    with pytest.raises(LogError) as caught:
        within(lambda: log.append(bytes(15_000)), "the commit")
    assert caught.value.__cause__ is not None, "it was refused for a time-out"
    storage.faults.clear()
    log.close()


def test_a_hint_leaves_what_is_queued_to_who_has_queued_it() -> None:
    """The log's thread must not write an entry either that needs a segment from it."""
    disk = SimulatedStorage()
    storage = FaultyStorage(disk)
    log = WriteAheadLog.recover(storage, config=replace(PATIENT, gather_s=5.0))
    housekeeper, commits = log._housekeeper, log._commits
    assert housekeeper is not None
    hint, prepared, hinting = housekeeper._hint, threading.Event(), threading.Event()

    def hint_when_something_is_queued() -> None:
        if prepared.is_set() and not hinting.is_set():
            hinting.set()
            wait_until(lambda: bool(commits._queue), message="nothing is queued")
        hint()

    housekeeper._hint = hint_when_something_is_queued  # type: ignore[method-assign]
    storage.faults.append(Fault.io_error(kinds=OperationKind.CREATE, times=None))
    while log._pool.free_count:
        log.append(bytes(15_000))
    prepared.set()
    log.append(bytes(8_000))
    assert hinting.wait(20.0)
    with commits._mutex:
        # The next one to commit waits for another thread to come along.
        commits._siblings.note_sync(5.0)
        commits._siblings.were_served(2)
    with pytest.raises(LogError) as caught:
        within(lambda: log.append(bytes(15_000)), "the commit")
    assert caught.value.__cause__ is not None, "it was refused for a time-out"
    storage.faults.clear()
    log.close()

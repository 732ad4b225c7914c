"""Group commit: one sync for many, and nobody is forgotten."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.faulty import FailingFile, FailingStorage
from tests.unit.wal.logs import all_of, open_log
from walsync.exceptions import LogClosedError, LogPoisonedError
from walsync.wal import EntryId, FileStorage, MemoryStorage, WriteAheadLog
from walsync.wal.appender import Appender
from walsync.wal.leads import Waiter


class Gate:
    """A storage whose syncs wait until they are let go."""

    def __init__(self) -> None:
        self.storage = FailingStorage()
        self.closed = False
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        gate = self

        original = FailingFile.sync

        def sync(file: FailingFile) -> None:
            if gate.closed and file.path.startswith("segment-"):
                gate.entered.release()
                assert gate.go.acquire(timeout=30)
            original(file)

        opened = self.storage.open

        def open_file(name: str, *, read_only: bool = False) -> FailingFile:
            file = opened(name, read_only=read_only)
            file.sync = sync.__get__(file)  # type: ignore[method-assign]
            return file

        self.storage.open = open_file  # type: ignore[method-assign]


def in_threads(log: WriteAheadLog, count: int, results: list[int]) -> list[threading.Thread]:
    threads = [threading.Thread(target=lambda n=n: results.append(log.append(b"%d" % n))) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


def waiting(log: WriteAheadLog) -> int:
    return len(log._commits._waiting)


def test_commits_during_a_sync_share_the_next_one() -> None:
    gate = Gate()
    log = open_log(gate.storage)
    gate.closed = True
    results: list[int] = []
    first = in_threads(log, 1, results)
    assert gate.entered.acquire(timeout=30)
    others = in_threads(log, 10, results)
    wait_until(lambda: waiting(log) == 10)
    assert results == [], "nothing is acknowledged before its sync"
    assert log.durable_id == 0
    gate.go.release()
    assert gate.entered.acquire(timeout=30)
    assert log.durable_id == 1
    gate.go.release()
    for thread in first + others:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(results) == list(range(1, 12))
    assert log.stats().syncs == 2
    gate.closed = False
    assert len(all_of(log)) == 11
    log.close()


def test_the_append_lock_is_free_during_a_sync() -> None:
    gate = Gate()
    log = open_log(gate.storage)
    gate.closed = True
    results: list[int] = []
    threads = in_threads(log, 1, results)
    assert gate.entered.acquire(timeout=30)
    # An entry that is to be durable waits in the queue, to be written with others; one that is not is written at once.
    assert log.append(b"at an interval", durability="interval") == 2
    assert log.durable_id == 0
    threads += in_threads(log, 1, results)
    wait_until(lambda: waiting(log) == 1)
    assert log.last_id == 2
    gate.closed = False
    gate.go.release()
    for thread in threads:
        thread.join(30)
    assert log.durable_id == 3
    log.close()


def test_what_was_queued_during_a_sync_is_written_at_once_and_in_order() -> None:
    gate = Gate()
    log = open_log(gate.storage)
    gate.closed = True
    results: list[int] = []
    threads = in_threads(log, 1, results)
    assert gate.entered.acquire(timeout=30)
    for count in range(1, 6):
        threads += in_threads(log, 1, results)
        wait_until(lambda count=count: waiting(log) == count)
    writes: list[int] = []
    plain = log._appender._pwrite_to_sync

    def counted(data: bytes | memoryview, offset: int) -> int:
        writes.append(len(data))
        return plain(data, offset)

    log._appender._pwrite_to_sync = counted
    gate.closed = False
    gate.go.release()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [1, 2, 3, 4, 5, 6]
    assert len(writes) == 1
    assert log._commits.sync_count == 2
    assert sorted(all_of(log).values()) == [[b"0"]] * 6
    log.close()


def test_a_queue_of_entries_of_every_kind_keeps_its_order_across_segments() -> None:
    gate = Gate()
    log = open_log(gate.storage)
    gate.closed = True
    acknowledged: dict[int, tuple[bytes, ...]] = {}
    first = threading.Thread(target=lambda: log.append(b"first"))
    first.start()
    assert gate.entered.acquire(timeout=30)
    works: list[tuple[bytes, ...]] = [(b"head", b"x" * size) for size in (10, 70_000)]
    works += [(b"y" * size,) for size in (1, 30_000, 60_000, 65_536, 65_537, 100_000, 3)]
    works += [(b"several", b"chunks"), (b"",)]

    def commit(chunks: tuple[bytes, ...]) -> None:
        acknowledged[log.append(*chunks)] = chunks

    threads = [first]
    for count, chunks in enumerate(works, 1):
        thread = threading.Thread(target=commit, args=(chunks,))
        thread.start()
        threads.append(thread)
        wait_until(lambda count=count: waiting(log) == count)
    gate.closed = False
    gate.go.release()
    for thread in threads:
        thread.join(30)
    assert acknowledged == dict(enumerate(works, 2))
    assert {key: tuple(chunks) for key, chunks in all_of(log).items()} == {1: (b"first",), **acknowledged}
    log.close()


def test_closing_waits_for_commits_under_way() -> None:
    gate = Gate()
    log = open_log(gate.storage)
    gate.closed = True
    results: list[int] = []
    threads = in_threads(log, 4, results)
    assert gate.entered.acquire(timeout=30)
    wait_until(lambda: waiting(log) == 3)
    closing = threading.Thread(target=log.close)
    closing.start()
    wait_until(lambda: waiting(log) == 4)
    gate.closed = False
    gate.go.release()
    for thread in [*threads, closing]:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(results) == [1, 2, 3, 4]
    assert len(all_of(open_log(gate.storage))) == 4


def test_closing_under_load_loses_no_acknowledged_entry() -> None:
    def work(log: WriteAheadLog, acknowledged: list[int], refused: threading.Event) -> None:
        try:
            while True:
                acknowledged.append(log.append(b"x" * 50))
        except LogClosedError:
            refused.set()

    for _ in range(10):
        storage = MemoryStorage()
        log = open_log(storage)
        acknowledged: list[int] = []
        refused = threading.Event()
        threads = [threading.Thread(target=work, args=(log, acknowledged, refused)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda acknowledged=acknowledged: len(acknowledged) > 50)
        log.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert refused.is_set()
        found = all_of(open_log(storage))
        assert set(acknowledged) <= set(found)


def test_a_sync_that_fails_on_a_log_that_is_poisoned_meanwhile_says_so() -> None:
    log = open_log(MemoryStorage())
    log.append(b"well")

    def sync() -> None:
        log._commits.poison(OSError("another thread's write"), "write")
        raise OSError("this thread's sync")

    log._appender.file.sync = sync  # type: ignore[method-assign]
    with pytest.raises(LogPoisonedError, match="another thread's write"):
        log.append(b"lost")
    with pytest.raises(LogPoisonedError):
        log.append(b"refused")
    log.close()


def test_wait_durable_returns_for_an_entry_a_wake_and_the_time() -> None:
    log = open_log(MemoryStorage())
    assert not log.wait_durable(EntryId(0), 0.001)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(log.wait_durable(EntryId(0), 30)))
    thread.start()
    wait_until(lambda: log._commits.watch.waiting == 1)
    log.append(b"x")
    thread.join(30)
    assert answers == [True]
    assert log.wait_durable(EntryId(0))
    thread = threading.Thread(target=lambda: answers.append(log.wait_durable(EntryId(1), 30)))
    thread.start()
    wait_until(lambda: log._commits.watch.waiting == 1)
    log.wake()
    thread.join(30)
    assert answers == [True, False]
    log.close()


def test_wait_durable_ends_when_the_log_is_closed() -> None:
    log = open_log(MemoryStorage())
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            log.wait_durable(EntryId(0), 30)
        except LogClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: log._commits.watch.waiting == 1)
    log.close()
    thread.join(30)
    assert len(errors) == 1


@pytest.mark.parametrize("threads", [2, 16])
def test_many_threads_over_many_segments(threads: int) -> None:
    storage = MemoryStorage()
    log = open_log(storage, preallocated_segments=1, idle_hint_s=0.01)
    written: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        for index in range(60):
            chunks = [bytes([number]) * (index * 37 % 900)] * (1 + index % 3)
            written[int(log.append(*chunks))] = chunks

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert len(written) == threads * 60
    assert all_of(log) == written
    log.close()
    assert all_of(open_log(storage)) == written


def test_who_commits_again_and_again_does_not_wake_the_log_s_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where that looks between a write and its sync, when a frame promises all that is durable so far."""
    gate = Gate()
    with open_log(gate.storage, preallocated_segments=1, idle_hint_s=1000.0) as log:
        housekeeper = log._housekeeper
        assert housekeeper is not None
        log.append(b"before")
        gate.closed = True
        threads = in_threads(log, 1, [])
        assert gate.entered.acquire(timeout=30)
        assert log._appender.promised == log._appender.durable[0]
        looks = []
        plain = log._pool.prepare

        def prepare() -> None:
            looks.append(1)
            plain()

        monkeypatch.setattr(log._pool, "prepare", prepare)
        for count in (1, 2):
            housekeeper._event.set()
            wait_until(lambda count=count: len(looks) == count and not housekeeper._event.is_set())
        assert not log._commits.watch.has_callback
        gate.closed = False
        gate.go.release()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize("kind", ["alone", "shared", "kept"])
def test_an_idle_log_writes_one_hint_and_no_more(kind: str, tmp_path: Path) -> None:
    storage = MemoryStorage() if kind == "alone" else FileStorage(tmp_path)
    with open_log(storage, preallocated_segments=1, idle_hint_s=0.005, keep_s=30.0) as log:
        if kind == "kept":
            wait_until(lambda: log.append(b"x") and log._commits._tail.keeping.is_on, message="the locks are kept")
        for round_number in range(3):
            log.append(b"x")
            wait_until(lambda: log._commits.watch.has_callback, message="the thread goes to sleep")
            assert log._appender.is_promised
            written, syncs = log._appender.written, log._commits.sync_count
            time.sleep(0.1)  # twenty times `idle_hint_s`: that nothing is written can only be waited for
            log._commits.run_locked(type(log._appender).write_hint)
            assert (log._appender.written, log._commits.sync_count) == (written, syncs), round_number
            assert log._appender.durable == written, "the hint is not on the disk"


def test_an_entry_that_comes_when_the_log_is_about_to_be_idle_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Appender.is_promised
    late: list[int] = []
    with open_log(MemoryStorage(), preallocated_segments=1, idle_hint_s=0.005) as log:

        def is_promised(appender: Appender) -> bool:
            assert isinstance(plain, property)
            answer: bool = plain.__get__(appender)
            if answer and not late and not appender.lock.locked():
                late.append(log.append(b"late"))
            return answer

        monkeypatch.setattr(Appender, "is_promised", property(is_promised))
        log.append(b"x")
        wait_until(lambda: late)
        end = log._appender.written[0]
        wait_until(lambda: log._appender.promised >= end, message="the last entry is promised")


def test_who_waits_no_more_is_passed_over_when_the_served_wake_each_other() -> None:
    with open_log(MemoryStorage()) as log:
        first, gone, also_gone, last = (Waiter(b"", 0) for _ in range(4))
        first.after, gone.after, also_gone.after = gone, also_gone, last
        gone.is_gone = also_gone.is_gone = True
        for _ in range(2):
            # Begun again after an interrupt, it wakes nobody twice.
            log._commits._wake_next(first)
            assert first.after is None
            assert [waiter.lock.locked() for waiter in (gone, also_gone, last)] == [True, True, False]
            assert [waiter.is_woken for waiter in (gone, also_gone, last)] == [False, False, True]


def test_who_leads_wakes_the_next_leader_and_the_first_of_those_it_served() -> None:
    with open_log(MemoryStorage()) as log:
        commits, lead = log._commits, object()
        due: list[Waiter] = []
        first, late, second, third = (Waiter(b"", entry_id) for entry_id in (1, 0, 2, 3))
        commits._leader, commits._waiting = lead, [first, late, second, third]
        commits._publish(lead, (log._appender.durable[0], 3), None, None, due)
        leader, commits._leader = commits._leader, None
        assert due == [late, first]
        assert [waiter.after for waiter in (late, first, second, third)] == [None, second, third, None]
        assert leader is late
        assert commits._waiting == []


def test_a_sync_wakes_the_next_leader_and_one_of_those_it_served() -> None:
    gate = Gate()
    log = open_log(gate.storage)
    results: list[int] = []
    gate.closed = True
    threads = in_threads(log, 1, results)
    assert gate.entered.acquire(timeout=30)
    for count in range(1, 5):
        threads += in_threads(log, 1, results)
        wait_until(lambda count=count: waiting(log) == count)
    waiters = list(log._commits._waiting)
    gate.go.release()
    # The first sync has served nobody who waited; the second is under way.
    assert gate.entered.acquire(timeout=30)
    assert [waiter.is_woken for waiter in waiters] == [True, False, False, False]
    gate.go.release()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(results) == [1, 2, 3, 4, 5]
    assert [waiter.is_woken for waiter in waiters] == [True] * 4
    assert [waiter.after for waiter in waiters] == [None] * 4
    assert log._commits.sync_count == 2
    gate.closed = False
    log.close()

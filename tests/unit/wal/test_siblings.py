"""A thread that could lead waits for those that the last sync served, and soon learns when they do not come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.faulty import FailingStorage
from tests.unit.wal.logs import all_of, open_log
from tests.unit.wal.test_group_commit import waiting
from walsync.exceptions import LogClosedError, LogPoisonedError, WalsyncError
from walsync.wal import FileStorage, MemoryStorage, WriteAheadLog
from walsync.wal.siblings import Siblings

LONG_S = 1000.0
JOIN_S = 30.0


def siblings_of(count: int, *, sync_s: float = LONG_S, longest_s: float = LONG_S) -> Siblings:
    siblings = Siblings(longest_s)
    siblings.note_sync(sync_s)
    siblings.were_served(count)
    return siblings


def test_a_thread_that_committed_alone_waits_for_nobody() -> None:
    assert siblings_of(1).patience_s(1) == 0


def test_all_but_the_last_one_wait() -> None:
    siblings = siblings_of(3)
    assert siblings.patience_s(1) > 0
    assert siblings.patience_s(2) > 0
    assert siblings.patience_s(3) == 0


@pytest.mark.parametrize(("sync_s", "longest_s"), [(0.5, LONG_S), (LONG_S, 0.5)])
def test_nobody_waits_longer_than_a_sync_nor_than_the_limit(
    sync_s: float, longest_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    siblings = siblings_of(2, sync_s=sync_s, longest_s=longest_s)
    assert siblings.patience_s(1) == 0.5
    now += 0.25
    assert siblings.patience_s(1) == 0.25, "it is counted from the end of the last sync"
    now += 0.25
    assert siblings.patience_s(1) == 0


def test_no_limit_is_no_waiting() -> None:
    assert siblings_of(2, longest_s=0.0).patience_s(1) == 0


def test_after_each_failure_twice_as_many_syncs_are_made_at_once() -> None:
    siblings = siblings_of(2)
    for haste in (1, 2, 4, 8, 16, 32, 64, 64):
        siblings.did_not_come()
        for _ in range(haste):
            assert siblings.patience_s(1) == 0
        assert siblings.patience_s(1) > 0
    # Once they came in time, a failure costs one sync again.
    assert siblings.patience_s(2) == 0
    siblings.did_not_come()
    assert siblings.patience_s(1) == 0
    assert siblings.patience_s(1) > 0


# ------------------------------------------------------------------------------------------------------ in a log


@pytest.fixture(params=["shared", "kept for one process"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], WriteAheadLog]:
    return lambda: open_log(FileStorage(tmp_path / "log"), shared=request.param == "shared", idle_hint_s=None)


def expect(log: WriteAheadLog, count: int, sync_s: float) -> None:
    """As if the last sync had served so many threads, and taken so long."""
    siblings = log._commits._siblings
    siblings._longest_s = LONG_S
    siblings.note_sync(sync_s)
    siblings.were_served(count)


class Commits:
    """Commits in threads of their own: what each of them has got."""

    def __init__(self, log: WriteAheadLog) -> None:
        self.log = log
        self.ids: list[int] = []
        self.errors: list[WalsyncError] = []
        self.threads: list[threading.Thread] = []

    def begin(self, data: bytes) -> None:
        """Begin one, and return when it waits for others, or is over."""
        thread = threading.Thread(target=self._run, args=(data,))
        thread.start()
        self.threads.append(thread)
        count = len(self.threads)
        wait_until(lambda: waiting(self.log) == count or not thread.is_alive())

    def _run(self, data: bytes) -> None:
        try:
            self.ids.append(self.log.append(data))
        except WalsyncError as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()


def test_one_sync_serves_all_when_the_last_one_has_come(opened: Callable[[], WriteAheadLog]) -> None:
    log = opened()
    log.append(b"before")
    syncs = log._commits.sync_count
    expect(log, 4, LONG_S)
    commits = Commits(log)
    for number in range(3):
        commits.begin(b"%d" % number)
    assert commits.ids == [], "nothing is acknowledged before its sync"
    assert waiting(log) == 3
    assert log._commits._leader is None
    assert log.append(b"3") == 5
    commits.join()
    assert sorted(commits.ids) == [2, 3, 4]
    assert log._commits.sync_count == syncs + 1
    assert log._commits._siblings.expected == 4
    assert list(all_of(log).values()) == [[b"before"], [b"0"], [b"1"], [b"2"], [b"3"]], "in the order of coming"
    log.close()


def test_who_waited_in_vain_leads(opened: Callable[[], WriteAheadLog]) -> None:
    log = opened()
    began = time.monotonic()
    expect(log, 2, 0.3)
    assert log.append(b"alone") == 1
    assert time.monotonic() - began >= 0.3
    assert log._commits._siblings.expected == 1, "nobody else is expected any more"
    assert log._commits._siblings._haste == 1
    assert log._commits._leader is None
    assert not log._commits._waiting
    log.close()


def test_two_who_wait_in_vain_are_served_by_one_of_them(opened: Callable[[], WriteAheadLog]) -> None:
    log = opened()
    expect(log, 3, 0.3)
    commits = Commits(log)
    commits.begin(b"0")
    commits.begin(b"1")
    commits.join()
    assert sorted(commits.ids) == [1, 2]
    log.close()


def test_two_threads_that_commit_at_once_come_to_share_their_syncs(opened: Callable[[], WriteAheadLog]) -> None:
    log = opened()
    commits = log._commits
    # However long it takes a thread to wake up here.
    siblings = commits._siblings = _Patient()
    stop = threading.Event()

    def commit() -> None:
        while not stop.is_set():
            log.append(b"x")

    threads = [threading.Thread(target=commit) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: siblings.expected == 2)
        entries, syncs = log.durable_id, commits.sync_count
        wait_until(lambda: log.durable_id > entries + 200)
        assert commits.sync_count - syncs < 0.75 * (log.durable_id - entries)
    finally:
        stop.set()
        for thread in threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()
    log.close()


class _Patient(Siblings):
    """For which each sync has taken a second."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1.0)

    def note_sync(self, seconds: float) -> None:
        super().note_sync(1.0)


def test_who_wants_all_to_be_durable_leads_for_those_who_wait(opened: Callable[[], WriteAheadLog]) -> None:
    log = opened()
    expect(log, 3, LONG_S)
    commits = Commits(log)
    commits.begin(b"0")
    commits.begin(b"1")
    log._commits.sync_all()
    commits.join()
    assert sorted(commits.ids) == [1, 2]
    log.close()


def test_closing_serves_those_who_wait(opened: Callable[[], WriteAheadLog]) -> None:
    log = opened()
    expect(log, 3, LONG_S)
    commits = Commits(log)
    commits.begin(b"0")
    commits.begin(b"1")
    log.close()
    commits.join()
    assert len(commits.ids) + len(commits.errors) == 2
    assert all(isinstance(error, LogClosedError) for error in commits.errors)
    log = opened()
    assert set(commits.ids) == set(all_of(log))
    log.close()


def test_a_failed_sync_reaches_all_who_waited_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FailingStorage()
    log = open_log(storage)
    expect(log, 3, LONG_S)
    commits = Commits(log)
    commits.begin(b"0")
    commits.begin(b"1")

    def sync() -> None:
        raise OSError("the disk")

    monkeypatch.setattr(log._appender.file, "sync", sync)
    with pytest.raises(LogPoisonedError, match="the disk"):
        log.append(b"2")
    commits.join()
    assert len(commits.errors) == 2
    assert all(isinstance(error, LogPoisonedError) for error in commits.errors)
    log.close()


def test_it_is_waited_as_long_as_the_last_sync_took(monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(FailingStorage())
    expect(log, 2, LONG_S)
    plain = log._appender.file.sync

    def sync() -> None:
        time.sleep(0.05)  # how long this disk takes
        plain()

    monkeypatch.setattr(log._appender.file, "sync", sync)
    commits = Commits(log)
    commits.begin(b"0")
    log.append(b"1")
    left_s = log._commits._siblings._until - time.monotonic()
    assert 0.05 <= log._commits._siblings._sync_s < LONG_S
    assert left_s < LONG_S / 2
    commits.join()
    log.close()


def test_a_limit_of_zero_in_the_configuration_is_no_waiting() -> None:
    log = open_log(MemoryStorage(), gather_s=0.0)
    siblings = log._commits._siblings
    siblings.note_sync(LONG_S)
    siblings.were_served(2)
    began = time.monotonic()
    log.append(b"at once")
    assert time.monotonic() - began < LONG_S / 2
    log.close()

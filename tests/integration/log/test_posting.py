"""While one process syncs the others post their entries, and the next to sync writes them: deaths, refusals."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.log.test_sharing import end
from tests.support.waiting import wait_until
from tests.unit.wal.logs import all_of, quiet_config
from walsync.exceptions import LogFullError, LogPoisonedError, LogTimeoutError
from walsync.testing import Fault, FaultAction, FaultyStorage, OperationKind, SimulatedCrash
from walsync.wal import FileStorage, WriteAheadLog, verify_log
from walsync.wal.control_block import SYNCING
from walsync.wal.sharing import posts as posts_module
from walsync.wal.storage import shared as shared_module
from walsync.wal.storage.bells import FutexBells, PausingBells


@pytest.fixture(params=["woken", "missed", "pausing"], autouse=True)
def bells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How processes are woken: as this system does it, not although it could, and where it cannot."""
    if request.param == "missed":
        monkeypatch.setattr(FutexBells, "ring", lambda self, index: None)
    elif request.param == "pausing":
        monkeypatch.setattr(shared_module, "bells_for", lambda words: PausingBells())
    kind: str = request.param
    return kind


def open_log(where: Any, **settings: Any) -> WriteAheadLog:
    """A process that has its box already: each has it with the first entry that it writes itself."""
    log = WriteAheadLog.recover(where, config=quiet_config(max_free_segments=1, **settings))
    with log._commits.exclusive():
        log._commits._posts.claim()
    return log


class Commits:
    """Commits in threads; `ids` and `errors` by content."""

    def __init__(self) -> None:
        self.ids: dict[bytes, int] = {}
        self.errors: dict[bytes, BaseException] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, log: WriteAheadLog, data: bytes, marks: list[str] | None = None) -> None:
        def commit() -> None:
            try:
                self.ids[data] = log.append(data, marks=marks or [])
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors[data] = error

        self._threads.append(threading.Thread(target=commit))
        self._threads[-1].start()

    def end(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def posted(*logs: WriteAheadLog) -> bool:
    return all(log._commits._posts._is_pending(log._commits._posts.own_box) for log in logs)


@contextmanager
def syncing(log: WriteAheadLog) -> Iterator[None]:
    """As if this process were in the middle of a sync."""
    tail = log._commits._tail
    assert tail.try_sync_lock()
    try:
        yield
    finally:
        tail.release_sync_lock()


def test_who_syncs_next_writes_what_the_others_have_posted(tmp_path: Path) -> None:
    commits = Commits()
    with ExitStack() as stack:
        one, *others = [stack.enter_context(open_log(tmp_path / "log")) for _ in range(5)]
        with syncing(one):
            for number, log in enumerate(others):
                commits.begin(log, b"%d" % number, [f"table {number}", "all"])
            wait_until(lambda: posted(*others))
            assert one.last_id == 0
        commits.end()
        assert commits.errors == {}
        assert sorted(commits.ids.values()) == [1, 2, 3, 4]
        assert all_of(one) == {entry_id: [data] for data, entry_id in commits.ids.items()}
        for number in range(4):
            assert one.control.last_marked([f"table {number}"]) == commits.ids[b"%d" % number]
        assert one.control.last_marked(["all"]) == 4


def test_threads_of_one_process_post_together_and_what_is_too_large_is_written(tmp_path: Path) -> None:
    commits = Commits()
    with open_log(tmp_path / "log") as one, open_log(tmp_path / "log") as other:
        with syncing(one):
            commits.begin(other, b"first")
            wait_until(lambda: posted(other))
            for data in (b"second", b"third", bytes(100_000), b"fourth"):
                commits.begin(other, data, ["t"])
        commits.end()
        with syncing(one):
            commits.begin(other, bytes(5000))
            wait_until(lambda: one.last_id == 6)
            assert one.durable_id == 5
        commits.end()
        assert commits.errors == {}
        assert sorted(commits.ids.values()) == [1, 2, 3, 4, 5, 6]
        assert all_of(one) == {entry_id: [data] for data, entry_id in commits.ids.items()}


class Gate:
    """Others always have this process's sync lock, until it is open."""

    def __init__(self, log: WriteAheadLog) -> None:
        tail = log._commits._tail
        self._lock = tail.sync_lock
        self._opened = False
        self.unlock, self.close = self._lock.unlock, self._lock.close
        tail.sync_lock = self

    def try_exclusive(self) -> None:
        if not self._opened:
            raise BlockingIOError
        self._lock.try_exclusive()

    def open(self) -> None:
        self._opened = True


def test_a_death_in_any_operation_of_who_takes_posts_loses_and_repeats_none(tmp_path: Path) -> None:
    """Also after a death before: entries of the dead are overwritten, and their ids given out again."""
    with open_log(tmp_path / "log") as log:
        acknowledged: dict[int, bytes] = {}
        deaths = []
        for at in range(1, 25):
            # What is posted begins a segment, and takes more operations than one that does not.
            while at > 3 and log._appender._limit - log._appender._offset > 3900:
                data = b"fills %d" % log.last_id * 100
                acknowledged[log.append(data)] = data
            commits, gate = Commits(), Gate(log)
            storage = FaultyStorage(FileStorage(tmp_path / "log"))
            dying = open_log(storage)
            data = b"posted %d " % at + bytes(3900)
            commits.begin(log, data, ["t"])
            wait_until(lambda: posted(log))
            storage.faults.append(Fault.crash(at=at if at < 4 else at - 3))
            try:
                entry_id = dying.append(b"taker %d" % at)
                acknowledged[entry_id] = b"taker %d" % at
            except SimulatedCrash:
                deaths.append(at)
            end(dying)
            gate.open()
            commits.end()
            assert commits.errors == {}
            acknowledged[commits.ids[data]] = data
            assert log.control.last_marked(["t"]) >= commits.ids[data]
            found = all_of(log)
            assert sorted(found) == list(range(1, log.last_id + 1))
            assert all(found[entry_id] == [data] for entry_id, data in acknowledged.items())
            contents = [chunks[0] for chunks in found.values()]
            assert len(set(contents)) == len(contents)
        # It came to the end of what there is to die in.
        assert len(deaths) >= 8
        assert 24 not in deaths
    report = verify_log(tmp_path / "log")
    assert (report.ok, report.last_id) == (True, max(found))


def test_ids_that_a_dead_process_gave_out_are_never_taken_for_ones_own(tmp_path: Path) -> None:
    """It died when it had told its posts' owners, and before it published them."""
    with open_log(tmp_path / "log") as log, open_log(tmp_path / "log") as third:
        commits, gate = Commits(), Gate(log)
        dying = open_log(tmp_path / "log")
        commits.begin(log, b"posted")
        wait_until(lambda: posted(log))
        dying._commits._tail.leave = crash  # type: ignore[method-assign]
        dying._commits._tail.fail = nothing  # type: ignore[method-assign]
        with pytest.raises(SimulatedCrash):
            dying.append(b"never")
        assert not posted(log)
        end(dying)
        # Not served: the id is not durable. The next one to write gives it to another.
        assert third.append(b"another") in (1, 2)
        gate.open()
        commits.end()
        assert all_of(third) == {commits.ids[b"posted"]: [b"posted"], 3 - commits.ids[b"posted"]: [b"another"]}


def crash() -> None:
    raise SimulatedCrash


def nothing(*, nothing_written: bool) -> None:
    """What a dead process does."""


def append_until_it_fails(log: WriteAheadLog) -> None:
    while True:
        log.append(b"x" * 4000)


def test_what_the_taker_cannot_write_its_process_tries_itself(tmp_path: Path) -> None:
    """The taker's disk is full, and the other process's is not."""
    commits = Commits()
    storage = FaultyStorage(FileStorage(tmp_path / "log"))
    with open_log(tmp_path / "log") as log, open_log(storage) as taker:
        gate = Gate(log)
        log.append(bytes(30_000), durability="interval")
        commits.begin(log, bytes(4000))
        wait_until(lambda: posted(log))
        storage.faults.append(Fault(FaultAction.ERROR, kinds=OperationKind.CREATE, times=None, error=errno.ENOSPC))
        with pytest.raises(LogFullError):
            append_until_it_fails(taker)
        storage.faults.clear()
        gate.open()
        commits.end()
        assert commits.errors == {}
        found = all_of(log)
        assert found[commits.ids[bytes(4000)]] == [bytes(4000)]
        assert [chunks[0] for chunks in found.values()].count(bytes(4000)) == 1


def test_of_two_entries_posted_together_the_taker_may_write_one(tmp_path: Path) -> None:
    commits = Commits()
    storage = FaultyStorage(FileStorage(tmp_path / "log"))
    with open_log(tmp_path / "log") as log, open_log(storage) as taker:
        gate = Gate(log)
        commits.begin(log, b"alone")
        wait_until(lambda: posted(log))
        large = bytes(3500)
        for data in (b"small", large):
            commits.begin(log, data)
            wait_until(lambda data=data: any(waiter.work == data for waiter in log._commits._queue))
        assert taker.append(b"takes the first") in (1, 2)
        wait_until(lambda: posted(log))
        number = 2
        while taker._appender._limit - taker._appender._offset > 10_000:
            number = taker.append(bytes(5000), durability="interval")
        taker.append(bytes(taker._appender._limit - taker._appender._offset - 3000), durability="interval")
        storage.faults.append(Fault(FaultAction.ERROR, kinds=OperationKind.CREATE, times=None, error=errno.ENOSPC))
        assert taker.append(b"takes one of two") == number + 2
        assert not posted(log)
        gate.open()
        commits.end()
        storage.faults.clear()
        assert commits.ids[b"small"] == number + 3
        assert commits.errors == {}
        found = all_of(log)
        assert {data: found[entry_id] for data, entry_id in commits.ids.items()} == {
            data: [data] for data in (b"alone", b"small", large)
        }
        assert [chunks[0] for chunks in found.values()].count(large) == 1


def test_a_post_whose_process_has_died_long_ago_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits()
    with open_log(tmp_path / "log") as log:
        dying = open_log(tmp_path / "log", sync_timeout_s=0.2)
        Gate(dying)
        commits.begin(dying, b"never")
        commits.end()
        assert isinstance(commits.errors[b"never"], LogTimeoutError)
        assert posted(dying)
        end(dying)
        monkeypatch.setattr(posts_module, "_FRESH_NS", 0)
        assert log.append(b"x") == 1
        assert all_of(log) == {1: [b"x"]}


def test_after_a_time_out_the_process_goes_on(tmp_path: Path) -> None:
    """Its post still lies in the box, and the next entry goes another way; both come into the log."""
    commits = Commits()
    with open_log(tmp_path / "log", sync_timeout_s=0.2) as log, open_log(tmp_path / "log") as other:
        gate = Gate(log)
        for data in (b"first", b"second"):
            commits.begin(log, data)
            commits.end()
            assert isinstance(commits.errors[data], LogTimeoutError)
        gate.open()
        log.append(b"third")
        assert sorted(chunks[0] for chunks in all_of(other).values()) == [b"first", b"second", b"third"]


def test_a_failed_sync_of_the_taker_reaches_whoever_has_posted(tmp_path: Path) -> None:
    commits = Commits()
    storage = FaultyStorage(FileStorage(tmp_path / "log"))
    with open_log(tmp_path / "log") as log, open_log(storage) as taker:
        Gate(log)
        commits.begin(log, b"posted")
        wait_until(lambda: posted(log))
        storage.faults.append(Fault.io_error(kinds=OperationKind.SYNC))
        with pytest.raises(LogPoisonedError):
            taker.append(b"x")
        commits.end()
        assert isinstance(commits.errors[b"posted"], LogPoisonedError)


def test_a_process_that_died_while_it_synced_holds_nobody_up(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as one, open_log(tmp_path / "log") as other:
        for number in range(6):
            # What a killed process leaves: the word says that it syncs, and nobody has the lock.
            one.control._words[SYNCING] = 1
            assert (one, other)[number % 2].append(b"%d" % number) == number + 1
            assert one.control._words[SYNCING] == 0
        assert all_of(other) == {number + 1: [b"%d" % number] for number in range(6)}

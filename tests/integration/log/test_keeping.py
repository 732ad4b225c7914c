"""A process that commits again and again keeps the log's locks, until another one wants them or it is idle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import start_python
from tests.support.waiting import wait_until
from tests.unit.wal.logs import all_of, quiet_config
from walsync.exceptions import LogFullError, LogPoisonedError, LogTimeoutError
from walsync.testing import Fault, FaultyStorage, OperationKind, SimulatedCrash
from walsync.wal import FileStorage, WriteAheadLog, verify_log
from walsync.wal.control_block import IN_PROGRESS, KEPT, WANTED
from walsync.wal.sharing import keeping as keeping_module
from walsync.wal.storage import shared as shared_module
from walsync.wal.storage.bells import PausingBells
from walsync.wal.storage.shared import SharedFileLock

LONG_S = 1000.0
"""Longer than a test may take: who gets a lock in time was given it."""
LOCKS = ("append.lock", "sync.lock")

CHILD = """
import os, signal, sys
from walsync.wal import LogConfig, WriteAheadLog
log = WriteAheadLog.recover(sys.argv[1], config=LogConfig(idle_hint_s=None, keep_s=float(sys.argv[2])))
number = 0
while True:
    number += 1
    entry_id = log.append(b"child %d" % number)
    print("acknowledged", int(entry_id), number, int(log._commits._keeping.is_on))
    if number % 40 == 0 and "idle" in sys.argv and not sys.stdin.readline():
        break
    if log._commits._keeping.is_on and "stop" in sys.argv:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture(autouse=True)
def _futexes(tmp_path: Path) -> None:
    if not shared_module.bells_for(memoryview(bytearray(4096)).cast("Q")).wakes:  # type: ignore[arg-type]
        pytest.skip("nothing is kept where a process cannot wake another one: futexes, on a 64-bit Linux")


def open_log(where: Any, **settings: Any) -> WriteAheadLog:
    return WriteAheadLog.recover(where, config=quiet_config(**{"max_free_segments": 1, "keep_s": LONG_S, **settings}))


def keeps(log: WriteAheadLog) -> bool:
    return log._commits._keeping.is_on


def commit_until_kept(log: WriteAheadLog) -> None:
    for number in range(100):
        log.append(b"kept %d" % number)
        if keeps(log):
            return
    raise AssertionError("the locks were never kept")


def are_free(directory: Path) -> bool:
    """Whether nobody has one of the locks. Not to be asked while anybody commits."""
    for name in LOCKS:
        lock = SharedFileLock(os.fspath(directory / name))
        try:
            lock.try_exclusive()
        except BlockingIOError:
            return False
        finally:
            lock.close()
    return True


def test_who_commits_again_and_again_keeps_both_locks_until_another_one_wants_to_commit(tmp_path: Path) -> None:
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        commit_until_kept(one)
        assert not are_free(tmp_path)
        last_id = one.last_id
        assert other.append(b"other") == last_id + 1
        assert not keeps(one)
        assert one.append(b"goes on") == last_id + 2
        assert are_free(tmp_path)
        found = all_of(other)
        assert found == all_of(one)
        assert sorted(found) == list(range(1, last_id + 3))
        assert (found[last_id + 1], found[last_id + 2]) == ([b"other"], [b"goes on"])


def test_what_others_ask_of_the_log_is_true_while_the_locks_are_kept(tmp_path: Path) -> None:
    with open_log(tmp_path, keep_s=LONG_S) as one, open_log(tmp_path) as other:
        commit_until_kept(one)
        for number in range(300):
            # Into other segments as well.
            entry_id = one.append(b"%d" % number * 100, marks=["t"])
            assert (other.last_id, other.durable_id) == (entry_id, entry_id)
            assert other.control.last_marked(["t"]) == entry_id
            assert other.released == one.released
        assert keeps(one)
        assert len(one._releases.segments) > 2
        assert all_of(other) == all_of(one)


def test_each_entry_is_synced_in_the_file_it_lies_in(tmp_path: Path) -> None:
    """While the locks are kept the sync takes a shorter way, which must not lead to the last segment."""
    storage = FaultyStorage(FileStorage(tmp_path))
    with open_log(storage) as log:
        commit_until_kept(log)
        storage.tracing = True
        written = set()
        for _ in range(100):
            storage.trace.clear()
            log.append(bytes(1500))
            unsynced = set()
            for operation in storage.trace:
                if operation.kind is OperationKind.WRITE:
                    unsynced.add(operation.name)
                    written.add(operation.name)
                elif operation.kind is OperationKind.SYNC:
                    unsynced.discard(operation.name)
            assert not unsynced
            assert storage.trace[-1].kind is OperationKind.SYNC
        assert keeps(log)
        assert len(written) > 3


def test_an_idle_process_gives_the_locks_back(tmp_path: Path) -> None:
    with open_log(tmp_path, keep_s=0.05) as log:
        commit_until_kept(log)
        wait_until(lambda: not keeps(log) and are_free(tmp_path))
        assert log._commits._words[KEPT] == 0
        # And it keeps them again when it is busy again: nobody has wanted them.
        commit_until_kept(log)


def test_nothing_is_kept_for_a_thousand_syncs_after_somebody_wanted_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "_QUIET_SYNCS", 50)
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        commit_until_kept(one)
        other.append(b"other")
        for _ in range(50):
            one.append(b"one")
            assert not keeps(one)
        commit_until_kept(one)


@pytest.mark.parametrize("reason", ["keep_s", "bells", "thread"])
def test_nothing_is_kept(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is not wished, if nobody could ask for it, and if there is no thread that would hear it."""
    if reason == "bells":
        monkeypatch.setattr(shared_module, "bells_for", lambda words: PausingBells())
    with open_log(tmp_path, keep_s=0 if reason == "keep_s" else LONG_S) as log:
        if reason == "thread":

            def fail(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            monkeypatch.setattr(threading.Thread, "start", fail)
        for _ in range(50):
            log.append(b"x")
            assert not keeps(log)
        assert are_free(tmp_path)


@pytest.mark.parametrize("who", ["a lone thread", "a thread that leads"])
def test_a_wish_is_seen_at_the_end_of_a_commit(who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the thread that listens hears nothing."""
    monkeypatch.setattr(keeping_module.Keeping, "_run", lambda keeping: keeping._stopping.wait())
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        commit_until_kept(one)
        if who != "a lone thread":
            one._commits._siblings.expected = 2
        thread = threading.Thread(target=lambda: other.append(b"other"))
        thread.start()
        wait_until(lambda: one._commits._keeping.is_wanted)
        assert keeps(one)
        one.append(b"one")
        assert not keeps(one)
        thread.join(60)
        assert not thread.is_alive()
        assert sorted(all_of(one)) == list(range(1, one.last_id + 1))


def test_what_is_durable_ends_where_what_is_published_does(tmp_path: Path) -> None:
    """A sync covers what another thread has written and not published yet; whoever dies then has published nothing."""
    with open_log(tmp_path) as log, open_log(tmp_path) as other:
        commit_until_kept(log)
        tail = log._commits._tail
        log.append(b"published", durability="interval")
        published = tail.written()
        with log._appender.lock:
            log._appender.write_chunk_entry(b"not published")
        assert tail.sync_kept() == published
        assert other.durable_id == published[1]


def test_a_log_that_is_closed_keeps_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    commit_until_kept(log)
    thread = log._commits._keeping._thread
    assert thread is not None
    log.close()
    assert not thread.is_alive()
    assert are_free(tmp_path)


def test_closing_does_not_disturb_who_keeps_the_locks(tmp_path: Path) -> None:
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        commit_until_kept(other)
        one.append(b"one")
        assert not keeps(other)
        one._commits._keeping._patience = 0
        commit_until_kept(one)
        last_id = one.last_id
        other._commits._keeping.stop()
        assert keeps(one)
        assert one.last_id == last_id


def test_who_has_not_the_sync_lock_keeps_nothing(tmp_path: Path) -> None:
    """After an interrupt it is given back by one who may not have it."""
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        assert other._commits._tail.try_sync_lock()
        one._commits._keeping._is_due = True
        one._commits._tail.release_sync_lock()
        assert not keeps(one)
        other._commits._tail.release_sync_lock()
        assert are_free(tmp_path)


@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_forked_child_commits_beside_a_parent_that_keeps_the_locks(first: str, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        commit_until_kept(log)
        last_id = log.last_id
        child = os.fork()
        if not child:
            status = 1
            try:
                if not keeps(log) and (first == "child" or log.wait_durable(last_id, 60)):  # type: ignore[arg-type]
                    log.append(b"child")
                    status = 0
            finally:
                os._exit(status)
        if first == "parent":
            log.append(b"parent")
        assert os.waitpid(child, 0)[1] == 0
        if first == "child":
            log.append(b"parent")
        found = all_of(log)
        assert sorted(found) == list(range(1, last_id + 3))
        assert sorted([found[last_id + 1], found[last_id + 2]]) == [[b"child"], [b"parent"]]


# --------------------------------------------------------------------------------------------------------- deaths


def acknowledged(lines: Iterator[str]) -> Iterator[tuple[int, int, bool]]:
    for line in lines:
        word, *fields = line.split()
        if word == "acknowledged" and len(fields) == 3:
            yield int(fields[0]), int(fields[1]), fields[2] == "1"


def test_a_process_that_is_killed_with_the_locks_blocks_nobody_and_loses_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        expected: dict[int, list[bytes]] = {}
        log.append(b"first")
        for turn in range(3):
            with start_python("-c", CHILD, tmp_path / "log", str(LONG_S)) as child:
                assert child.stdout is not None
                kept = 0
                for entry_id, number, is_kept in acknowledged(child.stdout):
                    expected[entry_id] = [b"child %d" % number]
                    kept += is_kept
                    if kept == 10 + turn:
                        child.send_signal(signal.SIGKILL)
                assert kept
            data = b"after %d" % turn
            expected[log.append(data)] = [data]
        found = all_of(log)
        assert expected.items() <= found.items()
        assert sorted(found) == list(range(1, log.last_id + 1))


def test_a_death_in_any_operation_while_the_locks_are_kept_is_one_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a dead process has written and not published is for nobody, and overwritten in the next epoch."""
    monkeypatch.setattr(keeping_module, "_FIRST_SYNCS", 0)
    acknowledged: dict[int, bytes] = {}
    torn = 0
    with open_log(tmp_path) as log:
        for at in range(1, 28):
            storage = FaultyStorage(FileStorage(tmp_path))
            dying = open_log(storage)
            for number in range(3):
                data = b"before %d %d" % (at, number)
                acknowledged[dying.append(data)] = data
            assert keeps(dying)
            epoch_before = dying._appender._epoch
            storage.faults.append(Fault.crash(at=at))
            died = False
            try:
                for number in range(40):
                    data = b"dies %d %d " % (at, number) + bytes((0, 4000, 9000)[number % 3])
                    acknowledged[dying.append(data)] = data
            except SimulatedCrash:
                died = True
            assert died
            for part in (dying._membership, dying._pool, dying._releases):
                getattr(part, "release" if part is dying._membership else "close")()
            was_torn = bool(log._commits._words[IN_PROGRESS])
            torn += was_torn
            data = b"after %d" % at
            entry_id = log.append(data)
            epoch = log._appender._epoch
            acknowledged[entry_id] = data
            log.append(b"and so on")
            assert log._appender._epoch == epoch
            assert log._commits._words[IN_PROGRESS] == 0
            assert epoch == epoch_before + was_torn
            found = all_of(log)
            assert {entry_id: [data] for entry_id, data in acknowledged.items()}.items() <= found.items()
            assert sorted(found) == list(range(1, log.last_id + 1))
    assert torn > 5
    report = verify_log(tmp_path)
    assert (report.ok, report.last_id) == (True, max(found))


def test_a_process_that_is_stopped_while_it_is_idle_holds_nothing(tmp_path: Path) -> None:
    with (
        open_log(tmp_path / "log", append_timeout_s=20.0) as log,
        start_python("-c", CHILD, tmp_path / "log", "0.05", "idle") as child,
    ):
        try:
            assert child.stdout is not None
            states = [is_kept for _, (_, _, is_kept) in zip(range(40), acknowledged(child.stdout), strict=False)]
            assert states[-1]
            wait_until(lambda: log._commits._words[KEPT] == 0)
            child.send_signal(signal.SIGSTOP)
            log.append(b"beside one that is stopped")
        finally:
            child.kill()


def test_a_process_that_is_stopped_with_the_locks_is_an_error_for_others_and_no_hang(tmp_path: Path) -> None:
    with (
        open_log(tmp_path / "log", append_timeout_s=0.2, sync_timeout_s=0.2) as log,
        start_python("-c", CHILD, tmp_path / "log", str(LONG_S), "stop") as child,
    ):
        try:
            _, status = os.waitpid(child.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert log._commits._words[KEPT] == 1
            with pytest.raises(LogTimeoutError, match=r"_timeout_s"):
                log.append(b"waits in vain")
        finally:
            child.kill()
            child.wait()
        log.append(b"goes on")
        assert sorted(all_of(log)) == list(range(1, log.last_id + 1))


# --------------------------------------------------------------------------------------------------------- faults


def test_an_entry_that_is_rejected_concerns_nobody_else(tmp_path: Path) -> None:
    storage = FaultyStorage(FileStorage(tmp_path))
    with open_log(storage) as log:
        commit_until_kept(log)
        last_id = log.last_id
        while log._appender._limit - log._appender._offset > 3000:
            log.append(bytes(2000))
        storage.faults.append(Fault.disk_full())
        with pytest.raises(LogFullError):
            # Into the next segment, which is to be made.
            log.append(bytes(3500))
        storage.faults.clear()
        assert keeps(log)
        assert log.append(b"goes on") > last_id
        assert sorted(all_of(log)) == list(range(1, log.last_id + 1))


@pytest.mark.parametrize("kind", [OperationKind.WRITE, OperationKind.SYNC])
def test_a_failed_write_or_sync_poisons_the_log_for_all(kind: OperationKind, tmp_path: Path) -> None:
    storage = FaultyStorage(FileStorage(tmp_path))
    log, other = open_log(storage), open_log(tmp_path)
    commit_until_kept(log)
    storage.faults.append(Fault.io_error(kinds=kind))
    with pytest.raises(LogPoisonedError, match=f"a {kind.name.lower()} of .*segment-.* failed"):
        log.append(b"lost")
    for one in (log, other):
        with pytest.raises(LogPoisonedError):
            one.append(b"refused")
        one.close()
    assert are_free(tmp_path)


def test_the_word_for_wanting_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping_module, "_QUIET_SYNCS", 8)
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        one._commits._words[WANTED] = (1 << 64) - 1
        commit_until_kept(one)
        other.append(b"other")
        assert one._commits._words[WANTED] < 1000
        assert not keeps(one)


def test_who_died_with_the_locks_is_not_rung_for_ever(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log._commits._words[KEPT] = 1
        log.append(b"x")
        assert log._commits._words[KEPT] == 0


def test_wanting_costs_time_only_those_who_meet_somebody(tmp_path: Path) -> None:
    """Two that commit in turn, and never at once, want nothing of each other."""
    with open_log(tmp_path, keep_s=0) as one, open_log(tmp_path, keep_s=0) as other:
        for _ in range(50):
            one.append(b"one")
            other.append(b"other")
        assert one._commits._words[WANTED] == 0

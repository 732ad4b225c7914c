"""One directory, several logs: one order, through deaths at any operation, poison, forks, a stale control block."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import python_environment
from tests.unit.wal.logs import SEGMENT_BYTES, all_of, quiet_config
from walsync.cli.examine import log_uuid_of
from walsync.exceptions import ConfigurationError, LogLockedError, LogPoisonedError, LogVersionError
from walsync.testing import Fault, FaultyStorage, OperationKind, SimulatedCrash
from walsync.wal import EntryId, FileStorage, LogConfig, WriteAheadLog, verify_log
from walsync.wal.directory import read_directory
from walsync.wal.sharing import membership
from walsync.wal.storage.protocol import SharedLock, Storage

CONFIG = quiet_config(max_free_segments=1)


def open_shared(directory: Path, **settings: object) -> WriteAheadLog:
    return WriteAheadLog.recover(directory, config=quiet_config(max_free_segments=1, **settings))


def test_entries_of_all_have_one_order_and_everybody_reads_them(tmp_path: Path) -> None:
    logs = [open_shared(tmp_path / "log") for _ in range(3)]
    acknowledged: dict[int, bytes] = {}

    def commit(log: WriteAheadLog, name: int) -> None:
        source = random.Random(name)
        for number in range(60):
            data = b"%d %d " % (name, number) + source.randbytes(source.choice((0, 50, 3000, 90_000)))
            acknowledged[log.append(data)] = data

    threads = [threading.Thread(target=commit, args=(logs[name % 3], name)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(acknowledged) == list(range(1, 361))
    expected = {entry_id: [data] for entry_id, data in acknowledged.items()}
    for log in logs:
        assert (log.last_id, log.durable_id, log.recovered_here) == (360, 360, log is logs[0])
        assert all_of(log) == expected
    logs[1].checkpoint(EntryId(300))
    assert [log.checkpointed_id for log in logs] == [300] * 3
    assert list(all_of(logs[2])) == list(range(301, 361))
    logs[0].close()
    logs.append(open_shared(tmp_path / "log"))
    assert logs[3].append(b"goes on") == 361
    for log in logs:
        log.close()
    report = verify_log(tmp_path / "log")
    assert (report.ok, report.last_id) == (True, 361)


def test_segments_are_recycled_by_whoever_releases_and_used_by_whoever_appends(tmp_path: Path) -> None:
    with open_shared(tmp_path / "log") as one, open_shared(tmp_path / "log") as other:
        for number in range(400):
            (one, other)[number % 2].append(b"%d" % number * 1000)
            if number % 20 == 19:
                (other, one)[number % 3 == 0].checkpoint(EntryId(number - 3))
        files = [path for path in (tmp_path / "log").iterdir() if path.name.startswith("segment-")]
        assert len(files) <= 8
        assert list(all_of(one)) == list(all_of(other)) == list(range(397, 401))


def test_a_file_that_another_process_took_is_not_removed_by_whom_it_does_not_fit(tmp_path: Path) -> None:
    """Segments of two sizes: who releases a segment has no use for its file, and another process has it already."""
    small = open_shared(tmp_path / "log")
    large = WriteAheadLog.recover(tmp_path / "log", config=quiet_config(segment_bytes=4 * SEGMENT_BYTES))
    with small, large:
        for _ in range(5):
            small.append(b"released" * 5000)
        begin_with = large._releases._begin_with

        def begin_and_let_the_other_go_on(first: object) -> None:
            begin_with(first)  # type: ignore[arg-type]
            for _ in range(5):
                small.append(b"taken" * 8000)

        large._releases._begin_with = begin_and_let_the_other_go_on  # type: ignore[method-assign]
        large.checkpoint(EntryId(5))
        assert [len(chunks[0]) for chunks in all_of(large).values()] == [40_000] * 5
        assert small.append(b"goes on") == 11
    assert verify_log(tmp_path / "log").last_id == 11


def dying(directory: Path, at: int) -> tuple[dict[int, bytes], bool]:
    """A log whose process ends in its operation number `at`; what it acknowledged, and whether it got there."""
    storage = FaultyStorage(FileStorage(directory))
    log = WriteAheadLog.recover(storage, config=CONFIG)
    storage.faults.append(Fault.crash(at=at))
    acknowledged: dict[int, bytes] = {}
    died = True
    try:
        for number in range(12):
            data = b"dies %d %d " % (at, number) + bytes((0, 100, 70_000, 9000)[number % 4])
            acknowledged[log.append(data)] = data
            if number % 5 == 4:
                log.checkpoint(EntryId(log.durable_id - 2))
        died = False
    except SimulatedCrash:
        pass
    end(log)
    return acknowledged, died


def end(log: WriteAheadLog) -> None:
    """What the kernel does with what a dead process held."""
    for lock in (log._membership, log._pool, log._releases):
        getattr(lock, "release" if lock is log._membership else "close")()


def test_entries_whose_process_died_before_its_sync_become_durable_all_the_same(tmp_path: Path) -> None:
    with open_shared(tmp_path / "log", sync_interval_s=0.1) as log:
        dead = open_shared(tmp_path / "log", sync_interval_s=60.0)
        assert dead.append(b"x", durability="interval") == 1
        end(dead)
        assert (log.last_id, log.durable_id) == (1, 0)
        assert log.wait_durable(EntryId(0), 60)
        assert log.durable_id == 1
        assert not log.wait_durable(EntryId(1), 0.01)


def test_who_waits_for_entries_looks_more_rarely_while_no_other_process_has_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_shared(tmp_path / "log") as log, open_shared(tmp_path / "log") as other:
        log.append(b"mine")

        def pause_s(waited_s: float) -> float:
            """Until the next look, of one who has waited for so long."""
            pauses: list[float] = []

            def wait(look: Callable[[], bool | float | None]) -> bool:
                began = time.monotonic()
                with monkeypatch.context() as patch:
                    patch.setattr(time, "monotonic", lambda: began + waited_s)
                    answer = look()
                assert type(answer) is float
                pauses.append(answer)
                return False

            with monkeypatch.context() as patch:
                patch.setattr(log._commits.watch, "wait", wait)
                log.wait_durable(log.last_id, 100.0)
            return pauses[0]

        assert pause_s(0.0) < 0.01
        alone_s = pause_s(10.0)
        other.append(b"another process's")
        assert pause_s(0.0) < 0.01
        assert pause_s(10.0) < alone_s <= 0.1


def test_a_death_in_any_operation_blocks_nobody_and_leaves_no_trace(tmp_path: Path) -> None:
    """Before each read, write, sync and change of names of appends, releases and recycling, one after the other."""
    with open_shared(tmp_path / "log") as log:
        at, deaths = 0, 0
        while True:
            at += 1
            acknowledged, died = dying(tmp_path / "log", at)
            deaths += died
            for number in range(3):
                data = b"lives %d %d" % (at, number)
                acknowledged[log.append(data)] = data
            found = all_of(log)
            assert sorted(found) == list(range(log.checkpointed_id + 1, log.last_id + 1))
            for entry_id, data in acknowledged.items():
                assert entry_id <= log.checkpointed_id or found[entry_id] == [data], (at, entry_id)
            # Nothing of an append that did not return is there in part.
            assert all(len(data) >= 9 for chunks in found.values() for data in chunks)
            if not died:
                break
        assert deaths > 60
    report = verify_log(tmp_path / "log")
    assert report.ok
    with open_shared(tmp_path / "log") as log:
        assert all_of(log) == found


def test_a_failed_sync_poisons_the_log_for_all_until_everybody_has_closed_it(tmp_path: Path) -> None:
    storage = FaultyStorage(FileStorage(tmp_path / "log"))
    failing = WriteAheadLog.recover(storage, config=CONFIG)
    other = open_shared(tmp_path / "log")
    assert other.append(b"before") == 1
    storage.faults.append(Fault.io_error(kinds=OperationKind.SYNC))
    with pytest.raises(LogPoisonedError):
        failing.append(b"lost or not")
    with pytest.raises(LogPoisonedError, match="poisoned for every process"):
        other.append(b"refused")
    assert other.poisoned is not None
    with pytest.raises(LogPoisonedError):
        open_shared(tmp_path / "log")
    assert list(all_of(other)) == [1]
    failing.close()
    with pytest.raises(LogPoisonedError):
        open_shared(tmp_path / "log")
    other.close()
    with open_shared(tmp_path / "log") as log:
        assert all_of(log)[1] == [b"before"]
        assert log.append(b"well again") == log.last_id


@pytest.mark.parametrize("block", ["stale", "zeros", "random", "missing", "short", "older version"])
def test_after_a_crash_of_the_machine_the_control_block_is_built_anew(tmp_path: Path, block: str) -> None:
    with open_shared(tmp_path / "log") as log, open_shared(tmp_path / "log") as other:
        for number in range(50):
            (log, other)[number % 2].append(b"%d" % number * 700, marks=["a"])
            if number == 20:
                stale = (tmp_path / "log" / "control").read_bytes()
        log.checkpoint(EntryId(30))
        expected = all_of(log)
        # What is on the disk when the power goes, locks and all.
        shutil.copytree(tmp_path / "log", tmp_path / "crashed")
    control = tmp_path / "crashed" / "control"
    size = control.stat().st_size
    if block == "missing":
        control.unlink()
    else:
        source = random.Random(block)
        content = {"zeros": bytes(size), "random": source.randbytes(size), "short": b"x" * 100}.get(block, stale)
        if block == "older version":
            content = content[:7] + b"\xff" + content[8:]
        control.write_bytes(content)
    with open_shared(tmp_path / "crashed") as log, open_shared(tmp_path / "crashed") as other:
        # How far it was released may have been known to memory alone.
        found = all_of(other)
        assert {entry_id: found[entry_id] for entry_id in expected} == expected
        assert log.append(b"x") == other.last_id == 51
        assert log.control.last_marked(["a"]) == 50


def test_who_does_not_fit_is_refused(tmp_path: Path) -> None:
    with open_shared(tmp_path / "log", version_info=b"one") as log:
        with pytest.raises(ConfigurationError, match="version_info"):
            open_shared(tmp_path / "log", version_info=b"two")
        with pytest.raises(LogLockedError):
            open_shared(tmp_path / "log", version_info=b"one", shared=False)
        control = tmp_path / "log" / "control"
        with control.open("r+b") as file:
            file.write(b"walsync\x7f")
        with pytest.raises(LogVersionError, match="another version"):
            open_shared(tmp_path / "log", version_info=b"one")
        log.append(b"undisturbed")
    with open_shared(tmp_path / "log", version_info=b"two") as log:
        assert all_of(log) == {1: [b"undisturbed"]}


@pytest.mark.parametrize("left", ["who kept it", "who kept it after others shared it", "who shared it"])
def test_who_comes_when_the_last_one_leaves_finds_everything(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds somebody there, who has left when it takes its share: nobody is there, and it may be the first one."""
    expected: dict[int, list[bytes]] = {}

    def session(name: bytes, *, shared: bool) -> None:
        with open_shared(tmp_path / "log", shared=shared) as log:
            for number in range(20):
                data = b"%s %d" % (name, number)
                expected[log.append(data)] = [data]

    if left != "who kept it":
        session(b"sharing", shared=True)
    if left != "who shared it":
        session(b"keeping", shared=False)
        assert not (tmp_path / "log" / "control").exists(), "what it says is not true any more"
    plain, looks = membership._come_in, []

    def come_in(here: SharedLock, deadline: float, storage: Storage) -> bool:
        looks.append(deadline)
        if len(looks) > 1:
            return plain(here, deadline, storage)
        assert here.try_shared()
        return False

    monkeypatch.setattr(membership, "_come_in", come_in)
    with open_shared(tmp_path / "log") as log, open_shared(tmp_path / "log") as other:
        assert all_of(log) == expected
        assert len(set(looks[:-1])) == 1, "all looks of one opening end at one time"
        for one in (log, other):
            expected[one.append(b"goes on")] = [b"goes on"]
        assert all_of(log) == all_of(other) == expected
    assert verify_log(tmp_path / "log").ok
    with open_shared(tmp_path / "log", shared=False) as log:
        assert all_of(log) == expected


def test_one_applies_and_another_takes_over(tmp_path: Path) -> None:
    first, second = open_shared(tmp_path / "log"), open_shared(tmp_path / "log")
    assert first.control.try_lease()
    assert not second.control.try_lease()
    assert first.control.holds_lease
    first.control.note_applied(first.append(b"x"))
    assert second.control.applied_id == 1
    first.close()
    assert second.control.try_lease()
    second.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_forked_children_go_on_while_the_parents_threads_commit(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from walsync.wal import LogConfig, WriteAheadLog
log = WriteAheadLog.recover(sys.argv[1], config=LogConfig(segment_bytes=32768))
stop = threading.Event()
def work():
    while not stop.is_set():
        log.append(b"parent" * 100, marks=["p"])
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
children = []
for number in range(12):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ids = [log.append(b"child %d" % number, marks=["c"]) for _ in range(20)]
            assert ids == sorted(set(ids)) and log.control.last_marked(["c"]) >= ids[-1]
            log.close()
            status = 0
        finally:
            os._exit(status)
    children.append(child)
for child in children: assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
found = [b"".join(entry.chunks()) for entry in log.entries()]
assert sum(data.startswith(b"child") for data in found) == 240, len(found)
assert all(data == b"parent" * 100 for data in found if not data.startswith(b"child"))
log.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "log")]
    subprocess.run(command, env=python_environment(), timeout=100, check=True)
    assert verify_log(tmp_path / "log").ok


def test_a_log_that_is_not_shared_says_so(tmp_path: Path) -> None:
    with WriteAheadLog.recover(tmp_path / "log", config=LogConfig(segment_bytes=SEGMENT_BYTES, shared=False)) as log:
        assert not log.control.shared
        with pytest.raises(LogLockedError):
            open_shared(tmp_path / "log")


def test_a_free_file_that_another_removes_meanwhile_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is removed between the look into the directory and the look into the file."""
    names = FileStorage.list
    monkeypatch.setattr(FileStorage, "list", lambda storage: [*names(storage), "segment-00000099"])
    with open_shared(tmp_path / "log") as one:
        one.append(b"one")
        assert log_uuid_of(tmp_path / "log") == one.uuid
        with open_shared(tmp_path / "log") as other:
            assert not other.recovered_here
            assert other.append(b"other") == 2
    found = read_directory(FileStorage(tmp_path / "log"))
    assert "segment-00000099" not in [slot.name for slot in found.slots]
    assert len(found.slots) > 0
    assert verify_log(tmp_path / "log").ok

"""Levels of durability: what returns when, what counts as durable, and that nothing is less durable than asked for."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal import logs
from tests.unit.wal.logs import abandon, all_of, contents
from walsync.exceptions import ConfigurationError, LogClosedError, LogPoisonedError
from walsync.testing import Fault, FaultyStorage, OperationKind, SimulatedStorage, Survival
from walsync.wal import EntryId, LogConfig, MemoryStorage, WriteAheadLog, read_log

NEVER_S = 3_600.0
"""An interval that does not end in a test: only what else syncs makes entries durable."""


_opened: list[WriteAheadLog] = []


def open_log(storage: Any, **settings: Any) -> WriteAheadLog:
    log = logs.open_log(storage, **settings)
    _opened.append(log)
    return log


@pytest.fixture(autouse=True)
def stop_threads() -> Iterator[None]:
    """A log that a test abandons, as the end of a process would, leaves a thread."""
    yield
    for log in _opened:
        assert log._interval.stop(20)
    _opened.clear()


def synced(storage: SimulatedStorage) -> dict[int, list[bytes]]:
    """What is in the log after a power cut that leaves nothing but what was synced."""
    return contents(read_log(storage.crash(random.Random(1), Survival.NOTHING)))


def test_sync_is_the_default() -> None:
    assert LogConfig().durability == "sync"
    storage = SimulatedStorage()
    log = open_log(storage)
    log.append(b"entry")
    assert log.durable_id == log.last_id == 1
    assert synced(storage) == {1: [b"entry"]}


@pytest.mark.parametrize("level", ["interval", "sync"])
@pytest.mark.parametrize("way", ["config", "append", "begin_entry"])
def test_a_level_can_be_chosen_for_the_log_and_for_an_entry(way: str, level: Any) -> None:
    other = {"interval": "sync", "sync": "interval"}[level]
    storage = SimulatedStorage()
    log = open_log(storage, durability=level if way == "config" else other, sync_interval_s=NEVER_S)
    if way == "config":
        log.append(b"entry")
    elif way == "append":
        log.append(b"entry", durability=level)
    else:
        with log.begin_entry(durability=level) as entry:
            entry.write_chunk(b"entry")
        assert entry.entry_id == 1
    assert log.last_id == 1
    assert log.durable_id == (1 if level == "sync" else 0)
    assert synced(storage) == ({1: [b"entry"]} if level == "sync" else {})


@pytest.mark.parametrize("value", ["", "Sync", "none", "async", None, 0, False, "interval "])
def test_an_unknown_level_is_refused_and_nothing_is_written(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="durability"):
        LogConfig(durability=value)
    if value is None:
        return
    with open_log(MemoryStorage()) as log:
        with pytest.raises(ConfigurationError, match="durability"):
            log.append(b"entry", durability=value)
        with pytest.raises(ConfigurationError, match="durability"):
            log.begin_entry(durability=value)
        assert log.last_id == 0


@pytest.mark.parametrize("value", [0, -1, 0.0001, "1", True])
def test_the_interval_has_bounds(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="sync_interval_s"):
        LogConfig(sync_interval_s=value)


def test_entries_are_not_given_out_before_they_are_durable() -> None:
    log = open_log(MemoryStorage(), durability="interval", sync_interval_s=NEVER_S)
    log.append(b"one")
    log.append(b"two")
    assert all_of(log) == {}
    assert log.backlog_entries == 0
    assert not log.wait_durable(EntryId(0), timeout=0.0)
    log.sync()
    assert all_of(log) == {1: [b"one"], 2: [b"two"]}
    assert log.wait_durable(EntryId(1), timeout=0.0)
    log.close()


def test_a_thread_makes_them_durable_and_tells_who_waits() -> None:
    with open_log(MemoryStorage(), durability="interval", sync_interval_s=0.001) as log:
        for number in range(1, 20):
            assert log.append(b"entry") == number
            assert log.wait_durable(EntryId(number - 1), timeout=20.0)


def test_an_entry_that_is_written_during_a_sync_is_synced_without_another_commit() -> None:
    """Nobody else may come along, and it must not stay in the loss window for ever."""
    storage = FaultyStorage(MemoryStorage())
    log = open_log(storage, durability="interval", sync_interval_s=0.2)
    in_sync, go_on = threading.Event(), threading.Event()

    def watch(operation: Any) -> None:
        if operation.kind is OperationKind.SYNC and not in_sync.is_set():
            in_sync.set()
            go_on.wait(20)

    storage.watch = watch
    log.append(b"one")
    assert in_sync.wait(20)
    log.append(b"two")
    go_on.set()
    wait_until(lambda: log.durable_id == 2)
    log.close()


def test_a_synced_entry_makes_those_before_it_durable() -> None:
    storage = SimulatedStorage()
    log = open_log(storage, sync_interval_s=NEVER_S)
    log.append(b"one", durability="interval")
    log.append(b"two", durability="sync")
    assert log.durable_id == 2
    assert synced(storage) == {1: [b"one"], 2: [b"two"]}


def test_close_makes_them_durable() -> None:
    storage = SimulatedStorage()
    log = open_log(storage, durability="interval", sync_interval_s=NEVER_S)
    log.append(b"entry")
    log.close()
    assert synced(storage) == {1: [b"entry"]}
    with pytest.raises(LogClosedError):
        log.append(b"entry")


def test_the_end_of_the_process_loses_nothing() -> None:
    """What was written is the system's. Only the machine's end loses it."""
    storage = SimulatedStorage()
    log = open_log(storage, durability="interval", sync_interval_s=NEVER_S)
    log.append(b"entry")
    assert contents(read_log(storage.kill())) == {1: [b"entry"]}


@pytest.mark.parametrize("seed", range(60))
def test_a_power_cut_loses_no_more_than_the_window_and_leaves_no_part_of_it(seed: int) -> None:
    source = random.Random(seed)
    storage = SimulatedStorage()
    log = open_log(storage, sync_interval_s=NEVER_S)
    written = {}
    durable = 0
    for number in range(1, source.randint(2, 30)):
        chunks = [source.randbytes(source.choice((10, 3_000, 20_000))) for _ in range(source.randint(1, 2))]
        level: Any = source.choice(("interval", "interval", "interval", "sync"))
        written[int(log.append(*chunks, durability=level))] = chunks
        if level == "sync":
            durable = number
        assert log.durable_id == durable
    found = storage.crash(source)
    recovered = open_log(found)
    kept = all_of(recovered)
    assert list(kept) == list(range(1, len(kept) + 1))
    assert len(kept) >= durable
    assert all(written[entry_id] == chunks for entry_id, chunks in kept.items())
    abandon(recovered)


def test_a_failed_sync_in_the_background_reaches_the_next_caller_and_close() -> None:
    fault = Fault.io_error(kinds=OperationKind.SYNC, times=None)
    disk = FaultyStorage(MemoryStorage())
    log = open_log(disk, durability="interval", sync_interval_s=0.001)
    disk.faults.append(fault)
    log.append(b"lost, perhaps")
    wait_until(lambda: log.poisoned is not None)
    for call in (lambda: log.append(b"next"), log.sync, lambda: log.wait_durable(EntryId(0), 0.0)):
        with pytest.raises(LogPoisonedError):
            call()
    assert log.durable_id == 0
    with pytest.raises(LogPoisonedError, match="entries 1 to 1"):
        log.close()
    log.close()


def test_a_sync_that_fails_in_close_is_not_silent() -> None:
    """Its committers were never told that the entries are durable, and nobody waits for them."""
    disk = FaultyStorage(MemoryStorage())
    log = open_log(disk, durability="interval", sync_interval_s=NEVER_S)
    log.append(b"entry")
    disk.faults.append(Fault.io_error(kinds=OperationKind.SYNC))
    with pytest.raises(LogPoisonedError, match="interval"):
        log.close()
    # The directory was given up all the same.
    open_log(disk).close()


def test_a_commit_syncs_by_itself_where_the_thread_does_not() -> None:
    """The bound of the loss window does not hang on one thread."""
    log = open_log(MemoryStorage(), durability="interval", sync_interval_s=0.001)
    log._interval._stopping.set()
    log.append(b"first")

    def late() -> bool:
        log.append(b"entry")
        return log.durable_id > 0

    wait_until(late)
    log.close()


def test_without_a_thread_to_be_had_a_commit_syncs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(MemoryStorage(), durability="interval", sync_interval_s=NEVER_S)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    log.append(b"entry")
    assert log.durable_id == 1
    monkeypatch.undo()
    log.close()


def test_a_log_that_never_uses_it_has_no_thread_for_it() -> None:
    with open_log(MemoryStorage()) as log:
        log.append(b"entry")
        assert log._interval._thread is None
        assert "walsync-sync" not in {thread.name for thread in threading.enumerate()}


def test_many_threads_with_both_levels() -> None:
    with open_log(MemoryStorage(), sync_interval_s=0.002) as log:
        acknowledged: dict[int, bytes] = {}

        def commit(number: int) -> None:
            for index in range(100):
                data = b"%d/%d" % (number, index)
                level: Any = "interval" if (number + index) % 3 else "sync"
                entry_id = log.append(data, durability=level)
                if level == "sync":
                    assert log.durable_id >= entry_id
                acknowledged[entry_id] = data

        threads = [threading.Thread(target=commit, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: log.durable_id == 600)
        assert all_of(log) == {entry_id: [data] for entry_id, data in acknowledged.items()}

"""Faults seen in other engines. Each has a test here, named after it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.faulty import FailingStorage, PowerCut, VolatileStorage
from tests.unit.wal.logs import SEGMENT_BYTES, abandon, all_of, bytes_of, contents, copy_of, open_log, segments_of
from walsync.exceptions import CheckpointFailedError, DamagedLogError, LogFullError, LogLockedError, LogPoisonedError
from walsync.wal import Checkpointer, Entry, EntryId, LogConfig, MemoryStorage, WriteAheadLog, read_log
from walsync.wal.format import FRAMES_OFFSET


def test_1_rolling_back_an_entry_and_committing_a_shorter_one_keeps_later_commits() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    entry = log.begin_entry()
    entry.write_chunk(b"a long one" * 500)
    entry.rollback()
    expected = {}
    for index in range(6):
        expected[int(log.append(b"%d" % index))] = [b"%d" % index]
    abandon(log)
    assert all_of(open_log(storage)) == expected


def test_2_recycling_needs_no_directory_sync() -> None:
    """Recycled files keep their names: a power cut that loses every unsynced name loses no acknowledged entry."""
    storage = VolatileStorage()
    log = open_log(storage)
    acknowledged = 0
    for index in range(60):
        acknowledged = log.append(b"%02d" % index * 2000)
        if index % 5 == 4:
            log.checkpoint(EntryId(acknowledged - 2))
    operations = storage.steps
    log.append(b"one more")
    assert storage.steps == operations + 2, "a write and a sync, nothing else"
    storage.crash(random.Random(0))
    log = open_log(storage)
    assert log.last_id >= acknowledged
    assert all_of(log)[acknowledged] == [b"59" * 2000]


def test_3_a_power_cut_right_after_a_segment_switch_leaves_a_log_that_opens() -> None:
    for cut in range(8):
        for seed in range(4):
            storage = VolatileStorage()
            log = open_log(storage)
            acknowledged = 0
            while log._appender._offset + 6000 < SEGMENT_BYTES:
                acknowledged = log.append(b"x" * 5000)
            storage.steps_left = cut
            try:
                acknowledged = log.append(b"y" * 9000)
            except (LogPoisonedError, PowerCut):
                pass
            storage.crash(random.Random(seed))
            log = open_log(storage)
            assert log.last_id in (acknowledged, acknowledged + 1)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_4_one_failed_sync_leaves_nobody_waiting(operation: str) -> None:
    """All commits under way and all later ones raise; none hangs, and the sync is not tried again."""
    storage = FailingStorage()
    log = open_log(storage)
    log.append(b"well")
    failed = threading.Event()

    def decide(index: int, kind: str, name: str) -> int | None:
        if kind == operation and not failed.is_set():
            failed.set()
            return errno.EIO
        return None

    storage.decide = decide
    errors: list[BaseException] = []

    def commit() -> None:
        for _ in range(3):
            try:
                log.append(b"x")
            except LogPoisonedError as error:
                errors.append(error)

    threads = [threading.Thread(target=commit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(errors) == 24
    syncs = storage.operations.count(("sync", "segment-00000001"))
    with pytest.raises(LogPoisonedError, match=r"segment-00000001 failed .* near offset \d+, after entry 1"):
        log.append(b"later")
    assert storage.operations.count(("sync", "segment-00000001")) == syncs
    assert isinstance(log.poisoned, OSError)
    assert log.stats().poisoned
    assert contents(log.entries()) == {1: [b"well"]}
    log.close()
    storage.decide = lambda *_: None
    assert all_of(open_log(storage))[1] == [b"well"]


@pytest.mark.parametrize("preallocated", [0, 1])
def test_5_a_full_disk_rejects_an_entry_and_the_log_goes_on_when_there_is_room(preallocated: int) -> None:
    storage = FailingStorage()
    log = open_log(storage, preallocated_segments=preallocated)
    if preallocated:
        wait_until(lambda: log.stats().free_segments == 1)
    full = threading.Event()
    full.set()

    def decide(index: int, kind: str, name: str) -> int | None:
        making = kind in ("write", "create") and name not in used
        return errno.ENOSPC if full.is_set() and making else None

    used = set(segments_of(storage)) | {"checkpoint"}
    storage.decide = decide
    expected = {}
    with pytest.raises(LogFullError, match="The entry was not written"):  # noqa: PT012
        while True:
            expected[int(log.append(b"x" * 3000))] = [b"x" * 3000]
    assert len(expected) > 5
    with pytest.raises(LogFullError):
        log.append(b"y" * 200_000)
    expected[int(log.append(b"small ones still fit"))] = [b"small ones still fit"]
    full.clear()
    expected[int(log.append(b"y" * 200_000))] = [b"y" * 200_000]
    assert log.poisoned is None
    assert all_of(log) == expected
    log.close()
    assert all_of(open_log(storage)) == expected


def test_6_an_error_of_the_checkpointer_reaches_the_next_caller_and_does_not_end_its_thread() -> None:
    class Failing(Checkpointer):
        fails = True
        calls = 0

        def checkpoint_to(self, last_id: EntryId, entries: Iterator[Entry], log: WriteAheadLog) -> None:
            self.calls += 1
            if self.fails:
                raise RuntimeError("the target is on fire")
            list(entries)

    checkpointer = Failing()
    log = open_log(MemoryStorage(), checkpointer, checkpoint_after_bytes=1, checkpoint_retry_s=0.01)
    log.append(b"one")
    wait_until(lambda: checkpointer.calls >= 2, message="it is called again after its error")
    assert "on fire" in str(log.stats().last_checkpoint_error)
    with pytest.raises(CheckpointFailedError, match="on fire") as caught:
        wait_until(lambda: log.append(b"two") == 0)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(CheckpointFailedError, match="on fire"):
        log.checkpoint_active()
    checkpointer.fails = False
    wait_until(lambda: log.checkpointed_id == log.durable_id >= 1, message="it works again")
    assert log.stats().last_checkpoint_error is None
    log.close()


def test_7_a_torn_write_in_a_recycled_segment_gives_back_no_older_entry() -> None:
    """Every cut of a write into a recycled file, sector by sector: what shines through below is never an entry."""
    storage = MemoryStorage()
    log = open_log(storage)
    for _ in range(3):
        while log._appender._offset + 1700 < SEGMENT_BYTES:
            log.append(b"old lap!" * 200)
        log.append(b"old lap!" * 200)
        log.checkpoint(log.last_id)
    before = copy_of(storage)
    name = log._segments.readable_segments[-1].name
    assert log._segments.readable_segments[-1].sequence > 3
    last_id = log.last_id
    start = log._appender._offset
    log.append(b"new lap!" * 200)
    end = log._appender._offset
    abandon(log)
    for cut in range(start - start % 512, end + 512, 64):
        torn = copy_of(before)
        torn._held = set()
        bytes_of(torn, name)[:cut] = bytes_of(storage, name)[:cut]
        reopened = open_log(torn)
        assert reopened.last_id in (last_id, last_id + 1)
        assert all(chunks == [b"new lap!" * 200] for chunks in all_of(reopened).values())


def test_8_stale_bytes_after_the_last_entry_are_never_parsed_as_a_length() -> None:
    """Whatever lies behind the tail: no file grows, and no more is read than a segment holds."""
    for seed in range(40):
        chance = random.Random(seed)
        storage = MemoryStorage()
        log = open_log(storage)
        log.append(b"kept")
        end = log._appender._offset
        abandon(log)
        content = bytes_of(storage, "segment-00000001")
        tail = chance.randbytes(200)
        content[end : end + 200] = tail[:4] + bytes([chance.randrange(1, 6), 7, 9, 0]) + tail[8:]
        log = open_log(storage)
        assert all_of(log) == {1: [b"kept"]}
        assert log.append(b"goes on") == 2
        log.close()
        assert {len(bytes_of(storage, name)) for name in segments_of(storage)} == {SEGMENT_BYTES}


def test_9_a_recovery_that_does_not_read_all_chunks_sees_every_entry() -> None:
    class Lazy(Checkpointer):
        def __init__(self) -> None:
            self.seen: list[tuple[int, bytes]] = []

        def recover(self, entry: Entry) -> None:
            self.seen.append((entry.id, next(entry.chunks())))

    storage = MemoryStorage()
    log = open_log(storage)
    for index in range(10):
        log.append(b"first of %d" % index, b"x" * 40_000, b"third")
    abandon(log)
    lazy = Lazy()
    log = open_log(storage, lazy)
    assert lazy.seen == [(index + 1, b"first of %d" % index) for index in range(10)]
    for entry in log.entries():
        chunks = entry.chunks()
        next(chunks)
    assert log.checkpointed_id == 0


def test_10_a_torn_last_entry_is_cut_off_quietly() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    log.append(b"whole")
    start = log._appender._offset
    log.append(b"torn" * 100, b"in two!!")
    end = log._appender._offset
    abandon(log)
    for cut in range(start, end):
        torn = copy_of(storage)
        bytes_of(torn, "segment-00000001")[cut:end] = bytes(end - cut)
        log = open_log(torn)
        assert all_of(log) == {1: [b"whole"]}
        assert log.append(b"next") == 2
        log.close()
        assert contents(read_log(torn)) == {1: [b"whole"], 2: [b"next"]}


def test_11_a_second_opener_shares_the_log_or_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    code = (
        "import sys; from walsync.wal import LogConfig, WriteAheadLog; from walsync.exceptions import LogLockedError\n"
        "config = LogConfig(segment_bytes=32768, shared=sys.argv[2] == '1')\n"
        "try: log = WriteAheadLog.recover(sys.argv[1], config=config)\n"
        "except LogLockedError as error: sys.exit(42)\n"
        "for number in range(300): log.append(b'second %d' % number)\n"
    )

    def second(shared: bool) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen([sys.executable, "-c", code, str(directory), str(int(shared))], env=environment)

    with WriteAheadLog.recover(directory, config=LogConfig(segment_bytes=SEGMENT_BYTES, shared=False)) as log:
        with pytest.raises(LogLockedError, match=r"log.* is open in another process.*lock_timeout_s"):
            WriteAheadLog.recover(directory)
        for shared in (True, False):
            with second(shared) as process:
                assert process.wait(60) == 42
        log.append(b"undisturbed")
    with WriteAheadLog.recover(directory, config=LogConfig(segment_bytes=SEGMENT_BYTES)) as log:
        with second(False) as process:
            assert process.wait(60) == 42
        with second(True) as process:
            for number in range(300):
                log.append(b"first %d" % number)
            assert process.wait(60) == 0
    found = [chunks[0] for chunks in contents(read_log(directory)).values()]
    assert found[0] == b"undisturbed"
    assert len(found) == 601
    for who in (b"first", b"second"):
        assert [data for data in found if data.startswith(who)] == [b"%b %d" % (who, number) for number in range(300)]


def test_12_a_bad_checksum_in_the_middle_is_not_the_end() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for index in range(8):
        log.append(b"%d" % index * 100)
    abandon(log)
    bytes_of(storage, "segment-00000001")[FRAMES_OFFSET + 400] ^= 4
    with pytest.raises(DamagedLogError, match="segment-00000001 is damaged at offset") as caught:
        open_log(storage)
    assert "payload" in str(caught.value)


def test_13_the_promise_that_tells_damage_from_a_torn_tail_is_really_written() -> None:
    """Each commit promises what the syncs before it covered; a HINT promises the rest when the log is closed."""
    storage = MemoryStorage()
    log = open_log(storage)
    ends = []
    for _ in range(4):
        log.append(b"x" * 100)
        ends.append(log._appender.durable[0])
    assert log._appender.promised == ends[2]
    log.close()
    assert log._appender.promised == ends[3]
    content = bytes_of(storage, "segment-00000001")
    content[ends[3] - 50] ^= 1
    with pytest.raises(DamagedLogError):
        open_log(storage)


def test_13_an_idle_log_promises_its_last_entry() -> None:
    storage = MemoryStorage()
    log = open_log(storage, idle_hint_s=0.005)
    log.append(b"the last one for a while")
    wait_until(lambda: log._appender.promised > FRAMES_OFFSET + 100, message="the idle log writes a HINT")
    # The HINT lies behind what it promises.
    wait_until(lambda: log._appender.durable == log._appender.written > (log._appender.promised,))
    abandon(log)
    copy = copy_of(storage)
    assert all_of(open_log(copy)) == {1: [b"the last one for a while"]}
    damaged = copy_of(storage)
    bytes_of(damaged, "segment-00000001")[FRAMES_OFFSET + 150] ^= 1
    with pytest.raises(DamagedLogError):
        open_log(damaged)
    log.close()

"""Reading an open log: small steps, many readers, releases in between, and errors of the system."""

from __future__ import annotations

import errno
import threading
from itertools import islice
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.faulty import FailingFile, FailingStorage
from tests.unit.wal.logs import all_of, open_log
from walsync.exceptions import DamagedLogError, EntryNotFoundError, LogClosedError, LogError
from walsync.wal import EntryId, LogPosition, MemoryStorage, WriteAheadLog


def filled(count: int = 200, size: int = 1000) -> WriteAheadLog:
    log = open_log(MemoryStorage())
    for index in range(count):
        log.append(b"%d" % index * (size // 3))
    return log


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_entries_in_small_steps_are_the_entries_at_once(step: int) -> None:
    log = filled()
    expected = all_of(log)
    found: dict[int, list[bytes]] = {}
    after = EntryId(0)
    while True:
        taken = list(islice(log.entries(after), step))
        if not taken:
            break
        found.update({entry.id: list(entry.chunks()) for entry in taken})
        after = taken[-1].id
    assert found == expected


def test_going_on_reads_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled()
    reads: list[int] = []
    storage_file = type(log._segments.file_of(log._segments.readable_segments[0]))
    pread = storage_file.pread

    def counting(self: object, length: int, offset: int) -> bytes:
        data: bytes = pread(self, length, offset)  # type: ignore[arg-type]
        reads.append(len(data))
        return data

    monkeypatch.setattr(storage_file, "pread", counting)
    for first in range(0, 200, 5):
        assert [entry.id for entry in islice(log.entries(EntryId(first)), 5)] == list(range(first + 1, first + 6))
    assert sum(reads) < 2 * log.backlog_bytes


def test_through_ends_the_iteration() -> None:
    log = filled(20)
    assert [entry.id for entry in log.entries(EntryId(3), EntryId(7))] == [4, 5, 6, 7]
    assert list(log.entries(EntryId(7), EntryId(7))) == []
    assert list(log.entries(EntryId(20))) == []
    assert [entry.id for entry in log.entries(EntryId(18), EntryId(99))] == [19, 20]


def test_an_entry_that_was_taken_and_not_used_is_given_again() -> None:
    log = filled(50)
    for start in (0, 10, 11, 9, 40, 0, 49):
        assert next(log.entries(EntryId(start))).id == start + 1


def test_iterations_beside_each_other_do_not_disturb_each_other() -> None:
    log = filled(100)
    iterators = [log.entries(EntryId(start)) for start in (0, 30, 60)]
    for step in range(40):
        assert [next(iterator).id for iterator in iterators] == [step + 1, step + 31, step + 61]


def test_an_iteration_goes_on_with_what_becomes_durable_meanwhile() -> None:
    log = filled(3)
    iterator = log.entries()
    assert next(iterator).id == 1
    log.append(b"new")
    assert [entry.id for entry in iterator] == [2, 3, 4]


def test_released_entries_are_passed_over() -> None:
    log = filled()
    log.checkpoint(EntryId(150))
    assert next(log.entries(EntryId(3))).id == 151
    assert log.backlog_entries == 50
    assert 0 < log.backlog_bytes < 80_000


def test_releasing_what_is_being_read_is_an_error_that_says_so() -> None:
    log = filled()
    iterator = log.entries()
    next(iterator)
    log.checkpoint(EntryId(200))
    for _ in range(60):
        log.append(b"z" * 3000)
    with pytest.raises(EntryNotFoundError, match="released while it was read"):
        list(iterator)


def test_a_released_chunk_cannot_be_read_any_more() -> None:
    log = open_log(MemoryStorage())
    with log.begin_entry() as entry:
        record = entry.write_chunk(b"soon gone" * 3000)
    position = record.position
    for _ in range(30):
        log.append(b"x" * 3000)
    log.checkpoint(log.durable_id)
    with pytest.raises(EntryNotFoundError, match="released"):
        log.read_at(position)


def test_a_position_of_another_entry_is_refused() -> None:
    log = filled(5)
    position = next(log.entries(EntryId(2))).chunk_positions[0]
    with pytest.raises(EntryNotFoundError, match="no chunk of entry 4"):
        log.read_at(LogPosition(position.position, EntryId(4)))
    with pytest.raises(DamagedLogError, match="segment-00000001 has no readable frame of entry 3 at offset"):
        log.read_at(LogPosition(position.position + 8, EntryId(3)))


def test_readers_and_a_writer_and_releases_at_once() -> None:
    log = open_log(MemoryStorage(), preallocated_segments=1)
    done = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        after = EntryId(0)
        try:
            while not (done.is_set() and after >= log.durable_id):
                for entry in islice(log.entries(after), 50):
                    assert list(entry.chunks()) == [b"%d" % entry.id * 100]
                    assert entry.id > after
                    after = entry.id
                log.checkpoint(after)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(1500):
        log.append(b"%d" % (index + 1) * 100)
    done.set()
    reader.join(60)
    assert not reader.is_alive()
    assert errors == []
    assert log.checkpointed_id == 1500
    log.close()


def test_a_failed_read_is_an_error_of_the_log_that_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(FailingStorage())
    log.append(b"x")
    position = next(log.entries()).chunk_positions[0]

    def failing(self: FailingFile, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FailingFile, "pread", failing)
    for call in (lambda: log.read_at(position), lambda: list(log.entries(EntryId(0)))):
        log._reader._idle.clear()
        with pytest.raises(LogError, match="segment-00000001 cannot be read: .*Input/output error"):
            call()
    log.append(b"commits go on")


def test_closing_ends_an_iteration_with_the_logs_own_error(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    for _ in range(100):
        log.append(b"x" * 3000)
    iterator = log.entries()
    next(iterator)
    log.close()
    with pytest.raises(LogClosedError, match="closed while it was read"):
        list(iterator)


def test_the_idle_log_removes_files_that_it_does_not_need() -> None:
    storage = MemoryStorage()
    log = open_log(storage, preallocated_segments=1, max_free_segments=1, idle_hint_s=0.01)
    for _ in range(40):
        log.append(b"x" * 5000)
    log.checkpoint(log.durable_id)
    log.append(b"x")
    wait_until(lambda: log.stats().free_segments == 1, message="an idle log trims its free files")
    log.close()

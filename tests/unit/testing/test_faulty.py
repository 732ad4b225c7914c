"""A storage in which operations fail: which ones, how often, and what is done of them all the same."""

from __future__ import annotations

import errno
import random
import threading

import pytest

from walsync.exceptions import ConfigurationError
from walsync.testing import (
    Fault,
    FaultAction,
    FaultyStorage,
    Operation,
    OperationKind,
    SimulatedCrash,
    SimulatedStorage,
    Survival,
)
from walsync.wal import MemoryStorage

CALLS = {
    OperationKind.PREPARE: lambda storage: storage.prepare(),
    OperationKind.LIST: lambda storage: storage.list(),
    OperationKind.CREATE: lambda storage: storage.create("new"),
    OperationKind.OPEN: lambda storage: storage.open("file"),
    OperationKind.REMOVE: lambda storage: storage.remove("file"),
    OperationKind.RENAME: lambda storage: storage.rename("file", "other"),
    OperationKind.MAKE_DIRECTORY: lambda storage: storage.make_directory("aside"),
    OperationKind.SYNC_DIRECTORY: lambda storage: storage.sync_directory(),
    OperationKind.LOCK: lambda storage: storage.lock("lock", 0.0),
    OperationKind.READ: lambda storage: storage.open("file").pread(1, 0),
    OperationKind.WRITE: lambda storage: storage.open("file").pwrite(b"x", 0),
    OperationKind.SYNC: lambda storage: storage.open("file").sync(),
    OperationKind.SIZE: lambda storage: storage.open("file").size(),
    OperationKind.TRUNCATE: lambda storage: storage.open("file").truncate(1),
}


def storage_with(*faults: Fault, **settings: object) -> FaultyStorage:
    inner = MemoryStorage()
    inner.create("file").pwrite(bytes(100), 0)
    return FaultyStorage(inner, *faults, **settings)  # type: ignore[arg-type]


def test_every_kind_of_operation_is_known() -> None:
    assert set(CALLS) == set(OperationKind)


@pytest.mark.parametrize("kind", OperationKind)
def test_an_operation_of_any_kind_fails(kind: OperationKind) -> None:
    storage = storage_with(Fault.io_error(kinds=kind))
    with pytest.raises(OSError) as caught:
        CALLS[kind](storage)
    assert caught.value.errno == errno.EIO
    assert [operation.kind for operation in storage.failed] == [kind]
    # Once.
    CALLS[kind](storage)


@pytest.mark.parametrize("kind", OperationKind)
def test_a_fault_of_another_kind_changes_nothing(kind: OperationKind) -> None:
    other = next(candidate for candidate in OperationKind if candidate not in (kind, OperationKind.OPEN))
    storage = storage_with(Fault.io_error(kinds=other, times=None), tracing=True)
    CALLS[kind](storage)
    assert storage.trace[-1].kind is kind
    assert not storage.failed


def test_the_third_sync_fails_and_only_that() -> None:
    storage = storage_with(Fault.io_error(at=3, kinds=OperationKind.SYNC))
    file = storage.open("file")
    outcomes = []
    for _ in range(5):
        try:
            file.sync()
            outcomes.append("done")
        except OSError:
            outcomes.append("failed")
    assert outcomes == ["done", "done", "failed", "done", "done"]


def test_a_lasting_fault_lasts_until_it_is_taken_out() -> None:
    storage = storage_with(Fault.disk_full())
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            storage.create("new")
        assert caught.value.errno == errno.ENOSPC
    storage.faults.clear()
    storage.create("new")


def test_a_fault_can_be_about_some_files() -> None:
    storage = storage_with(Fault.io_error(kinds=OperationKind.WRITE, name="segment-", times=None))
    storage.open("file").pwrite(b"x", 0)
    with pytest.raises(OSError):
        storage.create("segment-1").pwrite(b"x", 0)


def test_a_short_write_writes_half_and_says_so() -> None:
    storage = storage_with(Fault.short_write())
    file = storage.open("file")
    assert file.pwrite(b"x" * 10, 0) == 5
    assert file.pread(10, 0) == b"x" * 5 + bytes(5)
    assert file.pwrite(b"y" * 10, 0) == 10


def test_a_lasting_short_write_gets_on() -> None:
    file = storage_with(Fault.short_write(times=None)).open("file")
    written = 0
    while written < 10:
        written += file.pwrite(b"x" * (10 - written), written)
    assert file.pread(10, 0) == b"x" * 10


def test_a_short_read_is_no_end_of_file() -> None:
    file = storage_with(Fault(FaultAction.SHORT, kinds=OperationKind.READ, times=None)).open("file")
    assert len(file.pread(10, 0)) == 5
    assert len(file.pread(1, 0)) == 1


def test_a_torn_write_leaves_its_first_half() -> None:
    file = storage_with(Fault(FaultAction.TORN_ERROR, kinds=OperationKind.WRITE)).open("file")
    with pytest.raises(OSError):
        file.pwrite(b"x" * 10, 0)
    assert file.pread(10, 0) == b"x" * 5 + bytes(5)


def test_a_failed_sync_on_a_simulated_disk_loses_the_bytes() -> None:
    disk = SimulatedStorage()
    storage = FaultyStorage(disk, Fault.io_error(kinds=OperationKind.SYNC))
    file = storage.create("file")
    storage.sync_directory()
    file.pwrite(b"x" * 512, 0)
    with pytest.raises(OSError):
        file.sync()
    file.sync()
    # A later sync has not saved them.
    found = disk.crash(random.Random(1), Survival.NOTHING).open("file")
    assert found.pread(512, 0).strip(b"\0") == b""


def test_a_crash_ends_everything() -> None:
    storage = storage_with(Fault.crash(at=2))
    file = storage.open("file")
    for call in (file.sync, file.sync, storage.list):
        with pytest.raises(SimulatedCrash):
            call()
    file.close()


def test_operations_are_counted_and_traced() -> None:
    seen: list[Operation] = []
    storage = storage_with(tracing=True, watch=seen.append)
    storage.open("file").pwrite(b"xyz", 7)
    assert storage.operations == 2
    assert storage.trace == seen
    assert str(storage.trace[-1]) == "2: pwrite('file') 3 bytes at 7"


def test_the_count_is_right_with_many_threads() -> None:
    storage = storage_with()
    file = storage.open("file")
    threads = [threading.Thread(target=lambda: [file.size() for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.operations == 801


def test_a_fault_that_never_happens_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Fault.io_error(at=0)
    with pytest.raises(ConfigurationError):
        Fault.io_error(times=0)

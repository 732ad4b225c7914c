"""Files of the quarantine: what is written is read, damage is named, and a crash leaves one state or the other."""

from __future__ import annotations

import random
import threading
import uuid
from pathlib import Path

import pytest

from walsync.changes import TableName
from walsync.checkpoint.quarantine.record import QuarantinedEntry
from walsync.checkpoint.quarantine.store import QuarantineStore
from walsync.exceptions import (
    DamagedLogError,
    EntryNotFoundError,
    LogError,
    LogTimeoutError,
    LogVersionError,
    QuarantineFullError,
)
from walsync.testing import SimulatedCrash, SimulatedStorage
from walsync.wal import EntryId
from walsync.wal.storage.file import FileStorage
from walsync.wal.storage.protocol import Storage

LOG = uuid.UUID(int=7)
CHUNKS = [b"first chunk", b"", b"second" * 20]


def entry(entry_id: int, chunks: list[bytes] = CHUNKS) -> QuarantinedEntry:
    return QuarantinedEntry(
        entry_id=entry_id,
        kind="rejected",
        reason="UNIQUE constraint failed: ü",
        depends_on=(1, 2),
        tables=(TableName(None, "items"), TableName("sales", "orders")),
        commit_time_ns=1_700_000_000_123_456_789,
        origin="host/1/abc",
        quarantined_at=1_700_000_001.25,
        change_count=3,
        byte_length=sum(map(len, chunks)),
        chunk_count=len(chunks),
    )


def store_of(storage: Storage, *, max_entries: int = 100, max_bytes: int = 1_000_000) -> QuarantineStore:
    return QuarantineStore(storage, LOG, max_entries=max_entries, max_bytes=max_bytes)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


@pytest.fixture
def store(directory: Path) -> QuarantineStore:
    storage = FileStorage(directory)
    storage.prepare()
    return store_of(storage)


def test_what_is_put_in_is_read_again(store: QuarantineStore) -> None:
    store.add([(entry(42), CHUNKS), (entry(7, [b"x"]), [b"x"])])
    assert store.ids() == [7, 42]
    assert store.entry(EntryId(42)) == entry(42)
    assert list(store.chunks(EntryId(42))) == CHUNKS
    assert store.ids(discarded=True) == []


def test_a_directory_that_is_not_there_is_empty(tmp_path: Path) -> None:
    store = store_of(FileStorage(tmp_path / "none"))
    assert store.ids() == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(EntryNotFoundError, match="entry 3 is not in"):
        store.entry(EntryId(3))


def test_a_discarded_entry_is_kept_for_the_record(store: QuarantineStore) -> None:
    store.add([(entry(42), CHUNKS)])
    store.discard(EntryId(42))
    assert (store.ids(), store.ids(discarded=True)) == ([], [42])
    assert store.entry(EntryId(42), discarded=True).discarded
    assert list(store.chunks(EntryId(42), discarded=True)) == CHUNKS
    with pytest.raises(EntryNotFoundError):
        store.discard(EntryId(42))


def test_a_new_reason_replaces_the_file(store: QuarantineStore) -> None:
    store.add([(entry(42), CHUNKS)])
    store.change_reason(store.entry(EntryId(42)), "another")
    assert store.entry(EntryId(42)).reason == "another"
    assert list(store.chunks(EntryId(42))) == CHUNKS


def read(store: QuarantineStore) -> None:
    store.entry(EntryId(42))
    list(store.chunks(EntryId(42)))


def test_every_damaged_byte_is_noticed_and_named(store: QuarantineStore, directory: Path) -> None:
    store.add([(entry(42), CHUNKS)])
    [path] = directory.glob("*.entry")
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for change in (1, 0x80, 0xFF):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ change]) + whole[offset + 1 :])
            with pytest.raises(DamagedLogError, match=rf"{path.name}, offset \d+"):
                read(store)
    path.write_bytes(whole)
    read(store)


def test_every_cut_and_every_addition_is_noticed(store: QuarantineStore, directory: Path) -> None:
    store.add([(entry(42), CHUNKS)])
    [path] = directory.glob("*.entry")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedLogError, match=path.name):
            read(store)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedLogError, match="not as long"):
        read(store)


def test_a_length_that_cannot_be_asks_for_no_memory(store: QuarantineStore, directory: Path) -> None:
    store.add([(entry(42), CHUNKS)])
    [path] = directory.glob("*.entry")
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + b"\xff\xff\xff\x7f" + whole[16:])
    with pytest.raises(DamagedLogError, match="not possible"):
        store.entry(EntryId(42))


def test_a_file_of_another_version_or_log_or_entry_is_refused(store: QuarantineStore, directory: Path) -> None:
    import struct

    from crc32c import crc32c

    store.add([(entry(42), CHUNKS)])
    [path] = directory.glob("*.entry")
    whole = path.read_bytes()
    length = struct.unpack_from("<I", whole, 12)[0]
    head = struct.pack("<8sHHI", b"WALSYNCQ", 2, 0, length)
    crc = crc32c(whole[20 : 20 + length], crc32c(head))
    path.write_bytes(head + struct.pack("<I", crc) + whole[20:])
    with pytest.raises(LogVersionError, match="version 2"):
        store.entry(EntryId(42))
    path.write_bytes(whole)
    path.rename(directory / path.name.replace("42", "43"))
    with pytest.raises(DamagedLogError, match="holds entry 42"):
        store.entry(EntryId(43))
    other = QuarantineStore(FileStorage(directory), uuid.UUID(int=8), max_entries=9, max_bytes=9)
    (directory / path.name.replace("42", "43")).rename(path)
    with pytest.raises(DamagedLogError, match="is of log"):
        other.entry(EntryId(42))


def test_the_bounds_say_which_they_are(directory: Path) -> None:
    storage = FileStorage(directory)
    storage.prepare()
    store = store_of(storage, max_entries=2)
    store.add([(entry(1), CHUNKS)])
    store.check_room([entry(2)])
    with pytest.raises(QuarantineFullError, match=r"max_quarantine_entries is 2: entry 2 and everything after"):
        store.check_room([entry(2), entry(3)])
    size = next(directory.glob("*.entry")).stat().st_size
    store_of(storage, max_bytes=2 * size).check_room([entry(2)])
    with pytest.raises(QuarantineFullError, match="max_quarantine_bytes"):
        store_of(storage, max_bytes=2 * size - 1).check_room([entry(2)])


def test_the_lock_is_waited_for_and_no_longer(store: QuarantineStore, directory: Path) -> None:
    other = store_of(FileStorage(directory))
    with store.locked(0.0):
        with pytest.raises(LogTimeoutError, match="in use by another"), other.locked(0.05):
            pass
        with pytest.raises(LogTimeoutError), other.locked(3600.0, lambda: True):
            pass
        got = threading.Event()

        def wait() -> None:
            with other.locked(20.0):
                got.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
    waiting.join(20.0)
    assert got.is_set()


def test_a_disk_that_refuses_is_an_error_that_says_so(directory: Path) -> None:
    class Full(FileStorage):
        def create(self, name: str):  # type: ignore[no-untyped-def]
            raise OSError(28, "No space left on device")

    storage = Full(directory)
    storage.prepare()
    store = store_of(storage)
    with pytest.raises(LogError, match="cannot be written for entry 42.*No space left"):
        store.add([(entry(42), CHUNKS)])
    assert store.ids() == []


def test_a_sync_that_fails_leaves_nothing_that_is_believed(directory: Path) -> None:
    class Failing(FileStorage):
        def sync_directory(self, name: str = "") -> None:
            raise OSError(5, "Input/output error")

    storage = Failing(directory)
    FileStorage(directory).prepare()
    store = store_of(storage)
    with pytest.raises(LogError, match="Input/output error"):
        store.add([(entry(42), CHUNKS)])
    assert store.ids() == []


@pytest.mark.parametrize("step", ["add", "discard", "remove", "change_reason"])
def test_a_crash_at_any_operation_leaves_the_state_before_or_the_one_after(step: str) -> None:
    """On a disk that keeps only what was synced, and perhaps more. What has returned is there after the crash."""

    def change(store: QuarantineStore) -> None:
        if step == "add":
            store.check_room([entry(43)])
            store.add([(entry(43), CHUNKS)])
        elif step == "discard":
            store.discard(EntryId(42))
        elif step == "remove":
            store.remove(EntryId(42))
        else:
            store.change_reason(entry(42), "new")

    def state(store: QuarantineStore) -> tuple[object, ...]:
        for entry_id in store.ids():
            assert list(store.chunks(entry_id)) == CHUNKS
        reasons = [store.entry(entry_id).reason for entry_id in store.ids()]
        return store.ids(), store.ids(discarded=True), reasons

    def prepared() -> tuple[SimulatedStorage, QuarantineStore]:
        storage = SimulatedStorage()
        storage.prepare()
        store = store_of(storage)
        store.add([(entry(42), CHUNKS)])
        return storage, store

    storage, store = prepared()
    before = state(store)
    began = storage.changes
    change(store)
    after = state(store)
    steps = storage.changes - began
    assert before != after
    assert steps >= 2
    seen = set()
    for crash_at in range(1, steps + 2):
        for number in range(6):
            storage, store = prepared()
            storage.crash_at = storage.changes + crash_at
            finished = True
            try:
                change(store)
            except SimulatedCrash:
                finished = False
            rest = storage.crash(random.Random(number))
            found = store_of(rest)
            assert state(found) == after if finished else state(found) in (before, after)
            seen.add(str(state(found)))
            # And it can be done (again).
            if state(found) == before:
                change(found)
                assert state(found) == after
    assert len(seen) == 2

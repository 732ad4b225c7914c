"""What every storage must do: one suite, run against each."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.wal.faulty import FailingStorage, VolatileStorage
from walsync.wal import FileStorage, MemoryStorage, Storage

MAKERS: dict[str, Callable[[Path], Any]] = {
    "file": lambda path: FileStorage(path / "log"),
    "memory": lambda path: MemoryStorage(),
    "failing": lambda path: FailingStorage(),
    "volatile": lambda path: VolatileStorage(),
}


@pytest.fixture(params=sorted(MAKERS))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    made = MAKERS[request.param](tmp_path)
    made.prepare()
    return made  # type: ignore[no-any-return]


def test_a_new_storage_is_empty(storage: Storage) -> None:
    assert storage.list() == []


def test_a_created_file_is_empty_and_listed(storage: Storage) -> None:
    file = storage.create("one")
    assert file.size() == 0
    assert storage.list() == ["one"]
    file.close()


def test_creating_a_file_that_exists_fails(storage: Storage) -> None:
    storage.create("one").close()
    with pytest.raises(FileExistsError):
        storage.create("one")


def test_opening_a_file_that_does_not_exist_fails(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.open("none")
    with pytest.raises(FileNotFoundError):
        storage.open("none", read_only=True)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_was_written_is_read(storage: Storage, kind: Callable[[bytes], Any]) -> None:
    file = storage.create("one")
    assert file.pwrite(kind(b"hello"), 3) == 5
    assert file.pread(100, 0) == b"\0\0\0hello"
    assert file.pread(2, 4) == b"el"
    assert file.size() == 8
    file.close()


def test_reading_past_the_end_gives_nothing(storage: Storage) -> None:
    file = storage.create("one")
    file.pwrite(b"abc", 0)
    assert file.pread(10, 3) == b""
    assert file.pread(10, 1000) == b""
    file.close()


def test_overwriting_keeps_what_is_around(storage: Storage) -> None:
    file = storage.create("one")
    file.pwrite(b"aaaaaa", 0)
    file.pwrite(b"bb", 2)
    assert file.pread(10, 0) == b"aabbaa"
    file.close()


def test_all_handles_of_a_file_see_the_same_bytes(storage: Storage) -> None:
    writer = storage.create("one")
    reader = storage.open("one", read_only=True)
    writer.pwrite(b"seen", 0)
    assert reader.pread(10, 0) == b"seen"
    writer.close()
    reader.close()


def test_bytes_outlive_a_handle(storage: Storage) -> None:
    file = storage.create("one")
    file.pwrite(b"kept", 0)
    file.sync()
    file.close()
    file.close()
    again = storage.open("one")
    assert again.pread(10, 0) == b"kept"
    again.close()


def test_removing_a_file(storage: Storage) -> None:
    storage.create("one").close()
    storage.remove("one")
    storage.sync_directory()
    assert storage.list() == []
    with pytest.raises(FileNotFoundError):
        storage.remove("one")


def test_renaming_replaces(storage: Storage) -> None:
    for name in ("old", "new"):
        file = storage.create(name)
        file.pwrite(name.encode(), 0)
        file.close()
    storage.rename("old", "new")
    storage.sync_directory()
    assert storage.list() == ["new"]
    file = storage.open("new")
    assert file.pread(10, 0) == b"old"
    file.close()


def test_files_in_a_subdirectory_are_not_listed(storage: Storage) -> None:
    storage.create("one").close()
    storage.make_directory("aside")
    storage.make_directory("aside")
    storage.rename("one", "aside/one")
    storage.sync_directory("aside")
    storage.sync_directory()
    assert storage.list() == []
    storage.open("aside/one").close()


def test_a_lock_is_exclusive_until_it_is_released(storage: Storage) -> None:
    lock = storage.lock("lock", 0.0)
    assert lock is not None
    assert storage.lock("lock", 0.0) is None
    lock.release()
    again = storage.lock("lock", 0.0)
    assert again is not None
    again.release()


def test_a_file_is_described_by_its_name(storage: Storage) -> None:
    assert storage.describe("one").endswith("one")


@pytest.mark.parametrize("name", ["file", "memory"])
def test_truncating(name: str, tmp_path: Path) -> None:
    storage = MAKERS[name](tmp_path)
    storage.prepare()
    file = storage.create("one")
    file.pwrite(b"abcdef", 0)
    file.truncate(3)
    assert file.pread(10, 0) == b"abc"
    file.truncate(5)
    assert file.pread(10, 0) == b"abc\0\0"
    file.close()


@pytest.mark.parametrize("name", ["file", "memory"])
def test_a_closed_or_read_only_file_refuses(name: str, tmp_path: Path) -> None:
    storage = MAKERS[name](tmp_path)
    storage.prepare()
    file = storage.create("one")
    reader = storage.open("one", read_only=True)
    with pytest.raises(OSError) as caught:
        reader.pwrite(b"x", 0)
    assert caught.value.errno == errno.EBADF
    file.close()
    for call in (lambda: file.pread(1, 0), lambda: file.pwrite(b"x", 0), file.sync):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF
    reader.close()

"""What is synced next is written in a way of its own: the disk begins with it before it is waited for."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.wal.logs import all_of, open_log
from walsync.wal import EntryId, FileStorage, WriteAheadLog
from walsync.wal.storage import file as file_module
from walsync.wal.storage.file import OpenFile

Seen = list[str]

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told")


class Spied:
    """Notes what is done to a file."""

    def __init__(self, file: OpenFile, seen: Seen) -> None:
        self._file = file
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def pwrite(self, data: Any, offset: int) -> int:
        self._seen.append("write")
        return self._file.pwrite(data, offset)

    def pwrite_to_sync(self, data: Any, offset: int) -> int:
        self._seen.append("write to sync")
        return self._file.pwrite_to_sync(data, offset)

    def sync(self) -> None:
        self._seen.append("sync")
        self._file.sync()


class SpiedStorage(FileStorage):
    def __init__(self, directory: Path, *, shared: bool) -> None:
        super().__init__(directory)
        self.seen: Seen = []
        self._shared = shared

    def open(self, name: str, *, read_only: bool = False) -> Any:
        file = super().open(name, read_only=read_only)
        return Spied(file, self.seen) if name.startswith("segment-") else file

    def share(self) -> Any:
        return super().share() if self._shared else None


@pytest.fixture(params=["alone", "shared", "kept"])
def spied(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    storage = SpiedStorage(tmp_path / "log", shared=request.param != "alone")
    with open_log(storage, keep_s=1000.0 if request.param == "kept" else 0.0) as log:
        for number in range(100):
            log.append(b"%d" % number)
        if request.param == "kept":
            if not log._commits._keeping._bells.wakes:
                pytest.skip("nothing is kept where a process cannot wake another one: futexes, on a 64-bit Linux")
            assert log._commits._keeping.is_on
        storage.seen.clear()
        yield log, storage.seen


def test_an_entry_that_is_synced(spied: tuple[WriteAheadLog, Seen]) -> None:
    log, seen = spied
    for size in (5, 300):
        log.append(bytes(size))
    assert seen == ["write to sync", "sync"] * 2


def test_an_entry_that_is_not_synced(spied: tuple[WriteAheadLog, Seen]) -> None:
    log, seen = spied
    log.begin_entry(durability="interval").commit()
    log.append(b"later", durability="interval")
    assert seen == ["write", "write"]


def test_entries_of_many_threads(spied: tuple[WriteAheadLog, Seen]) -> None:
    log, seen = spied
    threads = [threading.Thread(target=lambda: [log.append(b"x" * 50) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {"write to sync", "sync"}


@ON_LINUX
@pytest.mark.parametrize(
    ("offset", "length", "told"),
    [
        (0, 4095, True),
        (0, 4096, False),
        (1, 4095, True),
        (1, 8190, True),
        (1, 8191, False),
        (4095, 4096, True),
        (4095, 4097, False),
        (8192, 336, True),
    ],
)
def test_nothing_is_said_of_bytes_that_fill_a_page(
    offset: int, length: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux would drop the page from memory, if it is clean by then."""
    calls = []
    monkeypatch.setattr(file_module, "_advise", lambda *arguments: calls.append(arguments))
    file = FileStorage(tmp_path).create("file")
    data = os.urandom(length)
    assert file.pwrite_to_sync(data, offset) == length
    assert file.pread(length, offset) == data
    assert calls == ([(file.descriptor, offset, length, os.POSIX_FADV_DONTNEED)] if told else [])
    # How Linux counts: whole pages between the first and the last byte.
    whole = (offset + length) // 4096 - -(-offset // 4096)
    assert told == (whole < 1)
    file.close()


@ON_LINUX
def test_a_write_that_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(file_module, "_advise", lambda *arguments: calls.append(arguments))
    file = FileStorage(tmp_path).create("file")
    file.pwrite = lambda data, offset: os.pwrite(file.descriptor, data[:10], offset)
    assert file.pwrite_to_sync(bytes(100), 7) == 10
    assert [call[1:3] for call in calls] == [(7, 10)]
    file.close()


def test_a_hint_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(22, "not for this kind of file")

    monkeypatch.setattr(file_module, "_advise", refuse)
    with open_log(FileStorage(tmp_path / "log")) as log:
        log.append(b"one")
        assert all_of(log) == {1: [b"one"]}


def test_a_system_without_it_commits_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "_advise", None)
    with open_log(FileStorage(tmp_path / "log")) as log:
        assert log.append(b"one") == EntryId(1)


def test_what_is_durable_is_not_told_before_the_sync_is_over(spied: tuple[WriteAheadLog, Seen]) -> None:
    """The record that tells it is written before, and made valid after."""
    log, _ = spied
    told = []
    file = log._appender.file
    original = file.sync

    def sync() -> None:
        told.append(int(log.durable_id))
        original()

    file.sync = sync
    entry_id = log.append(b"one")
    assert told == [entry_id - 1]
    assert log.durable_id == entry_id

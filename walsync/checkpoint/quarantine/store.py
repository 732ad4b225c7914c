"""The directory ``quarantine`` of a log directory: which entries are in it, and every change to its files.

::

    00000000000000000042.entry        entry 42 is in the quarantine
    00000000000000000017.discarded    entry 17 was discarded; kept for the record, never removed by walsync
    00000000000000000043.new          a file that is being written, or that a killed process has left
    lock                              the lock that every change is made under

A file comes into being under another name, is synced, gets its name, and the directory is synced; it is discarded by a
rename. So each entry is in one state at every moment, and a crash leaves the one before a step or the one after it.
The format of a file is in `walsync.checkpoint.quarantine.record`.

Invariants: files are changed only by whoever holds the lock; this module never decides whether an entry may be applied,
and knows nothing of the target.

What the system refuses is a `LogError` that says so; nothing has changed then, or the change is done and may be
repeated.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from walsync.checkpoint.quarantine.record import (
    QuarantinedEntry,
    Record,
    entry_id_of,
    read_chunks,
    read_record,
    record_size,
    with_reason,
    write_record,
)
from walsync.exceptions import DamagedLogError, EntryNotFoundError, LogError, LogTimeoutError, QuarantineFullError
from walsync.wal import EntryId
from walsync.wal.storage.file import FileStorage
from walsync.wal.storage.protocol import Storage

__all__ = ["DIRECTORY", "QuarantineStore", "copy_files"]

DIRECTORY: Final = "quarantine"

_ENTRY: Final = ".entry"
_DISCARDED: Final = ".discarded"
_NEW: Final = ".new"
_LOCK: Final = "lock"
_LOCK_SLICE_S: Final = 0.1
"""While waiting for the lock, orders are looked at this often."""
_SETTLED_NS: Final = 2_000_000_000
"""A directory's time of change has a coarse clock: until it is this old, a further change may not show in it."""


def _never() -> bool:
    return False


class QuarantineStore:
    """The files of one log's quarantine. Usable from several threads and processes: see `locked`."""

    def __init__(self, storage: Storage, log_uuid: uuid.UUID, *, max_entries: int, max_bytes: int) -> None:
        self._storage = storage
        self._log_uuid = log_uuid
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._sizes: dict[EntryId, int] = {}

    @classmethod
    def of_log(
        cls, directory: str | os.PathLike[str], log_uuid: uuid.UUID, *, max_entries: int, max_bytes: int
    ) -> QuarantineStore:
        """The quarantine inside of a log directory. Makes nothing."""
        # That the file system can keep promises was found out when the log was opened.
        storage = FileStorage(Path(directory) / DIRECTORY, network_file_systems=True)
        return cls(storage, log_uuid, max_entries=max_entries, max_bytes=max_bytes)

    @property
    def where(self) -> str:
        """The directory, for messages."""
        return self._storage.directory or "the quarantine"

    # ----------------------------------------------------------------------------------------------- reading

    def ids(self, *, discarded: bool = False) -> list[EntryId]:
        """The entries that are in the quarantine, in order; or those that were discarded."""
        suffix = _DISCARDED if discarded else _ENTRY
        with self._explained("read"):
            names = self._storage.list()
        return sorted(found for name in names if (found := entry_id_of(name, suffix)) is not None)

    def version(self) -> int | None:
        """A number that changes when files come or go; None when that cannot be told, as right after a change."""
        directory = self._storage.directory
        if directory is None:
            return None
        try:
            changed_ns = os.stat(directory).st_mtime_ns
        except OSError:
            return None
        return changed_ns if time.time_ns() - changed_ns > _SETTLED_NS else None

    def entry(self, entry_id: EntryId, *, discarded: bool = False) -> QuarantinedEntry:
        """What is known of an entry. Raises `EntryNotFoundError`, `DamagedLogError`, `LogVersionError`."""
        return self._read(entry_id, discarded).entry

    def _read(self, entry_id: EntryId, discarded: bool) -> Record:
        name = _name(entry_id, _DISCARDED if discarded else _ENTRY)
        with self._explained("read", entry_id):
            record = read_record(self._storage, name)
        if record.log_uuid != self._log_uuid:
            raise DamagedLogError(
                f"{self._storage.describe(name)} is of log {record.log_uuid}, and this is log {self._log_uuid}: the "
                "file was put into the wrong directory. Move it to where it belongs"
            )
        return record._replace(entry=record.entry if not discarded else _discarded(record.entry))

    def chunks(self, entry_id: EntryId, *, discarded: bool = False) -> Iterator[bytes]:
        """The chunks of an entry, one in memory at a time. Raises as `entry`."""
        self._read(entry_id, discarded)
        name = _name(entry_id, _DISCARDED if discarded else _ENTRY)
        chunks = read_chunks(self._storage, name)
        while True:
            with self._explained("read", entry_id):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    # ------------------------------------------------------------------------------------- changing, locked

    @contextlib.contextmanager
    def locked(self, timeout_s: float, interrupted: Callable[[], bool] = _never) -> Iterator[None]:
        """Hold the lock. Makes the directory if it is not there.

        Raises `LogTimeoutError` after `timeout_s` seconds, or as soon as `interrupted` says so.
        """
        deadline = time.monotonic() + timeout_s
        with self._explained("locked"):
            self._storage.prepare()
            lock = self._storage.lock(_LOCK, 0.0)
            while lock is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or interrupted():
                    raise LogTimeoutError(
                        f"{self.where} is in use by another process or thread since {timeout_s:g} s "
                        "(CheckpointConfig.quarantine_timeout_s); nothing was changed. It is given back by itself when "
                        "that is done"
                    )
                lock = self._storage.lock(_LOCK, min(_LOCK_SLICE_S, left_s))
        try:
            yield
        finally:
            lock.release()

    def check_room(self, entries: Iterable[QuarantinedEntry]) -> None:
        """Raises `QuarantineFullError` if these do not fit into the bounds any more."""
        new = list(entries)
        with self._explained("read"):
            names = self._storage.list()
            for left in names:
                if left.endswith(_NEW):
                    # Whoever wrote it held the lock, which we hold, so it is dead.
                    self._storage.remove(left)
        found = {entry_id for name in names if (entry_id := entry_id_of(name, _ENTRY)) is not None}
        if len(found) + len(new) > self._max_entries:
            raise self._full(f"holds {len(found)} entries", "max_quarantine_entries", self._max_entries, new)
        size = self._size(found) + sum(record_size(entry, self._log_uuid) for entry in new)
        if size > self._max_bytes:
            raise self._full(f"would take {size} bytes", "max_quarantine_bytes", self._max_bytes, new)

    def _full(self, what: str, bound: str, value: int, new: list[QuarantinedEntry]) -> QuarantineFullError:
        return QuarantineFullError(
            f"{self.where} {what}, and CheckpointConfig.{bound} is {value}: entry {new[0].entry_id} and everything "
            "after it are kept in the log. Look at what is there with `walsync quarantine list`, mend the cause, "
            "retry or discard it, and call resume(); or raise the bound"
        )

    def _size(self, entry_ids: set[EntryId]) -> int:
        """Their bytes on the disk. A file hardly changes its size, so each is looked at once."""
        sizes = self._sizes = {entry_id: size for entry_id, size in self._sizes.items() if entry_id in entry_ids}
        with self._explained("read"):
            for entry_id in entry_ids - sizes.keys():
                file = self._storage.open(_name(entry_id, _ENTRY), read_only=True)
                try:
                    sizes[entry_id] = file.size()
                finally:
                    file.close()
        return sum(sizes.values())

    def add(self, entries: Iterable[tuple[QuarantinedEntry, Iterable[bytes]]], *, discarded: bool = False) -> None:
        """Put entries into the quarantine, or among the discarded, and return when they are durable there.

        Each with its chunks. Raises `LogError` where the system refuses; they are taken out again as far as possible.
        """
        names = []
        try:
            for entry, chunks in entries:
                name = _name(EntryId(entry.entry_id), _DISCARDED if discarded else _ENTRY)
                self._write(entry, chunks, name)
                names.append(name)
            self.confirm()
        except LogError:
            # A sync that failed is not believed the next time: the files are written anew then.
            for name in names:
                with contextlib.suppress(OSError):
                    self._storage.remove(name)
            raise

    def change_reason(self, entry: QuarantinedEntry, reason: str) -> None:
        """The entry was refused again."""
        entry_id = EntryId(entry.entry_id)
        self._write(with_reason(entry, reason), self.chunks(entry_id), _name(entry_id, _ENTRY))
        self.confirm()

    def _write(self, entry: QuarantinedEntry, chunks: Iterable[bytes], name: str) -> None:
        new = _name(EntryId(entry.entry_id), _NEW)
        with self._explained("written", EntryId(entry.entry_id)):
            with contextlib.suppress(FileNotFoundError):
                # Left by a writer that was killed: nobody else writes while we hold the lock.
                self._storage.remove(new)
            write_record(self._storage, new, entry, self._log_uuid, chunks)
            self._storage.rename(new, name)

    def confirm(self) -> None:
        """Return when the names of the files are on stable storage."""
        with self._explained("written"):
            self._storage.sync_directory()

    def remove(self, entry_id: EntryId) -> None:
        """The entry is in the target: forget it, durably."""
        with self._explained("changed", entry_id):
            self._storage.remove(_name(entry_id, _ENTRY))
            self._storage.sync_directory()

    def discard(self, entry_id: EntryId) -> None:
        """Move the entry among the discarded, durably. The file need not be readable."""
        with self._explained("changed", entry_id):
            self._storage.rename(_name(entry_id, _ENTRY), _name(entry_id, _DISCARDED))
            self._storage.sync_directory()

    @contextlib.contextmanager
    def _explained(self, what: str, entry_id: EntryId | None = None) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if entry_id is None or what == "written":
                raise LogError(f"{self.where} cannot be {what}: {error}") from error
            raise EntryNotFoundError(
                f"entry {entry_id} is not in {self.where}; see `walsync quarantine list` for what is"
            ) from error
        except OSError as error:
            # LogTimeoutError is one as well, and says itself what it has to say.
            if isinstance(error, LogError):
                raise
            which = "" if entry_id is None else f" for entry {entry_id}"
            raise LogError(
                f"{self.where} cannot be {what}{which}: {error}. Look at the disk and at the permissions of the "
                "directory; nothing is lost"
            ) from error


def _name(entry_id: EntryId, suffix: str) -> str:
    return f"{entry_id:020d}{suffix}"


def _discarded(entry: QuarantinedEntry) -> QuarantinedEntry:
    return replace(entry, discarded=True)


def copy_files(directory: str | os.PathLike[str], new_directory: str | os.PathLike[str]) -> int:
    """Copy the quarantine of a log directory into another one, byte by byte, durably. How many files that were.

    Whole or damaged: what a file holds is for its reader to judge. Raises `LogError`.
    """
    source = FileStorage(Path(directory) / DIRECTORY, network_file_systems=True)
    aim = FileStorage(Path(new_directory) / DIRECTORY, network_file_systems=True)
    names = [name for name in source.list() if name.endswith((_ENTRY, _DISCARDED))]
    try:
        if names:
            aim.prepare()
        for name in names:
            shutil.copyfile(source.describe(name), aim.describe(name))
            file = aim.open(name)
            try:
                file.sync()
            finally:
                file.close()
        if names:
            aim.sync_directory()
    except OSError as error:
        raise LogError(
            f"the quarantine {source.directory} could not be copied to {aim.directory}: {error}. Copy the directory by "
            "other means before the new log is used: the entries in it are nowhere else"
        ) from error
    return len(names)

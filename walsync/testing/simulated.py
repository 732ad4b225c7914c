"""`SimulatedStorage`: a disk in memory that can lose power.

    source = random.Random(seed)
    storage = SimulatedStorage()
    storage.crash_at = 100                  # at the 100th operation that changes the disk
    try:
        log = WriteAheadLog.recover(storage)
        ...
    except SimulatedCrash:
        pass
    storage = storage.crash(source)         # what the next start finds

Owns what is durable: of bytes what `sync` covered, of names what `sync_directory` covered. The rest is at the mercy
of the random source. Nothing here depends on time, threads or the hash seed: one seed, one outcome.

When a storage has crashed, every operation of it and of its files raises `SimulatedCrash`, except closing and
releasing: what still holds on to it belongs to a process that is no more.
"""

from __future__ import annotations

import errno
import os
import random
import threading

from walsync.testing.contents import Contents
from walsync.testing.names import Names, directory_of
from walsync.testing.operations import SimulatedCrash
from walsync.testing.survival import Choice, Survival, surviving_data
from walsync.wal.storage.memory import MemoryLock

__all__ = ["SimulatedFile", "SimulatedStorage"]


def _error(code: int, name: str) -> OSError:
    return OSError(code, os.strerror(code), name)


class SimulatedFile:
    """A handle on a file of a `SimulatedStorage`. All handles of a file share its bytes."""

    __slots__ = ("_closed", "_contents", "_read_only", "_storage", "name")

    def __init__(self, storage: SimulatedStorage, name: str, contents: Contents, *, read_only: bool) -> None:
        self.name = name
        self._storage = storage
        self._contents = contents
        self._read_only = read_only
        self._closed = False

    def _check(self, *, writes: bool = False) -> None:
        if self._storage.crashed:
            raise SimulatedCrash
        if self._closed or (writes and self._read_only):
            raise _error(errno.EBADF, self.name)

    def pread(self, length: int, offset: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only at the end of the file."""
        self._check()
        with self._storage.mutex:
            return bytes(self._contents.data[offset : offset + length])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write all of `data` at `offset`; a hole becomes zeros. A crash in here may leave any part of it."""
        copy = bytes(data)
        storage = self._storage
        with storage.mutex:
            self._check(writes=True)
            if copy:
                self._contents.write(storage.next_sequence(), copy, offset)
            storage.step()
        return len(copy)

    def sync(self) -> None:
        """What was written to the file is on the disk."""
        storage = self._storage
        with storage.mutex:
            self._check()
            storage.step()
            self._contents.sync()

    def fail_sync(self) -> None:
        """A sync that fails: what it was to write may be lost, and no later sync of the file writes it either."""
        storage = self._storage
        with storage.mutex:
            self._check()
            self._contents.fail_sync()

    def size(self) -> int:
        """The file's length in bytes."""
        self._check()
        return len(self._contents.data)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        storage = self._storage
        with storage.mutex:
            self._check(writes=True)
            self._contents.resize(storage.next_sequence(), size)
            storage.step()

    def close(self) -> None:
        """Give the handle back; nothing is synced by that."""
        self._closed = True


class SimulatedStorage:
    """A directory in memory of which a crash leaves what a disk would, or less. Usable from many threads at once."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        """Guards everything below, and the contents of the files. Nothing else is taken under it."""
        self._names = Names()
        self._held: set[str] = set()
        self._sequence = 0
        self.crashed = False
        """The process, or the machine, has ended: nothing can be done here any more."""
        self.changes = 0
        """How many operations have changed the disk, or what a crash leaves of it, so far."""
        self.crash_at: int | None = None
        """The process ends in the operation that makes `changes` reach this: a write or a change of names may then be
        done or not, a sync is not."""

    # ------------------------------------------------------------------------------------------------- the end

    def next_sequence(self) -> int:
        """A number for a change, under `mutex`."""
        self._sequence += 1
        return self._sequence

    def step(self) -> None:
        """Count an operation, and crash in it if it is the one. Under `mutex`."""
        self.changes += 1
        if self.changes == self.crash_at:
            self.crashed = True
            raise SimulatedCrash(f"operation {self.changes}")

    def crash(self, source: random.Random, survival: Survival | None = None) -> SimulatedStorage:
        """The machine loses power; returns the disk that the next start finds. By default `survival` is drawn too."""
        with self.mutex:
            self.crashed = True
            choice = Choice(survival or source.choice(list(Survival)), source, self._sequence)
            found = SimulatedStorage()
            found._names = self._names.surviving(choice.keeps)
            copies: dict[int, Contents] = {}
            for name in sorted(found._names.files):
                contents = found._names.files[name]
                # Two names may have one file: a rename's old name survived beside the new one.
                if id(contents) not in copies:
                    copies[id(contents)] = Contents(surviving_data(contents, choice))
                found._names.files[name] = copies[id(contents)]
            found._names = Names(found._names.files, frozenset(found._names.subdirectories))
        return found

    def kill(self) -> SimulatedStorage:
        """The process ends and the machine goes on: nothing is lost, and nothing is more durable than it was."""
        with self.mutex:
            self.crashed = True
            found = SimulatedStorage()
            found._names = self._names
            found._sequence = self._sequence
        return found

    # ----------------------------------------------------------------------------------------------- the protocol

    def _check(self) -> None:
        if self.crashed:
            raise SimulatedCrash

    @property
    def directory(self) -> None:
        """None: it has no path."""
        return

    def describe(self, name: str) -> str:
        """How error messages call the file."""
        return f"<simulated>/{name}"

    def prepare(self) -> None:
        """Nothing to prepare."""
        self._check()

    def list(self) -> list[str]:
        """The names of the files, without those in subdirectories."""
        with self.mutex:
            self._check()
            return [name for name in self._names.files if "/" not in name]

    def create(self, name: str) -> SimulatedFile:
        """Make a new, empty file."""
        with self.mutex:
            self._check()
            if name in self._names.files:
                raise _error(errno.EEXIST, name)
            self._require_directory(name)
            contents = Contents()
            self._names.add(self.next_sequence(), name, contents)
            self.step()
        return SimulatedFile(self, name, contents, read_only=False)

    def open(self, name: str, *, read_only: bool = False) -> SimulatedFile:
        """Open a file that exists."""
        with self.mutex:
            self._check()
            contents = self._names.files.get(name)
        if contents is None:
            raise _error(errno.ENOENT, name)
        return SimulatedFile(self, name, contents, read_only=read_only)

    def remove(self, name: str) -> None:
        """Remove a file; open handles keep its bytes."""
        with self.mutex:
            self._check()
            if name not in self._names.files:
                raise _error(errno.ENOENT, name)
            self._names.remove(self.next_sequence(), name)
            self.step()

    def rename(self, old: str, new: str) -> None:
        """Rename a file, replacing what is there."""
        with self.mutex:
            self._check()
            if old not in self._names.files:
                raise _error(errno.ENOENT, old)
            self._require_directory(new)
            self._names.rename(self.next_sequence(), old, new)
            self.step()

    def make_directory(self, name: str) -> None:
        """Make a subdirectory if it is not there."""
        with self.mutex:
            self._check()
            if not self._names.exists(name):
                self._names.make_directory(self.next_sequence(), name)
            self.step()

    def sync_directory(self, name: str = "") -> None:
        """The names in the directory, or in a subdirectory of it, are on the disk."""
        with self.mutex:
            self._check()
            if not self._names.exists(name):
                raise _error(errno.ENOENT, name)
            self.step()
            self._names.sync(name)

    def lock(self, name: str, timeout_s: float) -> MemoryLock | None:
        """Take the lock; nobody who could release it is waited for."""
        with self.mutex:
            self._check()
            if name in self._held:
                return None
            self._held.add(name)
        return MemoryLock(self._held, name)

    def share(self) -> None:
        """None: one process at a time."""
        return

    def _require_directory(self, name: str) -> None:
        if not self._names.exists(directory_of(name)):
            raise _error(errno.ENOENT, name)

    # ------------------------------------------------------------------------------------------------- for tests

    def damage(self, name: str, offset: int, data: bytes) -> None:
        """Put `data` into a file behind the back of whoever uses it, durably: a fault of the disk."""
        with self.mutex:
            contents = self._names.files[name]
            contents.data[offset : offset + len(data)] = data

    def copy(self) -> SimulatedStorage:
        """Another disk with the same bytes and names, all durable."""
        with self.mutex:
            found = SimulatedStorage()
            files = {name: Contents(contents.data) for name, contents in self._names.files.items()}
            found._names = Names(files, frozenset(self._names.subdirectories))
        return found

"""`FaultyStorage`: any storage, with a plan of what goes wrong; it also counts and traces what it is asked to do.

    storage = FaultyStorage(MemoryStorage(), Fault.io_error(kinds=OperationKind.SYNC, at=3))
    log = WriteAheadLog.recover(storage)

Owns the count and the trace. Never keeps a byte: all of that is the inner storage's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from walsync.testing.faults import Fault, FaultAction
from walsync.testing.operations import Operation, OperationKind, SimulatedCrash
from walsync.wal.storage.protocol import Storage, StorageFile, StorageLock, StorageShare

__all__ = ["FaultyFile", "FaultyStorage"]


class FaultyStorage:
    """A storage in which operations fail. Usable from many threads at once, as far as the inner one is."""

    def __init__(
        self,
        inner: Storage,
        *faults: Fault,
        tracing: bool = False,
        watch: Callable[[Operation], None] | None = None,
    ) -> None:
        self.inner = inner
        self.faults = list(faults)
        """May be changed at any time: `clear()` it, and the disk is well again."""
        self.tracing = tracing
        self.trace: list[Operation] = []
        """The operations so far, if `tracing`."""
        self.failed: list[Operation] = []
        """The operations that a fault has changed."""
        self.watch = watch
        """Called before each operation; what it raises is raised there."""
        self.operations = 0
        """How many operations there were."""
        self.crashed = False
        # Guards the count, the trace, and the faults' counts.
        self._mutex = threading.Lock()

    def begin(self, kind: OperationKind, name: str, offset: int = 0, length: int = 0) -> Fault | None:
        """Count an operation; raises if it is to fail, and returns a fault that changes what it does."""
        with self._mutex:
            if self.crashed:
                raise SimulatedCrash
            self.operations += 1
            operation = Operation(self.operations, kind, name, offset, length)
            if self.tracing:
                self.trace.append(operation)
            # Every fault counts, also when an earlier one strikes.
            striking = [fault for fault in self.faults if fault.strikes(operation)]
            if striking:
                self.failed.append(operation)
                if striking[0].action is FaultAction.CRASH:
                    self.crashed = True
        if self.watch is not None:
            self.watch(operation)
        if not striking:
            return None
        fault = striking[0]
        if fault.action is FaultAction.CRASH:
            raise SimulatedCrash(str(operation))
        if fault.action is FaultAction.SHORT or kind in (OperationKind.SYNC, OperationKind.WRITE):
            return fault
        raise _error(fault.error, self.inner.describe(name))

    # ----------------------------------------------------------------------------------------------- the protocol

    @property
    def directory(self) -> str | None:
        """The inner storage's."""
        return self.inner.directory

    def describe(self, name: str) -> str:
        """The inner storage's."""
        return self.inner.describe(name)

    def prepare(self) -> None:
        """Make the directory."""
        self.begin(OperationKind.PREPARE, "")
        self.inner.prepare()

    def list(self) -> list[str]:
        """The names of the files."""
        self.begin(OperationKind.LIST, "")
        return self.inner.list()

    def create(self, name: str) -> FaultyFile:
        """Make a new, empty file."""
        self.begin(OperationKind.CREATE, name)
        return FaultyFile(self, name, self.inner.create(name))

    def open(self, name: str, *, read_only: bool = False) -> FaultyFile:
        """Open a file that exists."""
        self.begin(OperationKind.OPEN, name)
        return FaultyFile(self, name, self.inner.open(name, read_only=read_only))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.begin(OperationKind.REMOVE, name)
        self.inner.remove(name)

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        self.begin(OperationKind.RENAME, old)
        self.inner.rename(old, new)

    def make_directory(self, name: str) -> None:
        """Make a subdirectory."""
        self.begin(OperationKind.MAKE_DIRECTORY, name)
        self.inner.make_directory(name)

    def sync_directory(self, name: str = "") -> None:
        """Sync the names."""
        self.begin(OperationKind.SYNC_DIRECTORY, name)
        self.inner.sync_directory(name)

    def lock(self, name: str, timeout_s: float) -> StorageLock | None:
        """Take the lock."""
        self.begin(OperationKind.LOCK, name)
        return self.inner.lock(name, timeout_s)

    def share(self) -> StorageShare | None:
        """The inner storage's. What is done with it is not counted, and does not fail."""
        return self.inner.share()


class FaultyFile:
    """A file of a `FaultyStorage`. `close` never fails, so that nothing stays open behind a test."""

    __slots__ = ("_inner", "_storage", "name")

    def __init__(self, storage: FaultyStorage, name: str, inner: StorageFile) -> None:
        self.name = name
        self._storage = storage
        self._inner = inner

    def pread(self, length: int, offset: int) -> bytes:
        """Read, perhaps less."""
        fault = self._storage.begin(OperationKind.READ, self.name, offset, length)
        if fault is not None:
            # At least one byte, or it would mean that the file ends here.
            length = max(1, length // 2)
        return self._inner.pread(length, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write, perhaps less."""
        length = len(data)
        fault = self._storage.begin(OperationKind.WRITE, self.name, offset, length)
        if fault is None:
            return self._inner.pwrite(data, offset)
        if fault.action is FaultAction.SHORT:
            return self._inner.pwrite(memoryview(data)[: max(1, length // 2)], offset)
        if fault.action is FaultAction.TORN_ERROR and length > 1:
            self._inner.pwrite(memoryview(data)[: length // 2], offset)
        raise _error(fault.error, self._storage.inner.describe(self.name))

    def sync(self) -> None:
        """Sync, or lose what was to be synced."""
        fault = self._storage.begin(OperationKind.SYNC, self.name)
        if fault is None or fault.action is FaultAction.SHORT:
            self._inner.sync()
            return
        # Of a simulated disk the bytes are lost for later syncs too, as the system's are.
        fail_sync = getattr(self._inner, "fail_sync", None)
        if fail_sync is not None:
            fail_sync()
        raise _error(fault.error, self._storage.inner.describe(self.name))

    def size(self) -> int:
        """The file's length in bytes."""
        self._storage.begin(OperationKind.SIZE, self.name)
        return self._inner.size()

    def truncate(self, size: int) -> None:
        """Change the file's length."""
        self._storage.begin(OperationKind.TRUNCATE, self.name, 0, size)
        self._inner.truncate(size)

    def close(self) -> None:
        """Give the file back."""
        self._inner.close()


def _error(code: int, name: str) -> OSError:
    return OSError(code, os.strerror(code), name)

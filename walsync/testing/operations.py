"""The words of the storages for tests: what a storage is asked to do, and the end of a simulated process.

Never does anything.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["CHANGES", "Operation", "OperationKind", "SimulatedCrash"]


class OperationKind(enum.Enum):
    """What a storage, or a file of it, is asked to do."""

    PREPARE = "prepare"
    LIST = "list"
    CREATE = "create"
    OPEN = "open"
    REMOVE = "remove"
    RENAME = "rename"
    MAKE_DIRECTORY = "make_directory"
    SYNC_DIRECTORY = "sync_directory"
    LOCK = "lock"
    READ = "pread"
    WRITE = "pwrite"
    SYNC = "sync"
    SIZE = "size"
    TRUNCATE = "truncate"


CHANGES = frozenset(
    {
        OperationKind.CREATE,
        OperationKind.REMOVE,
        OperationKind.RENAME,
        OperationKind.MAKE_DIRECTORY,
        OperationKind.SYNC_DIRECTORY,
        OperationKind.WRITE,
        OperationKind.SYNC,
        OperationKind.TRUNCATE,
    }
)
"""What changes the disk, or what a crash leaves of it. A crash before any other operation is a crash before the next of
these."""


class Operation(NamedTuple):
    """One operation, as a trace shows it. `offset` and `length` are 0 where they have no meaning."""

    number: int
    """From 1, in the order of the calls."""

    kind: OperationKind
    name: str
    """The file, or the directory ("" is the storage's own)."""

    offset: int
    """Where in the file, in bytes."""

    length: int
    """How many bytes; of `truncate` the new size."""

    def __str__(self) -> str:
        where = f" {self.length} bytes at {self.offset}" if self.length or self.offset else ""
        return f"{self.number}: {self.kind.value}({self.name!r}){where}"


class SimulatedCrash(BaseException):
    """The process, or the whole machine, ends here. No handler for errors may catch it, hence a `BaseException`."""

"""What the log needs of a place that keeps files. `FileStorage` and `MemoryStorage` are the two that walsync has.

Owns the protocol alone. What every storage must promise is in the contract suite, `tests/contract/test_storage.py`.

A storage is one directory of named files. A name may begin with one subdirectory, `abandoned/x`. What `sync` and
`sync_directory` have not covered may be gone after a crash, in whole or in part, a file's bytes and its name
separately.
Errors of the system are `OSError`s with their `errno`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["SharedBells", "SharedLock", "SharedWords", "Storage", "StorageFile", "StorageLock", "StorageShare"]


class StorageFile(Protocol):
    """An open file. Usable from many threads at once; `close` may be called twice.

    It may have ``pwrite_to_sync(data, offset)`` as well, which is called in place of `pwrite` where `sync` comes next:
    a storage that gains by it begins to put the bytes on stable storage, and does not wait.
    """

    def pread(self, length: int, offset: int, /) -> bytes:
        """At most `length` bytes from `offset`; fewer only at the end of the file, or when a read is cut short."""

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, /) -> int:
        """Write `data` at `offset` and return how many bytes were written: it may be fewer."""

    def sync(self) -> None:
        """Return once everything written to this file is on stable storage."""

    def size(self) -> int:
        """The file's length in bytes."""

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""

    def close(self) -> None:
        """Give the file back."""


class StorageLock(Protocol):
    """A lock that is held until it is released, or its process ends."""

    def release(self) -> None:
        """Let others have it. May be called twice."""

    def forget_in_child(self) -> None:
        """Called in a forked child: give up this process's copy while the parent goes on holding the lock."""


class SharedWords(Protocol):
    """Words of 64 bits that several processes see. Each is read and written whole; `words[a:b].tolist()` reads many."""

    def __getitem__(self, index: Any, /) -> Any: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...

    def __len__(self) -> int: ...


class SharedLock(Protocol):
    """A lock that processes compete for. What is held is given up when the process ends, however it ends."""

    @property
    def try_exclusive(self) -> Callable[[], None]:
        """Takes all of it, at once; `BlockingIOError` if others have any of it."""

    @property
    def unlock(self) -> Callable[[], None]:
        """Gives up what is held, if anything is."""

    def try_shared(self) -> bool:
        """Have a share of it, in the place of what is held; False if somebody has all of it."""

    def reopen(self) -> None:
        """In a forked child: hold nothing, without taking anything from the parent."""

    def close(self) -> None:
        """Give up what is held, for good. May be called twice."""


class SharedBells(Protocol):
    """Wakes processes that wait for a word that they share. One may miss it: who waits looks again after a while."""

    @property
    def wakes(self) -> bool:
        """Whether who waits is woken at all, and not only after its time."""

    def wait(self, index: int, seen: int, timeout_s: float) -> None:
        """Sleep until the word is rung or the time is over. It was `seen` before whatever made its caller wait."""

    def ring(self, index: int) -> None:
        """Wake one who waits for the word. Another value is to be written to it first."""


class StorageShare(Protocol):
    """What processes that use one storage have in common. See `walsync.wal.sharing`."""

    def lock(self, name: str) -> SharedLock:
        """The lock with this name; nothing of it is held."""

    def make_words(self, name: str, count: int) -> SharedWords:
        """Words, all zero, under this name. Only for one who knows that nobody uses those that had it before."""

    def map_words(self, name: str, count: int) -> SharedWords | None:
        """The words that another process made; None if there are none of this number."""

    def bells(self, words: SharedWords) -> SharedBells:
        """How those who share these words wake each other."""


class Storage(Protocol):
    """A directory of named files."""

    @property
    def directory(self) -> str | None:
        """Its path, or None if it has none."""

    def describe(self, name: str) -> str:
        """The name of a file as error messages should call it: its path where it has one."""

    def prepare(self) -> None:
        """Make the directory, durably, if it is not there, and refuse one that cannot keep the log's promises."""

    def list(self) -> list[str]:
        """The names of the files in the directory itself, in no order. Empty if there is no directory."""

    def create(self, name: str) -> StorageFile:
        """Make a new, empty file; `FileExistsError` if there is one. Its name is durable after `sync_directory`."""

    def open(self, name: str, *, read_only: bool = False) -> StorageFile:
        """Open a file that exists; `FileNotFoundError` if it does not."""

    def remove(self, name: str) -> None:
        """Remove a file. Durable after `sync_directory`."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file, replacing what is there. Durable after `sync_directory` of both directories."""

    def make_directory(self, name: str) -> None:
        """Make a subdirectory if it is not there. Durable after `sync_directory`."""

    def sync_directory(self, name: str = "") -> None:
        """Return once the names in the directory, or in a subdirectory of it, are on stable storage."""

    def lock(self, name: str, timeout_s: float) -> StorageLock | None:
        """Take the exclusive lock kept in the file `name`, waiting at most `timeout_s`. None: others have it."""

    def share(self) -> StorageShare | None:
        """What processes need to use the storage together; None: it is one process's alone."""

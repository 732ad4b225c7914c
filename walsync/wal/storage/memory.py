"""Files in memory: for tests and for logs that need not outlive the process.

Owns the bytes. Never promises more than the protocol: nothing here survives the process, so a commit to a log in memory
is durable only in name.
"""

from __future__ import annotations

import errno
import os
import threading

__all__ = ["MemoryFile", "MemoryLock", "MemoryStorage"]


def _error(code: int, name: str) -> OSError:
    return OSError(code, os.strerror(code), name)


class MemoryFile:
    """A file of a `MemoryStorage`. All handles of one name share their bytes."""

    def __init__(self, name: str, content: bytearray, *, read_only: bool = False) -> None:
        self.name = name
        self._content = content
        self._read_only = read_only
        self._closed = False

    def _check(self, *, writes: bool = False) -> None:
        if self._closed or (writes and self._read_only):
            raise _error(errno.EBADF, self.name)

    def pread(self, length: int, offset: int) -> bytes:
        """At most `length` bytes from `offset`."""
        self._check()
        return bytes(self._content[offset : offset + length])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write all of `data` at `offset`; a hole becomes zeros."""
        self._check(writes=True)
        end = offset + len(data)
        if offset > len(self._content):
            self._content.extend(bytes(offset - len(self._content)))
        self._content[offset:end] = data
        return len(data)

    def sync(self) -> None:
        """Nothing is more durable than it was."""
        self._check()

    def size(self) -> int:
        """The file's length in bytes."""
        self._check()
        return len(self._content)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        self._check(writes=True)
        if size < len(self._content):
            del self._content[size:]
        else:
            self._content.extend(bytes(size - len(self._content)))

    def close(self) -> None:
        """Give the handle back; the bytes stay in the storage."""
        self._closed = True


class MemoryLock:
    """A lock of a storage in memory: a name in the set of those that are held."""

    __slots__ = ("_held", "_name")

    def __init__(self, held: set[str], name: str) -> None:
        self._held = held
        self._name: str | None = name

    def release(self) -> None:
        """Let others have it."""
        if self._name is not None:
            self._held.discard(self._name)
            self._name = None

    def forget_in_child(self) -> None:
        """A child of a fork has a copy of everything here; it lets its copy go."""
        self._name = None


class MemoryStorage:
    """A directory in memory. Keep the object to open its log again."""

    def __init__(self) -> None:
        self._files: dict[str, bytearray] = {}
        self._held: set[str] = set()
        # Guards the two above: names are looked up and changed in one step.
        self._mutex = threading.Lock()

    @property
    def directory(self) -> None:
        """None: it has no path."""
        return

    def describe(self, name: str) -> str:
        """How error messages call the file."""
        return f"<memory>/{name}"

    def prepare(self) -> None:
        """Nothing to prepare."""

    def list(self) -> list[str]:
        """The names of the files, without those in subdirectories."""
        with self._mutex:
            return [name for name in self._files if "/" not in name]

    def create(self, name: str) -> MemoryFile:
        """Make a new, empty file."""
        with self._mutex:
            if name in self._files:
                raise _error(errno.EEXIST, name)
            content = self._files[name] = bytearray()
        return MemoryFile(name, content)

    def open(self, name: str, *, read_only: bool = False) -> MemoryFile:
        """Open a file that exists."""
        with self._mutex:
            if name not in self._files:
                raise _error(errno.ENOENT, name)
            return MemoryFile(name, self._files[name], read_only=read_only)

    def remove(self, name: str) -> None:
        """Remove a file; open handles keep its bytes."""
        with self._mutex:
            if name not in self._files:
                raise _error(errno.ENOENT, name)
            del self._files[name]

    def rename(self, old: str, new: str) -> None:
        """Rename a file, replacing what is there."""
        with self._mutex:
            if old not in self._files:
                raise _error(errno.ENOENT, old)
            self._files[new] = self._files.pop(old)

    def make_directory(self, name: str) -> None:
        """Subdirectories are part of the names."""

    def sync_directory(self, name: str = "") -> None:
        """Nothing is more durable than it was."""

    def lock(self, name: str, timeout_s: float) -> MemoryLock | None:
        """Take the lock; nobody who could release it is waited for."""
        with self._mutex:
            if name in self._held:
                return None
            self._held.add(name)
        return MemoryLock(self._held, name)

    def share(self) -> None:
        """None: no other process can have it."""
        return

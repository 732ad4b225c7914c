"""Storages that fail: one that fails at a given operation, and one that loses at a crash what was not synced."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

from walsync.wal import MemoryStorage
from walsync.wal.storage.memory import MemoryFile

SECTOR_BYTES = 512


class FailingFile:
    def __init__(self, storage: FailingStorage, name: str, file: MemoryFile) -> None:
        self._storage = storage
        self._file = file
        self.path = name

    def pread(self, length: int, offset: int) -> bytes:
        return self._file.pread(length, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        short = self._storage.count("write", self.path)
        if short:
            data = memoryview(data)[: max(1, len(data) // 2)]
        return self._file.pwrite(data, offset)

    def sync(self) -> None:
        self._storage.count("sync", self.path)
        self._file.sync()

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._storage.count("truncate", self.path)
        self._file.truncate(size)

    def close(self) -> None:
        self._file.close()


class FailingStorage(MemoryStorage):
    """Calls `decide(index, operation, name)` for each changing operation; it answers an errno, "short", or None."""

    def __init__(self, decide: Callable[[int, str, str], int | str | None] = lambda *_: None) -> None:
        super().__init__()
        self.decide = decide
        self.operations: list[tuple[str, str]] = []

    def count(self, operation: str, name: str) -> bool:
        index = len(self.operations)
        self.operations.append((operation, name))
        answer = self.decide(index, operation, name)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer), name)
        return answer == "short"

    def create(self, name: str) -> FailingFile:  # type: ignore[override]
        self.count("create", name)
        return FailingFile(self, name, super().create(name))

    def open(self, name: str, *, read_only: bool = False) -> FailingFile:  # type: ignore[override]
        return FailingFile(self, name, super().open(name, read_only=read_only))

    def remove(self, name: str) -> None:
        self.count("remove", name)
        super().remove(name)

    def rename(self, old: str, new: str) -> None:
        self.count("rename", old)
        super().rename(old, new)

    def sync_directory(self, name: str = "") -> None:
        self.count("sync_directory", name)


class VolatileFile:
    def __init__(self, storage: VolatileStorage, inode: Inode) -> None:
        self._storage = storage
        self._inode = inode
        self.path = inode.first_name

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._inode.seen[offset : offset + length])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        self._storage.step()
        inode = self._inode
        end = offset + len(data)
        if offset > len(inode.seen):
            inode.seen.extend(bytes(offset - len(inode.seen)))
        inode.seen[offset:end] = data
        inode.dirty.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))
        return len(data)

    def sync(self) -> None:
        self._storage.step()
        self._inode.settle()

    def size(self) -> int:
        return len(self._inode.seen)

    def truncate(self, size: int) -> None:
        raise NotImplementedError("the log truncates nothing")

    def close(self) -> None:
        pass


class Inode:
    """`seen` is what a read shows, `stable` what is on the disk, `dirty` the sectors in which they may differ."""

    def __init__(self, name: str) -> None:
        self.first_name = name
        self.seen = bytearray()
        self.stable = bytearray()
        self.dirty: set[int] = set()

    def settle(self) -> None:
        self.stable = bytearray(self.seen)
        self.dirty.clear()

    def crash(self, chance: random.Random, share: float) -> None:
        for sector in sorted(self.dirty):
            if chance.random() < share:
                self.keep(sector)
        self.seen = bytearray(self.stable)
        self.dirty.clear()

    def keep(self, sector: int) -> None:
        start = sector * SECTOR_BYTES
        piece = self.seen[start : start + SECTOR_BYTES]
        if start > len(self.stable):
            self.stable.extend(bytes(start - len(self.stable)))
        self.stable[start : start + len(piece)] = piece


class PowerCut(BaseException):
    """The machine is off. A BaseException: no handler of an ordinary error may go on behind it."""


class VolatileStorage:
    """A directory whose unsynced sectors and names survive `crash()` or do not, each for itself.

    `steps_left` operations from now the power goes: `PowerCut` is raised by that operation and every one after it.
    """

    directory = None

    def __init__(self) -> None:
        self._names: dict[str, Inode] = {}
        self._stable_names: dict[str, Inode] = {}
        self._held = False
        self.steps_left: int | None = None
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps_left is not None:
            if self.steps_left <= 0:
                raise PowerCut
            self.steps_left -= 1

    def crash_keeping(self, keeps: Callable[[int], bool]) -> None:
        """Crash with every name kept, and those unsynced sectors whose running number `keeps` says."""
        number = 0
        for name in sorted(self._names):
            inode = self._names[name]
            for sector in sorted(inode.dirty):
                if keeps(number):
                    inode.keep(sector)
                number += 1
            inode.seen = bytearray(inode.stable)
            inode.dirty.clear()
        self._stable_names = dict(self._names)
        self._held = False
        self.steps_left = None

    def crash(self, chance: random.Random) -> None:
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for name in sorted(self._names.keys() | self._stable_names.keys()):
            now, before = self._names.get(name), self._stable_names.get(name)
            if now is not before and chance.random() < share:
                if now is None:
                    del self._stable_names[name]
                else:
                    self._stable_names[name] = now
        for inode in {id(inode): inode for inode in self._stable_names.values()}.values():
            inode.crash(chance, share)
        self._names = dict(self._stable_names)
        self._held = False
        self.steps_left = None

    def describe(self, name: str) -> str:
        return f"<volatile>/{name}"

    def prepare(self) -> None:
        pass

    def list(self) -> list[str]:
        return [name for name in self._names if "/" not in name]

    def create(self, name: str) -> VolatileFile:
        self.step()
        if name in self._names:
            raise FileExistsError(errno.EEXIST, name)
        inode = self._names[name] = Inode(name)
        return VolatileFile(self, inode)

    def open(self, name: str, *, read_only: bool = False) -> VolatileFile:
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, name)
        return VolatileFile(self, self._names[name])

    def remove(self, name: str) -> None:
        self.step()
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, name)
        del self._names[name]

    def rename(self, old: str, new: str) -> None:
        self.step()
        self._names[new] = self._names.pop(old)

    def make_directory(self, name: str) -> None:
        self.step()

    def sync_directory(self, name: str = "") -> None:
        self.step()
        inside = (lambda path: path.startswith(f"{name}/")) if name else (lambda path: "/" not in path)
        for path in [path for path in self._stable_names if inside(path)]:
            del self._stable_names[path]
        self._stable_names.update({path: inode for path, inode in self._names.items() if inside(path)})

    def lock(self, name: str, timeout_s: float) -> VolatileStorage | None:
        if self._held:
            return None
        self._held = True
        return self

    def share(self) -> None:
        return

    def release(self) -> None:
        self._held = False

    def forget_in_child(self) -> None:
        pass

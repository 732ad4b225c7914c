"""The file ``keys`` of a log directory: the blocks of keys that are reserved and not in use.

All processes that have the log open share it: each change reads it and replaces it under the lock file ``keys.lock``,
so that a block belongs to the one that took it out.

It is JSON behind a checksum, replaced as a whole: written beside, synced, renamed, and the directory synced. A file
that is damaged is set aside with a warning and its blocks are forgotten, which costs a gap in the numbers; using a
block of a damaged file could give a key out twice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from walsync.exceptions import LogTimeoutError
from walsync.wal.lock import FileLock

__all__ = ["KeyFile", "KeyRange"]

logger = logging.getLogger("walsync.keys")

KeyRange: TypeAlias = tuple[int, int]
"""The keys from the first to the second, both included."""

_FORMAT: Final = 1
_MAXIMUM_BYTES: Final = 64 << 20
_LOCK_TIMEOUT_S: Final = 10.0
"""How long a change waits for other processes and threads that are changing the file."""


class KeyFile:
    """Reads and replaces the file. Thread-safe, and safe among processes.

    `take` and `add` raise `LogTimeoutError` when the lock cannot be had, and OSError; the file is as it was then.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / "keys"
        self.forget_parent()

    def forget_parent(self) -> None:
        """In a forked child: a thread of the parent may be at the file in this moment."""
        self._threads = threading.Lock()  # one thread of this process at the file; I/O under it is what it is for

    def count(self, name: str) -> int:
        """How many keys there are for this column, at this moment."""
        try:
            ranges = _parse(self._content()).get(name, [])
        except (OSError, *_UNREADABLE):
            return 0
        return sum(last - first + 1 for first, last in ranges)

    def take(self, name: str, count: int) -> list[KeyRange]:
        """Take up to `count` keys of a column out of the file, durably: nobody else will get them."""
        with self._locked():
            blocks = self.read()
            taken, left = _divide(blocks.get(name, []), count)
            if taken:
                self.write({**blocks, name: left})
            return taken

    def add(self, name: str, ranges: list[KeyRange]) -> None:
        """Put keys of a column into the file, for whoever needs them first."""
        with self._locked():
            blocks = self.read()
            self.write({**blocks, name: [*blocks.get(name, []), *ranges]})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = f"{self._path}.lock"
        with self._threads:
            lock = FileLock.acquire(path, _LOCK_TIMEOUT_S)
            if lock is None:
                raise LogTimeoutError(
                    f"{path} is held by another process since {_LOCK_TIMEOUT_S:g} s; no reserved key was taken. Look "
                    "whether its disk answers, and try again"
                )
            try:
                yield
            finally:
                lock.release()

    def _content(self) -> bytes:
        with open(self._path, "rb") as file:
            return file.read(_MAXIMUM_BYTES + 1)

    def read(self) -> dict[str, list[KeyRange]]:
        """The stored blocks by column; empty if there is no usable file, which is set aside then."""
        try:
            data = self._content()
        except FileNotFoundError:
            return {}
        try:
            return _parse(data)
        except _UNREADABLE as error:
            aside = self._path.with_name("keys.damaged")
            os.replace(self._path, aside)
            logger.warning("%s is damaged (%s) and was moved to %s; new keys are reserved", self._path, error, aside)
            return {}

    def write(self, blocks: dict[str, list[KeyRange]]) -> None:
        """Replace the file durably; nobody else may do so at the time. Raises OSError; the old file is whole then."""
        body = json.dumps({"format": _FORMAT, "blocks": {name: ranges for name, ranges in blocks.items() if ranges}})
        data = body.encode("utf-8")
        content = b"%08x %s\n" % (zlib.crc32(data), data)
        beside = self._path.with_name("keys.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(beside, self._path)
        _sync_directory(self._path.parent)


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":
        # Windows has no descriptors for directories; its renames are journaled by the file system.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_UNREADABLE: Final = (ValueError, TypeError, KeyError, RecursionError)


def _divide(ranges: list[KeyRange], count: int) -> tuple[list[KeyRange], list[KeyRange]]:
    """The first `count` keys, and the others."""
    taken: list[KeyRange] = []
    left: list[KeyRange] = []
    for first, last in ranges:
        middle = min(last, first + count - 1)
        if middle >= first:
            taken.append((first, middle))
            count -= middle - first + 1
        if middle < last:
            left.append((max(first, middle + 1), last))
    return taken, left


def _parse(data: bytes) -> dict[str, list[KeyRange]]:
    if len(data) > _MAXIMUM_BYTES:
        raise ValueError("it is too large")
    checksum, _, body = data.rstrip(b"\n").partition(b" ")
    if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(body):
        raise ValueError("its checksum does not match")
    document: Any = json.loads(body)
    if document["format"] != _FORMAT:
        raise ValueError(f"its format is {document['format']!r}, this version reads {_FORMAT}")
    blocks: dict[str, list[KeyRange]] = {}
    for name, ranges in document["blocks"].items():
        parsed = [(first, last) for first, last in ranges]
        if not all(type(first) is int and type(last) is int and first <= last for first, last in parsed):
            raise ValueError(f"the blocks of {name!r} are malformed")
        blocks[name] = parsed
    return blocks

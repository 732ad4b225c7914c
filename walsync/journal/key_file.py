"""The file ``keys`` of a log directory: the blocks of keys that are reserved and not in use.

It is JSON behind a checksum, replaced as a whole: written beside, synced, renamed, and the directory synced. A file
that is damaged is set aside with a warning and its blocks are forgotten, which costs a gap in the numbers; using a
block of a damaged file could give a key out twice.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any, Final, TypeAlias

__all__ = ["KeyFile", "KeyRange"]

logger = logging.getLogger("walsync.keys")

KeyRange: TypeAlias = tuple[int, int]
"""The keys from the first to the second, both included."""

_FORMAT: Final = 1
_MAXIMUM_BYTES: Final = 64 << 20


class KeyFile:
    """Reads and replaces the file. Not thread-safe; its owner takes care."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / "keys"

    def read(self) -> dict[str, list[KeyRange]]:
        """The stored blocks by column; empty if there is no usable file."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(_MAXIMUM_BYTES + 1)
        except FileNotFoundError:
            return {}
        try:
            return _parse(data)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            aside = self._path.with_name("keys.damaged")
            os.replace(self._path, aside)
            logger.warning("%s is damaged (%s) and was moved to %s; new keys are reserved", self._path, error, aside)
            return {}

    def write(self, blocks: dict[str, list[KeyRange]]) -> None:
        """Replace the file durably. Raises OSError; the old file is whole then."""
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

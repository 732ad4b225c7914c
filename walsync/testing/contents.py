"""The bytes of one simulated file: what a reader sees, what the disk has, and every unsynced step between the two.

Owns the history of a file since its last sync. Never knows the file's name: names are durable, or not, by themselves.

`data` is what is read. Undoing `writes`, newest first, and putting `given_up` on top gives what is certainly on the
disk. A sector that a failed sync gave up is clean in the eyes of the system: no later sync writes it, unless it is
written again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["SECTOR_BYTES", "Contents", "Write"]

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""


class Write(NamedTuple):
    """One unsynced write, or change of size: then `after` is empty."""

    sequence: int
    offset: int
    before: bytes
    after: bytes
    size_before: int
    size_after: int


class Contents:
    """The bytes of a file that its handles share. Not for several threads at once: the storage has the lock."""

    __slots__ = ("data", "given_up", "writes")

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self.data = bytearray(data)
        self.writes: list[Write] = []
        self.given_up: dict[int, bytes] = {}

    def write(self, sequence: int, data: bytes, offset: int) -> None:
        """Write all of `data`; a hole becomes zeros."""
        size = len(self.data)
        end = offset + len(data)
        before = bytes(self.data[offset:end])
        if offset > size:
            self.data.extend(bytes(offset - size))
        self.data[offset:end] = data
        self.writes.append(Write(sequence, offset, before, data, size, len(self.data)))

    def resize(self, sequence: int, size: int) -> None:
        """Make the file `size` bytes long."""
        old = len(self.data)
        before = bytes(self.data[size:])
        _set_size(self.data, size)
        self.writes.append(Write(sequence, min(size, old), before, b"", old, size))

    def sync(self) -> None:
        """What was written since the last sync is on the disk."""
        if self.given_up:
            for write in self.writes:
                for sector in _sectors(write):
                    self.given_up.pop(sector, None)
        self.writes.clear()

    def fail_sync(self) -> None:
        """A sync has failed: the system drops what was to be synced, and takes what it keeps in memory for clean."""
        if not self.writes:
            return
        on_disk = self._before_writes()
        for write in self.writes:
            for sector in _sectors(write):
                if sector not in self.given_up:
                    self.given_up[sector] = _sector(on_disk, sector)
        # The file's size is the file system's own, in its journal, and stays; only bytes are dropped.
        self.writes.clear()

    def durable(self) -> bytearray:
        """What is certainly on the disk."""
        on_disk = self._before_writes()
        return build(on_disk, self.given_up, len(on_disk)) if self.given_up else on_disk

    def _before_writes(self) -> bytearray:
        data = bytearray(self.data)
        for write in reversed(self.writes):
            data[write.offset : write.offset + len(write.before)] = write.before
            del data[write.size_before :]
        return data

    def versions(self, writes: Iterable[Write]) -> tuple[dict[int, list[bytes]], list[int]]:
        """Of every sector that `writes` touch what it held, the durable version first; and the sizes the file had."""
        data = self.durable()
        sectors: dict[int, list[bytes]] = {}
        sizes = [len(data)]
        if self.given_up:
            # The system may have written such a sector after all before it reported the failure.
            seen = self._before_writes()
            for sector in self.given_up:
                sectors[sector] = [_sector(data, sector), _sector(seen, sector)]
            data = seen
        for write in writes:
            touched = _sectors(write)
            for sector in touched:
                if sector not in sectors:
                    sectors[sector] = [_sector(data, sector)]
            apply_write(data, write)
            for sector in touched:
                sectors[sector].append(_sector(data, sector))
            if write.size_after != sizes[-1]:
                sizes.append(write.size_after)
        return sectors, sizes


def apply_write(data: bytearray, write: Write) -> None:
    """Do `write` again on `data`."""
    if write.after:
        if write.offset > len(data):
            data.extend(bytes(write.offset - len(data)))
        data[write.offset : write.offset + len(write.after)] = write.after
    else:
        _set_size(data, write.size_after)


def changed_range(write: Write) -> tuple[int, int]:
    """Where the bytes that `write` changes begin, and where it ends; nothing if it writes what is there already."""
    before, after = write.before, write.after
    end = write.offset + len(after)
    if before == after:
        return end, end
    start = 0
    # By sectors first: a recovery rewrites much of what is there.
    while before[start : start + SECTOR_BYTES] == after[start : start + SECTOR_BYTES]:
        start += SECTOR_BYTES
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    return write.offset + start, end


def replaced_sectors(writes: Iterable[Write]) -> set[int]:
    """The sectors that one of `writes` alone replaces whole. One whose beginning it rewrites as it was is not: that may
    be durable, and must stay."""
    found: set[int] = set()
    for write in writes:
        start, end = changed_range(write)
        found.update(range(-(-start // SECTOR_BYTES), end // SECTOR_BYTES))
    return found


def build(data: bytearray, sectors: dict[int, bytes], size: int) -> bytearray:
    """`data` with these sectors put in its place, `size` bytes long."""
    for sector, content in sectors.items():
        _put_sector(data, sector, content)
    _set_size(data, size)
    return data


def _sectors(write: Write) -> range:
    end = write.offset + len(write.after) if write.after else max(write.size_before, write.size_after)
    start = min(write.offset, write.size_before)
    return range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES))


def _sector(data: bytearray, sector: int) -> bytes:
    start = sector * SECTOR_BYTES
    return bytes(data[start : start + SECTOR_BYTES]).ljust(SECTOR_BYTES, b"\0")


def _put_sector(data: bytearray, sector: int, content: bytes) -> None:
    start = sector * SECTOR_BYTES
    if start > len(data):
        data.extend(bytes(start - len(data)))
    data[start : start + SECTOR_BYTES] = content


def _set_size(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))

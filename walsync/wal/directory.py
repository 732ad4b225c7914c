"""What lies in a log directory: the checkpoint file, segments, free slots. Reads headers only, and never writes.

Files with other names belong to other layers and are left alone.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import NamedTuple

from walsync.exceptions import DamagedLogError
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, CHECKPOINT_FILE_BYTES, CheckpointSlot, newest_slot
from walsync.wal.format import (
    FRAMES_OFFSET,
    SECOND_HEADER_OFFSET,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    unpack_segment_header,
)
from walsync.wal.segment import slot_number
from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = ["LogDirectory", "SlotFile", "read_checkpoint", "read_directory", "read_exactly", "require_checkpoint"]


class SlotFile(NamedTuple):
    """A slot file. `header` is the newer whole copy of its header, `damaged_copy` where a copy lies that is not it."""

    name: str
    size: int
    header: SegmentHeader | None
    damaged_copy: int | None


class LogDirectory(NamedTuple):
    """What was found. `whole_slots` counts the whole slots of the checkpoint file."""

    checkpoint: CheckpointSlot | None
    checkpoint_exists: bool
    whole_slots: int
    slots: list[SlotFile]

    def sequences(self) -> dict[int, list[SlotFile]]:
        """The slots of this log by their sequence; several may claim one, of which at most one continues the log."""
        found: dict[int, list[SlotFile]] = {}
        for slot in self.slots:
            if slot.header is not None and self.belongs(slot.header.log_uuid):
                found.setdefault(slot.header.sequence, []).append(slot)
        return found

    def belongs(self, log_uuid: uuid.UUID) -> bool:
        """Whether a header with this uuid is one of this log's."""
        return self.checkpoint is None or self.checkpoint.log_uuid == log_uuid


def read_exactly(file: StorageFile, length: int, offset: int) -> bytes:
    """`length` bytes from `offset`, or fewer if the file ends before. A read that is cut short is continued."""
    data = file.pread(length, offset)
    while len(data) < length:
        more = file.pread(length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_directory(storage: Storage) -> LogDirectory:
    """Look at every file that is the log's. Raises `LogVersionError` for files of a version this one cannot read.

    Where others have the log open, free slot files may be removed at any time: one that is no longer there when it is
    its turn is not in the answer.
    """
    names = storage.list()
    found = _read_checkpoint(storage, names)
    for name in sorted(names):
        if slot_number(name) is not None:
            with contextlib.suppress(FileNotFoundError):
                found.slots.append(_read_slot(storage, name))
    return found


def read_checkpoint(storage: Storage) -> CheckpointSlot:
    """The checkpoint of a log, whatever its segments are. Raises as `require_checkpoint` does."""
    return require_checkpoint(storage, _read_checkpoint(storage, storage.list()))


def _read_checkpoint(storage: Storage, names: list[str]) -> LogDirectory:
    checkpoint, whole_slots = None, 0
    checkpoint_exists = CHECKPOINT_FILE in names
    if checkpoint_exists:
        file = storage.open(CHECKPOINT_FILE, read_only=True)
        try:
            data = read_exactly(file, CHECKPOINT_FILE_BYTES, 0)
        finally:
            file.close()
        checkpoint, whole_slots = newest_slot(data, storage.describe(CHECKPOINT_FILE))
    return LogDirectory(checkpoint, checkpoint_exists, whole_slots, [])


def _read_slot(storage: Storage, name: str) -> SlotFile:
    file = storage.open(name, read_only=True)
    try:
        size = file.size()
        area = read_exactly(file, FRAMES_OFFSET, 0)
    finally:
        file.close()
    where = storage.describe(name)
    copies = [
        unpack_segment_header(area[offset : offset + SEGMENT_HEADER_BYTES], where)
        for offset in (0, SECOND_HEADER_OFFSET)
    ]
    whole = [copy for copy in copies if copy is not None]
    if not whole:
        return SlotFile(name, size, None, None)
    # A crash while the slot was being taken into use leaves one copy of the last lap.
    newest = max(whole, key=lambda header: (header.sequence, header.epoch, header.created_ns))
    stale = [offset for offset, copy in zip((0, SECOND_HEADER_OFFSET), copies, strict=True) if copy != newest]
    return SlotFile(name, size, newest, stale[0] if stale else None)


def require_checkpoint(storage: Storage, found: LogDirectory) -> CheckpointSlot:
    """The checkpoint of a directory that holds a log. Raises `DamagedLogError` if none of its slots is whole."""
    if found.checkpoint is None:
        what = "has no whole slot" if found.checkpoint_exists else "is missing, and there are segments with entries"
        raise DamagedLogError(
            f"{storage.describe(CHECKPOINT_FILE)} {what} (offsets 0 and 4096): how far the log was released cannot be "
            "told. Restore the file from a copy of the directory; keep the segments"
        )
    return found.checkpoint

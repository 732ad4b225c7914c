"""The checkpoint file: how far the log is released, in two slots written in turn.

Owns the layout of `checkpoint`, 8192 bytes. A slot is synced before a segment that it releases is recycled; a write
that a crash tears leaves the other slot, which is older and still true. Never touches a segment.

Slot of 4096 bytes, at offset `generation % 2 * 4096`, little-endian:

    0    8   magic "walsyncC"
    8    2   major version; 10  2  minor version; 12  1  checksum kind; 13  3  zeros
    16   16  log uuid
    32   8   generation, from 1
    40   8   checkpointed entry id
    48   8   position behind that entry
    56   8   sequence of the first segment that is still needed
    64   8   promise: everything below this position was durable when the slot was written; 0 says nothing
    72   8   the last entry below it
    80       zeros
    4092 4   CRC of bytes 0 to 4091
"""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

from walsync.exceptions import LogVersionError
from walsync.wal.checksum import CRC32, CRC32C, checksum_function
from walsync.wal.format import MAJOR_VERSION, MINOR_VERSION

__all__ = ["CHECKPOINT_FILE", "CHECKPOINT_FILE_BYTES", "SLOT_BYTES", "CheckpointSlot", "newest_slot", "unpack_slot"]

CHECKPOINT_FILE = "checkpoint"
SLOT_BYTES = 4096
CHECKPOINT_FILE_BYTES = 2 * SLOT_BYTES

_MAGIC = b"walsyncC"
_SLOT = struct.Struct("<8sHHB3x16sQQQQQQ")
_CRC = struct.Struct("<I")
_CRC_OFFSET = SLOT_BYTES - 4


class CheckpointSlot(NamedTuple):
    """What a slot says."""

    checksum_kind: int
    log_uuid: uuid.UUID
    generation: int
    checkpointed_id: int
    position: int
    head_sequence: int
    promise: int = 0
    promised_id: int = 0

    @property
    def offset(self) -> int:
        """Where in the file this slot lies."""
        return self.generation % 2 * SLOT_BYTES

    def pack(self) -> bytes:
        """The slot's 4096 bytes."""
        fixed = _SLOT.pack(
            _MAGIC,
            MAJOR_VERSION,
            MINOR_VERSION,
            self.checksum_kind,
            self.log_uuid.bytes,
            self.generation,
            self.checkpointed_id,
            self.position,
            self.head_sequence,
            self.promise,
            self.promised_id,
        )
        body = fixed.ljust(_CRC_OFFSET, b"\0")
        return body + _CRC.pack(checksum_function(self.checksum_kind)(body))


def unpack_slot(data: bytes, where: str) -> CheckpointSlot | None:
    """The slot in `data`, or None if it is not whole. Raises `LogVersionError` for one of another version."""
    if len(data) < SLOT_BYTES or data[:8] != _MAGIC:
        return None
    _, major, _, kind, log_uuid, generation, checkpointed_id, position, head_sequence, *promise = _SLOT.unpack_from(
        data
    )
    if kind not in (CRC32C, CRC32):
        return None
    if checksum_function(kind)(data[:_CRC_OFFSET]) != _CRC.unpack_from(data, _CRC_OFFSET)[0]:
        return None
    if major != MAJOR_VERSION:
        raise LogVersionError(
            f"{where} has format version {major}; this walsync reads version {MAJOR_VERSION}. "
            "Open the log with the walsync that wrote it"
        )
    if generation < 1 or head_sequence < 1:
        return None
    log_uuid = uuid.UUID(bytes=log_uuid)
    return CheckpointSlot(kind, log_uuid, generation, checkpointed_id, position, head_sequence, *promise)


def newest_slot(data: bytes, where: str) -> tuple[CheckpointSlot | None, int]:
    """The newest whole slot of the file's bytes, and how many slots are whole."""
    slots = []
    for index in range(2):
        slot = unpack_slot(data[index * SLOT_BYTES : (index + 1) * SLOT_BYTES], where)
        if slot is not None and slot.generation % 2 == index:
            slots.append(slot)
    if not slots:
        return None, 0
    return max(slots, key=lambda slot: slot.generation), len(slots)

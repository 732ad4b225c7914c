"""The bytes of a segment: tables, packing and unpacking. `docs/reference/segment-format.md` says the same in prose.

Owns the layout of segment headers and frame headers. Never reads or writes a file, and never decides what an invalid
byte means: that is `recovery`.

All numbers are little-endian. A segment is a file of fixed size:

    0      segment header, 512 bytes, then zeros
    4096   the same header again, then zeros
    8192   frames, each beginning at a multiple of 8, until the first invalid one or SEAL

Segment header (512 bytes):

    0    8   magic "walsyncS"
    8    2   major version; 10  2  minor version
    12   4   header size (512)
    16   4   compat flags: 1 the segment begins inside of an entry; 20  4  incompat flags: 1 abandoned
    24   4   read-only-compat flags
    28   1   checksum kind (1 CRC32C, 2 CRC-32); 29  1  alignment (8); 30  2  length of the version info
    32   16  log uuid
    48   8   sequence of the segment, from 1
    56   8   base position: position of a frame = base + offset in the file
    64   8   end position of the previous segment; 0 in the first
    72   4   chain value there: header CRC of the last frame of the previous segment
    76   4   epoch there
    80   8   segment size in bytes
    88   8   created, nanoseconds since 1970
    96   8   id of the first entry committed in this segment (the next one at the time of writing)
    104  8   abandoned segments only: end position of what was moved aside
    112  4   abandoned segments only: chain value there; 116  4  epoch there
    120  8   abandoned segments only: next entry id there
    128  255 version info, then zeros
    508  4   CRC of bytes 0 to 507

Frame header (DATA 40 bytes, all others 72):

    0    4   CRC of the rest of the header, going on from the CRC of the log's uuid
    4    1   type: 1 DATA, 2 COMMIT, 3 RECOVERY, 4 SEAL, 5 HINT; a reader skips types from 128 on that it does not know
    5    1   flags: 1 first fragment of a chunk, 2 last fragment of a chunk, 4 the payload is the entry's last chunk
    6    2   header size / 8
    8    8   position of this frame
    16   4   payload length; 20  4  epoch
    24   4   chain: header CRC of the frame before this one; 28  4  CRC of the payload
    32   8   entry id: of the entry the frame belongs to; in RECOVERY, SEAL and HINT of the last entry before it
    40   8   promise: every byte of the log below this position was synced before this frame was written
    48   8   position of the entry's first frame (COMMIT)
    56   4   number of chunks (COMMIT); 60  4  zero
    64   8   bytes of all chunks of the entry (COMMIT)

The payload follows, then zeros up to a multiple of 8. The payload of COMMIT is the entry's last chunk if flag 4 is set,
so that an entry of one small chunk is one frame.
"""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

from walsync.exceptions import LogVersionError
from walsync.wal.checksum import CRC32, CRC32C, ChecksumFunction, checksum_function

__all__ = [
    "BOUNDARY_HEADER_BYTES",
    "COMMIT",
    "DATA",
    "DATA_HEADER_BYTES",
    "FIRST",
    "FRAMES_OFFSET",
    "HINT",
    "INLINE",
    "LAST",
    "RECOVERY",
    "SEAL",
    "SegmentHeader",
    "aligned",
    "fragment_bytes",
]

SEGMENT_MAGIC = b"walsyncS"
MAJOR_VERSION = 1
MINOR_VERSION = 0
SEGMENT_HEADER_BYTES = 512
SECOND_HEADER_OFFSET = 4096
FRAMES_OFFSET = 8192
ALIGNMENT = 8
CONTINUES_FLAG = 1  # compat: only a reader that begins here has to know
ABANDONED_FLAG = 1  # incompat: a reader that does not know it would look for frames

DATA = 1
COMMIT = 2
RECOVERY = 3
SEAL = 4
HINT = 5
FIRST_SKIPPABLE_TYPE = 128

FIRST = 1
LAST = 2
INLINE = 4

DATA_HEADER_BYTES = 40
BOUNDARY_HEADER_BYTES = 72

MAX_FRAGMENT_BYTES = 1024 * 1024

# The header without its CRC, which comes first in the file.
DATA_REST = struct.Struct("<BBHQIIIIQ")
BOUNDARY_REST = struct.Struct("<BBHQIIIIQQQIIQ")
DATA_HEADER = struct.Struct("<IBBHQIIIIQ")
PROMISE = struct.Struct("<QQIIQ")
BOUNDARY_HEADER = struct.Struct("<IBBHQIIIIQQQIIQ")
CRC = struct.Struct("<I")

PADDING = tuple(bytes(-length % ALIGNMENT) for length in range(ALIGNMENT))
"""The zeros after a payload, by its length modulo 8."""

_SEGMENT_HEADER = struct.Struct("<8sHHIIIIBBH16sQQQIIQQQQIIQ")
_VERSION_INFO_OFFSET = 128
_HEADER_CRC_OFFSET = SEGMENT_HEADER_BYTES - 4
assert _SEGMENT_HEADER.size == _VERSION_INFO_OFFSET
assert DATA_HEADER.size == DATA_HEADER_BYTES
assert BOUNDARY_HEADER.size == BOUNDARY_HEADER_BYTES


class SegmentHeader(NamedTuple):
    """A segment header, unpacked. `version_info` is without its padding."""

    checksum_kind: int
    log_uuid: uuid.UUID
    sequence: int
    base: int
    previous_end: int
    previous_chain: int
    epoch: int
    segment_bytes: int
    created_ns: int
    next_id: int
    version_info: bytes = b""
    continues: bool = False
    abandoned: bool = False
    end: int = 0
    end_chain: int = 0
    end_epoch: int = 0
    end_next_id: int = 0

    def pack(self) -> bytes:
        """The header's 512 bytes."""
        fixed = _SEGMENT_HEADER.pack(
            SEGMENT_MAGIC,
            MAJOR_VERSION,
            MINOR_VERSION,
            SEGMENT_HEADER_BYTES,
            CONTINUES_FLAG if self.continues else 0,
            ABANDONED_FLAG if self.abandoned else 0,
            0,
            self.checksum_kind,
            ALIGNMENT,
            len(self.version_info),
            self.log_uuid.bytes,
            self.sequence,
            self.base,
            self.previous_end,
            self.previous_chain,
            self.epoch,
            self.segment_bytes,
            self.created_ns,
            self.next_id,
            self.end,
            self.end_chain,
            self.end_epoch,
            self.end_next_id,
        )
        body = (fixed + self.version_info).ljust(_HEADER_CRC_OFFSET, b"\0")
        return body + CRC.pack(checksum_function(self.checksum_kind)(body))

    def pack_area(self) -> bytes:
        """Both copies with the zeros around them: everything before the first frame."""
        return self.pack().ljust(SECOND_HEADER_OFFSET, b"\0") * 2


def unpack_segment_header(data: bytes, where: str) -> SegmentHeader | None:
    """The header in the first 512 bytes of `data`, or None if there is no whole one.

    Raises `LogVersionError` for a whole header of a version that this one cannot read; `where` names the file for it.
    """
    if len(data) < SEGMENT_HEADER_BYTES or data[:8] != SEGMENT_MAGIC:
        return None
    fields = _SEGMENT_HEADER.unpack_from(data)
    (
        _,
        major,
        _,
        header_bytes,
        compat,
        incompat,
        read_only_compat,
        kind,
        alignment,
        info_length,
        log_uuid,
        *numbers,
    ) = fields
    crc = CRC.unpack_from(data, _HEADER_CRC_OFFSET)[0]
    body = data[:_HEADER_CRC_OFFSET]
    # A kind that is not known may be damage or a newer version: it is the newer version if another kind's CRC fits.
    if kind in (CRC32C, CRC32) and checksum_function(kind)(body) != crc:
        return None
    if kind not in (CRC32C, CRC32) and crc not in (checksum_function(CRC32C)(body), checksum_function(CRC32)(body)):
        return None
    if (
        major != MAJOR_VERSION
        or incompat & ~ABANDONED_FLAG
        or read_only_compat
        or kind not in (CRC32C, CRC32)
        or header_bytes != SEGMENT_HEADER_BYTES
        or alignment != ALIGNMENT
    ):
        raise LogVersionError(
            f"{where} has format version {major} with flags {incompat:#x}/{read_only_compat:#x}; this walsync reads "
            f"version {MAJOR_VERSION}. Open it with the walsync that wrote it"
        )
    (
        sequence,
        base,
        previous_end,
        previous_chain,
        epoch,
        size,
        created_ns,
        next_id,
        end,
        end_chain,
        end_epoch,
        end_id,
    ) = numbers
    if info_length > 255 or sequence < 1 or next_id < 1 or base % ALIGNMENT:
        return None
    return SegmentHeader(
        checksum_kind=kind,
        log_uuid=uuid.UUID(bytes=log_uuid),
        sequence=sequence,
        base=base,
        previous_end=previous_end,
        previous_chain=previous_chain,
        epoch=epoch,
        segment_bytes=size,
        created_ns=created_ns,
        next_id=next_id,
        version_info=data[_VERSION_INFO_OFFSET : _VERSION_INFO_OFFSET + info_length],
        continues=bool(compat & CONTINUES_FLAG),
        abandoned=bool(incompat & ABANDONED_FLAG),
        end=end,
        end_chain=end_chain,
        end_epoch=end_epoch,
        end_next_id=end_id,
    )


def aligned(length: int) -> int:
    """`length` rounded up to the frames' alignment."""
    return length + (-length % ALIGNMENT)


def fragment_bytes(segment_bytes: int) -> int:
    """How long a fragment of a large chunk is in segments of this size."""
    room = (segment_bytes - FRAMES_OFFSET) // 4
    return min(MAX_FRAGMENT_BYTES, room - room % ALIGNMENT)


def header_seed(log_uuid: uuid.UUID, checksum: ChecksumFunction) -> int:
    """What the CRC of every frame header of a log goes on from."""
    return checksum(log_uuid.bytes)


def pack_boundary(
    kind: int,
    position: int,
    epoch: int,
    chain: int,
    entry_id: int,
    promise: int,
    checksum: ChecksumFunction,
    seed: int,
) -> tuple[bytes, int]:
    """A RECOVERY, SEAL or HINT frame, and its header CRC, the chain value for the frame after it."""
    header_words = BOUNDARY_HEADER_BYTES // 8
    rest = BOUNDARY_REST.pack(
        kind, 0, header_words, position, 0, epoch, chain, checksum(b""), entry_id, promise, 0, 0, 0, 0
    )
    crc = checksum(rest, seed)
    return CRC.pack(crc) + rest, crc

"""The bytes: golden files of every format version are read and written again; headers hold every field."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from tests.unit.wal.logs import contents, open_log, quiet_config
from walsync.exceptions import LogVersionError
from walsync.wal import EntryId, FileStorage, WriteAheadLog, read_log, verify_log
from walsync.wal.checkpoint_slots import SLOT_BYTES, CheckpointSlot, newest_slot, unpack_slot
from walsync.wal.checksum import CRC32, CRC32C, checksum_function
from walsync.wal.format import (
    FRAMES_OFFSET,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    fragment_bytes,
    unpack_segment_header,
)

GOLDEN = Path(__file__).parents[2] / "golden"
UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
CREATED_NS = 1_700_000_000_000_000_000
CHECKSUMS = ["crc32c", "crc32"]

ENTRIES: list[list[bytes]] = [
    [b"an entry of one small chunk"],
    [b"of", b"several", b"", b"chunks"],
    [],
    [b""],
    [bytes(range(256)) * 40],
    [b"larger than a segment " * 1800, b"and its end"],
    [b"eight by"],
]
RELEASED = 2


def write_golden(directory: Path, checksum: str) -> None:
    """The log of the golden files: two laps of opening, seven entries, two of them released, closed."""
    config = quiet_config(checksum=checksum, version_info=b"golden", shared=False)
    arguments = {"config": config, "clock_ns": lambda: CREATED_NS, "new_uuid": lambda: UUID}
    with WriteAheadLog.recover(directory, **arguments) as log:  # type: ignore[arg-type]
        for chunks in ENTRIES[:5]:
            log.append(*chunks)
    with WriteAheadLog.recover(directory, **arguments) as log:  # type: ignore[arg-type]
        for chunks in ENTRIES[5:]:
            with log.begin_entry() as entry:
                for chunk in chunks:
                    entry.write_chunk(chunk)
        log.checkpoint(EntryId(RELEASED))
    (directory / "lock").unlink()


@pytest.mark.parametrize("checksum", CHECKSUMS)
def test_golden_files_are_read(tmp_path: Path, checksum: str) -> None:
    golden = GOLDEN / f"v1-{checksum}"
    expected = {index + 1: chunks for index, chunks in enumerate(ENTRIES) if index >= RELEASED}
    assert contents(read_log(golden)) == expected
    report = verify_log(golden)
    assert (report.ok, report.uuid, report.checkpointed_id, report.torn_tail_bytes) == (True, UUID, RELEASED, 0)
    assert report.notes == []
    shutil.copytree(golden, tmp_path / "log")
    with open_log(FileStorage(tmp_path / "log")) as log:
        assert contents(log.entries()) == expected
        assert next(log.entries()).segment.version_info == b"golden"
        assert log.append(b"goes on") == len(ENTRIES) + 1


@pytest.mark.parametrize("checksum", CHECKSUMS)
def test_golden_files_are_written_byte_by_byte(tmp_path: Path, checksum: str) -> None:
    golden = GOLDEN / f"v1-{checksum}"
    write_golden(tmp_path / "log", checksum)
    written = {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    assert sorted(written) == sorted(path.name for path in golden.iterdir())
    for name, content in written.items():
        expected = (golden / name).read_bytes()
        differing = next(
            (at for at, pair in enumerate(zip(content, expected, strict=True)) if pair[0] != pair[1]), None
        )
        assert differing is None, f"{name} differs from the golden file at offset {differing}"


def header(**changed: object) -> SegmentHeader:
    values: dict[str, object] = {
        "checksum_kind": CRC32C,
        "log_uuid": UUID,
        "sequence": 7,
        "base": 1 << 40,
        "previous_end": (1 << 40) - 8,
        "previous_chain": 0xDEADBEEF,
        "epoch": 12,
        "segment_bytes": 32768,
        "created_ns": CREATED_NS,
        "next_id": 99,
        "version_info": b"v" * 255,
        "continues": True,
        "abandoned": True,
        "end": 1 << 41,
        "end_chain": 5,
        "end_epoch": 13,
        "end_next_id": 120,
    }
    return SegmentHeader(**{**values, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [CRC32C, CRC32])
def test_a_segment_header_keeps_every_field(kind: int) -> None:
    packed = header(checksum_kind=kind).pack()
    assert len(packed) == SEGMENT_HEADER_BYTES
    assert unpack_segment_header(packed, "x") == header(checksum_kind=kind)
    assert header().pack_area() == (header().pack() + bytes(4096 - 512)) * 2
    assert len(header().pack_area()) == FRAMES_OFFSET


def test_a_segment_header_with_any_bit_changed_is_none() -> None:
    packed = header().pack()
    for bit in range(len(packed) * 8):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        assert unpack_segment_header(bytes(changed), "x") is None, bit


@pytest.mark.parametrize(
    ("offset", "value", "refused"),
    [
        (8, 2, True),  # major version
        (10, 9, False),  # minor version
        (16, 4, False),  # compat flags
        (20, 4, True),  # incompat flags
        (24, 4, True),  # read-only-compat flags
        (28, 3, True),  # checksum kind
        (29, 16, True),  # alignment
    ],
)
def test_the_version_rule(offset: int, value: int, refused: bool) -> None:
    """What a newer walsync may change so that this one still reads, and what it refuses with a clear error."""
    changed = bytearray(header().pack())
    changed[offset] = value
    changed[-4:] = checksum_function(CRC32C)(bytes(changed[:-4])).to_bytes(4, "little")
    if refused:
        with pytest.raises(LogVersionError, match="somewhere/segment"):
            unpack_segment_header(bytes(changed), "somewhere/segment")
    else:
        assert unpack_segment_header(bytes(changed), "x") is not None


def test_a_checkpoint_slot_keeps_every_field() -> None:
    slot = CheckpointSlot(CRC32C, UUID, 5, 1 << 50, 1 << 51, 77, 1 << 52, 1 << 49)
    assert len(slot.pack()) == SLOT_BYTES
    assert unpack_slot(slot.pack(), "x") == slot
    assert slot.offset == SLOT_BYTES
    newer = slot._replace(generation=6)
    assert newest_slot(newer.pack() + slot.pack(), "x") == (newer, 2)
    assert newest_slot(bytes(SLOT_BYTES) + slot.pack(), "x") == (slot, 1)
    assert newest_slot(slot.pack() + bytes(SLOT_BYTES), "x") == (None, 0), "a slot in the other's place is not one"
    assert newest_slot(b"", "x") == (None, 0)


def test_an_unknown_checksum_is_refused() -> None:
    with pytest.raises(LogVersionError, match="kind 9"):
        checksum_function(9)


def test_fragments_fit_their_segments() -> None:
    for size in (32 * 1024, 64 * 1024, 1 << 20, 16 << 20, 1 << 30):
        length = fragment_bytes(size)
        assert length % 8 == 0
        assert 4096 <= length <= 1 << 20
        assert FRAMES_OFFSET + 2 * (length + 72) < size

"""Damage to files: any byte changed, cut off at any length, overwritten at random.

Whatever is on the disk, opening and reading end, with an entry's own bytes or an error that says where; never with
other bytes, a crash, or a hang.
"""

from __future__ import annotations

import random
import re

import pytest

from tests.unit.wal.logs import abandon, all_of, bytes_of, contents, copy_of, open_log, segments_of
from walsync.exceptions import DamagedLogError, LogError, LogVersionError, WalsyncError
from walsync.wal import EntryId, MemoryStorage, read_log, verify_log
from walsync.wal.format import FRAMES_OFFSET

FRAME_BYTES = 4 * 1024


def small_log() -> tuple[MemoryStorage, dict[int, list[bytes]], int, int]:
    """A log in one segment, its entries, the offset where its frames end, and the last promise as an offset."""
    storage = MemoryStorage()
    chance = random.Random(5)
    written = {}
    log = open_log(storage)
    while log._appender._offset < FRAMES_OFFSET + FRAME_BYTES - 600:
        chunks = [chance.randbytes(chance.randrange(0, 300)) for _ in range(chance.randrange(0, 4))]
        written[int(log.append(*chunks))] = chunks
    end, promised = log._appender._offset, log._appender.promised
    abandon(log)
    return storage, written, end, promised


def flip(content: bytearray, bit: int) -> None:
    content[bit // 8] ^= 1 << bit % 8


def outcome(storage: MemoryStorage, written: dict[int, list[bytes]]) -> int:
    """How many entries a damaged log gives; -1 for an error, which must say where. Fails on any other entry."""
    refused = None
    try:
        log = open_log(storage)
    except DamagedLogError as error:
        refused = str(error)
    except LogVersionError:
        return -1
    if refused is not None:
        assert re.search(r"<memory>/(segment-\d+|checkpoint)", refused), refused
        assert "offset" in refused, refused
        return -1
    found = all_of(log)
    last_id = log.last_id
    log.close()
    assert found == {entry_id: written[entry_id] for entry_id in range(log.checkpointed_id + 1, last_id + 1)}
    return last_id


@pytest.mark.slow
def test_every_bit_of_a_small_log_flipped() -> None:
    """An error wherever a promise covers the bit; else the entries before it, or all of them."""
    storage, written, end, promised = small_log()
    [name] = segments_of(storage)
    for bit in range(FRAMES_OFFSET * 8, end * 8):
        damaged = copy_of(storage)
        flip(bytes_of(damaged, name), bit)
        found = outcome(damaged, written)
        if bit // 8 < promised:
            assert found == -1, f"bit {bit} (offset {bit // 8}) is below the promise {promised}, and nobody noticed"
        else:
            assert found in (len(written), len(written) - 1), bit


def test_every_bit_of_the_headers_flipped_leaves_the_log_readable() -> None:
    """Each header is there twice, each checkpoint slot has an older one: one bit harms nothing."""
    storage, written, _, _ = small_log()
    [name] = segments_of(storage)
    for bit in [*range(0, 520 * 8, 3), *range(4096 * 8, 4620 * 8, 7)]:
        damaged = copy_of(storage)
        flip(bytes_of(damaged, name), bit)
        assert outcome(damaged, written) == len(written), bit


def test_every_bit_of_the_checkpoint_file_flipped() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    written = {int(log.append(b"%d" % index)): [b"%d" % index] for index in range(5)}
    log.checkpoint(EntryId(2))
    log.close()
    slots_used = [*range(100), *range(4090, 4096 + 100), *range(8188, 8192)]
    for bit in (offset * 8 + bit for offset in slots_used for bit in range(8)):
        damaged = copy_of(storage)
        flip(bytes_of(damaged, "checkpoint"), bit)
        assert outcome(damaged, written) == 5, bit


def test_a_log_cut_off_at_every_length() -> None:
    storage, written, end, _ = small_log()
    [name] = segments_of(storage)
    size = len(bytes_of(storage, name))
    # No crash makes a file shorter than it was when it was taken into use: somebody cut it.
    for length in [*range(0, end + 64, 11), size - 1]:
        damaged = copy_of(storage)
        del bytes_of(damaged, name)[length:]
        assert outcome(damaged, written) == -1


@pytest.mark.parametrize("seed", range(150))
def test_random_bytes_anywhere_in_any_file(seed: int) -> None:
    chance = random.Random(seed)
    storage = MemoryStorage()
    log = open_log(storage)
    written = {}
    for _ in range(40):
        chunks = [chance.randbytes(chance.randrange(0, 4000)) for _ in range(chance.randrange(1, 3))]
        written[int(log.append(*chunks))] = chunks
    log.checkpoint(EntryId(chance.randrange(0, 40)))
    if chance.random() < 0.5:
        log.close()
    else:
        abandon(log)
    for _ in range(chance.randrange(1, 4)):
        name = chance.choice(storage.list())
        content = bytes_of(storage, name)
        start = chance.randrange(0, len(content)) if content else 0
        length = chance.choice([1, 8, 512, 4096, 20_000])
        content[start : start + length] = chance.randbytes(min(length, len(content) - start))
    try:
        before = contents(read_log(storage))
    except WalsyncError:
        before = {}
    for entry_id, chunks in before.items():
        assert written[entry_id] == chunks
    try:
        report = verify_log(storage)
    except LogError:
        report = None
    try:
        log = open_log(storage)
    except LogError:
        return
    found = all_of(log)
    for entry_id, chunks in found.items():
        assert written[entry_id] == chunks
    assert list(found) == list(range(log.checkpointed_id + 1, log.last_id + 1))
    assert report is not None
    assert report.ok
    log.close()


def test_an_older_copy_of_a_segment_is_damage() -> None:
    """A lost write: the file of some minutes ago is back, with every checksum right."""
    storage = MemoryStorage()
    log = open_log(storage)
    for index in range(4):
        log.append(b"%d" % index * 5000)
    [first, *_] = segments_of(storage)
    older = bytes(bytes_of(storage, first))
    for index in range(12):
        log.append(b"%d" % index * 5000)
    abandon(log)
    bytes_of(storage, first)[:] = older
    with pytest.raises(DamagedLogError, match=f"{first} is damaged at offset"):
        open_log(storage)


def test_a_misdirected_write_is_damage() -> None:
    """A frame that is whole, in the wrong place: its checksum is right and its position is not."""
    storage, _, _, _ = small_log()
    [name] = segments_of(storage)
    content = bytes_of(storage, name)
    content[FRAMES_OFFSET + 800 : FRAMES_OFFSET + 1600] = content[FRAMES_OFFSET + 2400 : FRAMES_OFFSET + 3200]
    with pytest.raises(DamagedLogError, match="offset"):
        open_log(storage)


def test_damage_found_while_reading_an_open_log_names_file_and_offset() -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        for index in range(6):
            log.append(b"%d" % index * 100)
        bytes_of(storage, "segment-00000001")[FRAMES_OFFSET + 300] ^= 1
        entries = log.entries()
        with pytest.raises(DamagedLogError, match=r"segment-00000001 is damaged at offset 8\d\d\d, after entry 1"):
            contents(entries)


def test_a_missing_segment_in_the_middle_is_damage() -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        for index in range(20):
            log.append(b"%d" % (index % 10) * 8000)
    names = segments_of(storage)
    assert len(names) > 3
    storage.remove(names[1])
    with pytest.raises(DamagedLogError, match=f"{names[0]} is damaged at offset .* follows it, is missing"):
        open_log(storage)


def test_a_missing_first_segment_is_damage() -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        for index in range(20):
            log.append(b"%d" % (index % 10) * 8000)
    storage.remove(segments_of(storage)[0])
    with pytest.raises(DamagedLogError, match="segment 1 .* is missing"):
        open_log(storage)


def test_a_missing_checkpoint_file_is_damage_and_not_a_new_log() -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        log.append(b"kept")
    storage.remove("checkpoint")
    with pytest.raises(DamagedLogError, match="checkpoint is missing"):
        open_log(storage)


def test_damage_leaves_the_directory_as_it_is() -> None:
    storage, _, _, _ = small_log()
    [name] = segments_of(storage)
    bytes_of(storage, name)[FRAMES_OFFSET + 200] ^= 255
    before = {name: bytes(bytes_of(storage, name)) for name in storage.list()}
    with pytest.raises(DamagedLogError):
        open_log(storage)
    assert {name: bytes(bytes_of(storage, name)) for name in storage.list()} == before

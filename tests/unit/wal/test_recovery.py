"""The decision tables, every combination; and what recovery does to the directory."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.wal.faulty import FailingStorage
from tests.unit.wal.logs import abandon, all_of, bytes_of, open_log, segments_of
from walsync.exceptions import LogVersionError
from walsync.wal import EntryId, MemoryStorage, verify_log
from walsync.wal.format import FRAMES_OFFSET
from walsync.wal.recovery import Decision, Link, Opening, decide, decide_opening


@pytest.mark.parametrize("link", list(Link))
@pytest.mark.parametrize("promised_past", [True, False])
def test_every_combination_of_the_decision_table(link: Link, promised_past: bool) -> None:
    if link is Link.CONTINUES:
        expected = Decision.GO_ON
    elif promised_past:
        expected = Decision.DAMAGE
    else:
        expected = Decision.END
    assert decide(link, promised_past=promised_past) is expected


# A file that does not exist has no whole slot.
DIRECTORIES = [case for case in itertools.product([True, False], repeat=3) if case[0] or not case[1]]


@pytest.mark.parametrize(("exists", "whole", "frames"), DIRECTORIES)
def test_every_combination_of_what_a_directory_holds(exists: bool, whole: bool, frames: bool) -> None:
    expected = Opening.OPEN if whole else Opening.DAMAGED if exists or frames else Opening.CREATE
    found = decide_opening(checkpoint_exists=exists, checkpoint_whole=whole, segments_with_frames=frames)
    assert found is expected


def test_reopening_many_times_never_runs_out_of_room() -> None:
    """Each opening writes a RECOVERY; there is always room for it, and for the SEAL behind it."""
    storage = MemoryStorage()
    log = open_log(storage)
    while log._appender._offset + 800 < log._appender._limit:
        log.append(b"x" * 600)
    abandon(log)
    last_id = log.last_id
    for _ in range(30):
        log = open_log(storage)
        assert log.last_id == last_id
        abandon(log)
    log = open_log(storage)
    assert log.append(b"next") == last_id + 1
    log.close()
    assert verify_log(storage).ok


def test_the_kept_tail_is_written_again_and_synced_before_anything_is_accepted() -> None:
    """After a failed sync a read may come from pages that never reached the disk: they must be written once more."""
    storage = FailingStorage()
    log = open_log(storage)
    log.append(b"a" * 100)
    promised = log._appender.durable[0]
    log.append(b"b" * 100)
    log.append(b"c" * 100)
    end = log._appender.durable[0]
    abandon(log)
    writes: list[tuple[int, int]] = []
    syncs_before_recovery = []
    original = type(storage).open

    def spying_open(self: FailingStorage, name: str, *, read_only: bool = False):
        file = original(self, name, read_only=read_only)
        pwrite, sync = file.pwrite, file.sync

        def spy(data, offset):
            writes.append((offset, offset + len(data)))
            return pwrite(data, offset)

        def spy_sync() -> None:
            syncs_before_recovery.append(len(writes))
            sync()

        file.pwrite, file.sync = spy, spy_sync  # type: ignore[method-assign]
        return file

    storage.open = spying_open.__get__(storage)  # type: ignore[method-assign]
    log = open_log(storage)
    kept = [write for write in writes if write[0] < end]
    assert min(start for start, _ in kept) <= promised
    assert max(stop for _, stop in kept) == end
    recovery = writes.index((end, end + 72))
    assert any(len(kept) <= count <= recovery for count in syncs_before_recovery), "synced before RECOVERY is written"
    log.close()


def test_unknown_files_are_left_alone() -> None:
    storage = MemoryStorage()
    for name in ("keys", "segment-1", "segment-0000000x", "notes.txt"):
        file = storage.create(name)
        file.pwrite(name.encode(), 0)
    for _ in range(2):
        with open_log(storage) as log:
            for _ in range(20):
                log.append(b"x" * 5000)
            log.checkpoint(log.last_id)
    for name in ("keys", "segment-1", "segment-0000000x", "notes.txt"):
        assert bytes_of(storage, name) == name.encode()


def test_a_segment_of_another_size_is_used_up_and_replaced() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    log.append(b"small segments")
    log.close()
    log = open_log(storage, segment_bytes=128 * 1024)
    expected = {1: [b"small segments"]}
    for _ in range(20):
        expected[int(log.append(b"x" * 20_000))] = [b"x" * 20_000]
    assert all_of(log) == expected
    log.close()
    log = open_log(storage, segment_bytes=64 * 1024)
    assert all_of(log) == expected
    for _ in range(20):
        expected[int(log.append(b"y" * 20_000))] = [b"y" * 20_000]
    assert all_of(log) == expected
    log.checkpoint(log.last_id)
    log.close()
    assert {len(bytes_of(storage, name)) for name in segments_of(storage)} == {64 * 1024}


def test_released_entries_stay_released_after_a_clean_close_and_may_come_back_after_a_crash() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    for index in range(6):
        log.append(b"%d" % index)
    log.checkpoint(EntryId(4))
    log.close()
    log = open_log(storage)
    assert log.checkpointed_id == 4
    assert list(all_of(log)) == [5, 6]
    log.checkpoint(EntryId(5))
    abandon(log)
    assert open_log(storage).checkpointed_id == 4


def test_a_file_of_a_newer_version_is_refused_and_named() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    log.append(b"x")
    header = log._segments.readable_segments[0].header.pack()
    log.close()
    import crc32c

    newer = bytearray(header)
    newer[8:10] = (2).to_bytes(2, "little")
    newer[508:] = crc32c.crc32c(bytes(newer[:508])).to_bytes(4, "little")
    for offset in (0, 4096):
        bytes_of(storage, "segment-00000001")[offset : offset + 512] = newer
    with pytest.raises(LogVersionError, match=r"segment-00000001 has format version 2 .* this walsync reads version 1"):
        open_log(storage)


def test_a_torn_entry_that_reached_into_the_next_segment_is_cut_off_in_the_one_before() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    log.append(b"kept")
    large = b"z" * 60_000
    log.append(large)
    last = log._segments.readable_segments[-1]
    assert last.sequence > 1
    end = log._appender._offset
    abandon(log)
    bytes_of(storage, last.name)[end - 100 : end] = bytes(100)
    log = open_log(storage)
    assert all_of(log) == {1: [b"kept"]}
    assert log.stats().torn_bytes > 20_000
    assert log._segments.readable_segments[-1].sequence == 1
    for _ in range(20):
        log.append(b"after" * 1000)
    expected = all_of(log)
    assert len(expected) == 21
    log.close()
    assert all_of(open_log(storage)) == expected


def test_verify_reports_a_stale_header_copy_as_a_note() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    log.append(b"x")
    log.close()
    bytes_of(storage, "segment-00000001")[4100] ^= 1
    report = verify_log(storage)
    assert report.ok
    assert report.notes == [
        "<memory>/segment-00000001 has a copy of its header at offset 4096 that is not whole; the other one is used"
    ]
    assert FRAMES_OFFSET > 4100

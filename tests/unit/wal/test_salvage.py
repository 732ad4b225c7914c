"""Salvage: what is copied was written, verbatim and in order; what no damage touched is copied; the rest is named."""

from __future__ import annotations

import errno
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.damage import Frame, frames_of
from tests.simulation.scenario import Scenario
from tests.unit.wal.logs import SEGMENT_BYTES, abandon, all_of, bytes_of, contents, copy_of, open_log, segments_of
from walsync.exceptions import (
    DamagedLogError,
    EntryNotFoundError,
    LogError,
    LogVersionError,
    UsageError,
)
from walsync.testing import Fault, FaultAction, FaultyStorage, OperationKind, SimulatedStorage
from walsync.wal import (
    Checkpointer,
    EntryId,
    MemoryStorage,
    Recovery,
    SalvageReport,
    SegmentInfo,
    WriteAheadLog,
    read_log,
    salvage_log,
    verify_log,
)
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, SLOT_BYTES
from walsync.wal.format import COMMIT, DATA, FRAMES_OFFSET, SEAL, SECOND_HEADER_OFFSET, SEGMENT_HEADER_BYTES
from walsync.wal.salvage_frames import FrameFinder, find_runs
from walsync.wal.salvage_reader import EntryFinder
from walsync.wal.salvage_source import read_source

Chunks = list[bytes]
Written = dict[int, Chunks]


def random_chunks(source: random.Random) -> Chunks:
    sizes = (0, 10, 300, 3_000, 9_000)
    return [source.randbytes(source.choice(sizes)) for _ in range(source.choice((0, 1, 1, 1, 2, 4)))]


def make_log(seed: int, *, entries: int = 40, released: int = 0, close: bool = True) -> tuple[MemoryStorage, Written]:
    """A log of several segments, with entries over their borders, several epochs, and recycled files."""
    source = random.Random(seed)
    storage = MemoryStorage()
    written: Written = {}
    log = open_log(storage)
    for number in range(1, entries + 1):
        chunks = random_chunks(source)
        written[int(log.append(*chunks))] = chunks
        if released and number % 7 == 0:
            log.checkpoint(EntryId(min(released, number)))
        if number % 15 == 0:
            log.close()
            log = open_log(storage)
    if close:
        log.close()
    else:
        abandon(log)
    return storage, written


def salvage(storage: MemoryStorage | SimulatedStorage, **settings: object) -> tuple[MemoryStorage, SalvageReport]:
    """Salvage into memory, and look at the new log in every way there is."""
    destination = MemoryStorage()
    report = salvage_log(storage, destination, **settings)  # type: ignore[arg-type]
    found = verify_log(destination)
    assert found.ok, found.damage
    assert found.uuid == report.uuid
    assert found.checkpointed_id == report.checkpointed_id
    assert found.entries == report.entries
    return destination, report


def lost_ids(report: SalvageReport, *, certain: bool = False) -> set[int]:
    losses = [lost for lost in report.lost if lost.certain or not certain]
    return {entry_id for lost in losses for entry_id in range(lost.first_id, lost.last_id + 1)}


def check_accounts(report: SalvageReport, copied: Written) -> None:
    """Every entry between the released ones and the next one is copied, lost or was abandoned, and only one of them."""
    lost = lost_ids(report)
    abandoned = {entry_id for first, last in report.abandoned for entry_id in range(first, last + 1)}
    assert not lost & set(copied)
    missing = set(range(report.checkpointed_id + 1, report.next_id)) - set(copied)
    assert missing - abandoned <= lost
    assert len(copied) == report.entries
    assert list(copied) == sorted(copied)
    assert (report.first_id, report.last_id) == ((min(copied), max(copied)) if copied else (None, None))
    assert report.copied_bytes == sum(len(chunk) for chunks in copied.values() for chunk in chunks)


def check_it_goes_on(destination: MemoryStorage, report: SalvageReport, copied: Written) -> None:
    """The new log opens, holds what was copied, and gives its next entry an id that nobody had."""
    log = open_log(destination)
    assert all_of(log) == copied
    assert log.append(b"the next one") == report.next_id
    log.close()
    assert contents(read_log(destination)) == {**copied, int(report.next_id): [b"the next one"]}


# ------------------------------------------------------------------------------------------------- without damage


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_whole_log_is_copied_whole(seed: int, close: bool) -> None:
    storage, written = make_log(seed, close=close)
    destination, report = salvage(storage)
    copied = contents(read_log(destination))
    assert copied == written
    assert report.ok
    assert report.damage == []
    assert report.next_id == len(written) + 1
    check_accounts(report, copied)
    check_it_goes_on(destination, report, copied)


def test_released_entries_are_not_copied_and_stay_released() -> None:
    storage, written = make_log(3, released=25)
    destination, report = salvage(storage)
    assert report.checkpointed_id == 25
    assert contents(read_log(destination)) == {key: value for key, value in written.items() if key > 25}
    assert report.ok


def test_a_log_of_which_everything_is_released_goes_on_with_the_next_id() -> None:
    storage, _ = make_log(3, entries=20, released=20)
    with open_log(storage) as log:
        log.checkpoint(EntryId(20))
    destination, report = salvage(storage)
    assert (report.entries, report.checkpointed_id, report.next_id) == (0, 20, 21)
    check_it_goes_on(destination, report, {})


def test_an_empty_log_is_salvaged_to_an_empty_log() -> None:
    storage = MemoryStorage()
    open_log(storage).close()
    destination, report = salvage(storage)
    assert report.ok
    check_it_goes_on(destination, report, {})


def test_positions_of_the_old_log_mean_nothing_in_the_new_one() -> None:
    storage, written = make_log(4)
    positions = [position for entry in read_log(storage) for position in entry.chunk_positions]
    destination, _ = salvage(storage)
    with open_log(destination) as log:
        for position in positions:
            with pytest.raises(EntryNotFoundError):
                log.read_at(position)
        assert all_of(log) == written


def test_version_info_of_segments_is_kept() -> None:
    storage = MemoryStorage()
    for mark in (b"revision 1", b"revision 2"):
        with open_log(storage, version_info=mark) as log:
            for _ in range(3):
                log.append(mark)
    destination, _ = salvage(storage)
    assert [(list(entry.chunks()), entry.segment.version_info) for entry in read_log(destination)] == [
        ([mark], mark) for mark in (b"revision 1",) * 3 + (b"revision 2",) * 3
    ]


@pytest.mark.parametrize("checksum", ["crc32c", "crc32"])
def test_the_checksum_is_kept(checksum: str) -> None:
    storage = MemoryStorage()
    with open_log(storage, checksum=checksum) as log:
        log.append(b"entry")
    destination, _ = salvage(storage)
    kind = bytes_of(destination, segments_of(destination)[0])[28]
    assert kind == {"crc32c": 1, "crc32": 2}[checksum]


def test_an_entry_that_is_larger_than_a_buffer_is_copied() -> None:
    storage = MemoryStorage()
    chunks = [random.Random(number).randbytes(700_000) for number in range(4)]
    with open_log(storage) as log:
        log.append(b"before")
        log.append(*chunks)
        log.append(b"behind")
    destination, _ = salvage(storage)
    assert contents(read_log(destination)) == {1: [b"before"], 2: chunks, 3: [b"behind"]}


class AbandonsTheSecond(Checkpointer):
    self_driven = True

    def should_recover_segment(self, segment: SegmentInfo) -> Recovery:
        return Recovery.ABANDON if segment.sequence == 2 else Recovery.RECOVER


def test_abandoned_entries_stay_abandoned_and_are_not_called_lost() -> None:
    storage, _ = make_log(6)
    log = open_log(storage, AbandonsTheSecond())
    kept = all_of(log)
    log.close()
    destination, report = salvage(storage)
    assert contents(read_log(destination)) == kept
    assert report.ok
    assert report.abandoned
    check_accounts(report, kept)
    check_it_goes_on(destination, report, kept)


def crashed_disks(seeds: range) -> Iterator[SimulatedStorage]:
    """Disks as crashes, kills and failed syncs leave them, with leftovers of all kinds and no damage."""
    for seed in seeds:
        scenario = Scenario(seed)
        draw = scenario.source.random()
        if draw < 0.2:
            scenario.crash_at_one_place()
        elif draw < 0.4:
            scenario.kill_in_a_release()
        for _ in range(scenario.source.randint(1, 4)):
            scenario.live()
        yield scenario.disk


def test_what_a_crash_left_is_told_from_the_log_as_recovery_tells_it() -> None:
    """Torn tails, leftovers of earlier epochs, files taken out of the log: salvage copies what opening would find."""
    compared = 0
    for disk in crashed_disks(range(200)):
        if CHECKPOINT_FILE not in disk.list():
            continue
        expected = contents(read_log(disk))
        destination, report = salvage(disk)
        assert contents(read_log(destination)) == expected
        assert report.ok, report.lost
        compared += len(expected)
    assert compared > 200


# --------------------------------------------------------------------------------------------------------- damage


class Damager:
    """Damages a copy of a log at random, and knows which bytes of which file are others now, or gone."""

    def __init__(self, storage: MemoryStorage, source: random.Random) -> None:
        self.source = source
        self.original = storage
        self.damaged = copy_of(storage)

    def run(self) -> None:
        for _ in range(self.source.choice((1, 1, 2, 5))):
            anywhere = (self.flip, self.flip, self.overwrite, self.zero, self.cut)
            in_one_place = (self.remove, self.header, self.slots, self.stranger, self.duplicate)
            self.source.choice(anywhere + in_one_place)()

    def _some(self) -> bytearray:
        return bytes_of(self.damaged, self.source.choice(segments_of(self.damaged) or [CHECKPOINT_FILE]))

    def flip(self) -> None:
        content = self._some()
        for _ in range(self.source.choice((1, 1, 3))):
            if content:
                content[self.source.randrange(len(content))] ^= 1 << self.source.randrange(8)

    def overwrite(self) -> None:
        content = self._some()
        start = self.source.randrange(len(content) + 1)
        length = min(self.source.choice((16, 512, 4096, 20_000)), len(content) - start)
        content[start : start + length] = self.source.randbytes(length)

    def zero(self) -> None:
        content = self._some()
        start = self.source.randrange(len(content) + 1)
        length = min(self.source.choice((8, 512, 4096)), len(content) - start)
        content[start : start + length] = bytes(length)

    def cut(self) -> None:
        content = self._some()
        del content[self.source.randrange(len(content) + 1) :]

    def remove(self) -> None:
        names = segments_of(self.damaged)
        if len(names) > 1:
            self.damaged.remove(self.source.choice(names))

    def header(self) -> None:
        content = self._some()
        for offset in self.source.choice(((0,), (SECOND_HEADER_OFFSET,), (0, SECOND_HEADER_OFFSET))):
            damaged = self.source.randbytes(SEGMENT_HEADER_BYTES)[: max(0, len(content) - offset)]
            content[offset : offset + len(damaged)] = damaged

    def slots(self) -> None:
        content = bytes_of(self.damaged, CHECKPOINT_FILE)
        for index in self.source.choice(((0,), (1,), (0, 1))):
            start = index * SLOT_BYTES + self.source.randrange(SLOT_BYTES)
            if start < len(content):
                content[start] ^= 1 << self.source.randrange(8)

    def stranger(self) -> None:
        """A file that is not the log's: random bytes, another log's segment, or a name that means nothing."""
        other, _ = make_log(99, entries=6)
        content = self.source.choice((self.source.randbytes(40_000), bytes_of(other, segments_of(other)[0]), b""))
        self.damaged._files[self.source.choice(("segment-00000090", "letter.txt", "segment-1"))] = bytearray(content)

    def duplicate(self) -> None:
        """A file that somebody copied, before or after the damage."""
        self.damaged._files["segment-00000095"] = bytearray(self._some())

    def is_touched(self, frame: Frame) -> bool:
        before = bytes_of(self.original, frame.name)[frame.start : frame.end]
        return all(
            bytes_of(self.damaged, name)[frame.start : frame.end] != before
            for name in {frame.name, "segment-00000095"}
            if name in self.damaged.list()
        )

    @property
    def identity_is_lost(self) -> bool:
        """No header and no slot that is whole says which log it is."""
        originals = bytes_of(self.original, CHECKPOINT_FILE), bytes_of(self.damaged, CHECKPOINT_FILE)
        if any(originals[0][at : at + SLOT_BYTES] == originals[1][at : at + SLOT_BYTES] for at in (0, SLOT_BYTES)):
            return False
        areas = {
            bytes(bytes_of(self.original, name)[at : at + SEGMENT_HEADER_BYTES])
            for name in segments_of(self.original)
            for at in (0, SECOND_HEADER_OFFSET)
        }
        return not any(
            bytes(bytes_of(self.damaged, name)[at : at + SEGMENT_HEADER_BYTES]) in areas
            for name in segments_of(self.damaged)
            for at in (0, SECOND_HEADER_OFFSET)
        )

    def must_copy(self, frames: list[Frame], released: int) -> set[int]:
        """The entries that no damage touched and that a promise, or an unbroken way, says are the log's."""
        touched = [self.is_touched(frame) for frame in frames]
        promised = 0
        reachable = [True] * len(frames)
        for index in range(len(frames) - 1, -1, -1):
            if touched[index]:
                reachable[index] = promised > frames[index].position
            else:
                promised = max(promised, frames[index].promise)
        whole: set[int] = set()
        broken: set[int] = set()
        open_frames_touched = False
        for frame, is_touched, can_pass in zip(frames, touched, reachable, strict=True):
            open_frames_touched = open_frames_touched or is_touched
            if is_touched and not can_pass:
                break
            if frame.kind == COMMIT:
                (broken if open_frames_touched else whole).add(frame.entry_id)
                open_frames_touched = False
            elif frame.kind not in (DATA, SEAL):
                open_frames_touched = False
        return {entry_id for entry_id in whole if entry_id > released}


@pytest.mark.parametrize("released", [0, 22])
@pytest.mark.parametrize("close", [True, False])
def test_random_damage_loses_what_it_touches_and_nothing_else(close: bool, released: int) -> None:
    copied_in_all = lost_in_all = 0
    for seed in range(80):
        source = random.Random(seed)
        storage, written = make_log(seed % 10, entries=30, released=released, close=close)
        frames = frames_of(storage)  # type: ignore[arg-type]
        damager = Damager(storage, source)
        damager.run()
        before = copy_of(damager.damaged)
        destination = MemoryStorage()
        try:
            report = salvage_log(damager.damaged, destination)
        except DamagedLogError as error:
            if not damager.identity_is_lost and "several logs" not in str(error):
                pytest.fail(f"seed {seed}: {error}")
            continue
        assert damager.damaged._files == before._files, "the damaged directory was changed"
        assert verify_log(destination).ok
        copied = contents(read_log(destination))
        assert all(written[entry_id] == chunks for entry_id, chunks in copied.items()), f"seed {seed}"
        must = damager.must_copy(frames, released)
        assert must <= set(copied), f"seed {seed}: {sorted(must - set(copied))} are whole and were not copied: {report}"
        check_accounts(report, copied)
        # An entry may go on behind a SEAL.
        touched = {frame.entry_id + (frame.kind == SEAL) for frame in frames if damager.is_touched(frame)}
        certain = lost_ids(report, certain=True)
        assert certain <= touched, f"seed {seed}: {sorted(certain - touched)} are whole and called lost"
        copied_in_all += len(copied)
        lost_in_all += len(lost_ids(report))
        check_it_goes_on(destination, report, copied)
    assert copied_in_all > 500
    assert lost_in_all > 20


def test_damage_after_crashes_brings_nothing_back_that_was_never_acknowledged() -> None:
    """Leftovers are whole frames of this log. What is copied must be the log's all the same."""
    copied_in_all = 0
    for seed, disk in enumerate(crashed_disks(range(5_000, 5_150))):
        if CHECKPOINT_FILE not in disk.list():
            continue
        expected = contents(read_log(disk, released=True))
        storage = MemoryStorage()
        for name in disk.list():
            file = disk.open(name, read_only=True)
            storage._files[name] = bytearray(file.pread(file.size(), 0))
        damager = Damager(storage, random.Random(seed))
        damager.flip()
        damager.source.choice((damager.flip, damager.header, damager.cut))()
        destination = MemoryStorage()
        try:
            report = salvage_log(damager.damaged, destination)
        except DamagedLogError:
            assert damager.identity_is_lost
            continue
        copied = contents(read_log(destination))
        sure = {key: value for key, value in copied.items() if report.doubtful_id is None or key < report.doubtful_id}
        assert all(expected.get(entry_id) == chunks for entry_id, chunks in sure.items()), f"disk {seed}"
        copied_in_all += len(copied)
    assert copied_in_all > 100


def find_entry(storage: MemoryStorage, entry_id: int) -> list[Frame]:
    return [frame for frame in frames_of(storage) if frame.entry_id == entry_id and frame.kind in (DATA, COMMIT)]  # type: ignore[arg-type]


def test_one_flipped_byte_costs_its_entry_and_the_report_says_where() -> None:
    storage, written = make_log(1)
    [frame] = [frame for frame in find_entry(storage, 14) if frame.kind == COMMIT]
    bytes_of(storage, frame.name)[frame.start + 50] ^= 1
    destination, report = salvage(storage)
    assert contents(read_log(destination)) == {key: value for key, value in written.items() if key != 14}
    [lost] = report.lost
    assert (lost.first_id, lost.last_id, lost.certain) == (14, 14, True)
    [where] = lost.where
    assert where.file == f"<memory>/{frame.name}"
    assert where.offset <= frame.start < where.offset + where.length
    assert report.damage == [where]


def test_an_entry_with_one_damaged_fragment_is_lost_whole() -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        log.append(b"before")
        log.append(*[bytes([number]) * 9_000 for number in range(8)])
        log.append(b"behind")
    fragment = find_entry(storage, 2)[4]
    bytes_of(storage, fragment.name)[fragment.end - 100] ^= 1
    destination, report = salvage(storage)
    assert contents(read_log(destination)) == {1: [b"before"], 3: [b"behind"]}
    assert lost_ids(report) == {2}


def test_a_damaged_seal_inside_of_an_entry_costs_nothing() -> None:
    storage = MemoryStorage()
    chunks = [bytes([number]) * 9_000 for number in range(8)]
    with open_log(storage) as log:
        log.append(b"before")
        log.append(*chunks)
        log.append(b"behind")
    seal = next(frame for frame in frames_of(storage) if frame.kind == SEAL)  # type: ignore[arg-type]
    bytes_of(storage, seal.name)[seal.start + 8] ^= 1
    destination, report = salvage(storage)
    assert contents(read_log(destination)) == {1: [b"before"], 2: chunks, 3: [b"behind"]}
    assert report.ok
    assert [(lost.offset, lost.length) for lost in report.damage] == [(seal.start, seal.end - seal.start)]


def test_a_missing_segment_costs_its_entries() -> None:
    storage, written = make_log(2)
    name = segments_of(storage)[1]
    gone = {frame.entry_id for frame in frames_of(storage) if frame.name == name and frame.kind in (DATA, COMMIT)}  # type: ignore[arg-type]
    storage.remove(name)
    destination, report = salvage(storage)
    assert lost_ids(report) == gone
    assert set(contents(read_log(destination))) == set(written) - gone


def test_segments_without_a_whole_header_are_read() -> None:
    """The frames themselves say where they belong, and their checksums which log's they are."""
    storage, written = make_log(5)
    for name in segments_of(storage):
        content = bytes_of(storage, name)
        content[:FRAMES_OFFSET] = bytes(FRAMES_OFFSET)
    destination, report = salvage(storage)
    assert contents(read_log(destination)) == written
    assert report.ok


def test_the_identity_is_told_from_a_damaged_copy_and_proved_by_the_frames() -> None:
    storage, written = make_log(5)
    log_uuid = verify_log(storage).uuid
    for name in segments_of(storage):
        content = bytes_of(storage, name)
        content[60] ^= 1
        content[SECOND_HEADER_OFFSET : SECOND_HEADER_OFFSET + SEGMENT_HEADER_BYTES] = bytes(SEGMENT_HEADER_BYTES)
    storage.remove(CHECKPOINT_FILE)
    destination, report = salvage(storage)
    assert report.uuid == log_uuid
    assert contents(read_log(destination)) == written


def test_an_identity_that_is_nowhere_must_be_told() -> None:
    storage, written = make_log(5)
    log_uuid = verify_log(storage).uuid
    for name in segments_of(storage):
        content = bytes_of(storage, name)
        content[:FRAMES_OFFSET] = bytes(FRAMES_OFFSET)
    storage.remove(CHECKPOINT_FILE)
    for wrong in (None, uuid.UUID(int=7)):
        with pytest.raises(DamagedLogError, match="uuid"):
            salvage_log(storage, MemoryStorage(), log_uuid=wrong)
    destination, _ = salvage(storage, log_uuid=log_uuid)
    assert contents(read_log(destination)) == written


def test_without_a_checkpoint_everything_found_is_copied() -> None:
    storage, written = make_log(7, released=20)
    kept = contents(read_log(storage, released=True))
    storage.remove(CHECKPOINT_FILE)
    destination, report = salvage(storage)
    copied = contents(read_log(destination))
    assert kept.items() <= copied.items() <= written.items()
    assert any(CHECKPOINT_FILE in note for note in report.notes)
    assert all(not lost.certain for lost in report.lost)


def test_the_older_slot_serves_and_what_it_does_not_know_is_not_called_lost_for_certain() -> None:
    storage, _ = make_log(7, released=20)
    with open_log(storage) as log:
        log.checkpoint(EntryId(22))
    waiting = contents(read_log(storage))
    released = verify_log(storage).checkpointed_id
    content = bytes_of(storage, CHECKPOINT_FILE)
    generations = [int.from_bytes(content[at + 32 : at + 40], "little") for at in (0, SLOT_BYTES)]
    content[(0, SLOT_BYTES)[generations.index(max(generations))] + 100] ^= 1
    destination, report = salvage(storage)
    assert report.checkpointed_id < released
    assert waiting.items() <= contents(read_log(destination)).items()
    assert all(not lost.certain and lost.last_id <= released for lost in report.lost)


def test_a_lost_end_is_bridged_so_that_no_id_is_given_twice() -> None:
    storage, written = make_log(1, entries=12)
    [frame] = [frame for frame in find_entry(storage, 12) if frame.kind == COMMIT]
    bytes_of(storage, frame.name)[frame.start] ^= 1
    destination, report = salvage(storage)
    assert lost_ids(report) == {12}
    assert report.next_id == 13
    del written[12]
    check_it_goes_on(destination, report, written)


def test_an_end_that_only_the_checkpoint_file_knows_of_is_lost_and_its_ids_are_not_given_again() -> None:
    storage, written = make_log(1, entries=12)
    [frame] = [frame for frame in find_entry(storage, 11) if frame.kind == COMMIT]
    content = bytes_of(storage, frame.name)
    content[frame.start :] = bytes(len(content) - frame.start)
    with pytest.raises(DamagedLogError, match=r"up to entry 12\) says that this was durable"):
        open_log(storage)
    destination, report = salvage(storage)
    assert lost_ids(report) == {11, 12}
    assert [(stretch.offset, stretch.offset + stretch.length > frame.end) for stretch in report.damage] == [
        (frame.start, True)
    ]
    assert report.next_id == 13
    del written[11], written[12]
    check_it_goes_on(destination, report, written)


def test_ids_that_the_target_knows_are_not_given_again() -> None:
    storage, written = make_log(1, entries=12)
    destination, report = salvage(storage, known_id=EntryId(20))
    assert report.next_id == 21
    check_it_goes_on(destination, report, written)


def test_the_new_log_can_end_before_a_loss() -> None:
    storage, written = make_log(1)
    [frame] = [frame for frame in find_entry(storage, 14) if frame.kind == COMMIT]
    bytes_of(storage, frame.name)[frame.start + 50] ^= 1
    destination, report = salvage(storage, through=EntryId(13))
    copied = contents(read_log(destination))
    assert copied == {key: value for key, value in written.items() if key <= 13}
    assert report.left_out == (15, 40)
    assert report.next_id == 14
    check_it_goes_on(destination, report, copied)


def test_entries_that_nothing_vouches_for_are_named() -> None:
    """Behind a break, and with no later promise: the last commits before a crash, or leftovers of another one."""
    storage = MemoryStorage()
    log = open_log(storage)
    for number in range(1, 5):
        log.append(b"%d" % number)
    abandon(log)
    [third] = find_entry(storage, 3)
    bytes_of(storage, third.name)[third.start] ^= 1
    destination, report = salvage(storage)
    assert contents(read_log(destination)) == {1: [b"1"], 2: [b"2"], 4: [b"4"]}
    assert report.doubtful_id == 4


def test_a_run_gives_no_entry_that_a_later_run_has() -> None:
    """The reader's own guard, should ever a leftover pass all rules: ids grow."""
    storage, _ = make_log(1, entries=10)
    source = read_source(storage, None)
    file = source.files[0]
    finder = FrameFinder(storage.open(file.name), file.size, file.bases, source.checksum, source.seed)
    runs, _ = find_runs(file.name, finder)
    later = find_runs(file.name, finder)[0][0]
    later.next_id, later.start, later.end = 4, runs[-1].end, runs[-1].end
    given: list[int] = []
    found = EntryFinder(source, [*runs, later], {}, lambda entry_id, *_: given.append(entry_id), released_id=0)
    found.read()
    assert given == [1, 2, 3]


# --------------------------------------------------------------------------------------------------- what it refuses


def test_a_directory_that_is_not_empty_is_refused_and_left_alone() -> None:
    storage, _ = make_log(1, entries=3)
    destination = MemoryStorage()
    destination.create("letter.txt")
    with pytest.raises(UsageError, match="empty"):
        salvage_log(storage, destination)
    assert destination.list() == ["letter.txt"]
    with pytest.raises(UsageError):
        salvage_log(storage, storage)


@pytest.mark.parametrize("kind", ["a file", "a directory with a directory", "inside", "itself"])
def test_a_place_on_disk_that_is_no_new_directory_is_refused(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    with WriteAheadLog.recover(log) as opened:
        opened.append(b"entry")
    place = tmp_path / "new"
    if kind == "a file":
        place.write_text("Dear reader,")
    elif kind == "a directory with a directory":
        (place / "inner").mkdir(parents=True)
    elif kind == "inside":
        place = log / "new"
    else:
        place = log
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError):
        salvage_log(log, place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_in_files_is_salvaged_and_not_touched(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open_log(log) as opened:
        for number in range(200):
            opened.append(b"%d" % number * 100)
    segment = min(log.glob("segment-*"))
    data = bytearray(segment.read_bytes())
    data[FRAMES_OFFSET + 3_000] ^= 1
    segment.write_bytes(data)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in log.iterdir()}
    report = salvage_log(log, tmp_path / "far" / "new")
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in log.iterdir()} == before
    assert 198 <= report.entries < 200
    [lost] = report.lost
    assert lost.where[0].file == str(segment)
    with open_log(tmp_path / "far" / "new") as opened:
        assert len(all_of(opened)) == report.entries


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(LogError, match="no log"):
        salvage_log(MemoryStorage(), MemoryStorage())


def test_two_logs_in_one_directory_must_be_told_apart() -> None:
    storage, written = make_log(1, entries=4)
    other, _ = make_log(2, entries=4)
    log_uuid = verify_log(storage).uuid
    storage._files["segment-00000090"] = bytes_of(other, segments_of(other)[0])
    storage.remove(CHECKPOINT_FILE)
    with pytest.raises(DamagedLogError, match=str(log_uuid)):
        salvage_log(storage, MemoryStorage())
    destination, report = salvage(storage, log_uuid=log_uuid)
    assert contents(read_log(destination)) == written
    assert any("another" in note or "segment of log" in note for note in report.notes)


def test_a_newer_version_is_not_taken_for_damage() -> None:
    storage, _ = make_log(1, entries=4)
    for name in segments_of(storage):
        content = bytes_of(storage, name)
        content[FRAMES_OFFSET + 4] = 9
        from walsync.wal.checksum import checksum_function
        from walsync.wal.format import header_seed

        checksum = checksum_function(content[28])
        seed = header_seed(uuid.UUID(bytes=bytes(content[32:48])), checksum)
        crc = checksum(bytes(content[FRAMES_OFFSET + 4 : FRAMES_OFFSET + 72]), seed)
        content[FRAMES_OFFSET : FRAMES_OFFSET + 4] = crc.to_bytes(4, "little")
        break
    with pytest.raises(LogVersionError):
        salvage_log(storage, MemoryStorage())


@pytest.mark.parametrize("fault", ["disk full", "failed syncs", "short writes"])
def test_a_new_log_that_could_not_be_finished_cannot_be_opened(fault: str) -> None:
    storage, written = make_log(1, entries=12)
    faults = {
        "disk full": Fault.disk_full,
        "failed syncs": lambda at: Fault.io_error(at, kinds=OperationKind.SYNC),
        "short writes": lambda at: Fault(FaultAction.SHORT, at=at, kinds=OperationKind.WRITE),
    }
    failed = 0
    for at in range(1, 200):
        disk = MemoryStorage()
        faulty = FaultyStorage(disk, faults[fault](at))
        try:
            salvage_log(storage, faulty)
        except LogError:
            failed += 1
            # Of a rename whose directory could not be synced everything is there.
            if CHECKPOINT_FILE not in disk.list():
                with pytest.raises(LogError):
                    contents(read_log(disk))
            continue
        assert contents(read_log(disk)) == written
        if not faulty.failed:
            break
    else:
        pytest.fail("the faults never ended")
    assert failed == 0 if fault == "short writes" else failed > 5


def test_a_sector_that_cannot_be_read_costs_what_lies_in_it() -> None:
    storage, written = make_log(1)
    [frame] = [frame for frame in find_entry(storage, 14) if frame.kind == COMMIT]

    class BadSector(MemoryStorage):
        def open(self, name: str, *, read_only: bool = False):  # type: ignore[no-untyped-def]
            file = storage.open(name, read_only=read_only)
            if name == frame.name:
                whole = file.pread

                def pread(length: int, offset: int) -> bytes:
                    if offset <= frame.start < offset + length:
                        raise OSError(errno.EIO, os.strerror(errno.EIO), name)
                    return whole(length, offset)

                file.pread = pread  # type: ignore[method-assign]
            return file

        def list(self) -> list[str]:
            return storage.list()

    destination, report = salvage(BadSector())
    copied = contents(read_log(destination))
    assert copied.items() <= written.items()
    assert 14 in lost_ids(report)
    assert len(copied) >= len(written) - 12
    assert any("cannot read" in note for note in report.notes)


def test_progress_never_passes_its_total() -> None:
    storage, _ = make_log(1)
    seen: list[tuple[int, int]] = []
    salvage(storage, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert all(done <= total for done, total in seen)
    assert seen[0][1] >= len(segments_of(storage)) * SEGMENT_BYTES

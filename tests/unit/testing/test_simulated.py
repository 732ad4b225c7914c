"""The simulated disk: what a sync covers stays, what none covers is at the mercy of the crash."""

from __future__ import annotations

import random

import pytest

from walsync.testing import SimulatedCrash, SimulatedStorage, Survival


def content(storage: SimulatedStorage, name: str = "file") -> bytes:
    file = storage.open(name, read_only=True)
    return file.pread(file.size(), 0)


def seeds() -> list[random.Random]:
    return [random.Random(seed) for seed in range(60)]


@pytest.fixture
def disk() -> SimulatedStorage:
    """A disk with one durable file of four sectors."""
    storage = SimulatedStorage()
    file = storage.create("file")
    file.pwrite(b"a" * 2048, 0)
    file.sync()
    storage.sync_directory()
    return storage


@pytest.mark.parametrize("survival", Survival)
def test_what_was_synced_survives_every_crash(disk: SimulatedStorage, survival: Survival) -> None:
    disk.open("file").pwrite(b"b" * 512, 2048)
    for source in seeds():
        assert content(disk.crash(source, survival))[:2048] == b"a" * 2048


def test_nothing_survives_that_was_not_synced(disk: SimulatedStorage) -> None:
    disk.open("file").pwrite(b"b" * 1000, 0)
    disk.create("other")
    found = disk.crash(random.Random(1), Survival.NOTHING)
    assert content(found) == b"a" * 2048
    assert found.list() == ["file"]


def test_everything_survives_that_was_written(disk: SimulatedStorage) -> None:
    disk.open("file").pwrite(b"b" * 1000, 0)
    disk.rename("file", "other")
    found = disk.crash(random.Random(1), Survival.EVERYTHING)
    assert content(found, "other") == b"b" * 1000 + b"a" * 1048
    assert found.list() == ["other"]


def test_a_subset_is_of_whole_sectors_in_every_combination(disk: SimulatedStorage) -> None:
    disk.open("file").pwrite(b"b" * 1024, 0)
    outcomes = {content(disk.crash(source, Survival.SUBSET))[:1024] for source in seeds()}
    old, new = b"a" * 512, b"b" * 512
    assert outcomes == {old + old, old + new, new + old, new + new}


def test_a_subset_may_hold_a_version_between_two_writes(disk: SimulatedStorage) -> None:
    file = disk.open("file")
    file.pwrite(b"b" * 512, 0)
    file.pwrite(b"c" * 512, 0)
    outcomes = {content(disk.crash(source, Survival.SUBSET))[:1] for source in seeds()}
    assert outcomes == {b"a", b"b", b"c"}


def test_a_prefix_never_has_a_later_write_without_an_earlier_one(disk: SimulatedStorage) -> None:
    file, other = disk.open("file"), disk.create("other")
    disk.sync_directory()
    file.pwrite(b"b" * 512, 0)
    other.pwrite(b"c" * 512, 0)
    file.pwrite(b"d" * 1024, 512)
    outcomes = set()
    for source in seeds():
        found = disk.crash(source, Survival.PREFIX).copy()
        outcomes.add(
            (content(found)[:1], content(found, "other")[:1], content(found)[512:513], content(found)[1024:1025])
        )
    assert outcomes == {
        (b"a", b"", b"a", b"a"),
        (b"b", b"", b"a", b"a"),
        (b"b", b"c", b"a", b"a"),
        (b"b", b"c", b"d", b"a"),
        (b"b", b"c", b"d", b"d"),
    }


def test_misdirected_writes_swap_places_and_spare_what_is_durable(disk: SimulatedStorage) -> None:
    file = disk.open("file")
    file.pwrite(b"b" * 512, 2048)
    file.pwrite(b"c" * 512, 2560)
    # A recovery writes again what is there: nothing may land on that.
    file.pwrite(b"a" * 512, 0)
    outcomes = set()
    for source in seeds():
        found = content(disk.crash(source, Survival.MISDIRECTED).copy())
        assert found[:2048] == b"a" * 2048
        outcomes.add((found[2048:2049], found[2560:2561]))
    assert (b"c", b"b") in outcomes
    assert (b"b", b"c") in outcomes


def test_a_file_that_grew_may_be_shorter_and_its_gap_is_zeros(disk: SimulatedStorage) -> None:
    disk.open("file").pwrite(b"b" * 512, 4096)
    outcomes = {len(content(disk.crash(source, Survival.SUBSET))) for source in seeds()}
    assert outcomes == {2048, 4608}
    assert content(disk.crash(random.Random(1), Survival.EVERYTHING))[2048:4096] == bytes(2048)


def test_a_truncated_file_may_be_long_again(disk: SimulatedStorage) -> None:
    disk.open("file").truncate(100)
    assert content(disk) == b"a" * 100
    assert content(disk.crash(random.Random(1), Survival.NOTHING)) == b"a" * 2048
    assert len(content(disk.crash(random.Random(1), Survival.EVERYTHING))) == 100


def test_a_name_is_durable_after_a_sync_of_its_directory_and_not_of_its_file(disk: SimulatedStorage) -> None:
    file = disk.create("new")
    file.pwrite(b"b", 0)
    file.sync()
    assert disk.crash(random.Random(1), Survival.NOTHING).list() == ["file"]
    disk.crashed = False
    disk.sync_directory()
    assert content(disk.crash(random.Random(1), Survival.NOTHING), "new") == b"b"


def test_a_removed_file_may_be_back_with_its_bytes(disk: SimulatedStorage) -> None:
    disk.remove("file")
    outcomes = {tuple(disk.crash(source, Survival.SUBSET).list()) for source in seeds()}
    assert outcomes == {(), ("file",)}
    assert content(disk.crash(random.Random(1), Survival.NOTHING)) == b"a" * 2048


def test_a_rename_is_whole_or_not_done(disk: SimulatedStorage) -> None:
    disk.rename("file", "other")
    outcomes = {tuple(disk.crash(source, Survival.SUBSET).list()) for source in seeds()}
    assert outcomes == {("file",), ("other",)}


def test_a_rename_into_a_subdirectory_needs_both_directories_synced(disk: SimulatedStorage) -> None:
    disk.make_directory("aside")
    disk.sync_directory()
    disk.rename("file", "aside/file")
    for directory, expected in (("aside", ["file"]), ("", [])):
        disk.sync_directory(directory)
        assert disk.crash(random.Random(1), Survival.NOTHING).list() == expected
        disk.crashed = False


def test_the_files_of_a_lost_subdirectory_are_lost(disk: SimulatedStorage) -> None:
    disk.make_directory("aside")
    disk.create("aside/new")
    disk.sync_directory("aside")
    found = disk.crash(random.Random(1), Survival.NOTHING)
    with pytest.raises(FileNotFoundError):
        found.open("aside/new")


def test_a_failed_sync_loses_the_bytes_for_later_syncs_too(disk: SimulatedStorage) -> None:
    file = disk.open("file")
    file.pwrite(b"b" * 512, 0)
    file.fail_sync()
    # The system has them in memory, says that they are clean, and syncs nothing.
    assert file.pread(1, 0) == b"b"
    file.sync()
    outcomes = {content(disk.crash(source, Survival.SUBSET).copy())[:1] for source in seeds()}
    assert outcomes == {b"a", b"b"}
    assert content(disk.crash(random.Random(1), Survival.NOTHING).copy())[:1] == b"a"
    disk.crashed = False
    # Written again, they are dirty again.
    file.pwrite(b"b" * 512, 0)
    file.sync()
    assert content(disk.crash(random.Random(1), Survival.NOTHING))[:1] == b"b"


def test_a_kill_loses_nothing_and_makes_nothing_durable(disk: SimulatedStorage) -> None:
    disk.open("file").pwrite(b"b" * 512, 0)
    disk.create("new")
    found = disk.kill()
    assert content(found)[:1] == b"b"
    assert sorted(found.list()) == ["file", "new"]
    found = found.crash(random.Random(1), Survival.NOTHING)
    assert content(found)[:1] == b"a"
    assert found.list() == ["file"]


def test_a_crashed_storage_does_nothing_more(disk: SimulatedStorage) -> None:
    file = disk.open("file")
    lock = disk.lock("lock", 0.0)
    disk.crash(random.Random(1))
    for call in (
        disk.list,
        disk.sync_directory,
        file.sync,
        file.size,
        lambda: file.pwrite(b"x", 0),
        lambda: file.pread(1, 0),
    ):
        with pytest.raises(SimulatedCrash):
            call()
    # What a dying process does anyway.
    file.close()
    assert lock is not None
    lock.release()


def test_a_crash_happens_in_the_operation_that_was_asked_for(disk: SimulatedStorage) -> None:
    file = disk.open("file")
    disk.crash_at = disk.changes + 2
    file.pwrite(b"b" * 512, 0)
    with pytest.raises(SimulatedCrash):
        file.sync()
    # The sync is not done.
    assert content(disk.crash(random.Random(1), Survival.NOTHING))[:1] == b"a"


def test_a_write_in_which_the_process_ends_may_be_done(disk: SimulatedStorage) -> None:
    disk.crash_at = disk.changes + 1
    with pytest.raises(SimulatedCrash):
        disk.open("file").pwrite(b"b" * 512, 0)
    outcomes = {content(disk.crash(source, Survival.SUBSET).copy())[:1] for source in seeds()}
    assert outcomes == {b"a", b"b"}


def test_one_seed_has_one_outcome(disk: SimulatedStorage) -> None:
    disk.open("file").pwrite(bytes(range(256)) * 6, 300)
    for seed in range(30):
        first, second = (content(disk.crash(random.Random(seed)).copy()) for _ in range(2))
        assert first == second

"""A crash after every operation of one fixed piece of work, and after every operation of the recovery from each."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest

from tests.simulation.fixed_work import first_life, second_life, step_commit
from tests.simulation.model import Model
from tests.simulation.scenario import open_log
from walsync.exceptions import LogPoisonedError
from walsync.testing import SimulatedCrash, SimulatedStorage, Survival
from walsync.wal import EntryId

SUBSETS = 3
"""How many of the countless subsets of what was not synced are tried at each place."""


def survivals(place: int) -> Iterator[tuple[Survival, random.Random]]:
    for survival in Survival:
        tries = SUBSETS if survival in (Survival.SUBSET, Survival.MISDIRECTED) else 1
        for number in range(tries):
            yield survival, random.Random(f"{place} {survival.value} {number}")


def work(disk: SimulatedStorage, model: Model) -> bool:
    """Both lives, on a disk that may crash: False if it did."""
    try:
        for life in (first_life(), second_life()):
            log = open_log(disk, model)
            for step in life:
                step(log, model)
            log.close()
    except (SimulatedCrash, LogPoisonedError):
        if not disk.crashed:
            raise
    # Closing hides a failure of its last sync from its caller: everybody who committed has been told.
    return not disk.crashed


def crashed_at(place: int) -> tuple[SimulatedStorage, Model] | None:
    """The disk and the model when the work ends in its operation of this number; None if it has fewer."""
    disk, model = SimulatedStorage(), Model()
    disk.crash_at = place
    return None if work(disk, model) else (disk, model)


def count_operations() -> int:
    disk = SimulatedStorage()
    assert work(disk, Model())
    return disk.changes


OPERATIONS = count_operations()
PARTS = 4


def recover_and_go_on(disk: SimulatedStorage, model: Model, source: random.Random) -> None:
    """Open, look, go on, and lose power once more."""
    log = open_log(disk, model)
    model.check_entries(log)
    step_commit(log, model, (b"behind the crash",))
    step_commit(log, model, (b"and behind that", bytes(500)))
    log = open_log(disk.crash(source), model)
    model.check_entries(log)
    log.close()


def test_the_work_reaches_every_part_of_the_log() -> None:
    disk, model = SimulatedStorage(), Model()
    assert work(disk, model)
    assert OPERATIONS > 100
    log = open_log(disk, model)
    # It went through segments, came back to their files, and left something to recover.
    assert (
        log._segments.readable_segments[-1].sequence
        > len([name for name in disk.list() if name.startswith("segment-")]) + 1
    )
    assert 0 < log.checkpointed_id < log.last_id
    log.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_in_any_operation_loses_nothing_acknowledged(part: int) -> None:
    for place in range(1 + part, OPERATIONS + 1, PARTS):
        crashed = crashed_at(place)
        assert crashed is not None
        disk, model = crashed
        for survival, source in survivals(place):
            survivor = disk.crash(source, survival).copy()
            recover_and_go_on(survivor, copy.deepcopy(model), source)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_crash_in_any_operation_of_a_recovery_loses_nothing(part: int) -> None:
    recoveries = 0
    for place in range(1 + part, OPERATIONS + 1, PARTS):
        crashed = crashed_at(place)
        assert crashed is not None
        disk, model = crashed
        # The power fails, or the process alone ends; then again during the recovery.
        for again in (
            disk.crash(random.Random(place), Survival.SUBSET),
            disk.crash(random.Random(place), Survival.PREFIX),
        ):
            recoveries += crash_every_recovery(again, model, place)
    assert recoveries > OPERATIONS // PARTS


def crash_every_recovery(disk: SimulatedStorage, model: Model, place: int) -> int:
    number = 0
    while True:
        number += 1
        attempt, expected = disk.copy(), copy.deepcopy(model)
        attempt.crash_at = number
        try:
            open_log(attempt, expected).close()
        except (SimulatedCrash, LogPoisonedError):
            assert attempt.crashed
        else:
            return number - 1
        source = random.Random(f"{place} {number}")
        recover_and_go_on(attempt.crash(source), expected, source)


def test_a_power_cut_after_a_kill_in_any_operation_loses_nothing() -> None:
    """kill -9, opened again with what the system's memory has, and only then the power fails."""
    for place in range(1, OPERATIONS + 1):
        for later in (0, 1, 2):
            crashed = crashed_at(place)
            assert crashed is not None
            disk, model = crashed
            disk = disk.kill()
            log = open_log(disk, model)
            for number in range(later):
                step_commit(log, model, (bytes([number]) * 15_000,))
                model.release(model.last_id - 1)
                log.checkpoint(EntryId(max(0, model.last_id - 1)))
            for survival in (Survival.NOTHING, Survival.SUBSET):
                source = random.Random(f"{place} {later}")
                survivor = disk.crash(source, survival).copy()
                recover_and_go_on(survivor, copy.deepcopy(model), source)

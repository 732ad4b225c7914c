"""Every operation of one fixed piece of work fails, each in turn, in every way, once and for ever.

Nothing acknowledged is lost; a log that was poisoned acknowledges nothing more; one that was refused room goes on
when there is room; nothing hangs.
"""

from __future__ import annotations

import copy
import errno
import random
from collections import Counter

import pytest

from tests.simulation.fixed_work import Step, first_life, second_life, step_commit
from tests.simulation.model import InvariantViolation, Model
from tests.simulation.scenario import CONFIG, open_log
from tests.simulation.watchdog import within
from walsync.exceptions import LogClosedError, LogError, LogFullError, LogPoisonedError
from walsync.testing import Fault, FaultAction, FaultyStorage, OperationKind, SimulatedStorage, Survival
from walsync.wal import EntryId, WriteAheadLog

WAYS = {
    "EIO": (FaultAction.ERROR, errno.EIO),
    "ENOSPC": (FaultAction.TORN_ERROR, errno.ENOSPC),
    "EIO after half of it": (FaultAction.TORN_ERROR, errno.EIO),
    "short": (FaultAction.SHORT, 0),
}


class Attempt:
    """The work with one fault."""

    def __init__(self, fault: Fault) -> None:
        self.disk = SimulatedStorage()
        self.storage = FaultyStorage(self.disk, fault)
        self.model = Model()
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        for life in (first_life(), second_life()):
            try:
                log = open_log(self.storage, self.model)
            except LogError:
                # What the disk refuses ends the opening; nothing is lost by that, as `check` shows.
                self.seen["not opened"] += 1
                return
            try:
                for step in life:
                    self.step(log, step)
                self.when_the_disk_is_well(log)
            finally:
                self.close(log)
            if self.seen["poisoned"]:
                return

    def step(self, log: WriteAheadLog, step: Step) -> None:
        before = self.model.last_id, len(self.model.under_way)
        try:
            step(log, self.model)
        except LogPoisonedError:
            self.seen["poisoned"] += 1
        except (LogError, OSError) as error:
            self.seen[type(error).__name__] += 1
            if len(self.model.under_way) > before[1]:
                # Nothing of an entry that was refused may ever appear.
                self.model.refuse()
        else:
            if log.poisoned is not None and (self.model.last_id, len(self.model.under_way)) != before:
                raise InvariantViolation("a poisoned log acknowledged an entry")

    def when_the_disk_is_well(self, log: WriteAheadLog) -> None:
        self.storage.faults.clear()
        try:
            step_commit(log, self.model, (b"when the disk is well",))
        except LogPoisonedError:
            if log.poisoned is None:
                raise
            return
        if log.poisoned is not None:
            raise InvariantViolation("a poisoned log acknowledged an entry")
        self.seen["went on"] += 1

    def close(self, log: WriteAheadLog) -> None:
        try:
            log.close()
        except LogError:
            self.seen["not closed"] += 1

    def check(self) -> None:
        """What the next process finds, and what is left if the power fails before it starts, or after."""
        for source in (None, random.Random(1), random.Random(2)):
            model = copy.deepcopy(self.model)
            disk = self.disk.kill() if source is None else self.disk.crash(source).copy()
            log = open_log(disk, model)
            model.check_entries(log)
            step_commit(log, model, (b"after the failure",))
            if source is None:
                # What was recovered is owed, also if it was only in the system's memory before.
                survivor = disk.crash(random.Random(3), Survival.NOTHING)
                self.disk = survivor.copy()
                log = open_log(survivor, copy.deepcopy(model))
                self.model = model
            log.close()


def count_operations() -> int:
    storage = FaultyStorage(SimulatedStorage())
    model = Model()
    for life in (first_life(), second_life()):
        log = open_log(storage, model)
        for step in life:
            step(log, model)
        log.close()
    return storage.operations


OPERATIONS = count_operations()


@pytest.mark.parametrize(
    "times", [pytest.param(1, id="once"), pytest.param(None, id="for-ever", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_of_any_operation(way: str, times: int | None) -> None:
    action, error = WAYS[way]
    seen: Counter[str] = Counter()
    for at in range(1, OPERATIONS + 1):
        attempt = Attempt(Fault(action, at=at, times=times, error=error))

        def run(attempt: Attempt = attempt) -> None:
            attempt.run()
            attempt.check()

        try:
            within(run, f"{way} at operation {at}")
        except Exception as failure:
            raise AssertionError(f"{way} at operation {at}, {attempt.storage.failed[:3]}: {failure!r}") from failure
        seen += attempt.seen
    print(dict(seen))
    if way == "short":
        # Nothing fails: the rest is written.
        assert set(seen) == {"went on"}, seen
    else:
        assert seen["not opened"]
        assert seen["poisoned"]
        assert seen["LogFullError" if error == errno.ENOSPC else "LogError"]


def test_a_full_disk_refuses_entries_and_the_log_goes_on_when_there_is_room() -> None:
    disk, model = SimulatedStorage(), Model()
    storage = FaultyStorage(disk)
    log = open_log(storage, model)
    step_commit(log, model, (bytes(15_000),))
    for _ in range(3):
        storage.faults.append(Fault.disk_full(name="segment-"))
        # It needs a new segment, which cannot be made.
        for _ in range(2):
            with pytest.raises(LogFullError):
                log.append(bytes(20_000))
        assert log.poisoned is None
        storage.faults.clear()
        step_commit(log, model, (bytes(20_000),))
    log.close()
    log = open_log(disk.crash(random.Random(1), Survival.NOTHING), model)
    model.check_entries(log)
    log.close()


def test_a_failed_sync_is_never_repeated() -> None:
    disk, model = SimulatedStorage(), Model()
    storage = FaultyStorage(disk)
    log = open_log(storage, model)
    step_commit(log, model, (b"durable",))
    storage.faults.append(Fault.io_error(kinds=OperationKind.SYNC))
    model.begin((b"lost",))
    with pytest.raises(LogPoisonedError):
        log.append(b"lost")
    storage.tracing = True
    for _ in range(3):
        with pytest.raises(LogPoisonedError):
            log.append(b"refused")
    log.close()
    assert not [operation for operation in storage.trace if operation.kind is OperationKind.SYNC], storage.trace
    with pytest.raises((LogClosedError, LogPoisonedError)):
        log.append(b"closed")
    # What the failed sync left in memory is recovered; it is durable then, though its pages were clean before.
    survivor = disk.kill()
    log = WriteAheadLog.recover(survivor, config=CONFIG)
    assert log.durable_id == EntryId(2)
    log = WriteAheadLog.recover(survivor.crash(random.Random(1), Survival.NOTHING), config=CONFIG)
    assert [next(entry.chunks()) for entry in log.entries()] == [b"durable", b"lost"]
    log.close()

"""A scenario: lives, ends of lives and recoveries of one log in a row, all drawn from one seed.

Owns the order of things. What must hold is `model`'s, what is done in a life is `workload`'s.

The engine runs with the simulated disk, a clock that counts, and no threads: `preallocated_segments` is 0 and
`idle_hint_s` None, and what the threads would do is a step of the workload. So one seed has one outcome.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.damage import check_damaged, damage_somewhere, frames_of, judge, promise_of
from tests.simulation.model import InvariantViolation, Model, Payload
from tests.simulation.workload import Workload
from walsync.exceptions import DamagedLogError, LogError, LogPoisonedError
from walsync.testing import Fault, FaultyStorage, OperationKind, SimulatedCrash, SimulatedStorage, Survival
from walsync.wal import Checkpointer, Entry, EntryId, LogConfig, Recovery, SegmentInfo, Storage, WriteAheadLog

__all__ = ["CONFIG", "Collector", "Outcome", "open_log", "run_scenario"]

CONFIG = LogConfig(
    segment_bytes=32 * 1024,
    preallocated_segments=0,
    max_free_segments=1,
    idle_hint_s=None,
    buffer_bytes=4096,
)


class Collector(Checkpointer):
    """Keeps what the log gives it while it is opened; with a random source it has some segments moved aside."""

    self_driven = True

    def __init__(self, model: Model, abandoning: random.Random | None = None) -> None:
        self.recovered: list[tuple[int, Payload]] = []
        self._model = model
        self._abandoning = abandoning

    def should_recover_segment(self, segment: SegmentInfo) -> Recovery:
        if self._abandoning is None or self._abandoning.random() < 0.5:
            return Recovery.RECOVER
        assert segment.first_id is not None
        assert segment.last_id is not None
        self._model.abandon(segment.first_id, segment.last_id)
        return Recovery.ABANDON

    def recover(self, entry: Entry) -> None:
        self.recovered.append((entry.id, tuple(entry.chunks())))


@dataclass
class Outcome:
    """What happened, for the summary."""

    lives: int = 0
    recovered: int = 0
    acknowledged: int = 0
    ends: Counter[str] = field(default_factory=Counter)


def open_log(storage: Storage, model: Model, abandoning: random.Random | None = None) -> WriteAheadLog:
    """Open the log and check what it recovered."""
    collector = Collector(model, abandoning)
    log = WriteAheadLog.recover(storage, collector, config=CONFIG, clock_ns=model.clock_ns, new_uuid=model.new_uuid)
    try:
        model.check_recovered(log, collector.recovered)
    except InvariantViolation:
        log.close()
        raise
    return log


class Scenario:
    """Runs once."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.model = Model()
        self.disk = SimulatedStorage()
        self.outcome = Outcome()
        self.laps = self.source.random() < 0.3

    def run(self) -> Outcome:
        source = self.source
        draw = source.random()
        if draw < 0.15:
            self.crash_at_one_place()
        elif draw < 0.25:
            self.misdirect_one_entry()
        elif draw < 0.3:
            self.kill_in_a_release()
        for _ in range(source.randint(1, 4)):
            self.live()
        self.finish()
        self.outcome.acknowledged = self.model.last_id
        return self.outcome

    # ----------------------------------------------------------------------------------------- what is likely to break

    def crash_at_one_place(self) -> None:
        """Crash in the middle of a group commit, again and again where the life before had crashed."""
        source = self.source
        for _ in range(source.randint(2, 4)):
            self.outcome.lives += 1
            self.disk.crash_at = None
            try:
                log = open_log(self.disk, self.model)
                workload = Workload(source, self.model, log)
                if self.model.lost:
                    workload.commit(self.model.lost[0])
                else:
                    payloads = [workload.content(workload.small()) for _ in range(source.randint(2, 4))]
                    self.disk.crash_at = self.disk.changes + len(payloads) + 1
                    workload.together(payloads)
            except (SimulatedCrash, LogPoisonedError):
                if not self.disk.crashed:
                    raise
            self.outcome.ends["crashed at one place"] += 1
            self.disk = self.disk.crash(source, source.choice((None, Survival.SUBSET)))

    def misdirect_one_entry(self) -> None:
        """Crash in an entry whose frames fill sectors, so that one fits in the place of another."""
        source = self.source
        self.outcome.lives += 1
        log = open_log(self.disk, self.model)
        workload = Workload(source, self.model, log)
        workload.align()
        self.disk.crash_at = self.disk.changes + source.choice((2, 2, 3))
        try:
            workload.commit(workload.sectors())
        except (SimulatedCrash, LogPoisonedError):
            if not self.disk.crashed:
                raise
        self.outcome.ends["misdirected"] += 1
        self.disk = self.disk.crash(source, Survival.MISDIRECTED)

    def kill_in_a_release(self) -> None:
        """End the process while segments are released, reuse them in the next life, and only then cut the power."""
        source = self.source
        for number in range(2):
            self.outcome.lives += 1
            log = open_log(self.disk, self.model)
            workload = Workload(source, self.model, log)
            for _ in range(source.randint(2, 5)):
                workload.commit((workload.content(source.randint(10_000, 24_000)),))
            if number:
                break
            self.disk.crash_at = self.disk.changes + source.randint(1, 4)
            try:
                workload.release()
            except (SimulatedCrash, LogPoisonedError):
                if not self.disk.crashed:
                    raise
            self.disk = self.disk.kill()
        self.outcome.ends["killed in a release"] += 1
        self.disk = self.disk.crash(source)

    # --------------------------------------------------------------------------------------------------- lives

    def live(self) -> None:
        """One life: open, work, end."""
        source, disk = self.source, self.disk
        self.outcome.lives += 1
        end = source.random()
        if end < 0.1:
            self.die_of_a_failed_sync()
            return
        if end < 0.9:
            # Often early: in the recovery, or at the place where the life before ended.
            disk.crash_at = disk.changes + source.randint(1, source.choice((4, 12, 40, 60)))
        abandoning = source if source.random() < 0.03 else None
        try:
            log = open_log(disk, self.model, abandoning)
            self.work(log)
            if source.random() < 0.7:
                log.close()
                self.outcome.ends["closed"] += 1
            else:
                self.outcome.ends["left open"] += 1
        except (SimulatedCrash, LogPoisonedError):
            # A process that ends in the middle of a write does not learn how its engine would have called that.
            if not self.disk.crashed:
                raise
            self.outcome.ends["crashed"] += 1
        self.power_off()

    def work(self, log: WriteAheadLog) -> None:
        source = self.source
        workload = Workload(source, self.model, log, laps=self.laps)
        workload.repeat_what_was_lost()
        for _ in range(source.randint(0, source.choice((3, 10, 20) if self.laps else (3, 10)))):
            workload.step()
        if source.random() < 0.3:
            workload.look()

    def power_off(self) -> None:
        """The process is gone; perhaps the machine as well."""
        if self.source.random() < 0.2:
            self.disk = self.disk.kill()
            self.outcome.ends["killed"] += 1
        else:
            self.disk = self.disk.crash(self.source)
            self.outcome.ends["power cut"] += 1

    def die_of_a_failed_sync(self) -> None:
        """A sync fails at some time; from then on every commit must raise, and the log can be opened again."""
        source = self.source
        fault = Fault.io_error(kinds=OperationKind.SYNC, at=source.randint(1, 8))
        try:
            log = open_log(FaultyStorage(self.disk, fault), self.model)
        except LogError:
            self.outcome.ends["not opened"] += 1
            self.power_off()
            return
        try:
            self.work(log)
        except LogPoisonedError:
            self.outcome.ends["poisoned"] += 1
            self.must_refuse(log)
        except LogError:
            # It was a segment that could not be made; the entry that asked for it, if one did, is refused.
            self.outcome.ends["refused"] += 1
            if self.model.under_way:
                self.model.refuse()
        with contextlib.suppress(LogError):
            log.close()
        self.power_off()

    def must_refuse(self, log: WriteAheadLog) -> None:
        try:
            entry_id = log.append(b"after the failure")
        except LogPoisonedError:
            return
        raise InvariantViolation(f"a poisoned log acknowledged entry {entry_id}")

    def finish(self) -> None:
        """Open it in peace: what is due is there, and the log works."""
        self.disk.crash_at = None
        log = open_log(self.disk, self.model)
        self.outcome.recovered += self.model.last_id - log.checkpointed_id
        workload = Workload(self.source, self.model, log)
        workload.look()
        workload.commit((b"the last one",))
        workload.release()
        log.close()
        self.disk = self.disk.crash(self.source)
        if self.model.abandoned:
            self.outcome.ends["abandoned"] += 1
        elif self.source.random() < 0.5:
            self.damage()
        log = open_log(self.disk, self.model)
        workload = Workload(self.source, self.model, log)
        workload.look()
        log.checkpoint(EntryId(self.model.last_id))
        log.close()

    def damage(self) -> None:
        """Something durable changes on a copy of the disk."""
        frames = frames_of(self.disk)
        copy = self.disk.copy()
        damage = damage_somewhere(copy, self.source)
        expectation = judge(frames, promise_of(self.disk), damage, self.model.released, self.model.last_id)
        collector = Collector(self.model)
        try:
            WriteAheadLog.recover(copy, collector, config=CONFIG).close()
        except DamagedLogError as error:
            self.outcome.ends["damage reported"] += 1
            check_damaged(error, expectation, self.model, str(damage))
            return
        self.outcome.ends["damage harmless"] += 1
        check_damaged(collector.recovered, expectation, self.model, str(damage))


def run_scenario(seed: int) -> Outcome:
    """Run one scenario; raises `InvariantViolation`, or whatever the engine should not have raised."""
    return Scenario(seed).run()

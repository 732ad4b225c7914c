"""Power cuts: at every operation and at random ones, with any subset of unsynced sectors and names lost.

What must hold after each: every acknowledged entry is there, whole and in order; an entry that was not acknowledged is
there whole or not at all; released entries may come back, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import random

import pytest

from tests.unit.wal.faulty import PowerCut, VolatileStorage
from tests.unit.wal.logs import all_of, open_log
from walsync.exceptions import WalsyncError
from walsync.wal import EntryId, WriteAheadLog, verify_log


def chunks_for(chance: random.Random) -> list[bytes]:
    shape = chance.random()
    if shape < 0.3:
        # The same beginning again and again: after a crash it may be written with the bytes that were there before, and
        # then only the epoch tells that what an earlier life left behind it is no part of it.
        return [b"the same" * 80, *[chance.choice([b"one", b"two" * 300])] * chance.randrange(0, 3)]
    if shape < 0.6:
        sizes = [chance.randrange(0, 900)]
    elif shape < 0.9:
        sizes = [chance.randrange(0, 400) for _ in range(chance.randrange(0, 5))]
    else:
        sizes = [chance.randrange(0, 70_000)]
    return [chance.randbytes(size) for size in sizes]


class Model:
    """What was tried, acknowledged and released."""

    def __init__(self) -> None:
        self.tried: dict[int, list[bytes]] = {}
        self.acknowledged = 0
        self.released = 0

    def check(self, log: WriteAheadLog, note: str) -> None:
        found = all_of(log)
        checkpointed = log.checkpointed_id
        assert checkpointed <= self.released, note
        assert log.durable_id >= self.acknowledged, f"{note}: acknowledged {self.acknowledged}, found {log.durable_id}"
        assert list(found) == list(range(checkpointed + 1, log.durable_id + 1)), note
        for entry_id, chunks in found.items():
            assert self.tried[entry_id] == chunks, f"{note}: entry {entry_id}"
        # What survived is as good as acknowledged: it was handed out.
        self.acknowledged = log.durable_id
        self.tried = {entry_id: chunks for entry_id, chunks in self.tried.items() if entry_id <= log.durable_id}

    def work(self, storage: VolatileStorage, chance: random.Random, note: str, operations: int) -> None:
        log = open_log(storage, max_free_segments=chance.randrange(0, 3))
        self.check(log, note)
        for _ in range(operations):
            action = chance.random()
            if action < 0.8:
                chunks = chunks_for(chance)
                self.tried[log.last_id + 1] = chunks
                self.acknowledged = log.append(*chunks)
            elif action < 0.95:
                self.released = max(self.released, chance.randrange(self.released, self.acknowledged + 1))
                log.checkpoint(EntryId(self.released))
            else:
                log._commits.run_locked(type(log._appender).write_hint)
        if chance.random() < 0.5:
            log.close()
        else:
            log._membership.release()


def run(seed: int, cuts: int) -> None:
    chance = random.Random(seed)
    storage, model = VolatileStorage(), Model()
    for lap in range(cuts):
        note = f"seed {seed}, lap {lap}"
        storage.steps_left = chance.choice([None, chance.randrange(0, 30), chance.randrange(0, 120)])
        try:
            model.work(storage, chance, note, chance.randrange(0, 25))
        except PowerCut:
            pass
        except WalsyncError as error:
            # A power cut inside of a commit arrives as a poisoned log.
            if storage.steps_left != 0:
                raise AssertionError(f"{note}: {error}") from error
        storage.crash(chance)
    log = open_log(storage)
    model.check(log, f"seed {seed}, at the end")
    log.close()
    assert verify_log(storage).ok


BASE_SEED = int(os.environ.get("WALSYNC_SEED", "1"))


@pytest.mark.parametrize("part", range(8))
def test_random_power_cuts_lose_nothing_acknowledged(part: int) -> None:
    for index in range(int(os.environ.get("WALSYNC_SCENARIOS", "25"))):
        run(BASE_SEED * 1_000_000 + part * 100_000 + index, cuts=6)


def test_what_one_crash_left_behind_never_completes_an_entry_of_the_next_life() -> None:
    """Two crashes, each with every subset of the unsynced sectors; both entries begin with the same bytes.

    The first crash loses the beginning of an entry and keeps its end. The next life writes the same beginning at the
    same place, and the next crash loses its end: what the first left must not become an entry.
    """
    shared, first_end, second_end = b"P" * 640, b"1" * 400, b"2" * 400
    for kept_first in range(16):
        for kept_second in range(16):
            storage, model = VolatileStorage(), Model()
            log = open_log(storage)
            model.tried[1] = [b"before"]
            model.acknowledged = log.append(b"before")
            log._membership.release()
            for end, kept in ((first_end, kept_first), (second_end, kept_second)):
                log = open_log(storage)
                model.check(log, f"kept {kept_first:04b}, {kept_second:04b}")
                model.tried[log.last_id + 1] = [shared, end]
                storage.steps_left = 1
                with pytest.raises(PowerCut):
                    log.append(shared, end)
                storage.crash_keeping(lambda number, kept=kept: bool(kept >> number & 1))
            model.check(open_log(storage), f"kept {kept_first:04b}, {kept_second:04b}")


def test_a_checkpoint_that_only_memory_had_is_settled_before_files_are_reused() -> None:
    """A process is killed inside of a checkpoint; the next reads its slot from memory, and reuses files; then a cut."""
    for steps in range(4):
        storage, model = VolatileStorage(), Model()
        log = open_log(storage)
        for index in range(12):
            chunks = [b"%02d" % index * 4000]
            model.tried[index + 1] = chunks
            model.acknowledged = log.append(*chunks)
        model.released = 8
        storage.steps_left = steps
        with contextlib.suppress(PowerCut, WalsyncError):
            log.checkpoint(EntryId(8))
        storage.steps_left = None
        log._membership.release()
        log = open_log(storage)
        for index in range(8):
            model.tried[log.last_id + 1] = chunks = [b"%02d" % index * 4000]
            model.acknowledged = log.append(*chunks)
        storage.crash_keeping(lambda number: False)
        model.check(open_log(storage), f"killed after {steps} operations")


def test_a_power_cut_at_every_operation_of_a_short_life() -> None:
    """Creating, filling segments, releasing, closing: cut at each step, and again during recovery."""

    def life(storage: VolatileStorage, model: Model) -> None:
        log = open_log(storage)
        model.check(log, "opened")
        for index in range(8):
            chunks = [bytes([65 + index]) * 5000] * 2
            model.tried[log.last_id + 1] = chunks
            model.acknowledged = log.append(*chunks)
            if index == 4:
                model.released = 3
                log.checkpoint(EntryId(3))
        log.close()

    whole = VolatileStorage()
    life(whole, Model())
    assert whole.steps > 40
    for cut in range(whole.steps):
        for seed in range(3):
            storage, model, chance = VolatileStorage(), Model(), random.Random(seed)
            storage.steps_left = cut
            # A cut while closing is nobody's error: all that was acknowledged is synced by then.
            with contextlib.suppress(PowerCut, WalsyncError):
                life(storage, model)
            assert storage.steps_left == 0
            storage.crash(chance)
            storage.steps_left = chance.randrange(0, 12)
            try:
                model.check(open_log(storage), f"cut {cut}, again during recovery")
            except (PowerCut, WalsyncError):
                storage.crash(chance)
            else:
                storage.crash(chance)
            model.check(open_log(storage), f"cut {cut}, seed {seed}")

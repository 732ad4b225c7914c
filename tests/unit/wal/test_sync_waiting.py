"""What a process takes for durable that waits for another one's sync."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

from walsync.wal.control_block import DURABLE, SYNCING, TAKEN, TAKEN_ID_SHIFT, TOTAL_WORDS, durable_record
from walsync.wal.sharing.waiting import SyncWaiting

BOX, NUMBER, ENTRY_ID = 3, 7, 100


class Words:
    """A control block in which `overtake` happens between the reading of one word and of the next."""

    def __init__(self) -> None:
        self.block = memoryview(array("Q", bytes(8 * TOTAL_WORDS)))
        self.overtake: Any = None

    def __getitem__(self, index: Any) -> Any:
        found = self.block[index]
        if index == DURABLE and self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            overtake()
        return found

    def __setitem__(self, index: int, value: int) -> None:
        self.block[index] = value


class Waiting:
    """A process whose entry is taken and written, and not durable; nobody has the sync lock."""

    def __init__(self) -> None:
        self.words = Words()
        self.record = durable_record(self.words.block)
        self.record.write(8192, ENTRY_ID - 2, 1)
        self.words[TAKEN + BOX] = ENTRY_ID << TAKEN_ID_SHIFT | NUMBER
        lock = SimpleNamespace(try_exclusive=lambda: None)
        tail: Any = SimpleNamespace(
            keeping=None, sync_lock=lock, durable=lambda: durable_record(self.words.block).read()[:2]
        )
        bells: Any = SimpleNamespace(wakes=True)
        self.waiting = SyncWaiting(self.words, tail, bells, 10.0)

    def answer(self) -> int:
        return self.waiting.for_post(BOX, NUMBER)


def test_an_entry_that_is_not_durable_is_to_be_synced() -> None:
    one = Waiting()
    assert one.answer() == 0
    assert one.words[SYNCING] == 1


def test_an_entry_that_is_durable() -> None:
    one = Waiting()
    one.record.write(8400, ENTRY_ID, 1)
    assert one.answer() == ENTRY_ID


def test_what_a_sync_is_to_make_durable_is_not_durable_yet() -> None:
    """Who syncs writes the record before, into the half that is not valid; which was valid a moment ago."""
    one = Waiting()

    def overtake() -> None:
        one.record.write(8300, ENTRY_ID - 1, 1)
        half = DURABLE + 1 + ((one.words.block[DURABLE] + 1) & 1) * 4
        one.words.block[half], one.words.block[half + 1] = 8400, ENTRY_ID

    one.words.overtake = overtake
    assert one.answer() == 0


def test_what_became_durable_while_it_was_looked_at() -> None:
    one = Waiting()
    one.words.overtake = lambda: one.record.write(8400, ENTRY_ID, 1)
    assert one.answer() == ENTRY_ID

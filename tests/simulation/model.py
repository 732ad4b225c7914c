"""What a log owes: the model of its entries, and the check of what a recovery gives back.

Owns the invariants. Never looks inside the engine.

1. Every acknowledged entry that was not released is recovered, whole and in order.
2. An entry that was under way when the life ended is there whole, or not at all; of several, only the first, in order.
3. An entry that a recovery did not give back never comes back. What it gave back is acknowledged from then on.
4. Ids are dense, and begin at or before the first entry that was not released.
5. Chunks can be read by their positions, as long as their entry is not released.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from walsync.wal import EntryId, LogPosition, WriteAheadLog

__all__ = ["InvariantViolation", "Model", "Payload"]

Payload = tuple[bytes, ...]
"""The chunks of an entry."""


class InvariantViolation(AssertionError):
    """The log broke a promise."""


class Model:
    """The entries of one log over all of its lives."""

    def __init__(self) -> None:
        self.entries: list[Payload] = []
        """The acknowledged ones; entry 1 first."""
        self.under_way: list[Payload] = []
        """Those that were given to the log, in order, and neither acknowledged nor refused."""
        self.lost: list[Payload] = []
        """Those that were under way when the last life ended, and that the recovery did not give back."""
        self.released = 0
        self.abandoned: set[int] = set()
        """Those that lay in a segment which a recovery was told to move aside: they may be gone."""
        self.positions: dict[int, list[LogPosition]] = {}
        self.ticks = 0

    @property
    def last_id(self) -> int:
        """The last acknowledged entry."""
        return len(self.entries)

    def clock_ns(self) -> int:
        """The time, for the log: it counts how often it was asked."""
        self.ticks += 1
        return self.ticks

    def new_uuid(self) -> uuid.UUID:
        """An identity that no other log of this model has."""
        return uuid.UUID(int=self.clock_ns())

    def begin(self, payload: Payload) -> None:
        """The entry is given to the log."""
        self.under_way.append(payload)

    def acknowledge(self, entry_id: int) -> None:
        """The log said that the entry is durable, and with it every one that was given before it."""
        expected = len(self.entries) + len(self.under_way)
        if entry_id != expected:
            raise InvariantViolation(f"an entry was acknowledged with id {entry_id}, and {expected} was due")
        self.entries += self.under_way
        self.under_way = []

    def refuse(self) -> None:
        """The log said that it wrote nothing of the last entry given to it."""
        self.under_way.pop()

    def release(self, through: int) -> None:
        """The entries up to this one may be forgotten."""
        self.released = max(self.released, through)

    def abandon(self, first_id: int, last_id: int) -> None:
        """The segment with these entries is moved aside, and with it the one that begins in it and ends in the next."""
        self.abandoned.update(range(first_id, last_id + 2))

    # ----------------------------------------------------------------------------------------------- recovery

    def check_recovered(self, log: WriteAheadLog, recovered: Sequence[tuple[int, Payload]]) -> None:
        """`recovered` is what the checkpointer was given while `log` was opened."""
        last_id = log.last_id
        due = len(self.entries)
        if last_id < due:
            raise InvariantViolation(f"{due} entries were acknowledged, and the recovered log ends with {last_id}")
        if last_id > due + len(self.under_way):
            raise InvariantViolation(
                f"the recovered log ends with {last_id}: {due} were acknowledged and {len(self.under_way)} under way"
            )
        if log.durable_id != last_id:
            raise InvariantViolation(f"entry {last_id} was recovered, and only {log.durable_id} is called durable")
        if log.checkpointed_id > self.released:
            raise InvariantViolation(f"entry {log.checkpointed_id} is called released, and only {self.released} was")
        expected = list(range(log.checkpointed_id + 1, last_id + 1))
        found = [entry_id for entry_id, _ in recovered]
        if found != [entry_id for entry_id in expected if entry_id not in self.abandoned or entry_id in set(found)]:
            raise InvariantViolation(f"entries {_span(expected)} were due, and {_span(found)} recovered")
        known = self.entries + self.under_way
        for entry_id, payload in recovered:
            if payload != known[entry_id - 1]:
                state = "acknowledged" if entry_id <= due else "under way"
                raise InvariantViolation(
                    f"entry {entry_id} ({state}) was recovered with {_sizes(payload)}, and "
                    f"{_sizes(known[entry_id - 1])} was written"
                )
        self.entries = known[:last_id]
        self.lost = known[last_id:]
        self.under_way = []

    def check_entries(self, log: WriteAheadLog) -> None:
        """Everything that is not released can be read, in order, and by position."""
        expected = log.checkpointed_id + 1
        for entry in log.entries():
            while expected in self.abandoned and expected < entry.id:
                expected += 1
            if entry.id != expected:
                raise InvariantViolation(f"entry {expected} was due, and {entry.id} read")
            payload = tuple(entry.chunks())
            if payload != self.entries[entry.id - 1]:
                raise InvariantViolation(f"entry {entry.id} was read with other bytes than it was written with")
            self.positions[entry.id] = entry.chunk_positions
            expected += 1
        while expected in self.abandoned and expected <= len(self.entries):
            expected += 1
        if expected != len(self.entries) + 1:
            raise InvariantViolation(f"reading stopped before entry {expected}; {len(self.entries)} are durable")

    def check_position(self, log: WriteAheadLog, entry_id: int) -> None:
        """Each chunk of this entry, if it is kept and its positions are known, can be read by itself."""
        if entry_id <= self.released or entry_id in self.abandoned or entry_id not in self.positions:
            return
        for position, chunk in zip(self.positions[entry_id], self.entries[entry_id - 1], strict=True):
            if log.read_at(LogPosition.from_bytes(position.to_bytes())) != chunk:
                raise InvariantViolation(
                    f"a chunk of entry {EntryId(entry_id)} was read with other bytes by its position"
                )


def _span(ids: Sequence[int]) -> str:
    return f"{ids[0]} to {ids[-1]} ({len(ids)})" if ids else "none"


def _sizes(payload: Payload) -> str:
    return f"{len(payload)} chunks of {[len(chunk) for chunk in payload]} bytes"

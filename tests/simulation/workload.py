"""One life of a log: random work, each step drawn from a random source, told to the model.

Owns the kinds of steps and how often each is drawn. Never catches what ends a life.

Everything happens in one thread. What several committing threads do to the files, one can do as well: it writes an
entry as they do, without a sync, queues others, and leads the sync that covers them all (`append_together`).
"""

from __future__ import annotations

import random

from tests.simulation.model import Model, Payload
from walsync.exceptions import LogPoisonedError
from walsync.wal import EntryId, WriteAheadLog
from walsync.wal.appender import Appender
from walsync.wal.format import BOUNDARY_HEADER_BYTES, DATA_HEADER_BYTES
from walsync.wal.leads import Waiter

__all__ = ["SECTOR_CHUNK_BYTES", "Workload", "append_together"]

SECTOR_CHUNK_BYTES = 512 - DATA_HEADER_BYTES
SECTOR_ENTRY_BYTES = 512 - BOUNDARY_HEADER_BYTES

_BYTES = random.Random("the bytes of all entries").randbytes(1 << 17)
_PLACES = 1 << 16


def append_together(log: WriteAheadLog, model: Model, payloads: list[bytes]) -> None:
    """Commit these entries with one sync, as threads do that commit at one time.

    The first is written by its own thread, those after it are queued and written by the one that leads; of two, both
    are written by their own.
    """
    commits = log._commits
    first, *others = payloads
    with log._appender.lock:
        if commits.refusal is not None:
            commits._refuse()
        model.begin((first,))
        commits._write(first)
    for payload in others:
        model.begin((payload,))
    if len(others) == 1:
        model.acknowledge(log.append(others[0]))
        return
    waiters = [Waiter(payload, 0) for payload in others]
    commits._queue.extend(waiters)
    commits._leader = waiters[-1]
    commits._lead(waiters[-1], waiters[-1])
    for waiter in waiters:
        if isinstance(waiter.error, LogPoisonedError):
            raise waiter.error
        if waiter.error is not None:
            # Refused, with nothing of it written; those behind it may have found room.
            model.under_way.remove((waiter.work,))  # type: ignore[arg-type]
    model.acknowledge(log.durable_id)


class Workload:
    """Draws the steps of one life. `laps`: large entries and many releases, so that segments are recycled."""

    def __init__(self, source: random.Random, model: Model, log: WriteAheadLog, *, laps: bool = False) -> None:
        self.source = source
        self.laps = laps
        self.model = model
        self.log = log

    def step(self) -> None:
        """Do one thing."""
        draw = self.source.random()
        if self.laps and draw < 0.75:
            if draw < 0.5:
                self.commit((self.content(self.source.randint(4000, 24_000)),))
            else:
                self.release()
        elif draw < 0.42:
            self.commit((self.content(self.small()),))
        elif draw < 0.56:
            self.together([self.content(self.small()) for _ in range(self.source.randint(2, 4))])
        elif draw < 0.66:
            self.commit(self.chunks())
        elif draw < 0.76:
            self.commit((self.content(self.source.choice((6000, 9000, 12000, 23000))),))
        elif draw < 0.78:
            self.commit((self.content(self.source.randint(20_000, 60_000)), self.content(self.small())))
        elif draw < 0.82:
            self.roll_back()
        elif draw < 0.94:
            self.release()
        elif draw < 0.97:
            self.log._commits.run_locked(Appender.write_hint)
        elif draw < 0.985:
            # A segment is made ahead of need.
            self.log._pool.reserve(1)
        else:
            self.log._pool.trim(0)

    def repeat_what_was_lost(self) -> None:
        """A client whose commit did not return may well try the same again: some of it, one by one or together."""
        lost, source = self.model.lost, self.source
        if not lost or source.random() < 0.4:
            return
        again = lost[: source.randint(1, len(lost))]
        singles = [payload[0] for payload in again if len(payload) == 1]
        if len(singles) == len(again) > 1 and source.random() < 0.3:
            self.together(singles)
            return
        for payload in again:
            self.commit(payload)

    # ----------------------------------------------------------------------------------------------- payloads

    def small(self) -> int:
        draw = self.source.random()
        if draw < 0.3:
            return SECTOR_ENTRY_BYTES
        if draw < 0.4:
            return self.source.choice((0, 1, 7, 8))
        return self.source.randint(9, 1600)

    def content(self, length: int) -> bytes:
        start = self.source.randrange(_PLACES)
        return _BYTES[start : start + length]

    def chunks(self) -> Payload:
        count = self.source.randint(2, 5)
        if self.source.random() < 0.5:
            return tuple(self.content(SECTOR_CHUNK_BYTES) for _ in range(count))
        return tuple(self.content(self.small()) for _ in range(count))

    def sectors(self) -> Payload:
        """Chunks whose frames fill a sector each."""
        chunks = [self.content(SECTOR_CHUNK_BYTES) for _ in range(self.source.randint(3, 6))]
        return (*chunks, self.content(SECTOR_ENTRY_BYTES))

    # -------------------------------------------------------------------------------------------------- steps

    def align(self) -> None:
        """An entry of such a size that the next one begins with a sector."""
        self.commit((self.content(-(self.log._appender.written[0] + BOUNDARY_HEADER_BYTES) % 512),))

    def commit(self, payload: Payload) -> None:
        """One entry, in one of the two ways to write it."""
        model, log = self.model, self.log
        model.begin(payload)
        if len(payload) == 1 or self.source.random() < 0.5:
            model.acknowledge(log.append(*payload))
            return
        with log.begin_entry() as writer:
            records = [writer.write_chunk(chunk) for chunk in payload]
        model.acknowledge(writer.entry_id)
        model.positions[writer.entry_id] = [record.position for record in records]

    def together(self, payloads: list[bytes]) -> None:
        """Several entries, one sync."""
        append_together(self.log, self.model, payloads)

    def roll_back(self) -> None:
        writer = self.log.begin_entry()
        for chunk in self.chunks():
            writer.write_chunk(chunk)
        writer.rollback()

    def release(self) -> None:
        model = self.model
        if model.last_id == 0:
            return
        through = model.last_id if self.source.random() < 0.5 else self.source.randint(1, model.last_id)
        # The model first: a crash inside of the call may leave it done.
        model.release(through)
        self.log.checkpoint(EntryId(through))

    def look(self) -> None:
        """Read everything, and some chunk by its position."""
        self.model.check_entries(self.log)
        if self.model.positions:
            self.model.check_position(self.log, self.source.choice(sorted(self.model.positions)))

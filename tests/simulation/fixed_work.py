"""One fixed piece of work that does everything a log can do, for the tests that go through every operation of it.

Owns the steps. Small entries and large ones, several with one sync, one that is rolled back, one that begins in one
segment and ends in the next, one larger than a segment, releases that recycle segments and the use of the recycled
ones, a HINT, reading, closing and opening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.simulation.model import Model, Payload
from tests.simulation.workload import append_together
from walsync.wal import EntryId, WriteAheadLog
from walsync.wal.appender import Appender

__all__ = ["Step", "first_life", "second_life", "step_commit"]

Step = Callable[[WriteAheadLog, Model], None]


def _content(number: int, length: int) -> bytes:
    word = f"{number:07d}|".encode()
    return (word * (length // len(word) + 1))[:length]


def step_commit(log: WriteAheadLog, model: Model, payload: Payload, *, writer: bool = False) -> None:
    """Commit one entry and tell the model."""
    model.begin(payload)
    if not writer:
        model.acknowledge(log.append(*payload))
        return
    with log.begin_entry() as entry:
        records = [entry.write_chunk(chunk) for chunk in payload]
    model.acknowledge(entry.entry_id)
    model.positions[entry.entry_id] = [record.position for record in records]


def _commit(number: int, *lengths: int, writer: bool = False) -> Step:
    payload = tuple(_content(number * 10 + index, length) for index, length in enumerate(lengths))
    return lambda log, model: step_commit(log, model, payload, writer=writer)


def _together(number: int, *lengths: int) -> Step:
    payloads = [_content(number * 10 + index, length) for index, length in enumerate(lengths)]
    return lambda log, model: append_together(log, model, payloads)


def _roll_back(log: WriteAheadLog, model: Model) -> None:
    entry = log.begin_entry()
    entry.write_chunk(_content(999, 700))
    entry.rollback()


def _release_all(log: WriteAheadLog, model: Model) -> None:
    model.release(model.last_id)
    log.checkpoint(EntryId(model.last_id))


def _release_but(kept: int) -> Step:
    def step(log: WriteAheadLog, model: Model) -> None:
        through = max(0, model.last_id - kept)
        model.release(through)
        log.checkpoint(EntryId(through))

    return step


def _hint(log: WriteAheadLog, model: Model) -> None:
    log._commits.run_locked(Appender.write_hint)


def _look(log: WriteAheadLog, model: Model) -> None:
    model.check_entries(log)
    for entry_id in list(model.positions):
        model.check_position(log, entry_id)


def first_life() -> Iterator[Step]:
    """From an empty directory on."""
    yield _commit(1, 100)
    yield _commit(2, 440)
    yield _roll_back
    yield _together(3, 440, 700, 10)
    yield _commit(4, 472, 472, 0, 440, writer=True)
    yield _hint
    yield _commit(5, 15_000)
    yield _commit(6, 3000, 9000)
    yield _look
    yield _release_but(2)
    yield _commit(7, 40_000, 20, writer=True)
    yield _release_but(1)
    yield _commit(8, 9000)
    yield _look


def second_life() -> Iterator[Step]:
    """In the log that the first one has left, in files that were used before."""
    yield _commit(11, 440)
    yield _release_all
    yield _commit(12, 14_000)
    yield _commit(13, 14_000)
    yield _together(14, 1000, 2000)
    yield _release_but(1)
    yield _commit(15, 6000, 300)
    yield _look

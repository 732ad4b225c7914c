"""Every changing operation of a log's life fails in turn: EIO, ENOSPC, a short write; once, and from then on.

What must hold: acknowledged entries are there after reopening, nothing else was acknowledged, no error but the log's
own reaches the caller, and a short write is no error at all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.unit.wal.faulty import FailingStorage
from tests.unit.wal.logs import all_of, open_log
from walsync.exceptions import LogError, LogFullError, LogPoisonedError
from walsync.wal import EntryId


def life(
    storage: FailingStorage, acknowledged: dict[int, list[bytes]], tried: dict[int, list[bytes]]
) -> list[Exception]:
    """Open, fill three segments, release, close; twice. The errors of the single calls are returned."""
    errors: list[Exception] = []
    for lap in range(2):
        try:
            log = open_log(storage)
        except LogError as error:
            errors.append(error)
            storage._held.clear()
            continue
        for index in range(9):
            chunks = [b"%d-%d" % (lap, index) * 1500, b"tail"]
            tried[log.last_id + 1] = chunks
            try:
                acknowledged[int(log.append(*chunks))] = chunks
                if index == 5:
                    log.checkpoint(EntryId(log.checkpointed_id + 3))
            except LogError as error:
                errors.append(error)
        try:
            log.close()
        except LogError as error:
            errors.append(error)
        assert not storage._held, "a closed log holds no lock"
    return errors


def operations_of_a_life() -> int:
    storage = FailingStorage()
    assert life(storage, {}, {}) == []
    return len(storage.operations)


OPERATIONS = operations_of_a_life()


def check(storage: FailingStorage, acknowledged: dict[int, list[bytes]], tried: dict[int, list[bytes]]) -> None:
    storage.decide = lambda *_: None
    log = open_log(storage)
    found = all_of(log)
    for entry_id, chunks in acknowledged.items():
        assert entry_id <= log.checkpointed_id or found[entry_id] == chunks
    for entry_id, chunks in found.items():
        assert chunks in (tried.get(entry_id), acknowledged.get(entry_id))
    assert log.append(b"goes on") == log.last_id
    log.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, "short"])
@pytest.mark.parametrize("persistent", [False, True])
def test_every_operation_fails_in_turn(code: int | str, persistent: bool) -> None:
    for failing in range(OPERATIONS):
        storage = FailingStorage(decide_from(failing, code, persistent=persistent))
        acknowledged: dict[int, list[bytes]] = {}
        tried: dict[int, list[bytes]] = {}
        errors = life(storage, acknowledged, tried)
        if code == "short":
            assert errors == []
            assert len(acknowledged) == 18
        check(storage, acknowledged, tried)


def decide_from(failing: int, code: int | str, *, persistent: bool) -> Callable[[int, str, str], int | str | None]:
    def decide(index: int, operation: str, name: str) -> int | str | None:
        hit = index >= failing if persistent else index == failing
        if not hit or (code == "short" and operation != "write"):
            return None
        return code

    return decide


def test_a_poisoned_log_says_so_to_everybody() -> None:
    storage = FailingStorage()
    log = open_log(storage)
    log.append(b"x")
    storage.decide = lambda index, operation, name: errno.EIO if operation == "sync" else None
    messages = set()
    for call in (lambda: log.append(b"y"), lambda: log.append(b"z", b"z"), lambda: log.begin_entry(), log.append):
        with pytest.raises(LogPoisonedError) as caught:
            call()
        messages.add(str(caught.value))
    assert len(messages) == 1
    with pytest.raises(LogPoisonedError):
        log.wait_durable(EntryId(1), 10)
    log.close()


def test_a_failed_checkpoint_write_poisons_the_log_and_recycles_nothing() -> None:
    storage = FailingStorage()
    log = open_log(storage)
    for _ in range(12):
        log.append(b"x" * 6000)
    before = [segment.sequence for segment in log._segments.readable_segments]
    storage.decide = lambda index, operation, name: errno.EIO if name.startswith("checkpoint") else None
    with pytest.raises(LogPoisonedError, match="checkpoint"):
        log.checkpoint(EntryId(10))
    assert [segment.sequence for segment in log._segments.readable_segments] == before
    log.close()


def test_the_bound_on_the_logs_size_rejects_and_a_checkpoint_makes_room() -> None:
    storage = FailingStorage()
    log = open_log(storage, max_log_bytes=4 * 32 * 1024)
    with pytest.raises(LogFullError, match="max_log_bytes"):  # noqa: PT012
        for _ in range(100):
            log.append(b"x" * 6000)
    assert len(log._segments.readable_segments) == 4
    log.checkpoint(log.durable_id)
    assert log.append(b"x" * 6000) == log.durable_id
    log.close()

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, create_engine, event

from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, insert
from walsync.checkpoint import SQLAlchemyCheckpointer
from walsync.exceptions import BacklogFullError, CheckpointFailedError
from walsync.wal import EntryId, WriteAheadLog

WAIT_S = 20.0

Start = Callable[..., SQLAlchemyCheckpointer]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "backlog has reached" in record.getMessage()]


def test_there_is_room_far_below_the_bound(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(paused=True, max_backlog_entries=10, backlog_timeout_s=0)
    for number in range(7):
        checkpointer.admit()
        append(log, insert((number, str(number))))


def test_a_checkpointer_that_is_not_started_admits_everything(engine: Engine) -> None:
    SQLAlchemyCheckpointer(engine).admit()


def test_near_the_bound_a_warning_is_given_once(
    log: WriteAheadLog, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "walsync.checkpoint")
    checkpointer = start(paused=True, max_backlog_entries=10, backlog_timeout_s=0)
    for number in range(10):
        checkpointer.admit()
        append(log, insert((number, str(number))))
    assert len(warnings(caplog)) == 1
    assert "8 of 10 entries" in warnings(caplog)[0]

    checkpointer.resume()
    checkpointer.wait_applied(EntryId(10), WAIT_S)
    checkpointer.pause()
    wait_until(lambda: checkpointer.status.state == "paused")
    for number in range(10, 19):
        checkpointer.admit()
        append(log, insert((number, str(number))))
    assert len(warnings(caplog)) == 2, "after it has gone down it is told again"


def test_a_warning_is_given_again_after_the_shortest_ease(
    log: WriteAheadLog, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "walsync.checkpoint")
    checkpointer = start(paused=True, max_backlog_entries=10, backlog_timeout_s=0)

    def commit() -> None:
        checkpointer.admit()
        append(log, insert((int(log.last_id), "x")))

    for _ in range(9):
        commit()
    assert len(warnings(caplog)) == 1
    # Below where it is given, and not yet below where it may be given again.
    log.checkpoint(EntryId(2))
    checkpointer.admit()
    log.checkpoint(EntryId(3))
    checkpointer.admit()
    for _ in range(3):
        commit()
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize("bound", [{"max_backlog_entries": 3}, {"max_backlog_bytes": 3}])
def test_at_the_bound_a_commit_is_refused_after_its_time(
    log: WriteAheadLog, start: Start, bound: dict[str, int]
) -> None:
    checkpointer = start(paused=True, backlog_timeout_s=0.05, **bound)
    for number in range(3):
        append(log, insert((number, str(number))))
    with pytest.raises(BacklogFullError, match=r"not committed.*max_backlog") as caught:
        checkpointer.admit()
    assert isinstance(caught.value, TimeoutError)
    assert "paused" in str(caught.value)
    assert log.last_id == 3


def test_a_blocked_commit_goes_on_as_soon_as_there_is_room(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(paused=True, max_backlog_entries=3, backlog_timeout_s=WAIT_S)
    for number in range(3):
        append(log, insert((number, str(number))))
    admitted = threading.Event()

    def commit() -> None:
        checkpointer.admit()
        admitted.set()

    committer = threading.Thread(target=commit)
    committer.start()
    wait_until(lambda: checkpointer._progress.waited_for)
    assert not admitted.is_set()
    checkpointer.resume()
    assert admitted.wait(WAIT_S)
    committer.join(WAIT_S)


def test_a_full_backlog_shortens_the_retries(log: WriteAheadLog, start: Start) -> None:
    # While a commit is blocked the target is tried at the short interval, not after an hour.
    target = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    tries = [0]

    @event.listens_for(target, "do_connect")
    def count(*arguments: object) -> None:
        tries[0] += 1

    checkpointer = start(
        target=target,
        retry_initial_s=3600,
        retry_max_s=3600,
        retry_jitter=0,
        waited_retry_max_s=0.01,
        max_backlog_entries=1,
        backlog_timeout_s=0.5,
    )
    append(log, insert((1, "a")))
    wait_until(lambda: checkpointer.status.state == "retrying")
    with pytest.raises(BacklogFullError, match="retrying"):
        checkpointer.admit()
    assert tries[0] > 2


def test_a_full_backlog_of_a_dead_checkpointer_says_so_at_once(log: WriteAheadLog, start: Start) -> None:
    def listen(source: SQLAlchemyCheckpointer) -> None:
        def fail(*arguments: object) -> None:
            raise ValueError("a fault")

        event.listen(source, "before_checkpoint", fail)

    append(log, insert((1, "a")))
    checkpointer = start(listeners=listen, max_backlog_entries=1, backlog_timeout_s=3600)
    wait_until(lambda: checkpointer.status.state == "failed")
    with pytest.raises(CheckpointFailedError, match="a fault"):
        checkpointer.admit()

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, delete, insert, items, open_log, update
from walsync.checkpoint import CheckpointConfig, FailureKind, SQLAlchemyCheckpointer
from walsync.checkpoint.watermark import TABLE_NAME
from walsync.exceptions import (
    ApplyTimeoutError,
    CheckpointFailedError,
    ConfigurationError,
    CorruptEntryError,
    EntryRejectedError,
    LogPoisonedError,
    TargetBlockedError,
    UsageError,
    WatermarkGapError,
)
from walsync.wal import EntryId, LogConfig, Recovery, SegmentInfo, WriteAheadLog
from walsync.wal.storage.memory import MemoryFile, MemoryStorage

WAIT_S = 20.0

Start = Callable[..., SQLAlchemyCheckpointer]


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(items.c.id, items.c.name).order_by(items.c.id))]


def watermark(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT last_entry_id FROM {TABLE_NAME}")).scalar_one()


# --------------------------------------------------------------------------------------------------- applying


def test_entries_arrive_in_order_and_are_released(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    checkpointer = start()
    for number in range(1, 31):
        last = append(log, insert((number, f"n{number}")), update((f"m{number}", number)))
    checkpointer.wait_applied(last, WAIT_S)
    assert rows(engine) == [(n, f"m{n}") for n in range(1, 31)]
    assert checkpointer.applied_id == last == log.checkpointed_id == watermark(engine)
    status = checkpointer.status
    assert (status.state, status.last_error, status.applied_entries, status.applied_changes) == (
        "running",
        None,
        30,
        60,
    )
    assert status.last_applied_at is not None


def test_a_batch_holds_whole_entries_up_to_its_bounds(log: WriteAheadLog, start: Start) -> None:
    sizes: list[tuple[int, int]] = []

    def listen(checkpointer: SQLAlchemyCheckpointer) -> None:
        event.listen(checkpointer, "after_checkpoint", lambda session, first, last: sizes.append((first, last)))

    for number in range(10):
        append(log, insert((3 * number, f"a{number}"), (3 * number + 1, f"b{number}"), (3 * number + 2, f"c{number}")))
    start(batch_changes=7, listeners=listen).wait_applied(log.last_id, WAIT_S)
    assert sizes == [(1, 3), (4, 6), (7, 9), (10, 10)]


def test_a_batch_is_bounded_in_bytes(log: WriteAheadLog, start: Start) -> None:
    sizes: list[int] = []

    def listen(checkpointer: SQLAlchemyCheckpointer) -> None:
        event.listen(checkpointer, "after_checkpoint", lambda session, first, last: sizes.append(last - first + 1))

    for number in range(4):
        append(log, insert((number, "x" * 1000 + str(number))))
    start(batch_bytes=1500, listeners=listen).wait_applied(log.last_id, WAIT_S)
    assert sizes == [2, 2]


def test_an_entry_larger_than_a_batch_is_a_batch_of_its_own(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    append(log, insert(*[(number, str(number)) for number in range(50)]))
    start(batch_changes=10).wait_applied(log.last_id, WAIT_S)
    assert len(rows(engine)) == 50


def test_a_waiting_reader_cuts_the_delay_short(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(batch_delay_s=3600)
    append(log, insert((1, "a")))
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    append(log, insert((2, "b")))
    checkpointer.urge()
    wait_until(lambda: checkpointer.applied_id == 2)


def test_a_batch_waits_for_company(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(batch_delay_s=3600)
    append(log, insert((1, "a")))
    with pytest.raises(AssertionError):
        wait_until(lambda: checkpointer.applied_id == 1, 0.2)
    for number in range(2, 1001):
        append(log, insert((number, str(number))))
    # Full before its time.
    wait_until(lambda: checkpointer.applied_id == 1000)


def test_a_session_factory_makes_the_sessions(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    class Mine(Session):
        pass

    commits: list[Session] = []
    event.listen(Mine, "before_commit", commits.append)
    append(log, insert((1, "a")))
    start(session_factory=lambda bind: Mine(bind)).wait_applied(EntryId(1), WAIT_S)
    assert [type(session) for session in commits] == [Mine]
    assert rows(engine) == [(1, "a")]


def test_the_checkpointer_has_connections_of_its_own(sqlite_url: str, log: WriteAheadLog, start: Start) -> None:
    target = create_engine(sqlite_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with target.connect() as reader:
        reader.exec_driver_sql("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)")
        reader.commit()
        append(log, insert((1, "a")))
        # The reader holds the only connection of its pool while it waits.
        start(target=target).wait_applied(EntryId(1), WAIT_S)
        assert reader.execute(select(items.c.id)).scalar_one() == 1
    target.dispose()


# ---------------------------------------------------------------------------------------------- life and orders


def test_paused_until_resumed(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(paused=True)
    append(log, insert((1, "a")))
    assert checkpointer.status.state == "paused"
    with pytest.raises(ApplyTimeoutError, match="paused"):
        checkpointer.wait_applied(EntryId(1), 0.05)
    checkpointer.resume()
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    checkpointer.pause()
    wait_until(lambda: checkpointer.status.state == "paused")
    append(log, insert((2, "b")))
    assert not checkpointer.stop(drain=True, timeout=WAIT_S), "a paused checkpointer does not drain"
    assert rows(engine) == [(1, "a")]


def test_a_pause_is_over_when_resume_returns(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(paused=True)
    for number in range(30):
        checkpointer.pause()
        append(log, insert((number, str(number))))
        wait_until(lambda: checkpointer.status.state == "paused")
        checkpointer.resume()
        assert checkpointer.status.state == "running", "and not when its thread has woken up"
    assert checkpointer.stop(drain=True, timeout=WAIT_S)
    assert len(rows(engine)) == 30


def test_stop_drains_what_is_durable(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(batch_delay_s=3600, batch_changes=10)
    for number in range(105):
        append(log, insert((number, str(number))))
    assert checkpointer.stop(drain=True, timeout=WAIT_S)
    assert len(rows(engine)) == 105
    assert checkpointer.status.state == "stopped"


def test_stop_without_drain_leaves_the_rest_for_the_next_opening(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    checkpointer = start(batch_delay_s=3600)
    append(log, insert((1, "a")))
    assert not checkpointer.stop()
    assert rows(engine) == []
    start().wait_applied(EntryId(1), WAIT_S)
    assert rows(engine) == [(1, "a")]


def test_stopping_twice_and_before_the_start_is_harmless(engine: Engine, start: Start) -> None:
    assert SQLAlchemyCheckpointer(engine).stop()
    checkpointer = start()
    assert checkpointer.stop()
    assert checkpointer.stop(drain=True)


@pytest.mark.parametrize("state", ["running", "paused", "halted", "blocked", "retrying"])
def test_every_state_can_be_stopped_at_once(engine: Engine, log: WriteAheadLog, start: Start, state: str) -> None:
    target = engine
    if state == "retrying":
        target = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    elif state == "halted":
        append(log, delete(99))
    elif state == "blocked":
        items.drop(engine)
        append(log, insert((1, "a")))
    checkpointer = start(
        target=target,
        paused=state == "paused",
        blocked_retry_s=3600,
        retry_initial_s=3600,
        retry_max_s=3600,
        retry_jitter=0,
    )
    wait_until(lambda: checkpointer.status.state == state)
    checkpointer.stop(timeout=WAIT_S)
    assert checkpointer.status.state == "stopped"
    target.dispose()


def test_waiting_ends_when_the_checkpointer_is_stopped(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(paused=True)
    append(log, insert((1, "a")))
    raised: list[UsageError] = []

    def wait() -> None:
        try:
            checkpointer.wait_applied(EntryId(1), WAIT_S)
        except UsageError as error:
            raised.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    checkpointer.stop()
    waiter.join(WAIT_S)
    assert len(raised) == 1


def test_what_is_applied_is_not_waited_for_whatever_the_state(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start()
    append(log, insert((1, "a")))
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    checkpointer.stop()
    checkpointer.wait_applied(EntryId(1), 0)


def test_starting_twice_is_refused(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start()
    with pytest.raises(UsageError):
        checkpointer.start(log)
    with pytest.raises(UsageError):
        checkpointer.start(open_log())


def test_waiting_for_one_that_was_never_started_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="not running"):
        SQLAlchemyCheckpointer(engine).wait_applied(EntryId(1), WAIT_S)


# --------------------------------------------------------------------------------------------- recovery, watermark


def test_a_reopened_log_goes_on_where_the_target_is(engine: Engine, start: Start) -> None:
    storage = MemoryStorage()
    first = open_log(storage)
    append(first, insert((1, "a")))
    append(first, insert((2, "b")))
    checkpointer = start(log=first)
    checkpointer.wait_applied(EntryId(2), WAIT_S)
    checkpointer.stop()
    append(first, insert((3, "c")))
    first.close()

    again = SQLAlchemyCheckpointer(engine)
    with open_log(storage, again) as second:
        again.start(second)
        again.wait_applied(EntryId(3), WAIT_S)
        append(second, insert((4, "d")))
        again.wait_applied(EntryId(4), WAIT_S)
        again.stop()
    assert rows(engine) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


def test_a_replaced_target_is_refused(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    append(log, insert((1, "a")))
    append(log, insert((2, "b")))
    checkpointer = start()
    checkpointer.wait_applied(EntryId(2), WAIT_S)
    checkpointer.stop()
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {TABLE_NAME} SET last_entry_id = 1"))
    append(log, insert((3, "c")))
    halted: list[BaseException] = []
    second = start(listeners=lambda source: event.listen(source, "halted", lambda source, error: halted.append(error)))
    with pytest.raises(WatermarkGapError, match="older backup"):
        second.wait_applied(EntryId(3), WAIT_S)
    assert second.status.state == "halted"
    wait_until(lambda: halted)
    assert isinstance(halted[0], WatermarkGapError)
    with pytest.raises(WatermarkGapError):
        second.check_watermark()
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {TABLE_NAME} SET last_entry_id = 2"))
    second.resume()
    second.wait_applied(EntryId(3), WAIT_S)
    assert rows(engine) == [(1, "a"), (2, "b"), (3, "c")]


def test_a_replaced_log_is_refused(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    append(log, insert((1, "a")))
    start().wait_applied(EntryId(1), WAIT_S)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {TABLE_NAME} SET last_entry_id = 7"))
    second = SQLAlchemyCheckpointer(engine)
    with pytest.raises(WatermarkGapError, match="ends at entry 1"):
        second.check_watermark(log)
    second.stop()


def test_a_new_target_gets_table_and_row(engine: Engine, log: WriteAheadLog) -> None:
    checkpointer = SQLAlchemyCheckpointer(engine)
    with pytest.raises(UsageError):
        checkpointer.check_watermark()
    assert checkpointer.check_watermark(log)
    assert watermark(engine) == 0
    assert checkpointer.check_watermark(log)
    checkpointer.stop()


def test_an_unreachable_target_cannot_be_asked(log: WriteAheadLog) -> None:
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    assert SQLAlchemyCheckpointer(engine).check_watermark(log) is False


def test_a_target_that_does_not_answer_cannot_be_asked(engine: Engine, log: WriteAheadLog) -> None:
    release = threading.Event()

    def hang(dialect: Any, record: Any, arguments: Any, parameters: Any) -> None:
        release.wait(WAIT_S)

    event.listen(engine, "do_connect", hang)
    checkpointer = SQLAlchemyCheckpointer(engine, config=CheckpointConfig(check_timeout_s=0.05))
    engine.dispose()
    try:
        assert checkpointer.check_watermark(log) is False
    finally:
        release.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "walsync-check-watermark"])
    checkpointer.stop()
    event.remove(engine, "do_connect", hang)


def test_a_commit_whose_answer_is_lost_counts_once(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    lost: list[int] = []

    def lose_the_answer(connection: Any) -> None:
        # Committed by the database, and then the line is cut: every third time.
        if connection.connection.dbapi_connection.in_transaction and len(lost) < 5:
            connection.connection.dbapi_connection.commit()
            lost.append(1)
            if len(lost) % 2:
                raise OperationalError("COMMIT", {}, Exception("the line is cut"), connection_invalidated=True)

    checkpointer = start(paused=True, batch_changes=1)
    event.listen(checkpointer.engine, "commit", lose_the_answer)
    for number in range(6):
        append(log, insert((number, str(number))))
    checkpointer.resume()
    checkpointer.wait_applied(EntryId(6), WAIT_S)
    assert len(lost) == 5
    assert rows(engine) == [(n, str(n)) for n in range(6)]


def test_two_appliers_apply_each_entry_once(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    racers = [start(batch_changes=3, batch_delay_s=0.001) for _ in range(2)]
    for number in range(200):
        append(log, insert((number, str(number))))
    for racer in racers:
        racer.wait_applied(EntryId(200), WAIT_S)
    assert len(rows(engine)) == 200
    assert watermark(engine) == 200
    assert sum(racer.status.applied_entries for racer in racers) == 200


class Abandoning(SQLAlchemyCheckpointer):
    """Gives up what was written under the version "old"."""

    def should_recover_segment(self, segment: SegmentInfo) -> Recovery:
        return Recovery.ABANDON if segment.version_info == b"old" else Recovery.RECOVER


@pytest.mark.parametrize("more", [True, False])
def test_entries_of_abandoned_segments_are_passed_over(engine: Engine, start: Start, more: bool) -> None:
    storage = MemoryStorage()
    for version, numbers in ((b"first", (1, 2)), (b"old", (3, 4)), (b"last", (5,) if more else ())):
        with WriteAheadLog.recover(storage, config=LogConfig(version_info=version)) as log:
            for number in numbers:
                append(log, insert((number, str(number))))
    checkpointer = Abandoning(engine)
    with WriteAheadLog.recover(storage, checkpointer, config=LogConfig(version_info=b"last")) as log:
        checkpointer.start(log)
        checkpointer.wait_applied(EntryId(4), WAIT_S)
        append(log, insert((9, "9")))
        checkpointer.wait_applied(log.last_id, WAIT_S)
        assert watermark(engine) == log.last_id == log.checkpointed_id
        checkpointer.stop()
    assert [row[0] for row in rows(engine)] == ([1, 2, 5, 9] if more else [1, 2, 9])


# ------------------------------------------------------------------------------------------------------- failures


def test_a_rejected_entry_halts_after_the_good_ones_before_it(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    seen: list[tuple[Any, ...]] = []

    def listen(source: SQLAlchemyCheckpointer) -> None:
        @event.listens_for(source, "rejected")
        def rejected(session: Session, change_set: Any, error: BaseException) -> None:
            seen.append(("rejected", change_set.entry_id, type(error), session.scalar(select(items.c.id).limit(1))))

        @event.listens_for(source, "halted")
        def halted(given: Any, error: BaseException) -> None:
            seen.append(("halted", given is source, type(error)))

    for number in (1, 2):
        append(log, insert((number, str(number))))
    append(log, insert((1, "again")))
    append(log, insert((3, "3")))
    checkpointer = start(listeners=listen)
    with pytest.raises(EntryRejectedError, match="UNIQUE") as caught:
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert caught.value.entry_id == 3
    assert rows(engine) == [(1, "1"), (2, "2")]
    status = checkpointer.status
    assert (status.state, status.rejected_entry_id, status.applied_id) == ("halted", 3, 2)
    assert status.last_error_kind is FailureKind.REJECTED
    wait_until(lambda: len(seen) == 2)
    assert seen == [("rejected", 3, EntryRejectedError, 1), ("halted", True, EntryRejectedError)]

    append(log, insert((4, "4")))  # commits go on
    checkpointer.resume()
    wait_until(lambda: len(seen) == 4)
    with engine.begin() as connection:
        connection.execute(items.delete().where(items.c.id == 1))
    checkpointer.resume()
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "again"), (2, "2"), (3, "3"), (4, "4")]
    assert checkpointer.status.state == "running"
    assert checkpointer.status.last_error is None


def test_an_update_that_finds_no_row_is_rejected_by_entry_and_row(log: WriteAheadLog, start: Start) -> None:
    append(log, insert((1, "a"), (2, "b")))
    append(log, update(("x", 1), ("y", 99), ("z", 2)))
    checkpointer = start()
    with pytest.raises(EntryRejectedError, match=r"entry 2 .*id = 99"):
        checkpointer.wait_applied(EntryId(2), WAIT_S)


def test_a_missing_table_blocks_and_goes_on_by_itself_when_it_is_there(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    append(log, insert((1, "a")))
    items.drop(engine)
    append(log, insert((2, "b")))
    checkpointer = start()
    with pytest.raises(TargetBlockedError, match="no such table"):
        checkpointer.wait_applied(EntryId(2), WAIT_S)
    status = checkpointer.status
    assert status.state == "blocked"
    assert status.last_error_kind is FailureKind.BLOCKED
    assert status.rejected_entry_id == 1
    items.create(engine)
    wait_until(lambda: checkpointer.applied_id == 2)
    assert rows(engine) == [(1, "a"), (2, "b")]
    assert checkpointer.status.state == "running"


def test_an_unknown_failure_is_not_blamed_on_the_entry(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    trouble = [True]

    @event.listens_for(engine, "before_cursor_execute")
    def fail(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if trouble[0] and sql.startswith("INSERT INTO items"):
            raise OperationalError(sql, {}, Exception("flux capacitor misaligned"))

    append(log, insert((1, "a")))
    checkpointer = start()
    with pytest.raises(TargetBlockedError, match="flux"):
        checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert checkpointer.status.last_error_kind is FailureKind.UNKNOWN
    trouble[0] = False
    wait_until(lambda: checkpointer.applied_id == 1)
    event.remove(engine, "before_cursor_execute", fail)


def test_passing_failures_are_retried_until_it_works(
    engine: Engine, log: WriteAheadLog, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [0]

    @event.listens_for(engine, "before_cursor_execute")
    def fail(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith("INSERT INTO items") and failures[0] < 12:
            failures[0] += 1
            raise OperationalError(sql, {}, Exception("database is locked"))

    caplog.set_level(logging.WARNING, "walsync.checkpoint")
    append(log, insert((1, "a")))
    checkpointer = start()
    wait_until(lambda: checkpointer.status.state == "retrying" or failures[0] == 12)
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert failures[0] == 12
    assert rows(engine) == [(1, "a")]
    status = checkpointer.status
    assert (status.state, status.failures, status.last_error, status.next_retry_s) == ("running", 0, None, None)
    told = [record for record in caplog.records if "trying again" in record.getMessage()]
    assert len(told) == 1, "one line, not one for each try"
    event.remove(engine, "before_cursor_execute", fail)


def test_the_wait_doubles_and_a_success_resets_it(
    engine: Engine, log: WriteAheadLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [0]
    waits: list[float] = []

    @event.listens_for(engine, "before_cursor_execute")
    def fail(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith("INSERT INTO items") and failures[0] < 5:
            failures[0] += 1
            raise OperationalError(sql, {}, Exception("database is locked"))

    checkpointer = start(retry_initial_s=0.001, retry_max_s=0.005, retry_jitter=0)
    wait_retry = checkpointer._progress.wait_retry

    def record(seconds: float | None, waited_seconds: float) -> None:
        assert seconds is not None
        waits.append(seconds)
        wait_retry(seconds, waited_seconds)

    monkeypatch.setattr(checkpointer._progress, "wait_retry", record)
    append(log, insert((1, "a")))
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert waits == [0.001, 0.002, 0.004, 0.005, 0.005]
    failures[0] = 4
    append(log, insert((2, "b")))
    checkpointer.wait_applied(EntryId(2), WAIT_S)
    assert waits[5:] == [0.001]
    event.remove(engine, "before_cursor_execute", fail)


def test_a_waiting_reader_shortens_the_retries(log: WriteAheadLog, start: Start, sqlite_url: str) -> None:
    failures = [0]
    target = create_engine(sqlite_url)

    @event.listens_for(target, "before_cursor_execute")
    def fail(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith("INSERT INTO items") and failures[0] < 3:
            failures[0] += 1
            raise OperationalError(sql, {}, Exception("database is locked"))

    checkpointer = start(target=target, retry_initial_s=3600, retry_max_s=3600, retry_jitter=0, waited_retry_max_s=0.01)
    append(log, insert((1, "a")))
    # The state is told a moment before the time of the next try.
    remaining = wait_until(lambda: checkpointer.status.next_retry_s)
    assert remaining is not None
    assert remaining > 3000
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    target.dispose()


def test_resume_retries_at_once(log: WriteAheadLog, start: Start, sqlite_url: str) -> None:
    trouble = [True]
    target = create_engine(sqlite_url)

    @event.listens_for(target, "before_cursor_execute")
    def fail(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith("INSERT INTO items") and trouble[0]:
            raise OperationalError(sql, {}, Exception("database is locked"))

    checkpointer = start(target=target, retry_initial_s=3600, retry_max_s=3600, retry_jitter=0)
    append(log, insert((1, "a")))
    wait_until(lambda: checkpointer.status.state == "retrying")
    trouble[0] = False
    checkpointer.resume()
    wait_until(lambda: checkpointer.applied_id == 1)
    target.dispose()


def test_an_entry_that_is_no_change_set_halts_after_those_before_it(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    append(log, insert((1, "a")))
    log.append(b"\x00 not a change set")
    checkpointer = start()
    with pytest.raises(CheckpointFailedError, match="entry 2") as caught:
        checkpointer.wait_applied(EntryId(2), WAIT_S)
    assert isinstance(caught.value.__cause__, CorruptEntryError)
    assert checkpointer.status.state == "halted"
    assert rows(engine) == [(1, "a")]


def test_the_threads_death_reaches_every_caller(
    log: WriteAheadLog, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    halted: list[BaseException] = []

    def listen(source: SQLAlchemyCheckpointer) -> None:
        @event.listens_for(source, "before_checkpoint")
        def fail(session: Session, first: int, last: int) -> None:
            raise ZeroDivisionError("a fault in a listener")

        event.listen(source, "halted", lambda source, error: halted.append(error))

    checkpointer = start(listeners=listen)
    checkpointer.raise_if_failed()
    append(log, insert((1, "a")))
    with pytest.raises(CheckpointFailedError, match="a fault in a listener"):
        checkpointer.wait_applied(EntryId(1), WAIT_S)
    with pytest.raises(CheckpointFailedError, match="a fault in a listener"):
        checkpointer.raise_if_failed()
    assert checkpointer.status.state == "failed"
    wait_until(lambda: halted)
    checkpointer.stop(timeout=WAIT_S)
    assert checkpointer.status.state == "failed", "stopping does not hide it"
    assert "ZeroDivisionError" in caplog.text


def test_a_poisoned_log_is_the_logs_failure_and_not_the_checkpointers(
    engine: Engine, log: WriteAheadLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = start(paused=True)
    append(log, insert((1, "a")))

    def fail(file: MemoryFile) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(MemoryFile, "sync", fail)
    with pytest.raises(LogPoisonedError):
        append(log, insert((2, "b")))
    checkpointer.resume()
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert rows(engine) == [(1, "a")], "what was durable arrives"
    checkpointer.raise_if_failed()
    assert checkpointer.stop(timeout=WAIT_S)
    assert checkpointer.status.state == "stopped"


def test_a_log_that_is_closed_under_a_running_checkpointer_is_a_death(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start()
    append(log, insert((1, "a")))
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    log.close()
    wait_until(lambda: checkpointer.status.state == "failed")
    with pytest.raises(CheckpointFailedError, match="closed"):
        checkpointer.raise_if_failed()


def test_a_log_that_is_closed_after_the_order_to_stop_is_not(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start()
    checkpointer.stop()
    log.close()
    assert checkpointer.status.state == "stopped"


def test_a_fault_of_walsync_itself_is_a_death_as_well(
    log: WriteAheadLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*arguments: Any, **settings: Any) -> int:
        raise AttributeError("a bug")

    monkeypatch.setattr("walsync.checkpoint.transaction.apply_changes", fault)
    checkpointer = start()
    append(log, insert((1, "a")))
    with pytest.raises(CheckpointFailedError, match="a bug"):
        checkpointer.wait_applied(EntryId(1), WAIT_S)


def test_a_listener_that_meets_the_targets_failure_does_not_kill_the_thread(log: WriteAheadLog, start: Start) -> None:
    calls = [0]

    def listen(source: SQLAlchemyCheckpointer) -> None:
        @event.listens_for(source, "before_checkpoint")
        def fail(session: Session, first: int, last: int) -> None:
            calls[0] += 1
            if calls[0] < 4:
                raise OperationalError("SELECT", {}, Exception("database is locked"))

    checkpointer = start(listeners=listen)
    append(log, insert((1, "a")))
    checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert calls[0] == 4


# ------------------------------------------------------------------------------------------------- AUTOCOMMIT etc.


def test_an_engine_in_autocommit_is_used_with_transactions(sqlite_url: str, engine: Engine, start: Start) -> None:
    with open_log() as log:
        target = create_engine(sqlite_url, isolation_level="AUTOCOMMIT")
        append(log, insert((1, "a")))
        append(log, insert((1, "twice")))
        checkpointer = start(target=target, log=log)
        with pytest.raises(EntryRejectedError):
            checkpointer.wait_applied(EntryId(2), WAIT_S)
        assert watermark(engine) == 1
        target.dispose()


@pytest.mark.parametrize("mode", ["legacy", "begin-event", "isolation-none"])
def test_sqlite_batches_are_one_transaction_in_every_mode_of_the_driver(
    sqlite_url: str, engine: Engine, start: Start, mode: str
) -> None:
    target = create_engine(sqlite_url)
    if mode != "legacy":

        @event.listens_for(target, "connect")
        def connect(dbapi_connection: Any, record: Any) -> None:
            dbapi_connection.isolation_level = None

    if mode == "begin-event":

        @event.listens_for(target, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

    with open_log() as log:
        append(log, insert((1, "a"), (2, "b")))
        append(log, insert((3, "c"), (3, "d")))
        checkpointer = start(target=target, log=log)
        with pytest.raises(EntryRejectedError):
            checkpointer.wait_applied(EntryId(2), WAIT_S)
        assert rows(engine) == [(1, "a"), (2, "b")]
        assert watermark(engine) == 1
        checkpointer.stop()
    target.dispose()


def test_an_in_memory_database_of_one_thread_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="in-memory"):
        SQLAlchemyCheckpointer(create_engine("sqlite://"))


def test_an_in_memory_database_with_one_connection_is_shared(start: Start, log: WriteAheadLog) -> None:
    from sqlalchemy.pool import StaticPool

    target = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    items.create(target)
    append(log, insert((1, "a")))
    start(target=target).wait_applied(EntryId(1), WAIT_S)
    assert rows(target) == [(1, "a")]
    target.dispose()


def test_the_time_of_waiting_is_bounded(log: WriteAheadLog, start: Start) -> None:
    checkpointer = start(paused=True)
    append(log, insert((1, "a")))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        checkpointer.wait_applied(EntryId(1), 0.1)
    assert time.monotonic() - began >= 0.1

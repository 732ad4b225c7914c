"""Several appliers of one log: one applies, the others stand by, and everybody is told the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select, text

from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, insert, items, metadata
from tests.unit.checkpoint.others import Machine
from walsync.checkpoint import CheckpointConfig, SQLAlchemyCheckpointer
from walsync.checkpoint.status_file import read_report
from walsync.checkpoint.watermark import TABLE_NAME
from walsync.exceptions import (
    ApplyTimeoutError,
    BacklogFullError,
    CheckpointFailedError,
    ConfigurationError,
    EntryRejectedError,
    TargetBlockedError,
    UsageError,
    WatermarkGapError,
)
from walsync.wal import EntryId, WriteAheadLog

WAIT_S = 20.0

Start = Callable[..., SQLAlchemyCheckpointer]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WriteAheadLog]:
    with WriteAheadLog.recover(tmp_path / "log") as log:
        yield log


@pytest.fixture
def machine(log: WriteAheadLog) -> Machine:
    return Machine(log)


@pytest.fixture
def begin(machine: Machine, start: Start) -> Start:
    """Starts a checkpointer in a process of its own."""

    def begin(**settings: Any) -> SQLAlchemyCheckpointer:
        return start(log=machine.process(), standby_interval_s=0.005, **settings)

    return begin


def rows(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(select(items.c.id).order_by(items.c.id)).scalars())


def test_one_applies_and_the_other_stands_by(engine: Engine, log: WriteAheadLog, begin: Start) -> None:
    one, other = begin(), begin()
    assert (one.status.state, other.status.state) == ("running", "standby")
    for number in range(20):
        append(log, insert((number, str(number))))
    other.wait_applied(EntryId(20), WAIT_S)
    assert rows(engine) == list(range(20))
    # Others may know that a batch is in before the one that applied it has counted it.
    wait_until(lambda: one.status.applied_entries == 20)
    assert other.status.applied_entries == 0
    assert other.applied_id == other.status.applied_id == 20


def test_when_the_applier_stops_the_other_goes_on(engine: Engine, log: WriteAheadLog, begin: Start) -> None:
    one, other = begin(), begin()
    append(log, insert((1, "a")))
    one.wait_applied(EntryId(1), WAIT_S)
    assert one.stop()
    wait_until(lambda: other.status.state == "running")
    append(log, insert((2, "b")))
    other.wait_applied(EntryId(2), WAIT_S)
    assert rows(engine) == [1, 2]


def test_the_one_that_takes_over_asks_the_watermark(
    engine: Engine, log: WriteAheadLog, begin: Start, machine: Machine
) -> None:
    one, other = begin(), begin()
    append(log, insert((1, "a")))
    one.wait_applied(EntryId(1), WAIT_S)
    # As if it had died: the other one knows nothing but what the target says.
    machine.kill_the_applier()
    wait_until(lambda: other.status.state == "running")
    append(log, insert((2, "b")))
    other.wait_applied(EntryId(2), WAIT_S)
    assert rows(engine) == [1, 2]
    wait_until(lambda: one.status.applied_entries + other.status.applied_entries == 2)


def test_an_applier_that_fails_lets_another_have_its_turn(engine: Engine, log: WriteAheadLog, begin: Start) -> None:
    def listen(source: SQLAlchemyCheckpointer) -> None:
        def fail(*arguments: object) -> None:
            raise ValueError("a fault")

        event.listen(source, "before_checkpoint", fail)

    one, other = begin(listeners=listen), begin()
    append(log, insert((1, "a")))
    other.wait_applied(EntryId(1), WAIT_S)
    assert one.status.state == "failed"
    assert other.status.state == "running"
    with pytest.raises(CheckpointFailedError, match="a fault"):
        one.raise_if_failed()


def test_a_waiter_goes_on_waiting_when_its_own_process_takes_over(log: WriteAheadLog, begin: Start) -> None:
    one, other = begin(paused=True), begin()
    append(log, insert((1, "a")))
    waited = threading.Event()

    def wait() -> None:
        other.wait_applied(EntryId(1), WAIT_S)
        waited.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: log.control.urgent_id == 1)
    assert not waited.is_set()
    one.stop()
    assert waited.wait(WAIT_S)
    waiter.join(WAIT_S)
    assert other.status.state == "running"


def test_a_reader_in_another_process_costs_no_delay(log: WriteAheadLog, begin: Start) -> None:
    begin(batch_delay_s=3600)
    other = begin()
    append(log, insert((1, "a")))
    with pytest.raises(AssertionError):
        # As long as nobody waits, the batch waits for company.
        wait_until(lambda: other.applied_id == 1, 0.1)
    other.wait_applied(EntryId(1), WAIT_S)


def test_a_waiting_reader_in_another_process_shortens_the_retries(
    log: WriteAheadLog, begin: Start, engine: Engine
) -> None:
    away = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    tries = [0]

    @event.listens_for(away, "do_connect")
    def count(*arguments: object) -> None:
        tries[0] += 1

    one = begin(target=away, retry_initial_s=3600, retry_max_s=3600, retry_jitter=0, waited_retry_max_s=0.01)
    other = begin()
    append(log, insert((1, "a")))
    wait_until(lambda: one.status.state == "retrying")
    with pytest.raises(ApplyTimeoutError, match="retrying"):
        other.wait_applied(EntryId(1), 1.0)
    assert tries[0] > 2


# ---------------------------------------------------------------------------------------------- pause and stop


def test_a_paused_applier_keeps_its_turn(log: WriteAheadLog, begin: Start) -> None:
    one, other = begin(), begin()
    one.pause()
    append(log, insert((1, "a")))
    with pytest.raises(ApplyTimeoutError, match="paused"):
        other.wait_applied(EntryId(1), 0.5)
    assert other.status.state == "standby"
    one.resume()
    other.wait_applied(EntryId(1), WAIT_S)


def test_a_paused_standby_does_not_take_over(log: WriteAheadLog, begin: Start) -> None:
    one, other, third = begin(), begin(), begin()
    other.pause()
    wait_until(lambda: other.status.state == "paused")
    one.stop()
    wait_until(lambda: third.status.state == "running")
    third.stop()
    with pytest.raises(AssertionError):
        wait_until(lambda: other.status.state == "running", 0.1)
    other.resume()
    wait_until(lambda: other.status.state == "running")


def test_a_standby_drains_by_waiting_for_the_applier(engine: Engine, log: WriteAheadLog, begin: Start) -> None:
    begin()
    other = begin()
    for number in range(20):
        append(log, insert((number, str(number))))
    assert other.stop(drain=True, timeout=WAIT_S)
    assert len(rows(engine)) == 20


def test_a_drain_ends_early_when_the_applier_elsewhere_is_paused(log: WriteAheadLog, begin: Start) -> None:
    begin(paused=True)
    other = begin()
    append(log, insert((1, "a")))
    wait_until(lambda: "paused" in other.status.applier)
    assert not other.stop(drain=True, timeout=3600)


def test_a_drain_goes_on_when_the_applier_elsewhere_was_paused_and_is_resumed(log: WriteAheadLog, begin: Start) -> None:
    applier = begin(paused=True)
    other = begin()
    append(log, insert((1, "a")))
    wait_until(lambda: "paused" in other.status.applier)
    applier.resume()
    assert other.stop(drain=True, timeout=WAIT_S)


# ------------------------------------------------------------------------------------- what holds the applier up


def test_a_refused_entry_is_told_to_a_waiter_in_another_process(
    engine: Engine, log: WriteAheadLog, begin: Start
) -> None:
    one, other = begin(), begin()
    append(log, insert((1, "a")))
    refused = append(log, insert((1, "again")))
    with pytest.raises(EntryRejectedError, match=r"process \d+ on .*UNIQUE") as caught:
        other.wait_applied(refused, 3600)
    assert caught.value.entry_id == refused
    status = other.status
    assert not other.stop(drain=True, timeout=3600)
    assert one.status.state == "halted"
    assert status.rejected_entry_id == refused
    assert "UNIQUE" in (status.last_error or "")


def test_a_missing_table_is_told_to_a_waiter_in_another_process(
    engine: Engine, log: WriteAheadLog, begin: Start
) -> None:
    metadata.drop_all(engine)
    begin(blocked_retry_s=3600)
    other = begin()
    append(log, insert((1, "a")))
    with pytest.raises(TargetBlockedError, match="no such table"):
        other.wait_applied(EntryId(1), 3600)


def test_a_gap_is_told_to_a_waiter_in_another_process(engine: Engine, log: WriteAheadLog, begin: Start) -> None:
    one, other = begin(), begin()
    append(log, insert((1, "a")))
    one.wait_applied(EntryId(1), WAIT_S)
    one.pause()
    wait_until(lambda: one.status.state == "paused")
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {TABLE_NAME} SET last_entry_id = 0"))
    append(log, insert((2, "b")))
    one.resume()
    with pytest.raises(WatermarkGapError, match="older backup"):
        other.wait_applied(EntryId(2), 3600)


def test_what_is_in_the_quarantine_is_known_in_every_process(log: WriteAheadLog, begin: Start) -> None:
    begin(on_reject="quarantine")
    other = begin(on_reject="quarantine")
    append(log, insert((1, "a")))
    refused = append(log, insert((1, "again")))
    other.wait_applied(refused, WAIT_S)
    assert other.is_quarantined(refused)
    assert not other.is_quarantined(1)
    assert other.status.quarantined_entries == 1


# ------------------------------------------------------------------------------------------------ the report


def test_the_one_that_applies_writes_the_report(log: WriteAheadLog, begin: Start) -> None:
    assert log.directory is not None
    one, other = begin(), begin()
    wait_until(lambda: read_report(log.directory or "") is not None)
    first = read_report(log.directory)
    assert first is not None
    assert (first.state, first.process_id) == ("running", os.getpid())
    other.pause()
    wait_until(lambda: other.status.state == "paused")
    assert read_report(log.directory) == first, "one that stands by writes nothing"
    assert f"process {os.getpid()} on {first.host} applies since" in other.status.applier
    assert "this process" in one.status.applier
    other.resume()
    one.stop()
    wait_until(lambda: (read_report(log.directory or "") or first).applies_since > first.applies_since)
    assert "this process" in other.status.applier
    assert "stopped" in one.status.applier


# ------------------------------------------------------------------------------------------------- external


def test_one_that_only_writes_never_applies(log: WriteAheadLog, begin: Start, machine: Machine) -> None:
    threads = threading.active_count()
    writer = begin(external=True)
    assert threading.active_count() == threads
    assert writer.status.state == "external"
    assert machine.holder is None
    append(log, insert((1, "a")))
    begin()
    writer.wait_applied(EntryId(1), WAIT_S)
    assert writer.stop(drain=True)
    assert writer.status.state == "stopped"


def test_a_wait_without_anybody_who_applies_ends_and_says_so(log: WriteAheadLog, begin: Start) -> None:
    writer = begin(external=True, no_applier_timeout_s=0.3)
    append(log, insert((1, "a")))
    with pytest.raises(ApplyTimeoutError, match=r"no process applies entries.*no_applier_timeout_s"):
        writer.wait_applied(EntryId(1), None)
    with pytest.raises(ApplyTimeoutError, match="no process applies entries"):
        writer.wait_applied(EntryId(1), 0.01)
    assert "no process applies entries" in writer.status.applier
    assert not writer.stop(drain=True, timeout=0.05)


def test_one_that_only_writes_waits_for_an_applier_that_comes_later(log: WriteAheadLog, begin: Start) -> None:
    writer = begin(external=True)
    append(log, insert((1, "a")))
    drained: list[bool] = []
    stopping = threading.Thread(target=lambda: drained.append(writer.stop(drain=True, timeout=WAIT_S)))
    stopping.start()
    wait_until(lambda: log.control.urgent_id == 1)
    begin()
    stopping.join(WAIT_S)
    assert drained == [True]


def test_the_bound_of_the_backlog_holds_where_nothing_is_applied(log: WriteAheadLog, begin: Start) -> None:
    writer = begin(external=True, max_backlog_entries=3, backlog_timeout_s=0.05)
    for number in range(3):
        writer.admit()
        append(log, insert((number, str(number))))
    with pytest.raises(BacklogFullError, match="no process applies entries"):
        writer.admit()
    begin()
    writer.wait_applied(EntryId(3), WAIT_S)
    writer.admit()


@pytest.mark.parametrize("order", ["pause", "resume"])
def test_one_that_only_writes_has_nothing_to_pause(begin: Start, order: str) -> None:
    writer = begin(external=True)
    with pytest.raises(UsageError, match="does not apply"):
        getattr(writer, order)()


def test_external_and_paused_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="external"):
        CheckpointConfig(external=True, paused=True)

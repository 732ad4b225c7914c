from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.orm import Session

from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, change_set, insert, items, open_log
from walsync.changes import ChangeSet
from walsync.checkpoint import SKIP, EventSource, SQLAlchemyCheckpointer, WalsyncEvents
from walsync.exceptions import CheckpointFailedError
from walsync.wal import EntryId, WriteAheadLog
from walsync.wal.storage.memory import MemoryStorage

WAIT_S = 20.0

Start = Callable[..., SQLAlchemyCheckpointer]


def names(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(items.c.name).order_by(items.c.id)).scalars())


def test_listeners_are_per_object_and_per_class() -> None:
    class Journal(EventSource):
        pass

    first, second = Journal(), Journal()
    seen: list[Any] = []
    event.listen(first, "after_append", lambda *arguments: seen.append(arguments))
    assert first.dispatch.after_append
    assert not second.dispatch.after_append
    first.dispatch.after_append(first, EntryId(1), None)
    assert seen == [(first, 1, None)]


def test_an_event_that_does_not_exist_is_refused(engine: Engine) -> None:
    from sqlalchemy.exc import InvalidRequestError

    with pytest.raises(InvalidRequestError):
        event.listen(SQLAlchemyCheckpointer(engine), "before_lunch", print)


def test_every_event_says_what_a_listener_may_do() -> None:
    for name in (
        "after_append",
        "before_replay",
        "after_replay",
        "before_checkpoint",
        "after_checkpoint",
        "rejected",
        "halted",
        "recovered",
    ):
        assert "may" in (getattr(WalsyncEvents, name).__doc__ or ""), name


def test_only_entries_that_were_there_on_opening_are_replayed(engine: Engine, start: Start) -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        append(log, insert((1, "a")))
        append(log, insert((2, "b")))
    seen: list[tuple[Any, ...]] = []
    checkpointer = SQLAlchemyCheckpointer(engine)

    @event.listens_for(checkpointer, "before_replay")
    def before(session: Session, change_set: ChangeSet) -> None:
        # What stands before it is there, and nothing is committed yet.
        seen.append(("before", change_set.entry_id, session.scalar(select(func.count()).select_from(items))))

    @event.listens_for(checkpointer, "after_replay")
    def after(session: Session, change_set: ChangeSet) -> None:
        seen.append(("after", change_set.entry_id, session.scalar(select(func.count()).select_from(items))))

    event.listen(checkpointer, "recovered", lambda source, count: seen.append(("recovered", source, count)))
    with open_log(storage, checkpointer) as log:
        append(log, insert((3, "c")))
        checkpointer.start(log)
        checkpointer.wait_applied(EntryId(3), WAIT_S)
        wait_until(lambda: ("recovered", checkpointer, 2) in seen)
        checkpointer.stop()
    assert seen == [
        ("before", 1, 0),
        ("after", 1, 1),
        ("before", 2, 1),
        ("after", 2, 2),
        ("recovered", checkpointer, 2),
    ]
    assert names(engine) == ["a", "b", "c"]


def test_what_is_in_already_is_not_replayed(engine: Engine, start: Start) -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    append(log, insert((1, "a")))
    first = start(log=log)
    first.wait_applied(EntryId(1), WAIT_S)
    first.stop()
    storage_is_as_after_a_crash = append(log, insert((2, "b")))
    seen: list[Any] = []

    def listen(source: SQLAlchemyCheckpointer) -> None:
        event.listen(source, "before_replay", lambda session, change_set: seen.append(change_set.entry_id))
        event.listen(source, "recovered", lambda source, count: seen.append(("recovered", count)))

    second = start(log=log, listeners=listen)
    second.wait_applied(storage_is_as_after_a_crash, WAIT_S)
    wait_until(lambda: len(seen) == 2)
    assert seen == [2, ("recovered", 1)]
    assert not second.status.replay_pending


def test_a_listener_may_rewrite_an_entry_or_leave_it_out(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    for number, name in ((1, "keep"), (2, "skip"), (3, "rename"), (4, "keep too")):
        append(log, insert((number, name)))
    replayed: list[Any] = []

    def listen(source: SQLAlchemyCheckpointer) -> None:
        @event.listens_for(source, "before_replay")
        def first(session: Session, change_set: ChangeSet) -> Any:
            if change_set.entry_id == 2:
                return SKIP
            if change_set.entry_id == 3:
                return dataclasses.replace(change_set, changes=[insert((3, "first"))])
            return None

        @event.listens_for(source, "before_replay")
        def second(session: Session, change_set: ChangeSet) -> Any:
            if change_set.entry_id == 3:
                (change,) = change_set.changes
                return dataclasses.replace(change_set, changes=[insert((3, change.rows[0][1] + " and second"))])
            return None

        event.listen(source, "after_replay", lambda session, change_set: replayed.append(change_set.entry_id))

    start(listeners=listen).wait_applied(log.last_id, WAIT_S)
    assert names(engine) == ["keep", "first and second", "keep too"]
    assert replayed == [1, 3, 4]
    assert log.checkpointed_id == 4


def test_an_answer_without_meaning_is_a_failure_and_applies_nothing(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    append(log, insert((1, "a")))
    checkpointer = start(
        listeners=lambda source: event.listen(source, "before_replay", lambda session, change_set: "yes")
    )
    with pytest.raises(CheckpointFailedError, match="before_replay"):
        checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert names(engine) == []


def test_batches_are_announced_inside_and_after_their_transaction(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE audit (first INTEGER, last INTEGER)"))
    seen: list[Any] = []

    def listen(source: SQLAlchemyCheckpointer) -> None:
        @event.listens_for(source, "before_checkpoint")
        def before(session: Session, first: int, last: int) -> None:
            seen.append(("before", session.scalar(select(func.count()).select_from(items))))
            session.execute(text("INSERT INTO audit VALUES (:first, :last)"), {"first": first, "last": last})

        @event.listens_for(source, "after_checkpoint")
        def after(session: Session, first: int, last: int) -> None:
            seen.append(("after", session.scalar(select(func.count()).select_from(items))))
            session.execute(text("INSERT INTO audit VALUES (0, 0)"))  # not committed by the listener: rolled back

    append(log, insert((1, "a")))
    append(log, insert((2, "b")))
    start(listeners=listen).wait_applied(EntryId(2), WAIT_S)
    assert seen == [("before", 0), ("after", 2)]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT first, last FROM audit")).all() == [(1, 2)]


def test_the_events_of_another_source_are_fired(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    class Journal(EventSource):
        pass

    journal = Journal()
    seen: list[Any] = []
    event.listen(journal, "recovered", lambda source, count: seen.append((source, count)))
    append(log, insert((1, "a")))
    start(events=journal).wait_applied(EntryId(1), WAIT_S)
    wait_until(lambda: seen)
    assert seen == [(journal, 1)]


def test_a_failing_listener_of_halted_changes_nothing_about_the_failure(log: WriteAheadLog, start: Start) -> None:
    def listen(source: SQLAlchemyCheckpointer) -> None:
        def fail(*arguments: Any) -> None:
            raise ValueError("twice")

        event.listen(source, "before_checkpoint", fail)
        event.listen(source, "halted", fail)

    append(log, insert((1, "a")))
    checkpointer = start(listeners=listen)
    with pytest.raises(CheckpointFailedError):
        checkpointer.wait_applied(EntryId(1), WAIT_S)
    assert checkpointer.stop(timeout=WAIT_S) is False


def test_the_change_set_of_the_test_is_what_it_says() -> None:
    assert change_set(insert((1, "a"), (2, "b"))).change_count == 2

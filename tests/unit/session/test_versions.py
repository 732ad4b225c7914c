"""Versions: what is decided at the commit, without a log and without a target."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.orm.exc import StaleDataError

from walsync.changes import RowChanges, StatementChange, TableName
from walsync.changes.model import Change
from walsync.changes.places import row_places
from walsync.session.versions import VersionGuard, WantedVersion
from walsync.wal import EntryId

TABLE = TableName(None, "thing")
OTHER = TableName(None, "other")


def step(key: object, before: int, after: int, acts_on: tuple[TableName, ...] = ()) -> Change:
    """An UPDATE as the unit of work makes it."""
    integer = ("integer",)
    change = RowChanges(
        "update",
        TABLE,
        ("v",),
        (integer,),
        ("id", "v"),
        (integer, integer),
        [[after, key, before]],
        True,
        acts_on=acts_on,
    )
    change.places = row_places(change.columns, change.keys, ["id"])
    return change


def statement(table: TableName) -> Change:
    return StatementChange("UPDATE", {}, {}, [table], [], "sqlite")


class Journal:
    """A log that counts, and a target that answers what the test says."""

    def __init__(self, rows_max: int = 100) -> None:
        self.applied = EntryId(0)
        self.last = EntryId(0)
        self.asked: list[WantedVersion] = []
        self.answer: Callable[[], bool] = lambda: True
        self.waiting = False
        self.guard = VersionGuard(rows_max, lambda: self.applied, lambda tables: self.waiting)

    def ask(self, wanted: WantedVersion) -> bool:
        self.asked.append(wanted)
        return self.answer()

    def append(self) -> EntryId:
        self.last = EntryId(self.last + 1)
        return self.last

    def commit(self, *changes: Change) -> EntryId:
        return self.guard.append(changes, self.ask, self.append)


def test_the_next_version_is_recorded_and_any_other_is_refused_while_the_entry_waits() -> None:
    journal = Journal()
    journal.commit(step(1, 1, 2))
    for wrong in (1, 3):
        with pytest.raises(StaleDataError, match=r"thing: the row with id = 1 .*version"):
            journal.commit(step(1, wrong, wrong + 1))
    journal.commit(step(1, 2, 3), step(2, 1, 2))
    assert (journal.last, journal.asked) == (2, [])


def test_of_several_rows_one_conflict_refuses_all_and_nothing_is_remembered_of_them() -> None:
    journal = Journal()
    journal.commit(step(1, 1, 2))
    with pytest.raises(StaleDataError):
        journal.commit(step(2, 1, 2), step(1, 1, 2))
    journal.commit(step(2, 1, 5))
    assert journal.last == 2


def test_a_transaction_may_change_a_row_several_times() -> None:
    journal = Journal()
    journal.commit(step(1, 1, 2), step(1, 2, 3), step(1, 3, 4))
    journal.commit(step(1, 4, 5))
    assert journal.last == 2


@pytest.mark.parametrize("answer", [True, False])
def test_once_the_entry_is_applied_the_target_decides_about_another_version(answer: bool) -> None:
    journal = Journal()
    journal.applied = journal.commit(step(1, 1, 2))
    journal.answer = lambda: answer
    if answer:
        journal.commit(step(1, 7, 8))
        journal.answer = lambda: False
        journal.commit(step(1, 8, 9))
    else:
        with pytest.raises(StaleDataError):
            journal.commit(step(1, 7, 8))
    assert [(wanted.keys, wanted.values) for wanted in journal.asked] == [(("id", "v"), (1, 7))]


def test_the_same_version_is_taken_once_of_two_that_begin_at_the_same_moment() -> None:
    journal = Journal()
    in_append, go_on = threading.Event(), threading.Event()

    def slow_append() -> EntryId:
        in_append.set()
        assert go_on.wait(30)
        return journal.append()

    first = threading.Thread(target=lambda: journal.guard.append([step(1, 1, 2)], journal.ask, slow_append))
    first.start()
    assert in_append.wait(30)
    with pytest.raises(StaleDataError):
        journal.commit(step(1, 1, 2))
    journal.commit(step(2, 1, 2))  # nothing waits for the other's disk
    go_on.set()
    first.join(30)
    journal.commit(step(1, 2, 3))
    assert journal.last == 3


@pytest.mark.parametrize("change", [statement(TABLE), step(5, 1, 2, acts_on=(TABLE,))], ids=["statement", "cascade"])
def test_after_changes_to_rows_that_are_not_known_the_target_is_asked(change: Change) -> None:
    journal = Journal()
    journal.commit(step(1, 1, 2))
    journal.commit(statement(OTHER))
    journal.commit(step(1, 2, 3))
    assert journal.asked == []
    journal.commit(change)
    journal.commit(step(1, 9, 10))
    assert [wanted.version for wanted in journal.asked] == [9]
    journal.commit(step(1, 10, 11))
    assert len(journal.asked) == 1


@pytest.mark.parametrize("away", [False, True], ids=["entries wait", "the target is away"])
def test_a_commit_in_doubt_does_not_need_the_target(away: bool) -> None:
    journal = Journal()
    journal.answer = lambda: 1 / 0 > 0
    journal.commit(step(1, 1, 2))
    journal.commit(statement(TABLE))
    journal.waiting = not away
    assert journal.commit(step(1, 5, 6)) == 3
    assert len(journal.asked) == away
    # From here on its version is known again.
    with pytest.raises(StaleDataError):
        journal.commit(step(1, 5, 6))
    journal.applied = EntryId(3)
    with pytest.raises(StaleDataError, match="cannot be asked"):
        journal.commit(step(1, 5, 6))


def test_what_changes_while_the_target_is_asked_is_asked_again() -> None:
    journal = Journal()
    journal.commit(step(1, 1, 2))
    journal.commit(statement(TABLE))
    more = [statement(TABLE), statement(TABLE)]

    def answer() -> bool:
        if more:
            journal.commit(more.pop())
        return True

    journal.answer = answer
    journal.commit(step(1, 2, 3))
    assert len(journal.asked) == 3
    more.extend(statement(TABLE) for _ in range(100))
    journal.commit(statement(TABLE))
    with pytest.raises(StaleDataError):  # it does not go on for ever
        journal.commit(step(1, 3, 4))


def test_if_nothing_was_appended_the_version_is_in_doubt() -> None:
    journal = Journal()

    def fail() -> EntryId:
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        journal.guard.append([step(1, 1, 2)], journal.ask, fail)
    journal.commit(step(1, 1, 2))
    assert len(journal.asked) == 1


def test_keys_that_python_cannot_hash_are_told_apart() -> None:
    journal = Journal()
    journal.commit(step([1], 1, 2))
    journal.commit(step([2], 1, 2))
    with pytest.raises(StaleDataError):
        journal.commit(step([1], 1, 2))


def test_no_more_rows_are_remembered_than_was_said() -> None:
    journal = Journal(rows_max=10)
    for key in range(100):
        journal.commit(step(key, 1, 2))
    assert len(journal.guard._rows) == 10
    journal.commit(step(0, 1, 2))
    with pytest.raises(StaleDataError):
        journal.commit(step(99, 1, 2))
    nothing = Journal(rows_max=0)
    nothing.commit(step(1, 1, 2))
    nothing.commit(step(1, 1, 2))
    assert nothing.guard._rows == {}

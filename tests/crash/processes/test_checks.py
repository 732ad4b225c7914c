"""The checks of the kills find a transaction that is lost, doubled, in part, or out of order: each of them goes red."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session

from tests.crash.acknowledged import Acknowledged, words_of
from tests.crash.child import commit_one
from tests.crash.ledger import Item, Marker, Parcel, Writer, audit, mix
from tests.crash.processes.herd import Place
from tests.support.file_locks import lock_holders
from tests.support.processes import start_python
from tests.support.waiting import wait_until

ACKNOWLEDGED = 10


def check(engine: Engine) -> None:
    """As a run ends: the audit, and everything acknowledged is there. Both writers had 10 transactions acknowledged."""
    acknowledged = Acknowledged()
    acknowledged.numbers.update({"one": ACKNOWLEDGED, "two": ACKNOWLEDGED})
    found = audit(engine, every_row=True)
    assert not found.faults, found.faults
    acknowledged.check_all_there(found.counters)


def take_back(session: Session, number: int) -> None:
    """The transaction of this number, of the writer "one", has never been: all that it wrote is as it was."""
    parcel = session.scalars(select(Parcel).where(Parcel.writer_name == "one", Parcel.number == number)).one()
    session.execute(delete(Item).where(Item.parcel_id == parcel.id))
    session.delete(parcel)
    session.execute(delete(Marker).where(Marker.writer_name == "one", Marker.number == number))
    session.add(Marker(writer_name="one", number=number - 3))
    mixed = 0
    for before in range(1, number):
        mixed = mix(mixed, before)
    session.execute(
        update(Writer).where(Writer.name == "one").values(counter=number - 1, added=number - 1, mixed=mixed)
    )


def lose_the_last(session: Session) -> None:
    take_back(session, 10)


def lose_one_before(session: Session) -> None:
    take_back(session, 10)
    take_back(session, 9)
    # Without the ninth.
    again(session, 10)


def double(session: Session) -> None:
    # Its rows would break the unique constraint; its statement is what could be executed twice.
    session.execute(
        update(Writer).where(Writer.name == "one").values(added=Writer.added + 1, mixed=mix(Writer.mixed, 10))
    )


def double_with_rows(session: Session) -> None:
    parcel = session.scalars(select(Parcel).where(Parcel.writer_name == "two", Parcel.number == 7)).one()
    session.add_all([Item(parcel_id=parcel.id, place=place) for place in range(3)])


def leave_rows_out(session: Session) -> None:
    session.execute(
        delete(Item).where(
            Item.parcel_id == select(Parcel.id).where(Parcel.writer_name == "one", Parcel.number == 7).scalar_subquery()
        )
    )


def leave_the_statement_out(session: Session) -> None:
    session.execute(update(Writer).where(Writer.name == "one").values(added=Writer.added - 1))


def swap_the_last_two(session: Session) -> None:
    take_back(session, 10)
    take_back(session, 9)
    again(session, 10)
    again(session, 9)


def swap_two_before(session: Session) -> None:
    for number in (10, 9, 8):
        take_back(session, number)
    for number in (9, 8, 10):
        again(session, number)


def again(session: Session, number: int) -> None:
    session.flush()
    session.expire_all()
    commit_one(session, session.get_one(Writer, "one"), number, random.Random(number))


def test_what_was_committed_in_order_is_found_right(ledger_engine: Engine) -> None:
    check(ledger_engine)


def test_a_transaction_taken_back_and_executed_again_is_found_right(ledger_engine: Engine) -> None:
    """So that the damages below are what they say, and nothing else."""
    with Session(ledger_engine) as session:
        for number in (10, 9, 8):
            take_back(session, number)
        for number in (8, 9, 10):
            again(session, number)
    check(ledger_engine)


@pytest.mark.parametrize(
    "damage",
    [
        lose_the_last,
        lose_one_before,
        double,
        double_with_rows,
        leave_rows_out,
        leave_the_statement_out,
        swap_the_last_two,
        swap_two_before,
    ],
)
def test_a_damage_is_found(ledger_engine: Engine, damage: Callable[[Session], None]) -> None:
    with Session(ledger_engine) as session:
        damage(session)
        session.commit()
    with pytest.raises(AssertionError):
        check(ledger_engine)


def test_a_transaction_that_nobody_acknowledged_is_found(ledger_engine: Engine) -> None:
    with Session(ledger_engine) as session:
        again(session, 11)
    with pytest.raises(AssertionError, match="one has 11"):
        check(ledger_engine)


def lines(*said: str) -> list[list[str]]:
    return [words_of(line.encode()) for line in said]


def test_lives_that_go_on_where_the_last_one_ended_are_right() -> None:
    acknowledged = Acknowledged()
    acknowledged.note(lines("recovered one 0", "ready", "acknowledged one 1", "acknowledged one 2"), "life 1")
    # The third was under way.
    acknowledged.note(lines("recovered one 3", "ready", "acknowledged one 4"), "life 2")
    assert acknowledged.numbers == {"one": 4}
    acknowledged.check_nothing_more({"one": 5}, "now")
    acknowledged.check_all_there({"one": 4})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        pytest.param(["recovered one 3"], "recovered 3, but 4 was acknowledged", id="lost"),
        pytest.param(["recovered one 6"], "more than was committed", id="more"),
        pytest.param(["recovered one 4", "acknowledged one 6"], "out of turn", id="left out"),
        pytest.param(["recovered one 4", "acknowledged one 4"], "out of turn", id="twice"),
    ],
)
def test_a_life_that_does_not_go_on_there_is_found(said: list[str], message: str) -> None:
    acknowledged = Acknowledged()
    acknowledged.numbers["one"] = 4
    with pytest.raises(AssertionError, match=message):
        acknowledged.note(lines(*said), "life 2")


@pytest.mark.parametrize("counter", [3, 5, None])
def test_a_database_that_ends_elsewhere_is_found(counter: int | None) -> None:
    acknowledged = Acknowledged()
    acknowledged.numbers["one"] = 4
    with pytest.raises(AssertionError):
        acknowledged.check_all_there({} if counter is None else {"one": counter})


def test_a_process_that_ends_by_itself_is_found(tmp_path: Path) -> None:
    place = Place("p0", ["one"], tmp_path)
    place.start("nonsense://", tmp_path / "log", 1, 1)
    try:
        place.running.wait(60.0)
        with pytest.raises(AssertionError, match="failed"):
            place.check()
    finally:
        place.end()


def test_the_holder_of_a_lock_is_told_from_one_who_waits(tmp_path: Path) -> None:
    path = tmp_path / "append.lock"
    path.touch()
    program = (
        "import fcntl, sys; f = open(sys.argv[1]); print('here', flush=True); fcntl.flock(f, fcntl.LOCK_EX); input()"
    )
    with open(path) as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        with start_python("-c", program, path) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "here\n"
                assert process.pid not in lock_holders(tmp_path)
                fcntl.flock(ours, fcntl.LOCK_UN)
                wait_until(lambda: lock_holders(tmp_path).get(process.pid) == {"append.lock"})
            finally:
                process.kill()
    assert lock_holders(tmp_path) == {}

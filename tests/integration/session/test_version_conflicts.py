"""Version conflicts: found at the commit where the log knows of them, and a retry makes every counter right."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, create_engine, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

import walsync
from walsync.exceptions import ConfigurationError, EntryRejectedError, EntryTooLargeError

Attach = Callable[..., tuple[walsync.Journal, sessionmaker[Session]]]

THREADS = 8
TRANSACTIONS = int(os.environ.get("WALSYNC_VERSION_TRANSACTIONS", "80"))
TRANSACTIONS_SLOW = int(os.environ.get("WALSYNC_VERSION_TRANSACTIONS_SLOW", "10000"))
COUNTERS = 20
TRIES_MAX = 1000


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


class Place(Base):
    """A composite key, and versions that are made of text."""

    __tablename__ = "place"
    street: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    stamp: Mapped[str] = mapped_column(String(40))
    __mapper_args__ = {"version_id_col": stamp, "version_id_generator": lambda _: random.randbytes(8).hex()}


@contextmanager
def made(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Counter), [{"id": i + 1, "n": 0, "version": 1} for i in range(COUNTERS)])
        connection.execute(insert(Place), [{"street": "a", "number": 1, "name": "x", "stamp": "s"}])
    yield engine
    engine.dispose()


@contextmanager
def attached(
    engine: Engine, directory: Path, **arguments: Any
) -> Iterator[tuple[walsync.Journal, sessionmaker[Session]]]:
    sessions = sessionmaker(engine)
    journal = walsync.attach(sessions, directory, **arguments)
    try:
        yield journal, sessions
    finally:
        journal.close(drain=False)


def add_one(sessions: sessionmaker[Session], counter_id: int, *, in_sql: bool) -> int:
    """Read, modify, write, and again for as long as somebody else was faster. Returns how often that was."""
    for conflicts in range(TRIES_MAX):
        try:
            with sessions() as session, session.begin():
                counter = session.get_one(Counter, counter_id)
                counter.n = Counter.n + 1 if in_sql else counter.n + 1
        except StaleDataError:
            continue
        return conflicts
    raise AssertionError(f"counter {counter_id}: {TRIES_MAX} conflicts in a row")


def run_counters(sessions: sessionmaker[Session], transactions: int) -> tuple[dict[int, int], int]:
    """Each thread adds to counters that it chooses; what they add up to, and how many conflicts there were."""
    expected = dict.fromkeys(range(1, COUNTERS + 1), 0)
    conflicts = 0
    failures: list[BaseException] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        nonlocal conflicts
        chosen = random.Random(seed)
        try:
            for _ in range(transactions // THREADS):
                # Two that all want, and the others now and then.
                counter_id = chosen.randint(1, 2 if chosen.random() < 0.5 else COUNTERS)
                found = add_one(sessions, counter_id, in_sql=chosen.random() < 0.2)
                with lock:
                    expected[counter_id] += 1
                    conflicts += found
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return expected, conflicts


def check_counters(engine: Engine, directory: Path, transactions: int) -> None:
    with attached(engine, directory) as (journal, sessions):
        expected, conflicts = run_counters(sessions, transactions)
        assert journal.close() is True
        stats = journal.stats()
    print(f"{stats.buffered_transactions} transactions, {conflicts} conflicts")
    assert stats.buffered_transactions == sum(expected.values()) == transactions // THREADS * THREADS
    assert (stats.direct_transactions, stats.quarantined_entries, stats.state) == (0, 0, "stopped")
    with engine.connect() as connection:
        found = {row.id: (row.n, row.version) for row in connection.execute(select(Counter.__table__))}
    assert found == {counter_id: (n, n + 1) for counter_id, n in expected.items()}
    assert conflicts > 0, "nobody was in anybody's way, so nothing was shown"


def test_counters_of_many_threads_are_exactly_right(target_url: str, tmp_path: Path) -> None:
    with made(target_url) as engine:
        check_counters(engine, tmp_path / "log", TRANSACTIONS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_read_modify_write_transactions_of_eight_threads(target_url: str, tmp_path: Path) -> None:
    with made(target_url) as engine:
        check_counters(engine, tmp_path / "log", TRANSACTIONS_SLOW)


# -------------------------------------------------------------------------------------------------- one at a time


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    with made(sqlite_url) as engine:
        yield engine


@pytest.fixture
def attach(engine: Engine, tmp_path: Path) -> Iterator[Attach]:
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(attached(engine, tmp_path / "log", **arguments))


def refused(session: Session, journal: walsync.Journal) -> str:
    """Commits, which must be refused with nothing recorded; what was said."""
    before = journal.log.last_id
    with pytest.raises(StaleDataError) as caught:
        session.commit()
    session.rollback()
    assert journal.log.last_id == before
    return str(caught.value)


@contextmanager
def two_readers(sessions: sessionmaker[Session]) -> Iterator[tuple[Session, Counter, Session, Counter]]:
    """Two sessions, each with counter 1 as it has read it."""
    with sessions() as first, sessions() as second:
        yield first, first.get_one(Counter, 1), second, second.get_one(Counter, 1)


@pytest.mark.parametrize("applied", [False, True], ids=["pending", "applied"])
@pytest.mark.parametrize("change", ["update", "delete", "in sql"])
def test_the_second_of_two_that_have_read_the_same_is_refused_and_can_be_repeated(
    attach: Attach, engine: Engine, applied: bool, change: str
) -> None:
    journal, sessions = attach()
    with two_readers(sessions) as (first, mine, second, yours):
        if not applied:
            journal.pause()
        mine.n = Counter.n + 1 if change == "in sql" else 1
        first.commit()
        if applied:
            journal.wait_applied(timeout=30)
        if change == "delete":
            second.delete(yours)
        else:
            yours.n = Counter.n + 10 if change == "in sql" else 10
        assert "id = 1" in refused(second, journal)
        journal.resume()
        again = second.get_one(Counter, 1)
        assert (again.n, again.version) == (1, 2)
        again.n += 10
        second.commit()
    assert journal.close() is True
    with engine.connect() as connection:
        assert connection.execute(select(Counter.n, Counter.version).where(Counter.id == 1)).one() == (11, 3)


def test_a_row_that_was_deleted_is_not_there_for_others(attach: Attach) -> None:
    journal, sessions = attach()
    with two_readers(sessions) as (first, mine, second, yours):
        first.delete(mine)
        first.commit()
        yours.n = 5
        refused(second, journal)
        assert second.get(Counter, 1) is None
        # And is there again, when it is made again.
        second.add(again := Counter(id=1, n=7))
        second.commit()
        again.n += 1
        second.commit()
    assert journal.close() is True


def test_versions_that_are_text_and_a_key_of_two_columns(attach: Attach) -> None:
    journal, sessions = attach()
    with sessions() as first, sessions() as second:
        mine, yours = first.get_one(Place, ("a", 1)), second.get_one(Place, ("a", 1))
        mine.name, yours.name = "mine", "yours"
        first.commit()
        assert "street = 'a', number = 1" in refused(second, journal)
    assert journal.close() is True


def test_the_same_session_goes_on_without_asking_the_target(attach: Attach, engine: Engine) -> None:
    journal, sessions = attach()
    with sessions() as session:
        counter = session.get_one(Counter, 1)
        session.commit()
        journal.pause()
        for number in range(1, 6):
            counter.n = number
            session.flush()
            counter.n += 100  # twice in a transaction
            session.commit()
        journal.resume()
        with session.begin_nested() as savepoint:
            counter.n = 7
            session.flush()
            savepoint.rollback()  # nothing of it counts
        counter.n = 8
        session.commit()
    assert journal.close() is True
    with engine.connect() as connection:
        assert connection.execute(select(Counter.n, Counter.version).where(Counter.id == 1)).one() == (8, 12)


def test_what_others_wrote_in_between_and_the_session_has_read_is_no_conflict(attach: Attach, engine: Engine) -> None:
    journal, sessions = attach()
    with sessions() as session:
        session.get_one(Counter, 1).n = 1
        session.commit()
    journal.wait_applied(timeout=30)
    with engine.begin() as connection:  # another program
        connection.execute(update(Counter.__table__).where(Counter.id == 1).values(n=50, version=9))
    with sessions() as session:
        counter = session.get_one(Counter, 1)
        counter.n += 1
        session.commit()
    with walsync.direct(sessions()) as session:  # goes around the log, and is seen all the same
        session.get_one(Counter, 1).n += 1
        session.commit()
        session.close()
    with sessions() as session:
        counter = session.get_one(Counter, 1)
        counter.n += 1
        session.commit()
        assert (counter.n, counter.version) == (53, 12)
    assert journal.close() is True


def test_after_a_statement_on_the_table_the_target_is_asked(attach: Attach) -> None:
    journal, sessions = attach()
    with sessions() as session:
        counter = session.get_one(Counter, 1)
        counter.n = 1
        session.commit()
        session.execute(update(Counter).values(n=Counter.n * 2), execution_options={"synchronize_session": False})
        session.commit()
        counter.n = 7  # its version is what it was
        session.commit()
        session.execute(
            update(Counter).values(version=Counter.version + 1), execution_options={"synchronize_session": False}
        )
        session.commit()
        journal.wait_applied(journal.last_entry(session))
        counter.n = 9
        refused(session, journal)
    assert journal.close() is True


def test_a_commit_in_doubt_waits_for_no_entry(attach: Attach) -> None:
    """Nothing is applied, and it is recorded all the same."""
    journal, sessions = attach(session=walsync.SessionConfig(read_timeout_s=0.05))
    with sessions() as session:
        counter = session.get_one(Counter, 1)
        counter.n = 1
        session.commit()
        journal.pause()
        session.execute(update(Counter).values(n=Counter.n * 2), execution_options={"synchronize_session": False})
        session.commit()
        counter.n = 7
        session.commit()
        journal.resume()
        journal.wait_applied(journal.last_entry(session), 20)
    with sessions() as session:
        assert session.get_one(Counter, 1).n == 7


def test_a_commit_that_was_not_appended_leaves_no_false_conflict(attach: Attach) -> None:
    journal, sessions = attach(log=walsync.LogConfig(max_entry_bytes=4096))
    with sessions() as session:
        session.get_one(Place, ("a", 1)).name = "x" * 10_000
        with pytest.raises(EntryTooLargeError):
            session.commit()
        session.rollback()
        session.get_one(Place, ("a", 1)).name = "y"
        session.commit()
    assert journal.close() is True


def test_a_changed_key_takes_the_version_along(attach: Attach) -> None:
    journal, sessions = attach()
    with sessions() as first, sessions() as second:
        mine, yours = first.get_one(Place, ("a", 1)), second.get_one(Place, ("a", 1))
        mine.number = 2
        first.commit()
        yours.name = "gone"
        refused(second, journal)
        mine.name = "here"
        first.commit()
    assert journal.close() is True


def test_past_the_bound_a_conflict_is_found_at_application(attach: Attach) -> None:
    journal, sessions = attach(
        session=walsync.SessionConfig(tracked_versions=1), checkpoint=walsync.CheckpointConfig(on_reject="quarantine")
    )
    with two_readers(sessions) as (first, mine, second, yours):
        other = first.get_one(Counter, 2)
        mine.n = other.n = 1
        first.commit()
        yours.n = 2
        second.commit()
        with pytest.raises(EntryRejectedError):
            journal.wait_applied(journal.last_entry(second), timeout=30)
    assert journal.stats().quarantined_entries == 1


def test_rows_without_a_version_are_not_remembered(attach: Attach) -> None:
    journal, sessions = attach()
    with sessions() as session:
        session.execute(update(Counter.__table__).where(Counter.id == 1).values(n=5))
        session.commit()
    assert journal.versions._rows == {}
    with sessions() as session:
        counters = session.scalars(select(Counter).where(Counter.id < 3)).all()
        for counter in counters:
            counter.n += 1
        session.commit()
    assert len(journal.versions._rows) == 2
    journal.forget_parent()
    assert journal.versions._rows == {}


@pytest.mark.parametrize("tracked_versions", [-1, 10**8])
def test_the_bound_is_checked(tracked_versions: int) -> None:
    with pytest.raises(ConfigurationError):
        walsync.SessionConfig(tracked_versions=tracked_versions)

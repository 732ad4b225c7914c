"""The figures of a journal, by clocks that the test turns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from tests.support.waiting import wait_until
from walsync.session import journal as journal_module
from walsync.session.stats import JournalStats, estimate


def test_where_the_backlog_goes() -> None:
    assert estimate(0, 5, 5, "running") == ("nothing waits", None)
    assert estimate(0, 5, 0, "blocked") == ("nothing waits", None)
    assert estimate(300, 10, 40, "running") == ("catching up", 10)
    assert estimate(300, 0, 100, "running") == ("catching up", 3)
    assert estimate(300, 40, 40, "running") == ("not catching up", None)
    assert estimate(300, 40, 10, "running") == ("not catching up", None)
    for state in ("paused", "retrying", "blocked", "halted", "stopped", "failed"):
        assert estimate(300, 0, 40, state) == ("not catching up", None)


def test_every_field_is_described() -> None:
    described = set(re.findall(r"`(\w+)`", JournalStats.__doc__ or ""))
    assert described >= {field.name for field in dataclasses.fields(JournalStats)}


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Clock:
    """Both clocks of a journal: the time since it began, and the time of day."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return 5_000.0 + self.seconds

    def time_ns(self) -> int:
        return 1_700_000_000 * 10**9 + round(self.seconds * 10**9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    defaults = {**(journal_module.Journal.__init__.__kwdefaults__ or {})}
    defaults |= {"clock": clock.monotonic, "clock_ns": clock.time_ns}
    monkeypatch.setattr(journal_module.Journal.__init__, "__kwdefaults__", defaults)
    return clock


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def attach(factory: sessionmaker[Session], tmp_path: Path, **config: object) -> walsync.Journal:
    checkpoint = walsync.CheckpointConfig(**{"paused": True, **config})  # type: ignore[arg-type]
    return walsync.attach(factory, tmp_path / "log", checkpoint=checkpoint)


def commit(journal: walsync.Journal, *keys: int) -> None:
    for key in keys:
        with journal.engine.begin() as connection:
            connection.execute(insert(Item), {"id": key})


def test_the_age_is_that_of_the_oldest_entry_that_waits(
    clock: Clock, factory: sessionmaker[Session], tmp_path: Path
) -> None:
    with attach(factory, tmp_path) as journal:
        assert journal.stats().backlog_age_s is None
        commit(journal, 1)
        clock.seconds += 30
        commit(journal, 2)
        clock.seconds += 5
        assert journal.stats().backlog_age_s == pytest.approx(35)
        journal.resume()
        journal.wait_applied(timeout=20)
        assert journal.stats().backlog_age_s is None
        assert journal.stats().backlog_trend == "nothing waits"


def test_the_age_of_entries_from_before_the_opening_is_that_of_their_commit(
    clock: Clock, factory: sessionmaker[Session], tmp_path: Path
) -> None:
    with attach(factory, tmp_path) as journal:
        commit(journal, 1, 2)
        journal.close(drain=False)
    clock.seconds += 3600
    with attach(factory, tmp_path) as journal:
        assert journal.stats().replay_pending
        assert journal.stats().backlog_entries == 2
        assert journal.stats().backlog_age_s == pytest.approx(3600)
        clock.seconds += 10
        commit(journal, 3)
        assert journal.stats().backlog_age_s == pytest.approx(3610)
        journal.resume()
        journal.wait_applied(timeout=20)
        wait_until(lambda: not journal.stats().replay_pending)
        assert journal.stats().backlog_age_s is None


def test_the_log_is_read_once_for_the_age_of_an_entry(
    clock: Clock, factory: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach(factory, tmp_path) as journal:
        commit(journal, 1)
        clock.seconds += 100
        commit(journal, *range(2, 10))
        entries, reads = journal.log.entries, []
        monkeypatch.setattr(journal.log, "entries", lambda after: reads.append(after) or entries(after))
        for _ in range(3):
            assert journal.stats().backlog_age_s == pytest.approx(100)
        assert reads == [0]


def test_a_clock_of_the_day_that_is_put_back_does_not_stop_the_counting(
    clock: Clock, factory: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach(factory, tmp_path) as journal:
        commit(journal, 1)
        put_back = 3600 * 10**9
        monkeypatch.setattr(journal._committer, "_clock_ns", lambda: clock.time_ns() - put_back)
        for key in range(2, 42):
            clock.seconds += 0.5
            commit(journal, key)
        # Of 40 commits in 20 seconds those in the window.
        assert journal.stats().commits_per_s == pytest.approx(2, rel=0.1)


def test_commits_are_counted_over_the_last_seconds_only(
    clock: Clock, factory: sessionmaker[Session], tmp_path: Path
) -> None:
    with attach(factory, tmp_path) as journal:
        clock.seconds += 1000
        commit(journal, *range(1, 21))
        # 20 commits in the slot that has just begun, of a window of 10 seconds that ends with it.
        assert journal.stats().commits_per_s == pytest.approx(20 / 9.5)
        assert journal.stats().backlog_trend == "not catching up"
        assert journal.stats().catch_up_s is None
        clock.seconds += 11
        assert journal.stats().commits_per_s == 0


def test_a_failing_target_shows_the_next_try_and_the_failures(factory: sessionmaker[Session], tmp_path: Path) -> None:
    with factory() as session:
        Item.__table__.drop(session.connection())  # type: ignore[attr-defined]
        session.commit()
    with attach(factory, tmp_path, paused=False, blocked_retry_s=600.0) as journal:
        commit(journal, 1)
        wait_until(lambda: journal.stats().next_retry_s is not None)
        stats = journal.stats()
        assert stats.state == "blocked"
        assert stats.failures == 1
        assert 0 < (stats.next_retry_s or 0) <= 600
        assert "no such table" in (stats.last_error or "")
        assert stats.rejected_entry_id == 1
        assert stats.backlog_trend == "not catching up"
        journal.close(drain=False)


def test_applying_shows_in_the_rate(factory: sessionmaker[Session], tmp_path: Path) -> None:
    with attach(factory, tmp_path) as journal:
        commit(journal, *range(1, 11))
        assert journal.stats().applied_per_s == 0
        journal.resume()
        journal.wait_applied(timeout=20)
        assert journal.stats().applied_per_s > 0
        assert journal.stats().failures == 0
        assert journal.stats().next_retry_s is None

"""The durability of a session's commits, and what it does not change: reads, order, closing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import walsync
from walsync.wal import read_log

NEVER_S = 3_600.0


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "durable_note"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(String(50))


@pytest.fixture
def factory(sqlite_url: str) -> Any:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def attach(factory: Any, directory: Path, **log: Any) -> walsync.Journal:
    return walsync.attach(factory, directory, log=walsync.LogConfig(sync_interval_s=NEVER_S, **log))


def commit(factory: Any, number: int, level: Any = None) -> None:
    with factory() as session:
        if level is not None:
            session.info["walsync.durability"] = level
        session.add(Note(number=number, text="note"))
        session.commit()


def test_a_session_chooses_for_its_commits(factory: Any, tmp_path: Path) -> None:
    with attach(factory, tmp_path / "log") as journal:
        commit(factory, 1, "interval")
        assert (journal.log.last_id, journal.log.durable_id) == (1, 0)
        assert journal.stats().durable_entry_id == 0
        commit(factory, 2)
        assert journal.log.durable_id == 2, "a commit with the usual durability makes those before it durable"


def test_a_session_can_ask_for_more_than_the_log_gives(factory: Any, tmp_path: Path) -> None:
    with attach(factory, tmp_path / "log", durability="interval") as journal:
        commit(factory, 1)
        assert journal.log.durable_id == 0
        commit(factory, 2, "sync")
        assert journal.log.durable_id == 2


def test_an_unknown_level_is_refused_and_nothing_is_committed(factory: Any, tmp_path: Path) -> None:
    with attach(factory, tmp_path / "log") as journal:
        with pytest.raises(walsync.ConfigurationError, match="durability"):
            commit(factory, 1, "fast")
        assert journal.log.last_id == 0
        commit(factory, 1)


def test_a_read_sees_what_is_committed_and_not_yet_durable(factory: Any, tmp_path: Path) -> None:
    """It is made durable first: nothing that could still be lost reaches the target."""
    with attach(factory, tmp_path / "log") as journal:
        commit(factory, 1, "interval")
        with factory() as session:
            assert session.scalars(select(Note.number)).all() == [1]
        assert journal.log.durable_id == 1


def test_waiting_for_all_means_all_that_is_committed(factory: Any, tmp_path: Path) -> None:
    with attach(factory, tmp_path / "log") as journal:
        commit(factory, 1, "interval")
        journal.wait_applied(timeout=20)
        assert journal.stats().applied_entry_id == 1


def test_closing_makes_durable_and_applies_what_is_committed(factory: Any, tmp_path: Path, sqlite_url: str) -> None:
    with attach(factory, tmp_path / "log"):
        commit(factory, 1, "interval")
    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        assert connection.execute(select(Note.number)).scalars().all() == [1]
    engine.dispose()
    assert list(read_log(tmp_path / "log")) == []


def test_closing_without_applying_keeps_it(factory: Any, tmp_path: Path) -> None:
    journal = attach(factory, tmp_path / "log")
    journal.pause()
    commit(factory, 1, "interval")
    journal.close(drain=False)
    assert [entry.id for entry in read_log(tmp_path / "log")] == [1]

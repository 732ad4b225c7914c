"""What a commit tells of the tables that it writes, and when that need not be told again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from walsync.changes import TableName
from walsync.journal.marks import awaited_marks
from walsync.session.relations import Relations


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[walsync.Journal]:
    engine = create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}")
    Base.metadata.create_all(engine)
    factory: sessionmaker[Session] = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log", checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        yield journal
    engine.dispose()


class Told:
    """In the place of `TargetRelations.note_written`: what it was asked, and what it answers."""

    def __init__(self, journal: walsync.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Relations | None]] = []
        self.answer = True
        monkeypatch.setattr(journal.relations, "note_written", self._note)

    def _note(self, tables: Any, known: Relations | None) -> bool:
        self.calls += [(table.name, known) for table in tables]
        return self.answer


def commit(journal: walsync.Journal, table: type[Base], key: int) -> None:
    with journal.engine.begin() as connection:
        connection.execute(insert(table), {"id": key})
    name = TableName(None, table.__tablename__)
    assert journal.log.control.last_marked(awaited_marks(frozenset([name]))) == journal.log.last_id


def test_it_is_told_once_while_the_tables_and_what_is_known_are_the_same(
    journal: walsync.Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(journal, monkeypatch)
    for key in range(3):
        commit(journal, Item, key)
    assert told.calls == [("item", None)]
    commit(journal, Note, 1)
    commit(journal, Item, 3)
    assert told.calls == [("item", None), ("note", None), ("item", None)]


def test_it_is_told_again_when_the_target_was_asked(journal: walsync.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(journal, monkeypatch)
    commit(journal, Item, 1)
    journal.relations.sources(frozenset([TableName(None, "item")]))
    assert journal.relations.known is not None
    commit(journal, Item, 2)
    commit(journal, Item, 3)
    assert told.calls == [("item", None), ("item", journal.relations.known)]


def test_it_is_told_each_time_while_that_is_asked_for(
    journal: walsync.Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(journal, monkeypatch)
    told.answer = False
    for key in range(3):
        commit(journal, Item, key)
    assert len(told.calls) == 3

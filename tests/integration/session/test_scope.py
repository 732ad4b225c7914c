"""`include` and `exclude`: what is not journaled never lies in the log, however it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Table, create_engine, event, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import walsync
from tests.support.databases import without_syncs
from walsync.changes import TableName


class Base(DeclarativeBase):
    pass


tagged = Table(
    "tagged",
    Base.metadata,
    Column("work_id", ForeignKey("work.id"), primary_key=True),
    Column("tag_name", ForeignKey("tag.name"), primary_key=True),
)


class Shelf(Base):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    works: Mapped[list[Work]] = relationship(cascade="all, delete-orphan", order_by="Work.id")


class Work(Base):
    __tablename__ = "work"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column()
    title: Mapped[str] = mapped_column(default="")
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelf.id"))
    tags: Mapped[list[Tag]] = relationship(secondary=tagged)
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "work"}


class Book(Work):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(ForeignKey("work.id"), primary_key=True)
    isbn: Mapped[str] = mapped_column(unique=True)
    __mapper_args__ = {"polymorphic_identity": "book"}


class Film(Work):
    __tablename__ = "film"
    id: Mapped[int] = mapped_column(ForeignKey("work.id"), primary_key=True)
    minutes: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "film"}


class Tag(Base):
    __tablename__ = "tag"
    name: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = without_syncs(create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Shelf(id=1, works=[Book(id=1, isbn="1"), Film(id=2, minutes=90)]))
        session.add(Tag(name="red"))
        session.commit()
    yield engine
    engine.dispose()


def add(session: Session) -> None:
    session.add(Book(isbn="2"))


def add_among_others(session: Session) -> None:
    session.add_all([Film(minutes=1), Book(isbn="2"), Film(minutes=2)])


def change(session: Session) -> None:
    session.get_one(Book, 1).isbn = "3"


def change_the_base(session: Session) -> None:
    session.get_one(Book, 1).title = "Emma"


def delete_as_orphan(session: Session) -> None:
    shelf = session.get_one(Shelf, 1)
    del shelf.works[0]
    session.flush()


def insert_many(session: Session) -> None:
    session.execute(insert(Book), [{"isbn": "2"}, {"isbn": "3"}])


def save_in_bulk(session: Session) -> None:
    session.bulk_save_objects([Book(isbn="2")])


def insert_mappings(session: Session) -> None:
    session.bulk_insert_mappings(Book, [{"isbn": "4"}])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "write",
    [add, add_among_others, change, change_the_base, delete_as_orphan, insert_many, save_in_bulk, insert_mappings],
    ids=lambda write: write.__name__,
)
def test_a_subclass_that_is_left_out_is_written_directly(
    write: Callable[[Session], None], engine: Engine, tmp_path: Path
) -> None:
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", exclude=[Book.__table__]) as journal, sessions() as session:
        write(session)
        session.commit()
        assert journal.stats().buffered_transactions == 0
        assert journal.stats().direct_transactions == 1


def test_the_other_subclasses_are_buffered(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", exclude=[Book.__table__]) as journal, sessions() as session:
        session.add(Film(minutes=1))
        session.commit()
        session.get_one(Film, 2).title = "Clueless"
        session.commit()
        assert journal.stats().buffered_transactions == 2
        assert journal.stats().direct_transactions == 0


def test_including_a_subclass_is_enough_for_it(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", include=[Film]) as journal, sessions() as session:
        session.add(Film(minutes=1))
        session.commit()
        assert journal.stats().buffered_transactions == 1
        session.add(Book(isbn="2"))
        session.commit()
        assert journal.stats().direct_transactions == 1


def test_rows_of_an_association_that_is_left_out_are_written_directly(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", exclude=[tagged]) as journal, sessions() as session:
        film = session.get_one(Film, 2)
        film.tags.append(session.get_one(Tag, "red"))
        session.commit()
        assert journal.stats().direct_transactions == 1
    with engine.connect() as connection:
        assert connection.execute(select(tagged)).all() == [(2, "red")]


def test_a_refusal_of_what_is_left_out_is_an_error_of_the_flush(engine: Engine, tmp_path: Path) -> None:
    """That is what `exclude` is often for. A savepoint around it saves the rest of the transaction."""
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", exclude=[Book.__table__]) as journal, sessions() as session:
        session.add(Tag(name="kept"))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(Book(isbn="1"))
        session.add(Tag(name="also kept"))
        session.commit()
        assert len(session.scalars(select(Tag)).all()) == 3
        assert journal.stats().durable_entry_id == 0


def test_nothing_of_it_is_in_the_log(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    tables: set[TableName] = set()
    with walsync.attach(sessions, tmp_path / "log", exclude=[Book.__table__, tagged]) as journal, sessions() as session:
        event.listen(journal, "after_append", lambda journal, entry_id, change_set: tables.update(change_set.tables))
        for write in (add_among_others, change, delete_as_orphan, insert_mappings):
            session.add_all([Tag(name=write.__name__), Film(minutes=3)])
            session.commit()
            write(session)
            session.commit()
    assert tables == {TableName(None, "tag"), TableName(None, "work"), TableName(None, "film")}

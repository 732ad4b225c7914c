"""Flask-SQLAlchemy: what docs/how-to/use-with-flask-sqlalchemy.md says besides its example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.record_queries import get_recorded_queries
from flask_sqlalchemy.track_modifications import models_committed
from sqlalchemy import create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import walsync


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Book(db.Model):  # type: ignore[name-defined]
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Visit(db.Model):  # type: ignore[name-defined]
    __bind_key__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    page: Mapped[str]


def make_app(directory: Path) -> Flask:
    app = Flask(__name__, instance_path=str(directory))
    app.config.update(
        SQLALCHEMY_DATABASE_URI="sqlite:///books.sqlite",
        SQLALCHEMY_BINDS={"visits": "sqlite:///visits.sqlite"},
        SQLALCHEMY_TRACK_MODIFICATIONS=True,
        SQLALCHEMY_RECORD_QUERIES=True,
    )
    db.init_app(app)
    with app.app_context():
        db.create_all()
    return app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = make_app(tmp_path)
    yield app
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


@pytest.fixture
def journal(app: Flask, tmp_path: Path) -> Iterator[walsync.Journal]:
    with app.app_context():
        journal = walsync.attach(db.session, tmp_path / "log", target=db.engine)
    with journal:
        yield journal


def count(path: Path, table: Any) -> int:
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        found = connection.scalar(select(func.count()).select_from(table))
    engine.dispose()
    assert found is not None
    return found


def test_models_of_another_database_are_written_there_and_not_to_the_log(
    app: Flask, journal: walsync.Journal, tmp_path: Path
) -> None:
    journal.pause()
    with app.app_context():
        for row in (Book(title="Emma"), Visit(page="/books")):
            db.session.add(row)
            db.session.commit()
        assert db.session.scalar(db.select(func.count(Visit.id))) == 1
    assert count(tmp_path / "visits.sqlite", Visit.__table__) == 1
    assert count(tmp_path / "books.sqlite", Book.__table__) == 0
    assert journal.stats().direct_reasons == {}
    journal.resume()
    journal.wait_applied(timeout=30)
    assert count(tmp_path / "books.sqlite", Book.__table__) == 1


def test_a_transaction_that_writes_to_both_databases_is_direct(
    app: Flask, journal: walsync.Journal, tmp_path: Path
) -> None:
    journal.pause()
    with app.app_context():
        db.session.add_all([Book(title="Emma"), Visit(page="/books")])
        db.session.commit()
    assert count(tmp_path / "visits.sqlite", Visit.__table__) == 1
    assert count(tmp_path / "books.sqlite", Book.__table__) == 1
    assert journal.stats().direct_reasons == {"writes to another engine as well": 1}


def test_another_database_can_be_the_one_that_is_journaled(app: Flask, tmp_path: Path) -> None:
    with app.app_context():
        with walsync.attach(db.session, tmp_path / "log", target=db.engines["visits"]) as journal:
            for row in (Book(title="Emma"), Visit(page="/books")):
                db.session.add(row)
                db.session.commit()
            db.session.remove()
            assert journal.stats().buffered_transactions == 1
            assert db.session.scalar(db.select(func.count(Visit.id))) == 1
        db.session.remove()
    assert count(tmp_path / "books.sqlite", Book.__table__) == 1


def test_signals_and_recorded_queries_are_those_of_the_request(app: Flask, journal: walsync.Journal) -> None:
    committed: list[str] = []

    def note(sender: Flask, changes: list[tuple[Any, str]]) -> None:
        assert sender is app
        committed.extend(f"{operation} {changed.title}" for changed, operation in changes)

    models_committed.connect(note)
    with app.app_context():
        db.session.add(Book(id=5, title="Emma"))
        db.session.commit()
        assert journal.last_entry(db.session) == 1
        assert [query.statement for query in get_recorded_queries()] == []
        assert db.session.get(Book, 5, populate_existing=True) is not None
        assert len(get_recorded_queries()) == 1
    journal.wait_applied(timeout=30)
    assert committed == ["insert Emma"]


def test_listeners_of_the_journal_work_on_the_batchs_connection_without_a_context(
    app: Flask, journal: walsync.Journal, tmp_path: Path
) -> None:
    @event.listens_for(journal, "before_checkpoint")
    def beside(session: Session, *_: Any) -> None:
        session.add(Book(id=-1, title="by a listener"))
        session.flush()

    with app.app_context():
        db.session.add(Book(title="Emma"))
        db.session.commit()
    journal.wait_applied(timeout=30)
    assert journal.stats().durable_entry_id == 1
    assert count(tmp_path / "books.sqlite", Book.__table__) == 2


def test_an_application_with_another_database_is_left_alone(journal: walsync.Journal, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_app(tmp_path / "other")
    with other.app_context():
        db.session.add(Book(title="Emma"))
        db.session.commit()
        assert journal.last_entry(db.session) is None
        assert count(tmp_path / "other" / "books.sqlite", Book.__table__) == 1
        db.session.remove()
        for engine in db.engines.values():
            engine.dispose()
    assert journal.stats().durable_entry_id == 0

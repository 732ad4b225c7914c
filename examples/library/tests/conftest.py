"""A database for the run, emptied after each test, and makers of what the tests need."""

from __future__ import annotations

import datetime
import itertools
import os

import pytest
from library import database, services
from library.models import Base, Book, Member
from sqlalchemy import event
from sqlalchemy.orm import Session

TODAY = datetime.date(2026, 3, 2)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    url = os.environ.get("LIBRARY_URL") or f"sqlite:///{tmp_path_factory.mktemp('library') / 'library.sqlite'}"
    engine = database.connect(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        engine.dispose()
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def clean(engine):
    yield
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def session(engine):
    with database.Session() as session:
        yield session


@pytest.fixture
def make_member(session: Session):
    numbers = itertools.count(1)

    def make(name: str = "Ada", **values) -> Member:
        values.setdefault("email", f"{name.lower()}{next(numbers)}@example.org")
        member = Member(name=name, **values)
        session.add(member)
        session.commit()
        return member

    return make


@pytest.fixture
def make_book(session: Session):
    numbers = itertools.count(1)

    def make(title: str = "Emma", *, copies: int = 1, authors=(("Jane", "Austen"),), **values) -> Book:
        book = services.add_book(session, title, f"{next(numbers):013}", authors, copies, **values)
        session.commit()
        return book

    return make


@pytest.fixture
def read():
    """Ask in another session: what is committed."""

    def read(function, *arguments):
        with database.Session() as session:
            return function(session, *arguments)

    return read

"""The other way to keep tests apart: all of a test inside of a transaction that is rolled back."""

from __future__ import annotations

import pytest
from library import database, services
from library.models import Book, Member
from sqlalchemy import func, select


@pytest.fixture
def session(engine):
    """SQLAlchemy's recipe "Joining a Session into an External Transaction"."""
    with engine.connect() as connection:
        transaction = connection.begin()
        with database.Session(bind=connection) as session:
            yield session
        transaction.rollback()


def test_a_commit_is_seen_inside_of_the_transaction_and_nowhere_else(session):
    session.add(Member(email="ada@example.org", name="Ada"))
    session.commit()
    session.expire_all()
    assert session.scalars(select(Member.email)).all() == ["ada@example.org"]
    with database.Session() as other:
        assert other.scalars(select(Member.email)).all() == []


def test_books_and_their_copies(session):
    services.add_book(session, "Emma", "1", [("Jane", "Austen")], copies=2)
    session.commit()
    session.expire_all()
    assert [copy.shelf_mark for copy in session.scalars(select(Book)).one().copies] == ["EMMA-1", "EMMA-2"]


@pytest.mark.parametrize("_number", [1, 2])
def test_nothing_is_left_of_it(session, _number):
    assert session.scalar(select(func.count(Member.id))) == 0
    services.register(session, "ada@example.org", "Ada")
    session.commit()

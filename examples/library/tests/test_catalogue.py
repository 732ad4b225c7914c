"""Works, authors, topics and copies."""

from __future__ import annotations

import pytest
from library import reports, services
from library.models import Author, Book, Change, Condition, Copy, Film, Topic, Work, filed_under, written
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError


def count(session, entity):
    return session.scalar(select(func.count()).select_from(entity))


def test_a_book_is_found_by_its_title(make_book, read):
    make_book(pages=474)
    book = read(lambda session: session.scalars(select(Book).where(Book.title == "Emma")).one())
    assert (book.isbn, book.pages, book.kind) == ("0000000000001", 474, "book")


def test_a_key_is_there_after_the_flush(session):
    book = Book(title="Emma", isbn="1")
    session.add(book)
    session.flush()
    assert isinstance(book.id, int)
    assert inspect(book).persistent


def test_works_of_two_kinds_come_as_what_they_are(session, make_book, read):
    make_book("Persuasion")
    session.add(Film(title="Clueless", minutes=97))
    session.commit()
    found = read(lambda session: session.scalars(select(Work).order_by(Work.title)).all())
    assert [type(work) for work in found] == [Film, Book]


def test_an_author_is_made_once(session, make_book, read):
    make_book("Emma")
    make_book("Persuasion")
    assert read(count, Author) == 1
    assert read(count, written) == 2


def test_authors_are_found_by_a_hybrid(make_book, read):
    make_book()
    assert read(
        lambda session: session.scalars(select(Author.last_name).where(Author.name == "Jane Austen")).all()
    ) == ["Austen"]


def test_a_book_without_a_title_is_refused(session):
    session.add(Book(isbn="1"))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert count(session, Work) == 0


@pytest.mark.refused_by_the_database
def test_two_books_with_one_isbn_are_refused(session, make_book, read):
    make_book("Emma")
    session.add(Book(title="Persuasion", isbn="0000000000001"))
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    assert read(count, Book) == 1


def test_a_copy_is_added_to_those_that_are_there(session, make_book, read):
    book = make_book(copies=2)
    services.add_copies(book, 1)
    session.commit()
    assert read(lambda session: session.scalars(select(Copy.shelf_mark).order_by(Copy.shelf_mark)).all()) == [
        "EMMA-1",
        "EMMA-2",
        "EMMA-3",
    ]


def test_a_copy_that_is_taken_off_the_list_is_deleted(session, make_book, read):
    book = make_book(copies=2)
    del book.copies[0]
    session.commit()
    assert read(count, Copy) == 1


def test_deleting_a_book_deletes_its_copies_and_not_its_authors(session, make_book, read):
    book = make_book(copies=3)
    session.delete(book)
    session.commit()
    assert (read(count, Work), read(count, Book), read(count, Copy), read(count, Author)) == (0, 0, 0, 1)


def test_topics_are_filed_once(session, make_book, read):
    book = make_book()
    services.file_under(session, book, "novel", "classic")
    services.file_under(session, book, "novel")
    session.commit()
    assert read(reports.topics_in_use) == {"novel": 1, "classic": 1}


def test_a_topic_is_renamed_with_what_is_filed_under_it(session, make_book, read):
    services.file_under(session, make_book(), "novel")
    session.commit()
    services.rename_topic(session, "novel", "fiction")
    session.commit()
    assert read(reports.topics_in_use) == {"fiction": 1}


def test_an_import_adds_what_is_missing(session, read):
    session.add(Topic(name="novel"))
    session.commit()
    assert services.import_topics(session, ["novel", "atlas", "atlas", "poem"]) == 2
    session.commit()
    assert read(count, Topic) == 3


def test_what_is_unfiled_leaves_no_line(session, make_book, read):
    book = make_book()
    services.file_under(session, book, "novel")
    session.commit()
    book.topics.clear()
    session.commit()
    assert read(count, filed_under) == 0


def test_the_condition_is_an_enum(session, make_book, read):
    book = make_book()
    book.copies[0].condition = Condition.WORN
    session.commit()
    assert read(lambda session: session.scalars(select(Copy.condition)).one()) is Condition.WORN


def test_a_copy_changed_by_two_at_once_is_refused_to_the_second(session, make_book, read):
    from library.database import Session

    make_book()
    mine = session.scalars(select(Copy)).one()
    with Session() as other:
        other.scalars(select(Copy)).one().condition = Condition.LOST
        other.commit()
    mine.condition = Condition.WORN
    with pytest.raises(StaleDataError):
        session.commit()
    session.rollback()
    assert mine.condition is Condition.LOST


def test_notes_are_read_when_they_are_wanted(session, make_book):
    book = make_book(notes="a gift")
    session.expire_all()
    book = session.get_one(Book, book.id)
    assert "notes" in inspect(book).unloaded
    assert book.notes == "a gift"


def test_what_is_not_there_is_not_found(session):
    assert session.get(Book, 4711) is None
    with pytest.raises(NoResultFound):
        session.get_one(Book, 4711)


def test_a_book_deleted_by_somebody_else_is_gone(session, make_book):
    from library.database import Session

    book = make_book()
    with Session() as other:
        other.delete(other.get_one(Book, book.id))
        other.commit()
    session.expire(book)
    with pytest.raises(ObjectDeletedError):
        assert book.title


def test_loading_eagerly_asks_no_more(session, make_book):
    make_book(copies=2)
    session.expire_all()
    with session.no_autoflush:
        book = session.scalars(select(Book).options(selectinload(Book.copies), selectinload(Book.authors))).one()
    session.expunge_all()
    assert [copy.shelf_mark for copy in book.copies] == ["EMMA-1", "EMMA-2"]
    assert [author.name for author in book.authors] == ["Jane Austen"]


def test_the_trail_says_who_did_what(session, make_book, read):
    session.info["user"] = "Kim"
    book = make_book()
    session.delete(book)
    session.commit()
    trail = read(lambda session: session.execute(select(Change.kind, Change.entity, Change.by)).all())
    assert ("new", "Book", "Kim") in trail
    assert ("deleted", "Book", "Kim") in trail

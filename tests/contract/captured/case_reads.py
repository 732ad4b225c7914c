"""What reads, and which entries it waits for. Each program reads authors, books or tags, and no other table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import String, column, exists, func, lambda_stmt, literal_column, select, table, text, true, union_all
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    Session,
    aliased,
    defer,
    immediateload,
    joinedload,
    raiseload,
    selectinload,
    subqueryload,
    with_loader_criteria,
)

from tests.contract.captured.model import Author, Book, Shelf, Tag, book_tag
from tests.contract.captured.registry import MARIADB, POSTGRESQL, SQLITE, read

Reading = Iterator[Any]


def rows(result: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in result]


def ada(session: Session) -> Author:
    return session.scalars(select(Author).where(Author.label.startswith("ada"))).one()


SELECTS = "SELECT of entities and columns, joins, aliases"


@read(SELECTS)
def entities(session: Session) -> Any:
    return [(author.label, author.visits) for author in session.scalars(select(Author).order_by(Author.label))]


@read(SELECTS)
def columns(session: Session) -> Any:
    return rows(session.execute(select(Book.label, Book.pages + 1).order_by(Book.label)))


@read(SELECTS)
def a_core_table(session: Session) -> Any:
    return session.scalars(select(book_tag.c.tag_name).order_by(book_tag.c.tag_name)).all()


@read(SELECTS)
def joins(session: Session) -> Any:
    named = select(Author.label, Book.label).join(Author.books).outerjoin(Book.tags).order_by(Author.label, Book.label)
    return rows(session.execute(named))


@read(SELECTS)
def aliases(session: Session) -> Any:
    one, other = aliased(Author), aliased(Author, name="other")
    return rows(
        session.execute(
            select(one.label, other.label).join(other, one.visits < other.visits).order_by(one.label, other.label)
        )
    )


INNER = "subqueries, CTEs, EXISTS, unions, scalar subqueries as columns"


@read(INNER)
def a_subquery(session: Session) -> Any:
    inner = select(Author.label).subquery()
    return session.scalars(select(inner.c.label).order_by(inner.c.label)).all()


@read(INNER)
def a_cte(session: Session) -> Any:
    inner = select(Book.label).cte("inner_books")
    return session.scalar(select(func.count()).select_from(inner))


@read(INNER)
def a_recursive_cte(session: Session) -> Any:
    steps = select(func.min(Author.visits).label("n")).cte("steps", recursive=True)
    steps = steps.union_all(select(steps.c.n + 1).where(steps.c.n < 5))
    return session.scalars(select(steps.c.n).order_by(steps.c.n)).all()


@read(INNER)
def an_exists(session: Session) -> Any:
    return session.scalar(select(exists().where(Author.visits > 2)))


@read(INNER)
def an_any(session: Session) -> Any:
    # Only the table in the EXISTS has new rows that matter.
    return session.scalars(select(Author.label).where(Author.books.any(Book.label.startswith("new")))).all()


@read(INNER)
def a_union(session: Session) -> Any:
    both = union_all(select(Author.label), select(Book.label)).subquery()
    return session.scalars(select(both.c.label).order_by(both.c.label)).all()


@read(INNER)
def a_scalar_subquery(session: Session) -> Any:
    return session.scalar(select(select(func.max(Author.visits)).scalar_subquery() + 1))


@read(INNER)
def an_entity_of_a_subquery(session: Session) -> Any:
    part = aliased(Author, select(Author).where(Author.visits > 1).subquery())
    return sorted(author.label for author in session.scalars(select(part)))


LOADS = "lazy, selectin, joined, subquery and immediate loads"


@read(LOADS)
def lazy(session: Session) -> Reading:
    author = ada(session)
    yield
    return [book.label for book in author.books]


@read(LOADS)
def lazy_many_to_many(session: Session) -> Reading:
    book = session.scalars(select(Book).where(Book.label == "second")).one()
    yield
    return [tag.name for tag in book.tags]


def _loaded(session: Session, option: Any) -> Any:
    found = session.scalars(select(Author).options(option).order_by(Author.label)).unique().all()
    return [(author.label, [book.label for book in author.books]) for author in found]


@read(LOADS)
def selectin(session: Session) -> Any:
    return _loaded(session, selectinload(Author.books).selectinload(Book.tags))


@read(LOADS)
def joined(session: Session) -> Any:
    return _loaded(session, joinedload(Author.books).joinedload(Book.tags))


@read(LOADS)
def subquery(session: Session) -> Any:
    return _loaded(session, subqueryload(Author.books))


@read(LOADS)
def immediate(session: Session) -> Any:
    return _loaded(session, immediateload(Author.books))


COLLECTIONS = "`dynamic` and `write_only` relationships"


@read(COLLECTIONS)
def dynamic(session: Session) -> Reading:
    author = ada(session)
    yield
    return [book.label for book in author.dynamic_books], author.dynamic_books.count()


@read(COLLECTIONS)
def write_only(session: Session) -> Reading:
    author = ada(session)
    yield
    return [book.label for book in session.scalars(author.written_books.select())]


OBJECTS = "`get`, `refresh`, expired attributes, deferred columns"


@read(OBJECTS)
def get(session: Session) -> Reading:
    key = ada(session).id
    session.expunge_all()
    yield
    return session.get_one(Author, key).label


@read(OBJECTS)
def refresh(session: Session) -> Reading:
    author = ada(session)
    yield
    session.refresh(author)
    return author.label, author.visits


@read(OBJECTS)
def expired(session: Session) -> Reading:
    author = ada(session)
    session.expire(author)
    yield
    return author.label


@read(OBJECTS)
def after_a_rollback(session: Session) -> Reading:
    author = ada(session)
    session.rollback()
    yield
    return author.visits


@read(OBJECTS)
def a_deferred_column(session: Session) -> Reading:
    author = session.scalars(select(Author).options(defer(Author.visits)).where(Author.label.startswith("ada"))).one()
    yield
    return author.visits


QUERIES = "`Query`, `Query.count()`, `Query.exists()`, `func.count()`"


@read(QUERIES)
def query(session: Session) -> Any:
    return [author.label for author in session.query(Author).order_by(Author.label)]


@read(QUERIES)
def query_count(session: Session) -> Any:
    return session.query(Book).filter(Book.pages > 1).count()


@read(QUERIES)
def query_exists(session: Session) -> Any:
    return session.query(session.query(Author).filter(Author.visits > 2).exists()).scalar()


@read(QUERIES)
def count(session: Session) -> Any:
    return session.scalar(select(func.count()).select_from(Tag))


@read(QUERIES)
def count_of_nothing_named(session: Session) -> Any:
    return session.scalar(select(func.count(Author.id)))


STREAMS = "`yield_per`, streamed results, `session.stream_scalars()`"


@read(STREAMS)
def yield_per(session: Session) -> Any:
    found = session.scalars(select(Author).order_by(Author.label).execution_options(yield_per=1))
    return [author.label for author in found]


@read(STREAMS)
def partitions(session: Session) -> Any:
    result = session.execute(select(Book.label).order_by(Book.label), execution_options={"stream_results": True})
    return [[row.label for row in part] for part in result.partitions(2)]


EXPRESSIONS = "`column_property`, hybrid attributes, `with_loader_criteria`"


@read(EXPRESSIONS)
def a_column_that_is_a_query(session: Session) -> Any:
    return sorted((shelf.label, shelf.book_count) for shelf in session.scalars(select(Shelf)))


@read(EXPRESSIONS)
def a_hybrid_attribute(session: Session) -> Any:
    return sorted(session.scalars(select(Author.label).where(Author.is_read)))


@read(EXPRESSIONS)
def criteria_with_another_table(session: Session) -> Any:
    criteria = with_loader_criteria(Author, Author.id.in_(select(Book.author_id).where(Book.label.startswith("new"))))
    return sorted(author.label for author in session.scalars(select(Author).options(criteria)))


@read('`lazy="raise"`')
def lazy_raise(session: Session) -> Any:
    author = session.scalars(
        select(Author).options(raiseload(Author.books)).where(Author.label.startswith("ada"))
    ).one()
    with pytest.raises(InvalidRequestError):
        len(author.books)
    return author.label


CONNECTION = "SELECT through `session.connection()`"


@read(CONNECTION)
def a_connection_reads(session: Session) -> Any:
    return session.connection().scalars(select(Author.label).order_by(Author.label)).all()


@read(
    "SELECT of a view, a foreign or virtual table, or a name that the target's catalogue does not know",
    "waits for all",
    on=(SQLITE,),
)
def a_view(session: Session) -> Any:
    return session.scalars(select(column("label")).select_from(table("author_view")).order_by("label")).all()


@read("read inside of a savepoint, on SQLite", "waits for all", on=(SQLITE,))
def a_savepoint_of_sqlite_reads(session: Session) -> Any:
    with session.begin_nested():
        return session.scalars(select(Author.label).order_by(Author.label)).all()


@read(CONNECTION, on=(POSTGRESQL, MARIADB))
def a_connection_of_a_savepoint_reads(session: Session) -> Any:
    with session.begin_nested():
        return session.connection().scalars(select(Author.label).order_by(Author.label)).all()


TEXT = "SELECT with a piece of text or a `literal_column` in it"


@read(TEXT, "waits for all")
def text_in_where(session: Session) -> Any:
    return session.scalars(select(Author.label).where(text("visits > 0")).order_by(Author.label)).all()


@read(TEXT, "waits for all")
def a_literal_column(session: Session) -> Any:
    return session.scalars(select(literal_column("(SELECT count(*) FROM book)")).select_from(Author)).all()


@read('`execution_options(walsync_read="stale")` of a statement', "does not wait")
def stale(session: Session) -> Any:
    statement = select(Author.label).order_by(Author.label)
    return session.scalars(statement.execution_options(walsync_read="stale")).all()


@read('`execution_options(walsync_read="stale")` of a statement', "does not wait")
def stale_text(session: Session) -> Any:
    statement = select(Author.label).where(text("visits > 0")).order_by(Author.label)
    return session.scalars(statement, execution_options={"walsync_read": "stale"}).all()


@read('`session.info["walsync.read"] = "stale"`', "does not wait")
def a_stale_session(session: Session) -> Any:
    session.info["walsync.read"] = "stale"
    return [
        (author.label, [book.label for book in author.books])
        for author in session.scalars(select(Author).order_by(Author.label))
    ]


@read('`execution_options(walsync_read="fresh")` in a session that reads "stale"')
def fresh_in_a_stale_session(session: Session) -> Any:
    session.info["walsync.read"] = "stale"
    return session.scalars(
        select(Author.label).order_by(Author.label), execution_options={"walsync_read": "fresh"}
    ).all()


@read("SELECT without a table", "does not wait")
def no_table(session: Session) -> Any:
    return session.scalar(select(true()))


@read(SELECTS)
def a_lambda(session: Session) -> Any:
    return session.scalars(lambda_stmt(lambda: select(Author.label).order_by(Author.label))).all()


@read(SELECTS)
def a_correlated_condition(session: Session) -> Any:
    books = select(func.count(Book.id)).where(Book.author_id == Author.id).scalar_subquery()
    return session.scalars(select(Author.label).where(books > 1).order_by(Author.label)).all()


@read(INNER)
def a_union_by_itself(session: Session) -> Any:
    return sorted(session.scalars(select(Author.label).union(select(Tag.name))))


@read(TEXT, "waits for all")
def a_subquery_of_text(session: Session) -> Any:
    inner = text("SELECT label FROM author").columns(column("label", String)).subquery()
    return sorted(session.scalars(select(inner.c.label)))

"""A read through an attached session sees what is committed to the log before it, and its own flushed writes."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    String,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    selectinload,
    sessionmaker,
)

import walsync
from tests.integration.session.conftest import Attach
from tests.integration.session.models import Audit, Author, Book, Tag

Factory = sessionmaker[Session]


def fill(factory: Factory) -> int:
    with factory() as session:
        author = Author(name="Ada", books=[Book(title="One", tags=[Tag(name="red")]), Book(title="Two")])
        session.add(author)
        session.commit()
        return author.id


READS = {
    "entity": lambda session: [author.name for author in session.scalars(select(Author))],
    "column": lambda session: session.scalars(select(Author.name)).all(),
    "get": lambda session: [session.get(Author, session.scalar(select(func.min(Author.id)))).name],
    "query": lambda session: [author.name for author in session.query(Author).all()],
    "alias": lambda session: session.scalars(select(aliased(Author).name)).all(),
    "join": lambda session: session.scalars(select(Author.name).join(Author.books).distinct()).all(),
    "subquery": lambda session: session.scalars(select(select(Author.name).subquery().c.name)).all(),
    "cte": lambda session: session.scalars(select(select(Author.name).cte("a").c.name)).all(),
    "exists": lambda session: ["Ada"] if session.scalar(select(exists().where(Author.id > 0))) else [],
    "scalar subquery": lambda session: [session.scalar(select(select(Author.name).scalar_subquery()))],
    "union": lambda session: session.scalars(union_all(select(Author.name), select(Author.name).where(False))).all(),
    "text": lambda session: session.scalars(text("SELECT name FROM author")).all(),
    "connection": lambda session: session.connection().execute(select(Author.name)).scalars().all(),
    "driver sql": lambda session: session.connection().exec_driver_sql("SELECT name FROM author").scalars().all(),
    "joinedload": lambda session: [
        book.author.name for book in session.scalars(select(Book).options(joinedload(Book.author)).limit(1))
    ],
    "selectinload": lambda session: [
        author.name for author in session.scalars(select(Author).options(selectinload(Author.books)))
    ],
}


@pytest.mark.parametrize("kind", READS)
def test_a_read_of_any_kind_sees_a_commit_of_another_session(attach: Attach, factory: Factory, kind: str) -> None:
    # With a delay that would show: a read that did not wait would come long before the batch.
    attach(checkpoint=walsync.CheckpointConfig(batch_delay_s=5.0))
    fill(factory)
    with factory() as session:
        assert list(READS[kind](session)) == ["Ada"]


@pytest.mark.parametrize("kind", READS)
def test_a_read_of_any_kind_sees_the_transactions_own_flushed_writes(
    journal: walsync.Journal, factory: Factory, kind: str
) -> None:
    with factory() as session:
        session.add(Author(name="Ada", books=[Book(title="One")]))
        session.flush()
        assert list(READS[kind](session)) == ["Ada"]
        session.rollback()
        assert list(READS["column"](session)) == []


def test_lazy_loads_refreshes_and_expired_attributes_see_the_last_commit(
    journal: walsync.Journal, factory: Factory
) -> None:
    key = fill(factory)
    with factory() as session, factory() as other:
        author = session.get(Author, key)
        assert author is not None
        assert [book.title for book in author.books] == ["One", "Two"]
        session.commit()
        theirs = other.get(Author, key)
        assert theirs is not None
        theirs.name = "Eve"
        theirs.books.pop()
        other.commit()
        session.refresh(author)
        assert author.name == "Eve"
        session.expire(author)
        assert [book.title for book in author.books] == ["One"]
        assert [tag.name for tag in author.books[0].tags] == ["red"]


def test_a_table_without_pending_entries_is_read_at_once_while_another_waits(attach: Attach, factory: Factory) -> None:
    journal = attach(
        checkpoint=walsync.CheckpointConfig(paused=True), session=walsync.SessionConfig(read_timeout_s=0.2)
    )
    fill(factory)
    with factory() as session:
        if session.get_bind().dialect.name in ("mysql", "mariadb"):
            # Its default shows a transaction the snapshot of its first read, which therefore waits for everything.
            session.connection(execution_options={"isolation_level": "READ COMMITTED"})
        # Nothing was ever committed to this table through the log.
        assert session.scalars(select(Audit)).all() == []
    with factory() as session:
        with pytest.raises(walsync.ReadTimeoutError, match="read_timeout_s"):
            session.scalars(select(Author)).all()
    journal.resume()
    journal.wait_applied(timeout=30)
    with factory() as session:
        assert len(session.scalars(select(Author)).all()) == 1


def test_a_stale_read_does_not_wait(attach: Attach, factory: Factory) -> None:
    journal = attach(checkpoint=walsync.CheckpointConfig(paused=True))
    fill(factory)
    with factory() as session:
        statement = select(Author.name)
        assert session.scalars(statement, execution_options={"walsync_read": "stale"}).all() == []
        session.info["walsync.read"] = "stale"
        assert session.scalars(statement).all() == []
        with pytest.raises(walsync.UsageError, match="walsync_read"):
            session.scalars(statement, execution_options={"walsync_read": "old"})
    assert journal.stats().backlog_entries == 1


def test_a_read_transaction_stays_buffered(journal: walsync.Journal, factory: Factory) -> None:
    key = fill(factory)
    with factory() as session:
        author = session.get(Author, key)
        assert author is not None
        author.name = "Eve"
        session.commit()
    stats = journal.stats()
    assert (stats.buffered_transactions, stats.direct_transactions) == (2, 0)


def test_a_connection_works_when_nothing_else_is_left_of_its_session(
    journal: walsync.Journal, factory: Factory
) -> None:
    fill(factory)
    connection = factory().connection()
    gc.collect()
    assert connection.scalar(select(Author.name)) == "Ada"
    assert connection.scalar(text("SELECT name FROM author")) == "Ada"
    connection.execute(insert(Author).values(name="Eve"))
    connection.commit()
    assert set(connection.scalars(select(Author.name))) == {"Ada", "Eve"}
    session = connection.state.session_ref
    connection.close()
    del connection
    gc.collect()
    assert session() is None, "and then the session goes as well"
    assert journal.stats().direct_reasons == {"SQL text": 1}


def test_every_thread_reads_what_it_has_committed(journal: walsync.Journal, factory: Factory) -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        for step in range(15):
            with factory() as session:
                author = Author(name=f"{number}.{step}")
                session.add(author)
                session.commit()
            with factory() as session:
                found = session.get(Author, author.id)
                if found is None or found.name != f"{number}.{step}":
                    failures.append(f"{number}.{step}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_the_applications_engine_events_see_the_reads_of_attached_sessions(
    engine: Engine, journal: walsync.Journal, factory: Factory
) -> None:
    seen: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def record(connection, cursor, statement, parameters, context, executemany):  # type: ignore[no-untyped-def]
        seen.append(statement)

    with factory() as session:
        session.scalars(select(Tag)).all()
    assert any(statement.startswith("SELECT tag.name") for statement in seen)


def test_a_read_sees_what_foreign_keys_did(tmp_path: Path, target_url: str) -> None:
    class Other(DeclarativeBase):
        pass

    class Parent(Other):
        __tablename__ = "cascading_parent"
        name: Mapped[str] = mapped_column(String(20), primary_key=True)

    class Child(Other):
        __tablename__ = "cascading_child"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent: Mapped[str] = mapped_column(
            ForeignKey("cascading_parent.name", onupdate="CASCADE", ondelete="SET NULL"), nullable=True
        )

    class Grandchild(Other):
        __tablename__ = "cascading_grandchild"
        id: Mapped[int] = mapped_column(primary_key=True)
        child: Mapped[int] = mapped_column(ForeignKey("cascading_child.id", ondelete="cascade"))

    engine = create_engine(target_url)

    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def enforce(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    Other.metadata.create_all(engine)
    factory = sessionmaker(engine)
    slow = walsync.CheckpointConfig(batch_delay_s=5.0)
    with walsync.attach(factory, tmp_path / "log", checkpoint=slow) as journal:
        with factory() as session:
            session.add(Parent(name="a"))
            session.flush()
            session.add(Child(id=1, parent="a"))
            session.flush()
            session.add(Grandchild(id=1, child=1))
            session.commit()
        with factory() as session:
            session.execute(update(Parent).values(name="b"))
            session.commit()
            assert session.scalars(select(Child.parent)).all() == ["b"]
            session.rollback()
            session.execute(delete(Parent.__table__).where(Parent.name == "b"))
            session.commit()
            assert session.scalars(select(Child.parent)).all() == [None]
            session.rollback()
            session.execute(delete(Child))
            session.flush()
            assert session.scalars(select(Grandchild.id)).all() == []
            assert set(journal.stats().direct_reasons) == {"read of its own uncommitted writes"}
            session.commit()
    engine.dispose()

"""What makes a transaction direct."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, delete, func, insert, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

import walsync
from tests.contract.captured.case_unit_of_work import one
from tests.contract.captured.model import Author, Book, Invoice, Outside, Tag
from tests.contract.captured.registry import MARIADB, POSTGRESQL, SQLITE, direct

RETURNING = "DML with RETURNING, by `execute`, `scalars` or `scalar`"


@direct(RETURNING, "RETURNING", on=(SQLITE, POSTGRESQL))
def rows_are_returned(session: Session) -> Any:
    session.add(Author(label="before"))
    session.flush()
    inserted = session.scalars(insert(Author).returning(Author.label), [{"label": "one"}, {"label": "two"}]).all()
    objects = session.scalars(insert(Tag).returning(Tag), [{"name": "one"}]).all()
    objects[0].weight = 12
    updated = session.execute(
        update(Author).where(Author.label == "bob").values(visits=5).returning(Author.visits)
    ).all()
    deleted = session.scalar(delete(Tag).where(Tag.name == "unused").returning(Tag.name))
    session.add(Author(label="after"))
    return sorted(inserted), [tuple(row) for row in updated], deleted


@direct(RETURNING, "RETURNING", on=(MARIADB,))
def rows_are_returned_by_mariadb(session: Session) -> Any:
    inserted = session.scalars(insert(Author).returning(Author.label), [{"label": "one"}]).all()
    return inserted, session.scalar(delete(Tag).where(Tag.name == "unused").returning(Tag.name))


@direct(RETURNING, "RETURNING", on=(SQLITE, POSTGRESQL))
def values_are_inserted_and_returned(session: Session) -> Any:
    return tuple(session.execute(insert(Author).values(label="new").returning(Author.label, Author.visits)).one())


@direct(RETURNING, "RETURNING", on=(SQLITE, POSTGRESQL))
def an_upsert_returns(session: Session) -> Any:
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as upsert
    else:
        from sqlalchemy.dialects.postgresql import insert as upsert  # type: ignore[assignment]
    statement = upsert(Tag).values(name="red", weight=7)
    statement = statement.on_conflict_do_update(index_elements=["name"], set_={"weight": statement.excluded.weight})
    return session.scalars(statement.returning(Tag.weight)).all()


TEXT = "SQL text: `text()`, `exec_driver_sql`"


@direct(TEXT, "SQL text")
def text_writes(session: Session) -> Any:
    session.add(Author(label="before"))
    session.execute(text("INSERT INTO tag (name, weight) VALUES (:name, 3)"), {"name": "text"})
    session.execute(text("UPDATE author SET visits = 9 WHERE label = 'before'"))
    session.add(Author(label="after"))
    session.commit()
    return session.scalar(select(Author.visits).where(Author.label == "before"))


@direct(TEXT, "SQL text")
def text_reads(session: Session) -> Any:
    return session.scalar(text("SELECT count(*) FROM author"))


@direct(TEXT, "SQL text")
def the_driver_gets_text(session: Session) -> Any:
    session.add(Tag(name="before"))
    session.flush()
    session.connection().exec_driver_sql("DELETE FROM tag WHERE name = 'before'")
    return session.connection().exec_driver_sql("SELECT count(*) FROM tag").scalar()


CONNECTION = "DML through `session.connection()`"


@direct(CONNECTION, "INSERT statement on the target")
def a_connection_writes(session: Session) -> None:
    session.add(Tag(name="before"))
    session.flush()
    session.connection().execute(insert(Author), [{"label": "one"}, {"label": "two"}])
    session.add(Author(label="after"))


@direct(CONNECTION, "UPDATE statement on the target")
def a_connection_updates(session: Session) -> Any:
    ada = one(session, Author, label="ada")
    ada.visits = 70
    session.flush()
    found = session.connection().execute(update(Author).where(Author.visits == 70).values(label="seventy"))
    return found.rowcount


@direct(CONNECTION, "DELETE statement on the target")
def a_connection_deletes(session: Session) -> Any:
    return session.connection().execute(delete(Tag).where(Tag.name == "unused")).rowcount


SCOPE = "a class or table outside of `include`, or in `exclude`"


def _mixed(session: Session) -> None:
    session.add_all([Author(label="inside"), Outside(label="new")])
    session.flush()
    one(session, Outside, label="new").label = "newer"
    session.add(Tag(name="inside"))


@direct(SCOPE, "class that is not journaled", attach={"exclude": [Outside]})
def a_class_is_excluded(session: Session) -> None:
    _mixed(session)


@direct(SCOPE, "class that is not journaled", attach={"include": [Author, Book, Tag]})
def a_class_is_not_included(session: Session) -> None:
    _mixed(session)


@direct(SCOPE, "UPDATE statement on the target", attach={"exclude": [Outside]})
def a_statement_on_a_class_that_is_excluded(session: Session) -> None:
    session.add(Tag(name="inside"))
    session.execute(update(Outside).values(label="changed"))


MODE = '`session.info["walsync.mode"] = "direct"`, `walsync.direct(session)`'


@direct(MODE, "asked for")
def the_session_says_so(session: Session) -> None:
    session.info["walsync.mode"] = "direct"
    session.add(Author(label="new", books=[Book(label="one")]))
    one(session, Author, label="bob").visits = 9
    session.execute(update(Tag).values(weight=Tag.weight + 1))


@direct(MODE, "asked for")
def a_block_says_so(session: Session) -> Any:
    session.add(Author(label="before"))
    session.flush()
    with walsync.direct(session):
        count = session.scalar(select(func.count()).select_from(Author))
        session.execute(update(Author).where(Author.label == "before").values(visits=count))
    session.add(Author(label="after"))
    return count


@direct(MODE, "asked for", entries=1)
def only_the_block(session: Session) -> None:
    with walsync.direct(session):
        session.add(Author(label="direct"))
        session.commit()
    session.add(Author(label="buffered"))


SAVEPOINTS = "savepoints before and after a transaction becomes direct"


def _upgrade(session: Session) -> None:
    session.execute(delete(Tag).where(Tag.name == "unused").returning(Tag.name)).all()


@direct(SAVEPOINTS, "RETURNING")
def savepoints_around_the_upgrade(session: Session) -> Any:
    session.add(Tag(name="outside"))
    session.flush()
    outer = session.begin_nested()
    session.add(Tag(name="outer"))
    session.flush()
    inner = session.begin_nested()
    session.add(Tag(name="inner"))
    session.flush()
    _upgrade(session)
    inner.rollback()
    before = session.scalars(select(Tag.name).order_by(Tag.name)).all()
    later = session.begin_nested()
    session.add(Tag(name="later"))
    later.commit()
    outer.rollback()
    session.add(Tag(name="last"))
    return before, session.scalars(select(Tag.name).order_by(Tag.name)).all()


@direct(SAVEPOINTS, "RETURNING")
def a_savepoint_that_is_kept(session: Session) -> None:
    with session.begin_nested():
        session.add(Tag(name="kept"))
    with session.begin_nested() as savepoint:
        _upgrade(session)
        savepoint.rollback()


READ = "read of tables that the transaction itself has flushed changes to"
OWN = "read of its own uncommitted writes"


@direct(READ, OWN)
def it_reads_what_it_wrote(session: Session) -> Any:
    session.add(Author(label="new", books=[Book(label="one")]))
    joined = session.execute(
        select(Author.label, Book.label).join(Author.books).order_by(Author.label, Book.label)
    ).all()
    session.add(Author(label="newer"))
    return [tuple(row) for row in joined], session.scalar(select(func.count()).select_from(Author))


@direct(READ, OWN)
def a_subquery_reads_what_it_wrote(session: Session) -> Any:
    session.add(Tag(name="new"))
    return session.scalar(select(select(func.count()).select_from(Tag).scalar_subquery()))


@direct(READ, OWN)
def a_relationship_reads_what_it_wrote(session: Session) -> Any:
    bob = one(session, Author, label="bob")
    session.add(Book(label="new", author_id=bob.id))
    session.flush()
    return sorted(book.label for book in bob.books)


@direct(READ, OWN)
def a_refresh_reads_what_it_wrote(session: Session) -> Any:
    bob = one(session, Author, label="bob")
    session.execute(update(Author).values(visits=Author.visits + 5).execution_options(synchronize_session=False))
    session.refresh(bob)
    return bob.visits


LOCK = "`with_for_update()`"


@direct(LOCK, "SELECT ... FOR UPDATE")
def rows_are_locked(session: Session) -> None:
    one_author = session.scalars(select(Author).where(Author.label == "bob").with_for_update()).one()
    one_author.visits += 1


@direct(LOCK, "SELECT ... FOR UPDATE")
def an_object_is_locked(session: Session) -> None:
    bob = one(session, Author, label="bob")
    session.refresh(bob, with_for_update=True)
    bob.visits += 1
    locked = session.get(Tag, "red", with_for_update={"skip_locked": True}, populate_existing=True)
    assert locked is not None
    locked.weight = 5


@direct("`select().from_statement(text(...))`", "SQL text")
def objects_are_read_by_text(session: Session) -> Any:
    authors = session.scalars(select(Author).from_statement(text("SELECT * FROM author ORDER BY label"))).all()
    return [author.label for author in authors]


@direct("`eager_defaults=True` on a class with server defaults", OWN)
def defaults_of_the_server_are_wanted_at_once(session: Session) -> Any:
    from tests.contract.captured.model import EagerBox

    box = EagerBox(label="new")
    session.add(box)
    session.flush()
    return box.height


@direct(LOCK, "SELECT ... FOR UPDATE")
def a_legacy_query_locks(session: Session) -> None:
    session.query(Author).filter_by(label="bob").with_for_update().one().visits = 3


@direct(
    "SELECT with a function that is not known to be the database's own (`func.my_function()`)",
    "SELECT with a function that is not known",
    on=(SQLITE,),
)
def an_unknown_function(session: Session) -> Any:
    return session.scalar(select(func.sqlite_source_id()))


INNER = "SELECT with a CTE that writes, or with `with_for_update()` in a subquery"
WRITES = "SELECT with an inner statement that writes or locks"


@direct(INNER, WRITES, on=(POSTGRESQL,))
def a_cte_writes(session: Session) -> Any:
    inserted = insert(Tag).values(name="cte", weight=3).returning(Tag.name).cte("inserted")
    return session.scalars(select(inserted.c.name)).all()


@direct(INNER, WRITES)
def a_subquery_locks(session: Session) -> Any:
    locked = select(Author.label).with_for_update().subquery()
    return sorted(session.scalars(select(locked.c.label)))


@direct("DDL: `CreateTable(...)`, `Table.create()`", "DDL")
def a_table_is_made(session: Session) -> None:
    table = Table("made_and_dropped", MetaData(), Column("n", Integer))
    session.connection().execute(CreateTable(table))
    table.drop(session.connection())


@direct("a `Sequence` executed by itself", "SQL text", on=(POSTGRESQL, MARIADB))
def a_sequence_is_asked(session: Session) -> Any:
    return type(session.scalar(Invoice.__table__.c.id.default))


@direct(TEXT, "SQL text")
def stale_text_is_text(session: Session) -> Any:
    # It may write, whatever the option says of reading.
    return session.scalar(text("SELECT count(*) FROM author"), execution_options={"walsync_read": "stale"})

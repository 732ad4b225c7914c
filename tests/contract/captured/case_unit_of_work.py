"""What the unit of work writes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, func, select, type_coerce
from sqlalchemy.orm import Session

from tests.contract.captured.model import (
    Author,
    Book,
    Child,
    Counter,
    Document,
    Engineer,
    Manager,
    Node,
    Parent,
    Person,
    Seat,
    Stamp,
    Tag,
    Truck,
    Vehicle,
    Visit,
)
from tests.contract.captured.registry import buffered, direct


def one(session: Session, entity: Any, **values: Any) -> Any:
    return session.scalars(select(entity).filter_by(**values)).one()


ROWS = "unit of work: INSERT, UPDATE, DELETE of mapped objects"


@buffered(ROWS)
def objects_are_added_changed_and_deleted(session: Session) -> None:
    bob, unused = one(session, Author, label="bob"), one(session, Tag, name="unused")
    session.add_all([Author(label="new"), Author(label="newer", visits=9)])
    bob.visits = 7
    session.delete(unused)


@buffered(ROWS, entries=3)
def several_transactions_of_one_session(session: Session) -> Any:
    author = Author(label="new")
    session.add(author)
    session.commit()
    author.visits = 4
    session.commit()
    session.delete(author)
    session.commit()
    return session.scalar(select(func.count()).select_from(Author))


@buffered(ROWS)
def several_flushes_of_one_transaction(session: Session) -> None:
    author = Author(label="new")
    session.add(author)
    session.flush()
    author.visits = 4
    session.flush()
    author.label = "newer"
    session.flush()
    session.delete(author)


@buffered("`merge`")
def an_object_is_merged(session: Session) -> Any:
    key = one(session, Author, label="bob").id
    session.expunge_all()
    merged = session.merge(Author(id=key, label="bob merged", visits=3))
    session.merge(Tag(name="merged"))
    return merged.label


CASCADES = "relationships, cascades, delete-orphan, association tables"


@buffered(CASCADES)
def a_graph_of_new_objects(session: Session) -> None:
    session.add(Author(label="new", books=[Book(label="one", tags=[Tag(name="green")]), Book(label="two")]))


@buffered(CASCADES)
def an_orphan_is_deleted_and_links_are_changed(session: Session) -> None:
    ada, blue, unused = (
        one(session, Author, label="ada"),
        one(session, Tag, name="blue"),
        one(session, Tag, name="unused"),
    )
    first, second = ada.books
    assert len(first.tags) == 1
    second.tags.remove(blue)
    second.tags.append(unused)
    ada.books.remove(first)


@buffered(CASCADES)
def a_parent_is_deleted_with_all_that_hangs_on_it(session: Session) -> None:
    session.delete(one(session, Author, label="ada"))


@buffered(CASCADES)
def a_child_changes_its_parent(session: Session) -> None:
    one(session, Book, label="loose").author = one(session, Author, label="bob")


@buffered("`dynamic` and `write_only` relationships: `add`, `remove`, `insert()`, `update()`, `delete()`")
def a_write_only_collection_is_changed(session: Session) -> None:
    ada = one(session, Author, label="ada")
    first = one(session, Book, label="first")
    ada.written_books.add(Book(label="written"))
    ada.written_books.remove(first)
    session.flush()
    session.execute(ada.written_books.insert(), [{"label": "bulk", "pages": 3}])
    session.execute(ada.written_books.update().values(pages=77).execution_options(synchronize_session=False))
    session.execute(ada.written_books.delete().where(Book.label == "bulk").execution_options(synchronize_session=False))


INHERITANCE = "joined, single-table and concrete inheritance"


@buffered(INHERITANCE)
def joined_tables(session: Session) -> None:
    grace = one(session, Engineer, label="grace")
    session.add(Engineer(label="hedy", language="radio"))
    grace.label, grace.language = "grace h", "flowmatic"
    session.flush()
    session.delete(grace)


@buffered(INHERITANCE)
def a_single_table(session: Session) -> None:
    one(session, Manager, label="mary").bonus = 4
    session.add_all([Manager(label="new", bonus=1), Person(label="plain")])


@buffered(INHERITANCE)
def concrete_tables(session: Session) -> None:
    one(session, Truck, label="lorry").load = 9
    session.add_all([Truck(label="van", load=2), Vehicle(label="tram")])


@buffered("`version_id_col`")
def a_row_with_a_version(session: Session) -> Any:
    clicks = one(session, Counter, label="clicks")
    clicks.n += 1
    session.add(Counter(label="new"))
    session.flush()
    clicks.n += 1
    session.flush()
    return clicks.version


@direct("`version_id_col` whose versions the database makes", "version made by the database")
def a_row_with_a_version_of_the_database(session: Session) -> Any:
    stamp = Stamp(label="new")
    session.add(stamp)
    session.flush()
    stamp.n = 1
    session.flush()
    return stamp.version


KEYS = "changed primary keys, composite and natural keys"


@buffered(KEYS)
def a_natural_key_is_changed(session: Session) -> None:
    one(session, Tag, name="unused").name = "renamed"


@buffered(KEYS)
def rows_with_a_composite_key(session: Session) -> None:
    seat, monday = one(session, Seat, number=2), one(session, Visit, name="monday")
    session.add(Visit(name="tuesday", seat=Seat(hall="south", number=4)))
    seat.holder = "bob"
    session.delete(monday)


@buffered("ON UPDATE CASCADE with `passive_updates`")
def a_key_changes_and_its_children_follow(session: Session) -> None:
    seat = one(session, Seat, number=1)
    session.expire_all()
    seat.number = 10


@buffered("`passive_deletes` with ON DELETE CASCADE")
def the_database_deletes_the_children(session: Session) -> None:
    session.delete(one(session, Parent, label="mother"))


@direct(
    "`passive_deletes` with ON DELETE CASCADE, and the children read in the same transaction",
    "read of its own uncommitted writes",
)
def the_children_are_read_before_the_commit(session: Session) -> Any:
    session.delete(one(session, Parent, label="mother"))
    session.flush()
    return session.scalars(select(Child.label)).all()


@buffered("`post_update`")
def two_rows_need_each_other(session: Session) -> None:
    one_node, other = Node(label="one"), Node(label="other")
    session.add_all([one_node, other])
    one_node.favorite, other.favorite = other, one_node


@buffered("deferred columns")
def a_deferred_column_is_written_unseen(session: Session) -> None:
    one(session, Document, label="letter").body = "changed"
    session.add(Document(label="new", body="text"))


SQL_VALUES = "`obj.n = Model.n + 1` and other SQL expressions as values"


@buffered(SQL_VALUES)
def an_attribute_is_a_sql_expression(session: Session) -> None:
    clicks = one(session, Counter, label="clicks")
    clicks.n = Counter.n + 1
    ada = one(session, Author, label="ada")
    ada.visits = Author.visits * 2
    session.add(Author(label="new", visits=type_coerce(func.length("four"), Integer)))


@buffered(SQL_VALUES)
def an_attribute_is_a_query(session: Session) -> None:
    bob = one(session, Author, label="bob")
    bob.visits = select(func.count()).select_from(Tag).scalar_subquery()


SAVEPOINTS = "savepoints (`begin_nested`), rollback"


@buffered(SAVEPOINTS)
def a_savepoint_is_rolled_back(session: Session) -> None:
    session.add(Author(label="kept"))
    with session.begin_nested() as savepoint:
        session.add(Author(label="gone", books=[Book(label="gone too")]))
        session.flush()
        with session.begin_nested():
            session.add(Tag(name="gone as well"))
        savepoint.rollback()
    with session.begin_nested():
        session.add(Tag(name="kept"))


@buffered(SAVEPOINTS, entries=0)
def a_transaction_is_rolled_back(session: Session) -> None:
    session.add(Author(label="gone"))
    session.flush()
    session.rollback()


@buffered(SAVEPOINTS)
def an_error_in_a_savepoint_is_caught(session: Session) -> None:
    session.add(Author(label="kept"))
    try:
        with session.begin_nested():
            session.add(Author(label="gone"))
            session.flush()
            raise ValueError
    except ValueError:
        session.add(Author(label="kept, too"))

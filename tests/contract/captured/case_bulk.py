"""Bulk operations, and DML statements of which every one can be recorded."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Integer,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    inspect,
    lambda_stmt,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, aliased, sessionmaker, with_loader_criteria

from tests.contract.captured.case_unit_of_work import one
from tests.contract.captured.model import Author, Book, Box, Engineer, Manager, Person, Seat, Tag, book_tag
from tests.contract.captured.registry import MARIADB, POSTGRESQL, SQLITE, buffered, direct, error
from walsync import NotCapturedError

INSERTS = "`session.execute(insert(Model), [...])`, `bulk_save_objects`, `bulk_insert_mappings`"


@buffered(INSERTS)
def insert_with_a_list(session: Session) -> None:
    session.execute(insert(Author), [{"label": "one"}, {"label": "two", "visits": 5}])
    session.execute(insert(Tag), [{"name": "one"}, {"name": "two"}])
    session.execute(insert(Tag), {"name": "single"})


@buffered(INSERTS)
def insert_of_a_core_table(session: Session) -> None:
    key = one(session, Book, label="third").id
    session.execute(insert(book_tag), [{"book_id": key, "tag_name": "red"}, {"book_id": key, "tag_name": "blue"}])


@buffered(INSERTS)
def insert_into_joined_tables(session: Session) -> None:
    session.execute(insert(Engineer), [{"label": "one", "language": "c"}, {"label": "two", "language": "d"}])


@buffered(INSERTS)
def bulk_save_objects(session: Session) -> None:
    bob = one(session, Author, label="bob")
    bob.visits = 12
    session.bulk_save_objects([Author(label="one"), bob, Tag(name="new")])


@buffered(INSERTS)
def bulk_insert_mappings(session: Session) -> None:
    session.bulk_insert_mappings(Author, [{"label": "one"}, {"label": "two", "visits": 5}])  # type: ignore[arg-type]


DEFAULTS = "`bulk_save_objects`, `bulk_insert_mappings` with `return_defaults=True`"


@buffered(DEFAULTS)
def bulk_save_objects_with_their_keys(session: Session) -> Any:
    objects = [Author(label="one"), Author(label="two")]
    session.bulk_save_objects(objects, return_defaults=True)
    session.add_all([Book(label=f"of {author.label}", author_id=author.id) for author in objects])
    return len({author.id for author in objects})


@buffered(DEFAULTS)
def bulk_insert_mappings_with_their_keys(session: Session) -> Any:
    mappings: list[dict[str, Any]] = [{"label": "one"}, {"label": "two"}]
    session.bulk_insert_mappings(Author, mappings, return_defaults=True)  # type: ignore[arg-type]
    return len({mapping["id"] for mapping in mappings})


UPDATES = "`session.execute(update(Model), [...])` (by primary key), `bulk_update_mappings`"


@buffered(UPDATES)
def update_with_a_list(session: Session) -> None:
    keys = session.scalars(select(Author.id).order_by(Author.label)).all()
    session.execute(update(Author), [{"id": key, "visits": 50 + number} for number, key in enumerate(keys)])


@buffered(UPDATES)
def bulk_update_mappings(session: Session) -> None:
    keys = session.scalars(select(Author.id).order_by(Author.label)).all()
    session.bulk_update_mappings(Author, [{"id": key, "label": f"n{number}"} for number, key in enumerate(keys)])  # type: ignore[arg-type]


BY_KEY = '`update()`, `delete()` with WHERE "primary key = value" and plain values'


@buffered(BY_KEY)
def one_row_by_its_key(session: Session) -> Any:
    found = session.execute(update(Tag).where(Tag.name == "red").values(weight=9))
    session.execute(delete(Tag).where(Tag.name == "unused"))
    session.execute(update(Seat).where(Seat.hall == "north", Seat.number == 2).values(holder="bob"))
    return found.rowcount


@buffered(BY_KEY)
def a_row_that_is_not_there(session: Session) -> None:
    session.execute(update(Tag).where(Tag.name == "none").values(weight=9))
    session.execute(delete(Tag).where(Tag.name == "none"))


@buffered(BY_KEY)
def one_row_by_its_key_for_each_parameter(session: Session) -> None:
    session.connection()
    session.execute(
        update(Tag.__table__).where(Tag.__table__.c.name == bindparam("which")).values(weight=bindparam("heavy")),
        [{"which": "red", "heavy": 3}, {"which": "blue", "heavy": 4}],
    )


OTHER = "any other `update()` or `delete()` without RETURNING"


@buffered(OTHER)
def many_rows(session: Session) -> None:
    session.execute(update(Author).where(Author.visits > 0).values(visits=Author.visits + 10))
    session.execute(update(Author).values(label=func.upper(Author.label)))
    session.execute(delete(Tag).where(Tag.name.in_(["unused", "none"])))


@buffered(OTHER)
def many_rows_of_a_core_table(session: Session) -> None:
    session.execute(delete(book_tag).where(book_tag.c.tag_name == "blue"))


SYNCHRONIZED = (
    'ORM `update()`, `delete()` with `synchronize_session=False` or `"evaluate"`; `"auto"` where that can evaluate'
)
FETCHED = 'ORM `update()`, `delete()` with `synchronize_session="fetch"`; `"auto"` where it cannot evaluate'


def _synchronized(session: Session, how: Any) -> Any:
    ada, bob = session.scalars(select(Author).order_by(Author.label)).all()
    unused = one(session, Tag, name="unused")
    options = {"synchronize_session": how}
    session.execute(update(Author).where(Author.label == "ada").values(visits=40), execution_options=options)
    session.execute(delete(Tag).where(Tag.name == "unused"), execution_options=options)
    return ada.visits, bob.visits, unused in session


@buffered(SYNCHRONIZED)
def nothing_is_synchronized(session: Session) -> Any:
    return _synchronized(session, False)


@buffered(SYNCHRONIZED)
def evaluated(session: Session) -> Any:
    return _synchronized(session, "evaluate")


@buffered(SYNCHRONIZED)
def evaluated_by_itself(session: Session) -> Any:
    return _synchronized(session, "auto")


@buffered(FETCHED)
def fetched(session: Session) -> Any:
    return _synchronized(session, "fetch")


@buffered(FETCHED)
def fetched_by_itself(session: Session) -> Any:
    ada = one(session, Author, label="ada")
    session.execute(update(Author).where(func.length(Author.label) == 3).values(visits=40))
    session.execute(delete(Tag).where(func.length(Tag.name) == 6))
    return ada.visits


@direct(
    "an ORM `update()` or `delete()` that fetches, of rows that the transaction itself has changed",
    "read of its own uncommitted writes",
)
def fetched_after_own_changes(session: Session) -> Any:
    ada = one(session, Author, label="ada")
    ada.label = "changed"
    session.execute(
        update(Author).where(Author.label == "changed").values(visits=40),
        execution_options={"synchronize_session": "fetch"},
    )
    return ada.visits


@buffered("`Query.update()`, `Query.delete()`")
def legacy_queries(session: Session) -> None:
    session.query(Author).filter(Author.label == "ada").update({Author.visits: Author.visits + 1})
    session.query(Author).filter(Author.label == "bob").update({"visits": 8}, synchronize_session=False)
    session.query(Tag).filter(Tag.name == "unused").delete()
    session.query(Book).filter(Book.label == "third").delete(synchronize_session="fetch")


SEVERAL = "`update()` with subqueries as values or in WHERE; UPDATE ... FROM, DELETE ... USING, of several tables"


@buffered(SEVERAL)
def subqueries(session: Session) -> None:
    pages = select(func.sum(Book.pages)).where(Book.author_id == Author.id).scalar_subquery()
    session.execute(update(Author).values(visits=pages).execution_options(synchronize_session=False))
    with_books = exists().where(Book.author_id == Author.id, Book.label == "third")
    session.execute(
        update(Author).where(with_books).values(label="has third").execution_options(synchronize_session=False)
    )
    session.execute(delete(book_tag).where(book_tag.c.book_id.in_(select(Book.id).where(Book.label == "first"))))


@buffered(SEVERAL)
def update_from(session: Session) -> None:
    session.execute(
        update(Book)
        .where(Book.author_id == Author.id, Author.label == "ada")
        .values(pages=Book.pages + Author.visits)
        .execution_options(synchronize_session=False)
    )


@buffered(SEVERAL, on=(POSTGRESQL, MARIADB))
def delete_using(session: Session) -> None:
    session.execute(
        delete(book_tag)
        .where(book_tag.c.book_id == Book.id, Book.label == "second")
        .execution_options(synchronize_session=False)
    )


@buffered(SEVERAL, on=(MARIADB,))
def update_of_two_tables(session: Session) -> None:
    session.execute(
        update(Book)
        .where(Book.author_id == Author.id)
        .values({Book.pages: 1, Author.visits: 99})
        .execution_options(synchronize_session=False)
    )


@buffered("a CTE inside of a DML statement", on=(SQLITE, POSTGRESQL))
def a_cte(session: Session) -> None:
    long = select(Book.author_id).where(Book.pages > 15, Book.label != "loose").cte("long_ones")
    session.execute(
        update(Author)
        .where(Author.id.in_(select(long.c.author_id)))
        .values(label="long")
        .execution_options(synchronize_session=False)
    )
    session.execute(delete(Tag).where(Tag.name.in_(select(select(literal("unused").label("n")).cte("c").c.n))))


@direct("`add_cte()` on a DML statement", "UPDATE statement on the target", on=(SQLITE, POSTGRESQL))
def a_cte_beside_a_statement(session: Session) -> None:
    beside = select(Tag.name).cte("beside")
    session.execute(update(Author).values(visits=3).add_cte(beside).execution_options(synchronize_session=False))


@buffered("pieces of `text()` inside of a DML construct")
def text_in_a_construct(session: Session) -> None:
    session.execute(
        update(Author)
        .where(text("label = 'ada'"))
        .values(visits=text("visits + 100"))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        delete(Tag).where(text("name = :name")).execution_options(synchronize_session=False), {"name": "unused"}
    )


HYBRIDS = "hybrid attributes and `with_loader_criteria` in ORM `update()` and `delete()`"


@buffered(HYBRIDS)
def a_hybrid_attribute(session: Session) -> None:
    session.execute(update(Author).where(Author.label == "bob").values({Author.is_read: False}))


@buffered(HYBRIDS)
def criteria_are_added(session: Session) -> None:
    only_ada = with_loader_criteria(Author, Author.label == "ada")
    session.execute(update(Author).options(only_ada).values(visits=33).execution_options(synchronize_session=False))
    only_unused = with_loader_criteria(Tag, Tag.name == "unused")
    session.execute(delete(Tag).options(only_unused).execution_options(synchronize_session=False))


VALUES = "`insert().values([...])`, `insert().from_select()` with its keys"


@buffered(VALUES)
def insert_of_several_rows(session: Session) -> None:
    session.execute(insert(Author).values([{"label": "one"}, {"label": "two"}]))
    session.execute(insert(Tag).values([{"name": "one"}, {"name": "two"}]))
    session.execute(insert(Tag.__table__).values([("three", 3), ("four", 4)]))


@buffered(VALUES)
def insert_of_what_is_selected(session: Session) -> None:
    other = aliased(Tag)
    session.execute(insert(Tag).from_select(["name", "weight"], select(other.name + "!", other.weight + 1)))


LEAVES_KEY = "`insert().from_select()` that leaves an autoincrement key to SQLite, MariaDB or MySQL"
_SELECTED = insert(Author).from_select(["label", "visits"], select(Tag.name, Tag.weight))


@direct(LEAVES_KEY, "INSERT statement on the target", on=(SQLITE, MARIADB))
def insert_of_what_is_selected_without_keys(session: Session) -> None:
    session.execute(_SELECTED)


@buffered("`insert().from_select()` that leaves its key to a sequence of PostgreSQL", on=(POSTGRESQL,))
def insert_of_what_is_selected_with_a_sequence(session: Session) -> None:
    session.execute(_SELECTED)


UPSERTS = "upserts (`on_conflict_do_update`, `on_conflict_do_nothing`, `on_duplicate_key_update`)"


def _upsert(session: Session, insert_of_dialect: Any) -> None:
    statement = insert_of_dialect(Tag).values([{"name": "red", "weight": 5}, {"name": "green", "weight": 6}])
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"weight": Tag.weight + statement.excluded.weight}
        )
    )
    session.execute(insert_of_dialect(Tag).on_conflict_do_nothing(), [{"name": "red"}, {"name": "more"}])
    session.execute(
        insert_of_dialect(Author)
        .values(label="new")
        .on_conflict_do_update(index_elements=["id"], set_={"label": "never"})
    )


@buffered(UPSERTS, on=(SQLITE,))
def upserts_of_sqlite(session: Session) -> None:
    from sqlalchemy.dialects.sqlite import insert as upsert

    _upsert(session, upsert)


@buffered(UPSERTS, on=(POSTGRESQL,))
def upserts_of_postgresql(session: Session) -> None:
    from sqlalchemy.dialects.postgresql import insert as upsert

    _upsert(session, upsert)


@buffered(UPSERTS, on=(MARIADB,))
def upserts_of_mariadb(session: Session) -> None:
    from sqlalchemy.dialects.mysql import insert as upsert

    statement = upsert(Tag).values([{"name": "red", "weight": 5}, {"name": "green", "weight": 6}])
    session.execute(statement.on_duplicate_key_update(weight=Tag.weight + statement.inserted.weight))
    again = upsert(Tag)
    again = again.on_duplicate_key_update(weight=again.inserted.weight + Tag.weight)
    session.execute(again, [{"name": "red"}, {"name": "more"}])
    session.execute(upsert(Author).values(label="new").on_duplicate_key_update(label="never"))
    session.execute(upsert(Tag).prefix_with("IGNORE"), [{"name": "red"}, {"name": "last"}])


TUPLES = "comparison of tuples (`tuple_(...).in_(...)`) in recorded DML"


@error(TUPLES, NotCapturedError, "single columns.*directly", on=(SQLITE, POSTGRESQL, MARIADB))
def tuples_are_compared(session: Session) -> None:
    from sqlalchemy import tuple_

    session.execute(
        delete(Seat)
        .where(tuple_(Seat.hall, Seat.number).in_([("north", 2)]))
        .execution_options(synchronize_session=False)
    )


OPTIONS = "execution options"
TRANSLATED = (
    "`schema_translate_map`, given to a statement, to `session.connection()`, or to the session (SQLAlchemy 2.1)"
)


@direct(TRANSLATED, OPTIONS)
def the_schema_of_a_statement_is_translated(session: Session) -> Any:
    session.execute(insert(Tag), [{"name": "x"}], execution_options=_translated(session))
    return session.scalars(select(Tag.name).execution_options(**_translated(session)).order_by(Tag.name)).all()


@direct(TRANSLATED, OPTIONS, makes_sessions=True)
def the_schema_of_a_connection_is_translated(factory: sessionmaker[Session]) -> Any:
    with factory.begin() as session:
        session.connection(execution_options=_translated(session))
        session.add(Tag(name="x"))
        session.flush()
        session.execute(update(Tag).values(weight=Tag.weight + 1))
        return session.scalars(select(Tag.name).order_by(Tag.name)).all()


@direct(TRANSLATED, OPTIONS)
def the_schema_of_a_connection_is_translated_later(session: Session) -> None:
    session.add(Tag(name="x"))
    session.flush()
    session.connection().execution_options(**_translated(session))
    session.add(Tag(name="y"))


def _translated(session: Session) -> dict[str, Any]:
    """From the default schema to the same one, by its name."""
    assert session.bind is not None
    return {"schema_translate_map": {None: inspect(session.bind).default_schema_name}}


TOLD = (
    "`session.connection(execution_options=...)` with an isolation level, or another option that the database is told"
)


@direct(TOLD, OPTIONS, makes_sessions=True)
def an_isolation_level(factory: sessionmaker[Session]) -> str:
    return _at_level(factory, "SERIALIZABLE")


LOW = "`session.connection(execution_options=...)` with READ COMMITTED or READ UNCOMMITTED"


@buffered(LOW, on=(POSTGRESQL, MARIADB), makes_sessions=True, entries=1)
def a_low_isolation_level(factory: sessionmaker[Session]) -> str:
    return _at_level(factory, "READ COMMITTED")


@buffered(LOW, makes_sessions=True, entries=1)
def the_lowest_isolation_level(factory: sessionmaker[Session]) -> str:
    return _at_level(factory, "READ UNCOMMITTED")


def _at_level(factory: sessionmaker[Session], wanted: str) -> str:
    with factory.begin() as session:
        level: str = session.connection(execution_options={"isolation_level": wanted}).get_isolation_level()
        session.add(Tag(name="x"))
        return level


@buffered("other server defaults, Computed columns")
def defaults_are_left_to_the_server(session: Session) -> None:
    crate = one(session, Box, label="crate")
    session.add_all([Box(label="one", width=2), Box(label="two", width=2, height=3)])
    session.execute(insert(Box), [{"label": "three", "width": 5}])
    crate.width = 6


@buffered("other server defaults, Computed columns")
def what_the_server_made_is_read_after_the_commit(session: Session) -> Any:
    box = Box(label="one", width=2)
    session.add(box)
    session.commit()
    return (
        box.height,
        box.area,
        session.scalar(select(func.sum(Box.area)).select_from(Box).where(Box.area > literal(1, Integer))),
    )


@buffered(OTHER)
def tables_of_an_inheritance(session: Session) -> None:
    unseen = {"synchronize_session": False}
    session.execute(update(Engineer).values(language="x"), execution_options=unseen)
    session.execute(update(Person).where(Person.label == "paul").values(label="x"), execution_options=unseen)
    session.execute(delete(Manager), execution_options=unseen)


@buffered(OTHER)
def conditions_of_several_kinds(session: Session) -> None:
    unused = ~exists().where(book_tag.c.tag_name == Tag.name)
    session.execute(delete(Tag).where(unused).execution_options(synchronize_session=False))
    session.execute(delete(Tag).where(Tag.name.in_([])))
    weight = case((Tag.name == "red", 1), else_=2)
    session.execute(update(Tag).where(Tag.name.in_(["red", "blue"])).values(weight=weight))
    ordered = update(Author).ordered_values((Author.visits, Author.visits + 1), (Author.label, "x"))
    session.execute(ordered.execution_options(synchronize_session=False))


@buffered(UPDATES)
def update_of_joined_tables_with_a_list(session: Session) -> None:
    key = one(session, Engineer, label="grace").id
    session.execute(update(Engineer), [{"id": key, "label": "grace h", "language": "flowmatic"}])


@buffered(INSERTS)
def insert_of_tables_and_links(session: Session) -> None:
    session.execute(Author.__table__.insert(), [{"label": "a"}, {"label": "b"}])  # type: ignore[attr-defined]
    session.bulk_save_objects([Engineer(label="new", language="z")])


EXPRESSIONS = "`insert()` with SQL expressions as values"


@buffered(EXPRESSIONS)
def expressions_are_inserted(session: Session) -> None:
    books = select(func.count()).select_from(Book).scalar_subquery()
    session.execute(insert(Author).values(label=func.upper("x"), visits=books))
    session.execute(insert(Author).values(visits=literal(3) + 4), [{"label": "a"}, {"label": "b"}])
    session.execute(insert(Author).inline().values(label="inline"))


@buffered(VALUES)
def links_that_are_selected(session: Session) -> None:
    third = select(Book.id, literal("unused")).where(Book.label == "third")
    session.execute(insert(book_tag).from_select(["book_id", "tag_name"], third))


NOT_SEEN = "DML in a `lambda_stmt()`, or on an alias of a table"


@direct(NOT_SEEN, "UPDATE statement on the target")
def an_update_in_a_lambda(session: Session) -> None:
    session.add(Author(label="before"))
    session.execute(lambda_stmt(lambda: update(Author).where(Author.label == "bob").values(visits=12)))


@direct(NOT_SEEN, "UPDATE statement on the target", on=(SQLITE, POSTGRESQL))
def an_update_of_an_alias(session: Session) -> None:
    session.execute(update(Tag.__table__.alias("other")).values(weight=3))

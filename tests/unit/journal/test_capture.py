"""Capture: what arrives at the journal's engine is recorded as rows where it is rows, else as a statement."""

from __future__ import annotations

import datetime
import decimal
import enum
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Enum,
    FetchedValue,
    ForeignKey,
    Identity,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    String,
    Table,
    TypeDecorator,
    Uuid,
    and_,
    bindparam,
    delete,
    event,
    exc,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from tests.unit.journal.recording import Recorder, target_dialects
from walsync.changes import RowChanges, StatementChange, TableName
from walsync.exceptions import NotCapturedError
from walsync.journal import JournalDialect


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Tagged(TypeDecorator[str]):
    """Marks each value with the dialect that it was processed for, and counts how often."""

    impl = String
    cache_ok = True
    calls = 0

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        Tagged.calls += 1
        return None if value is None else f"{dialect.name}:{value}"


class Base(DeclarativeBase):
    pass


membership = Table(
    "membership",
    Base.metadata,
    Column("person_id", ForeignKey("person.id"), primary_key=True),
    Column("club_id", ForeignKey("club.id"), primary_key=True),
)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    visits: Mapped[int] = mapped_column(default=0)
    tag = mapped_column(Tagged)
    colour = mapped_column(Enum(Colour, validate_strings=True))
    notes = mapped_column(JSON)
    token = mapped_column(Uuid)
    born = mapped_column(DateTime(timezone=True))
    shift = mapped_column(Interval)
    balance = mapped_column(Numeric(10, 2))
    photo = mapped_column(LargeBinary)
    extra = mapped_column(PickleType)
    created = mapped_column(DateTime, server_default=func.now())
    changed = mapped_column(DateTime, onupdate=func.now())
    version: Mapped[int] = mapped_column(default=1)
    clubs = relationship("Club", secondary=membership)
    __mapper_args__ = {"version_id_col": version}


class Club(Base):
    __tablename__ = "club"
    id: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int | None]


class Pair(Base):
    __tablename__ = "pair"
    left: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    right: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


club = Club.__table__
pair = Pair.__table__


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def recorder(request: pytest.FixtureRequest) -> Recorder:
    return Recorder(next(d for d in target_dialects() if d.name == request.param))


@pytest.fixture
def session(recorder: Recorder) -> Iterator[Session]:
    with Session(recorder.engine, expire_on_commit=False) as session:

        @event.listens_for(session, "after_begin")
        def own(session: Session, transaction: Any, connection: Any) -> None:
            recorder.own(JournalDialect.buffer_of(connection))

        yield session


def only(recorder: Recorder) -> Any:
    (change,) = recorder.changes
    return change


def test_an_orm_insert_is_rows_with_the_recorded_form_of_every_value(recorder: Recorder, session: Session) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.timezone.utc)
    person = Person(
        name="Ada",
        tag="x",
        colour=Colour.GREEN,
        notes={"k": [1, None]},
        token=uuid.UUID(int=5),
        born=moment,
        shift=datetime.timedelta(hours=8, microseconds=3),
        balance=decimal.Decimal("1.50"),
        photo=b"\x00\xff",
        extra={"x": 1},
        clubs=[Club(size=1), Club()],
    )
    session.add(person)
    session.commit()
    people, clubs, members = sorted(
        recorder.changes, key=lambda change: ["person", "club", "membership"].index(change.table.name)
    )
    assert isinstance(people, RowChanges)
    assert people.table == TableName(None, "person")
    assert people.commit_times == ("created",)
    (row,) = people.rows
    values = dict(zip(people.columns, row, strict=True))
    assert values.pop("extra").startswith(b"\x80")
    assert values == {
        "id": 101,
        "name": "Ada",
        "visits": 0,
        "tag": f"{recorder.dialect.name}:x",
        "colour": "GREEN",
        "notes": '{"k": [1, null]}',
        "token": uuid.UUID(int=5),
        "born": moment,
        "shift": datetime.timedelta(hours=8, microseconds=3),
        "balance": decimal.Decimal("1.50"),
        "photo": b"\x00\xff",
        "changed": None,
        "version": 1,
    }
    assert str(values["balance"]) == "1.50"
    assert isinstance(clubs, RowChanges)
    assert isinstance(members, RowChanges)
    assert [dict(zip(clubs.columns, row, strict=True)) for row in clubs.rows] == [
        {"id": 101, "size": 1},
        {"id": 102, "size": None},
    ]
    assert members.rows == [[101, 101], [101, 102]]
    assert person.id == 101


def test_a_type_decorator_is_called_once_per_value(recorder: Recorder, session: Session) -> None:
    Tagged.calls = 0
    session.add(Person(name="Ada", tag="x"))
    session.commit()
    assert Tagged.calls == 1


def test_what_the_application_changes_after_the_flush_does_not_change_what_was_flushed(
    recorder: Recorder, session: Session
) -> None:
    notes = {"list": [1]}
    photo = bytearray(b"abc")
    session.add(Person(name="Ada", notes=notes, photo=photo))
    session.flush()
    notes["list"].append(2)
    photo[0] = 0
    session.commit()
    values = dict(zip(only(recorder).columns, only(recorder).rows[0], strict=True))
    assert values["notes"] == '{"list": [1]}'
    assert values["photo"] == b"abc"


def test_an_orm_update_names_key_and_version_and_must_match(recorder: Recorder, session: Session) -> None:
    person = Person(name="Ada")
    session.add(person)
    session.commit()
    recorder.commits.clear()
    person.name = "Eve"
    session.commit()
    change = only(recorder)
    assert (change.kind, change.columns, change.keys) == ("update", ("name", "version"), ("id", "version"))
    assert change.rows == [["Eve", 2, 101, 1]]
    assert change.must_match
    assert change.commit_times == ("changed",)


def test_an_orm_delete_names_key_and_version_and_must_match(recorder: Recorder, session: Session) -> None:
    person = Person(name="Ada", clubs=[])
    session.add(person)
    session.commit()
    recorder.commits.clear()
    session.delete(person)
    session.commit()
    change = only(recorder)
    assert (change.kind, change.columns, change.keys, change.rows) == ("delete", (), ("id", "version"), [[101, 1]])
    assert change.must_match


def test_a_sql_expression_is_a_statement_that_expects_its_row(recorder: Recorder, session: Session) -> None:
    person = Person(name="Ada")
    session.add(person)
    session.commit()
    recorder.commits.clear()
    person.visits = Person.visits + 1
    session.commit()
    change = only(recorder)
    assert isinstance(change, StatementChange)
    assert change.sql.startswith("UPDATE person SET visits=(person.visits + %(")
    assert change.expected_rows == 1
    assert change.dialect == recorder.dialect.name
    assert set(change.parameters.values()) == {1, 2, 101}
    assert change.tables == [TableName(None, "person")]


def test_dml_outside_of_a_flush_does_not_expect_rows() -> None:
    recorder = Recorder(expects_rows=False)
    with recorder.engine.begin() as connection:
        connection.execute(update(club).where(club.c.id == 5).values(size=1))
        connection.execute(delete(club).where(club.c.id == 5))
        connection.execute(update(club).values(size=club.c.size + 1))
    updated, deleted, statement = recorder.changes
    assert isinstance(updated, RowChanges)
    assert isinstance(deleted, RowChanges)
    assert isinstance(statement, StatementChange)
    assert (updated.rows, updated.must_match) == ([[1, 5]], False)
    assert (deleted.rows, deleted.must_match) == ([[5]], False)
    assert statement.expected_rows is None


def test_an_expanding_in_is_written_out_with_its_values(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        connection.execute(update(club).where(club.c.id.in_([3, 4])).values(size=club.c.size * 2))
        connection.execute(delete(club).where(club.c.id.in_([])))
    first, second = recorder.changes
    assert isinstance(first, StatementChange)
    assert isinstance(second, StatementChange)
    assert sorted(first.parameters.values()) == [2, 3, 4]
    assert second.parameters == {}


def test_a_cached_statement_takes_the_values_of_each_execution(recorder: Recorder) -> None:
    def execute(bonus: int, key: int) -> None:
        with recorder.engine.begin() as connection:
            connection.execute(update(club).where(club.c.id > key).values(size=club.c.size + bonus))

    execute(1, 10)
    execute(2, 20)
    parameters = [commit.changes[0].parameters for commit in recorder.commits]  # type: ignore[union-attr]
    assert [sorted(values.values()) for values in parameters] == [[1, 10], [2, 20]]


def test_a_percent_sign_in_text_and_in_a_value_stay_apart(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        connection.execute(
            update(Person.__table__).where(text("name LIKE '%(x)s%'")).values(name=Person.__table__.c.name + "100%")
        )
    change = only(recorder)
    assert "'%%(x)s%%'" in change.sql
    assert list(change.parameters.values()) == ["100%"]


def test_core_executemany_is_one_group_of_rows_with_keys(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        connection.execute(insert(club), [{"size": 1}, {"size": 2}])
        connection.execute(insert(club), [{"size": 3}])
    change = only(recorder)
    assert change.columns == ("size", "id")
    assert change.rows == [[1, 101], [2, 102], [3, 103]]


@pytest.mark.parametrize("entity", [Club, club], ids=["class", "table"])
def test_constructs_of_a_class_and_of_its_table_are_recorded_alike(recorder: Recorder, entity: Any) -> None:
    columns = getattr(entity, "c", entity)
    with recorder.engine.begin() as connection:
        connection.execute(insert(entity).values(size=1))
        connection.execute(insert(entity).values(id=7, size=2))
        connection.execute(update(entity).where(columns.id == 7).values(size=3))
        connection.execute(delete(entity).where(columns.id == 7))
    inserted, explicit, updated, deleted = recorder.changes
    assert {type(change) for change in recorder.changes} == {RowChanges}
    assert (inserted.columns, inserted.rows) == (("size", "id"), [[1, 101]])  # type: ignore[union-attr]
    assert sorted(explicit.rows[0]) == [2, 7]  # type: ignore[union-attr]
    assert (updated.rows, deleted.rows) == ([[3, 7]], [[7]])  # type: ignore[union-attr]


def test_a_single_core_insert_knows_its_key(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        assert connection.execute(insert(club).values(size=1)).inserted_primary_key == (101,)
        assert connection.execute(insert(club).values(id=7, size=1)).inserted_primary_key == (7,)


def test_keys_chosen_by_the_application_are_never_given_out_again(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        connection.execute(insert(club).values(size=1))
        connection.execute(insert(club).values(id=103, size=1))
        connection.execute(insert(club), [{"size": 2}, {"size": 3}])
    keys = [row[list(change.columns).index("id")] for change in recorder.changes for row in change.rows]  # type: ignore[union-attr]
    assert keys == [101, 103, 104, 105]


def test_an_update_by_bound_parameters_finds_its_order(recorder: Recorder) -> None:
    statement = (
        update(pair)
        .where(and_(pair.c.right == bindparam("r"), pair.c.left == bindparam("l")))
        .values(value=bindparam("v"))
    )
    with recorder.engine.begin() as connection:
        connection.execute(statement, [{"l": 1, "r": 2, "v": 3}, {"l": 4, "r": 5, "v": 6}])
    change = only(recorder)
    assert (change.columns, change.keys) == (("value",), ("right", "left"))
    assert change.rows == [[3, 2, 1], [6, 5, 4]]


def test_an_update_of_a_key_keeps_old_and_new_apart(recorder: Recorder, session: Session) -> None:
    row = Pair(left=1, right=2, value=3)
    session.add(row)
    session.commit()
    recorder.commits.clear()
    row.left = 9
    session.commit()
    change = only(recorder)
    assert (change.columns, change.keys, change.rows) == (("left",), ("left", "right"), [[9, 1, 2]])


def test_a_where_on_part_of_the_key_is_a_statement(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        connection.execute(update(pair).where(pair.c.left == 1).values(value=2))
        connection.execute(delete(pair).where(pair.c.left == 1))
    assert [type(change) for change in recorder.changes] == [StatementChange, StatementChange]


def test_insert_from_select_and_multiple_values_are_statements(recorder: Recorder) -> None:
    with recorder.engine.begin() as connection:
        connection.execute(insert(club).from_select(["id", "size"], select(Person.id + 1000, Person.visits)))
        connection.execute(insert(club).values([{"size": 1}, {"size": 2}]))
    copied, several = recorder.changes
    assert isinstance(copied, StatementChange)
    assert isinstance(several, StatementChange)
    assert copied.read_tables == [TableName(None, "person")]
    assert list(copied.parameters.values()) == [1000]
    assert sorted(several.parameters.values()) == [1, 2, 101, 102], "with the keys that the target would have made"


@pytest.mark.parametrize(
    ("dialect", "statement"),
    [
        (
            "sqlite",
            sqlite.insert(club).values(id=1, size=4).on_conflict_do_update(index_elements=["id"], set_={"size": 5}),
        ),
        ("postgresql", postgresql.insert(club).values(id=1, size=4).on_conflict_do_nothing()),
        ("mysql", mysql.insert(club).values(id=1, size=4).on_duplicate_key_update(size=5)),
    ],
)
def test_an_upsert_is_a_statement_of_its_dialect(dialect: str, statement: Any) -> None:
    recorder = Recorder(next(d for d in target_dialects() if d.name == dialect))
    with recorder.engine.begin() as connection:
        connection.execute(statement)
    assert " ON " in only(recorder).sql


def test_the_current_time_as_a_value_is_the_commit_time(recorder: Recorder) -> None:
    people = Person.__table__
    with recorder.engine.begin() as connection:
        connection.execute(insert(people).values(name="Ada", version=1, created=func.now()))
        connection.execute(update(people).where(people.c.id == 1).values(changed=func.current_timestamp()))
    inserted, updated = recorder.changes
    assert isinstance(inserted, RowChanges)
    assert isinstance(updated, RowChanges)
    assert inserted.commit_times == ("created",)
    assert "created" not in inserted.columns
    assert updated.commit_times == ("changed",)


def test_the_current_time_in_a_statement_is_the_time_of_its_execution(recorder: Recorder) -> None:
    people = Person.__table__
    before = int(time.time())
    with recorder.engine.begin() as connection:
        connection.execute(
            update(people).where(people.c.born < func.now()).values(visits=people.c.visits + 1, changed=func.now())
        )
    sql = only(recorder).sql
    assert "now()" not in sql.lower()
    assert "current_timestamp" not in sql.lower()
    moments = {int(found[:10]) for found in re.findall(r"\d{10,}", sql)}
    assert len(moments) == 1
    assert before <= moments.pop() <= time.time()


# ------------------------------------------------------------------------------------------- transactions


def test_a_rollback_leaves_nothing(recorder: Recorder, session: Session) -> None:
    session.add(Club(size=1))
    session.flush()
    session.rollback()
    session.commit()
    assert recorder.commits == []


def test_a_commit_without_changes_is_no_entry(recorder: Recorder, session: Session) -> None:
    session.connection()
    session.commit()
    assert recorder.commits == []


def test_rolling_back_to_a_savepoint_takes_back_what_came_after_it_and_no_more(
    recorder: Recorder, session: Session
) -> None:
    session.add(Club(size=1))
    session.flush()
    outer = session.begin_nested()
    session.add(Club(size=2))
    session.flush()
    inner = session.begin_nested()
    session.add(Club(size=3))
    session.flush()
    inner.rollback()
    session.add(Club(size=4))
    outer.commit()
    lost = session.begin_nested()
    session.add(Club(size=5))
    session.flush()
    lost.rollback()
    session.add(Club(size=6))
    session.commit()
    sizes = [
        dict(zip(change.columns, row, strict=True))["size"]
        for change in recorder.changes
        if isinstance(change, RowChanges)
        for row in change.rows
    ]
    assert sizes == [1, 2, 4, 6]


def test_a_failed_commit_leaves_nothing_behind() -> None:
    recorder = Recorder()

    def refuse(buffer: Any) -> None:
        raise OSError("the disk is gone")

    engine = recorder.engine
    connection = engine.connect()
    JournalDialect.buffer_of(connection).on_commit = refuse
    connection.execute(insert(club).values(size=1))
    with pytest.raises(OSError, match="the disk is gone"):
        connection.commit()
    connection.rollback()
    JournalDialect.buffer_of(connection).on_commit = recorder._commit
    connection.commit()
    connection.close()
    assert recorder.commits == []


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "statement",
    [
        text("DELETE FROM club"),
        select(club),
        insert(club).values(size=1).returning(club.c.id),
        delete(club).returning(club.c.id),
    ],
)
def test_what_cannot_be_recorded_raises_and_says_what_to_do(statement: Any) -> None:
    recorder = Recorder()
    with recorder.engine.connect() as connection:
        with pytest.raises((NotCapturedError, exc.CompileError, exc.InvalidRequestError)):
            connection.execute(statement)
        connection.commit()
    assert recorder.commits == []


def test_a_missing_value_of_a_not_null_column_is_an_integrity_error_at_the_flush(
    recorder: Recorder, session: Session
) -> None:
    session.add(Person(name=None))
    with pytest.raises(exc.IntegrityError, match=r"person\.name"):
        session.flush()
    session.rollback()
    with recorder.engine.begin() as connection, pytest.raises(exc.IntegrityError, match=r"pair\.value"):
        connection.execute(insert(pair).values(left=1, right=2))


def test_a_value_that_the_target_would_refuse_to_bind_is_refused_at_the_flush(session: Session) -> None:
    session.add(Person(name="Ada", colour="purple"))
    with pytest.raises(exc.StatementError, match="purple"):
        session.flush()


def test_a_primary_key_made_by_the_target_is_refused_with_advice() -> None:
    class Other(DeclarativeBase):
        pass

    class Made(Other):
        __tablename__ = "made"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
        x: Mapped[int]

    recorder = Recorder()
    with recorder.engine.connect() as connection, pytest.raises(NotCapturedError, match="Python-side default"):
        connection.execute(insert(Made.__table__).values(x=1))


def test_an_identity_column_gets_its_key_from_a_block() -> None:
    class Other(DeclarativeBase):
        pass

    class Made(Other):
        __tablename__ = "made"
        id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
        x: Mapped[int]

    recorder = Recorder()
    with Session(recorder.engine, expire_on_commit=False) as session:
        made = Made(x=1)
        session.add(made)
        session.commit()
        assert made.id == 101
    assert only(recorder).rows == [[1, 101]]


def test_names_are_plain_strings(recorder: Recorder, session: Session) -> None:
    session.add(Club(size=1))
    session.commit()
    change = only(recorder)
    assert {type(name) for name in (change.table.name, *change.columns)} == {str}


def test_what_the_database_keeps_current_has_the_commit_time(recorder: Recorder) -> None:
    kept = text("CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP")
    table = Table(
        "kept_current",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("n", Integer),
        Column("declared", DateTime, server_default=func.now(), server_onupdate=func.now()),
        Column("mysql", DateTime, server_default=kept, server_onupdate=FetchedValue()),
        Column("unknown", DateTime, server_default=func.now(), server_onupdate=FetchedValue()),
        Column("given", DateTime, server_default=kept),
    )
    with recorder.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "n": 1, "given": None}])
        connection.execute(table.update().where(table.c.id == 1).values(n=2, given=None))
    inserted, updated = recorder.changes
    assert isinstance(inserted, RowChanges)
    assert isinstance(updated, RowChanges)
    assert inserted.commit_times == ("declared", "mysql", "unknown")
    assert updated.commit_times == ("declared", "mysql")

"""Reads of what is no table, and of tables that change with others: they see what is committed to the log as well.

Everything is applied five seconds late here, or not at all: a read that does not wait for what it must comes too early.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    column,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    table,
    text,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    column_property,
    mapped_column,
    sessionmaker,
    with_loader_criteria,
)

import walsync
from tests.support.waiting import wait_until
from walsync.changes import TableName
from walsync.session.relations import Facts, TargetRelations, queries

LATE = walsync.CheckpointConfig(batch_delay_s=5.0)
PAUSED = walsync.CheckpointConfig(paused=True)

metadata = MetaData()
parcel = Table("parcel", metadata, Column("id", Integer, primary_key=True), Column("place", String(20)))
depot = Table("depot", metadata, Column("id", Integer, primary_key=True), Column("name", String(20)))
# The database has a foreign key here that acts; this metadata does not know it.
stamp = Table("stamp", metadata, Column("id", Integer, primary_key=True), Column("parcel_id", Integer))
history = Table("history", metadata, Column("id", Integer, primary_key=True), Column("what", String(20)))
parcel_view = table("parcel_view", column("id"), column("place"))

_STAMP = (
    "CREATE TABLE stamp (id INTEGER PRIMARY KEY, parcel_id INTEGER, "
    "CONSTRAINT stamp_parcel FOREIGN KEY (parcel_id) REFERENCES parcel (id) ON DELETE CASCADE)"
)


@pytest.fixture
def engine(target_url: str) -> Iterator[Engine]:
    engine = create_engine(target_url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def enforce(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    with engine.begin() as connection:
        for made in (parcel, depot, history):
            made.create(connection)
        connection.exec_driver_sql(_STAMP)
        connection.exec_driver_sql("CREATE VIEW parcel_view AS SELECT id, place FROM parcel")
    yield engine
    engine.dispose()


@contextmanager
def attached(
    engine: Engine, tmp_path: Path, checkpoint: walsync.CheckpointConfig = LATE, **options: Any
) -> Iterator[tuple[walsync.Journal, sessionmaker[Session]]]:
    factory = sessionmaker(engine)
    options.setdefault("read_timeout_s", 20.0)
    journal = walsync.attach(factory, tmp_path / "log", checkpoint=checkpoint, session=walsync.SessionConfig(**options))
    try:
        yield journal, factory
    finally:
        journal.close(drain=False)


def commit(factory: sessionmaker[Session], *statements: Any) -> None:
    with factory() as session:
        for statement in statements:
            session.execute(statement)
        session.commit()


PARCEL = insert(parcel).values(id=1, place="here")


def read_committed(session: Session) -> Session:
    """MariaDB's default would make the first read of each transaction wait for everything."""
    if session.get_bind().dialect.name in ("mysql", "mariadb"):
        session.connection(execution_options={"isolation_level": "READ COMMITTED"})
    return session


# ------------------------------------------------------------------------------------------------------- views


def test_a_read_of_a_view_sees_what_is_committed(engine: Engine, tmp_path: Path) -> None:
    reflected = Table("parcel_view", MetaData(), autoload_with=engine)
    with attached(engine, tmp_path) as (_, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalars(select(reflected.c.place)).all() == ["here"]
        commit(factory, update(parcel).where(parcel.c.id == 1).values(place="there"))
        with read_committed(factory()) as session:
            assert session.scalars(select(depot.c.id).where(select(parcel_view.c.id).exists())).all() == []
            assert session.scalars(select(parcel_view.c.place)).all() == ["there"]


def test_a_read_of_a_view_sees_the_transactions_own_writes(engine: Engine, tmp_path: Path) -> None:
    with attached(engine, tmp_path) as (journal, factory):
        with read_committed(factory()) as session:
            session.execute(PARCEL)
            assert session.scalars(select(parcel_view.c.place)).all() == ["here"]
            session.rollback()
            assert session.scalars(select(parcel_view.c.place)).all() == []
        assert set(journal.stats().direct_reasons) == {"read of its own uncommitted writes"}


def test_a_view_that_is_made_later_is_known_when_it_is_read(engine: Engine, tmp_path: Path) -> None:
    with attached(engine, tmp_path) as (_, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalars(select(depot)).all() == []
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE VIEW later AS SELECT place FROM parcel")
        with read_committed(factory()) as session:
            assert session.scalars(select(table("later", column("place")).c.place)).all() == ["here"]


def test_a_table_that_becomes_a_view_by_sql_of_a_session_is_known_at_once(engine: Engine, tmp_path: Path) -> None:
    with attached(engine, tmp_path) as (_, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalars(select(depot)).all() == []
        with factory() as session:
            session.execute(text("DROP TABLE depot"))
            session.execute(text("CREATE VIEW depot AS SELECT id, place AS name FROM parcel"))
            session.commit()
        commit(factory, update(parcel).where(parcel.c.id == 1).values(place="there"))
        with read_committed(factory()) as session:
            assert session.scalars(select(depot.c.name)).all() == ["there"]


def test_a_plain_table_is_read_at_once_while_others_wait(engine: Engine, tmp_path: Path) -> None:
    """Also where the transaction has written others; and the target is asked once."""
    asked: list[str] = []
    with attached(engine, tmp_path, PAUSED) as (journal, factory):
        event.listen(engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
        with read_committed(factory()) as session:
            assert session.scalars(select(depot)).all() == []
        assert len([sql for sql in asked if "master" in sql or "pg_class" in sql or "information_schema" in sql]) == 0
        commit(factory, PARCEL)
        del asked[:]
        for _ in range(3):
            with read_committed(factory()) as session:
                assert session.scalars(select(depot)).all() == []
                session.execute(insert(history).values(id=1, what="never"))
                assert session.scalars(select(depot)).all() == []
        assert journal.stats().direct_transactions == 0
        catalogue = {"sqlite": 'sqlite_master"', "postgresql": "FROM pg_class", "mysql": "information_schema.tables"}
        name = engine.dialect.name.replace("mariadb", "mysql")
        assert len([sql for sql in asked if catalogue[name].strip('"') in sql]) <= 2
        for name, waits in {"depot": False, "parcel": True, "parcel_view": True, "stamp": True}.items():
            assert journal.must_wait(journal.sources(frozenset({TableName(None, name)}))) is waits


def test_a_catalogue_that_does_not_answer_makes_reads_wait_for_everything(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: Any) -> Any:
        raise RuntimeError("no catalogue today")

    monkeypatch.setitem(queries.READERS, engine.dialect.name, refuse)
    with attached(engine, tmp_path, PAUSED, read_timeout_s=0.5) as (_, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session, pytest.raises(walsync.ReadTimeoutError, match="whole backlog"):
            session.execute(select(depot))


def test_a_catalogue_that_is_silent_is_waited_for_within_a_bound(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    reader = queries.READERS[engine.dialect.name]

    def block(connection: Any) -> Any:
        go_on.wait(20)
        return reader(connection)

    monkeypatch.setitem(queries.READERS, engine.dialect.name, block)
    checkpoint = walsync.CheckpointConfig(paused=True, check_timeout_s=0.1)
    with attached(engine, tmp_path, checkpoint, read_timeout_s=0.5) as (journal, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session, pytest.raises(walsync.ReadTimeoutError, match="whole backlog"):
            session.execute(select(depot))
        go_on.set()
        wait_until(lambda: journal.relations.known_sources(frozenset({TableName(None, "depot")})))
        with read_committed(factory()) as session:
            assert session.execute(select(depot)).all() == []


# -------------------------------------------------------------------------- tables that change with others


def test_a_foreign_key_that_only_the_database_knows_is_seen(engine: Engine, tmp_path: Path) -> None:
    with attached(engine, tmp_path) as (journal, factory):
        commit(factory, PARCEL, insert(stamp).values(id=1, parcel_id=1))
        journal.wait_applied(timeout=30)
        commit(factory, delete(parcel).where(parcel.c.id == 1))
        with read_committed(factory()) as session:
            assert session.scalars(select(stamp.c.id)).all() == []
        commit(factory, PARCEL, insert(stamp).values(id=1, parcel_id=1))
        with read_committed(factory()) as session:
            session.execute(delete(parcel).where(parcel.c.id == 1))
            assert session.scalars(select(stamp.c.id)).all() == [], "its own delete, too"


def _make_trigger(engine: Engine) -> None:
    body = "INSERT INTO history (id, what) VALUES (NEW.id, NEW.place)"
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                f"CREATE FUNCTION note() RETURNS trigger AS $$ BEGIN {body}; RETURN NEW; END $$ LANGUAGE plpgsql"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER noting AFTER INSERT ON parcel FOR EACH ROW EXECUTE FUNCTION note()"
            )
        elif engine.dialect.name == "sqlite":
            connection.exec_driver_sql(f"CREATE TRIGGER noting AFTER INSERT ON parcel BEGIN {body}; END")
        else:
            connection.exec_driver_sql(f"CREATE TRIGGER noting AFTER INSERT ON parcel FOR EACH ROW {body}")


def test_what_a_trigger_writes_is_seen(engine: Engine, tmp_path: Path) -> None:
    _make_trigger(engine)
    with attached(engine, tmp_path) as (_, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalars(select(history.c.what)).all() == ["here"]
            session.execute(insert(parcel).values(id=2, place="there"))
            assert session.scalars(select(history.c.what).order_by(history.c.id)).all() == ["here", "there"]


def test_a_trigger_that_is_made_later_is_known_after_resume(engine: Engine, tmp_path: Path) -> None:
    with attached(engine, tmp_path) as (journal, factory):
        commit(factory, insert(depot).values(id=1, name="one"))
        with read_committed(factory()) as session:
            assert session.scalars(select(history.c.what)).all() == []
        _make_trigger(engine)
        journal.resume()
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalars(select(history.c.what)).all() == ["here"]


def test_a_table_is_the_same_with_its_schema_and_without(engine: Engine, tmp_path: Path) -> None:
    names = {"sqlite": "main", "postgresql": "public"}
    other = Table(
        "PARCEL" if engine.dialect.name == "sqlite" else "parcel",
        MetaData(schema=names.get(engine.dialect.name, engine.url.database)),
        *(Column(part.name, part.type, primary_key=part.primary_key) for part in parcel.columns),
    )
    with attached(engine, tmp_path) as (_, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalars(select(other.c.place)).all() == ["here"]
        commit(factory, update(other).where(other.c.id == 1).values(place="there"))
        with read_committed(factory()) as session:
            assert session.scalars(select(parcel.c.place)).all() == ["there"]
        with read_committed(factory()) as session:
            session.execute(update(other).where(other.c.place == "there").values(place="away"))
            assert session.scalars(select(parcel.c.place)).all() == ["away"]


# ------------------------------------------------------------------------------------ functions, and the rest


def test_a_function_of_the_database_sees_what_is_committed(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "CREATE FUNCTION how_many() RETURNS bigint AS 'SELECT count(*) FROM parcel' LANGUAGE sql STABLE"
            )
        elif engine.dialect.name == "sqlite":
            pytest.skip("functions of SQLite are the application's, and have no connection")
        else:
            connection.exec_driver_sql(
                "CREATE FUNCTION how_many() RETURNS bigint READS SQL DATA RETURN (SELECT count(*) FROM parcel)"
            )
    with attached(engine, tmp_path) as (journal, factory):
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            assert session.scalar(select(func.how_many())) == 1
        commit(factory, insert(parcel).values(id=2, place="there"))
        with read_committed(factory()) as session:
            assert session.scalars(select(depot.c.id).where(depot.c.id < func.how_many())).all() == []
            assert session.scalar(func.how_many()) == 2
        assert "SELECT with a function that is not known" in journal.stats().direct_reasons


def test_what_a_function_in_a_recorded_statement_writes_is_seen(engine: Engine, tmp_path: Path) -> None:
    body = "INSERT INTO history (id, what) VALUES (1, 'noted')"
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                f"CREATE FUNCTION note_it(place text) RETURNS text LANGUAGE sql AS $$ {body}; SELECT place $$"
            )
        elif engine.dialect.name == "sqlite":
            pytest.skip("functions of SQLite are the application's, and have no connection")
        else:
            connection.exec_driver_sql(
                f"CREATE FUNCTION note_it(place text) RETURNS text MODIFIES SQL DATA BEGIN {body}; RETURN place; END"
            )
    with attached(engine, tmp_path) as (journal, factory):
        commit(factory, PARCEL)
        commit(factory, update(parcel).values(place=func.note_it(parcel.c.place)))
        assert journal.stats().direct_transactions == 0
        with read_committed(factory()) as session:
            assert session.scalars(select(history.c.what)).all() == ["noted"]


def test_what_a_statement_writes_in_a_cte_is_seen(engine: Engine, tmp_path: Path) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("an INSERT in a CTE is PostgreSQL's")
    inner = insert(depot).values(id=7, name="inner").returning(depot.c.id).cte("made")
    with attached(engine, tmp_path) as (journal, factory):
        commit(factory, insert(parcel).from_select(["id"], select(inner.c.id)))
        assert journal.stats().direct_transactions == 0
        with factory() as session:
            assert session.scalars(select(depot.c.name)).all() == ["inner"]


def test_a_function_that_returns_rows_sees_what_is_committed(engine: Engine, tmp_path: Path) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("a function that returns rows is PostgreSQL's")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION parcels() RETURNS TABLE (id int, place varchar) AS 'SELECT id, place FROM parcel' "
            "LANGUAGE sql STABLE"
        )
    with attached(engine, tmp_path) as (_, factory):
        for number, rows in enumerate(
            [
                lambda: func.parcels().table_valued("id", "place").c.place,
                lambda: func.parcels().scalar_table_valued("place"),
                lambda: func.parcels().table_valued("id", "place").alias("other").c.place,
            ]
        ):
            commit(factory, insert(parcel).values(id=number, place="here"))
            with factory() as session:
                assert len(session.scalars(select(rows())).all()) == number + 1


def test_partitions_and_tables_that_inherit_are_one_with_their_parents(engine: Engine, tmp_path: Path) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("inheritance is PostgreSQL's")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE event (id int PRIMARY KEY, what varchar) PARTITION BY RANGE (id)")
        connection.exec_driver_sql("CREATE TABLE event_low PARTITION OF event FOR VALUES FROM (0) TO (100)")
        connection.exec_driver_sql("CREATE TABLE base (id int PRIMARY KEY, what varchar)")
        connection.exec_driver_sql("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (base)")
        connection.exec_driver_sql("CREATE MATERIALIZED VIEW frozen AS SELECT id FROM base")
    tables = MetaData()
    names = ("event", "event_low", "base", "child")
    whole, low, base, child = (
        Table(name, tables, Column("id", Integer, primary_key=True), Column("what", String)) for name in names
    )
    with attached(engine, tmp_path) as (_, factory):
        commit(factory, insert(whole).values(id=1, what="a"))
        with factory() as session:
            assert session.scalars(select(low.c.what)).all() == ["a"]
        commit(factory, insert(low).values(id=2, what="b"))
        with factory() as session:
            assert session.scalars(select(whole.c.what).order_by(whole.c.id)).all() == ["a", "b"]
        commit(factory, insert(child).values(id=1, what="c"))
        with factory() as session:
            assert session.scalars(select(base.c.what)).all() == ["c"]
            session.execute(insert(child).values(id=2, what="d"))
            assert session.scalars(select(func.count()).select_from(base)).all() == [2]
            session.commit()
        commit(factory, text("REFRESH MATERIALIZED VIEW frozen"))
        commit(factory, insert(child).values(id=3, what="e"))
        with factory() as session:
            assert len(session.scalars(select(table("frozen", column("id")).c.id)).all()) == 2
            assert len(session.scalars(select(base.c.id)).all()) == 3


def test_column_properties_and_loader_criteria_inside_of_a_subquery_are_seen(engine: Engine, tmp_path: Path) -> None:
    """They are in the SQL, and not in the construct."""

    class Base(DeclarativeBase):
        pass

    class Place(Base):
        __tablename__ = "depot"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(20))
        parcels: Mapped[int] = column_property(
            select(func.count(parcel.c.id)).where(parcel.c.place != "").correlate_except(parcel).scalar_subquery()
        )

    with attached(engine, tmp_path) as (_, factory):
        commit(factory, insert(depot).values(id=1, name="one"))
        commit(factory, PARCEL)
        with read_committed(factory()) as session:
            inner = select(Place).subquery()
            assert session.execute(select(inner.c.parcels)).scalar_one() == 1
        commit(factory, insert(parcel).values(id=2, place="there"))
        with read_committed(factory()) as session:
            assert session.scalars(select(aliased(Place, select(Place).subquery()))).one().parcels == 2
        commit(factory, update(parcel).values(place="one"))
        criteria = with_loader_criteria(Place, lambda cls: cls.name.in_(select(parcel.c.place)))
        with read_committed(factory()) as session:
            inner = select(Place.id).subquery()
            assert session.scalars(select(inner.c.id).options(criteria)).all() == [1]


# ----------------------------------------------------------------------------------------------- stale reads


def test_a_read_after_a_stale_one_is_not_stale(engine: Engine, tmp_path: Path) -> None:
    """Also where the database shows a transaction what its first read saw."""
    if engine.dialect.name != "sqlite":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log", checkpoint=PAUSED) as journal:
        commit(factory, PARCEL)
        with factory() as session:
            stale = {"walsync_read": "stale"}
            assert session.scalars(select(parcel.c.id), execution_options=stale).all() == []
            journal.resume()
            assert session.scalars(select(parcel.c.id)).all() == [1]
            commit(factory, insert(parcel).values(id=2, place="there"))
            assert len(session.scalars(select(parcel.c.id), execution_options=stale).all()) in (1, 2)


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_the_target_said_is_asked_again_after_a_while() -> None:
    answers = [Facts(plain=["a"]), Facts(plain=["A", "b"], active=["b"]), Facts(plain=["a"], other=["a"])]
    clock = _Clock()
    relations = TargetRelations(lambda reader: answers.pop(0), "sqlite", max_age_s=60.0, timeout_s=20.0, clock=clock)
    a, b = (frozenset({TableName(None, name)}) for name in "ab")
    assert relations.sources(a) == a
    clock.now = 59.0
    assert relations.sources(a) == a
    clock.now = 61.0
    assert relations.sources(a) == a | b
    assert relations.known_sources(b) == b
    clock.now = 63.0
    assert relations.note_written(a, relations.known), "it is known"
    assert not relations.note_written({TableName(None, "new")}, relations.known)
    assert relations.known is None
    assert relations.note_written({TableName(None, "new")}, None), "there is nothing to forget"
    assert relations.sources(a) is None, "there is a view of that name as well"

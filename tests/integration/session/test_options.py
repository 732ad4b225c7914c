"""Execution options that say what statements mean: a schema that is translated, an isolation level.

Each program does with an attached session what it does with a plain one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, select, text, update
from sqlalchemy.exc import SAWarning
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.types import String

import walsync

TENANT = f"walsync_tenant_{os.getpid()}"  # a database of its own on MariaDB
TRANSLATED = {"schema_translate_map": {None: TENANT}}
REASON = "execution options"


class Base(DeclarativeBase):
    pass


class Guest(Base):
    __tablename__ = "guest"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


@pytest.fixture
def engine(target_url: str, tmp_path: Path) -> Iterator[Engine]:
    """With one table in the default schema, and one of the same name in the tenant's."""
    engine = create_engine(target_url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def attach(connection: Any, record: Any) -> None:
            connection.execute(f"ATTACH DATABASE '{tmp_path / 'tenant.sqlite'}' AS {TENANT}")

    else:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {TENANT}{_cascade(engine)}"))
            connection.execute(text(f"CREATE SCHEMA {TENANT}"))
    for options in ({}, TRANSLATED):
        Base.metadata.create_all(engine.execution_options(**options))
    yield engine
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {TENANT}{_cascade(engine)}"))
    engine.dispose()


def _cascade(engine: Engine) -> str:
    return " CASCADE" if engine.dialect.name == "postgresql" else ""


@pytest.fixture
def factory(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


def names(engine: Engine) -> tuple[list[str], list[str]]:
    """Those in the default schema's table, and those in the tenant's; which are empty then."""
    found = []
    with engine.begin() as connection:
        for schema in ("", f"{TENANT}."):
            found.append(sorted(connection.scalars(text(f"SELECT name FROM {schema}guest"))))
            connection.execute(text(f"DELETE FROM {schema}guest"))
    return found[0], found[1]


Program = Callable[[sessionmaker[Session]], Any]


def of_a_connection(factory: sessionmaker[Session]) -> Any:
    with factory() as session:
        session.connection(execution_options=TRANSLATED)
        session.add(Guest(name="added"))
        session.commit()
    with factory() as session:
        session.connection(execution_options=TRANSLATED)
        session.execute(insert(Guest), [{"name": "bulk"}, {"name": "bulk too"}])
        session.execute(update(Guest).where(Guest.name == "added").values(name="updated"))
        seen = session.scalars(select(Guest.name).order_by(Guest.id)).all()
        session.commit()
    with factory() as session:
        session.add(Guest(name="of no tenant"))
        session.commit()
        return seen, session.scalars(select(Guest.name)).all()


def of_a_connection_later(factory: sessionmaker[Session]) -> Any:
    with factory() as session:
        session.add(Guest(name="before"))
        session.flush()
        session.connection().execution_options(**TRANSLATED)
        session.add(Guest(name="after"))
        session.flush()
        seen = session.scalars(select(Guest.name)).all()
        session.commit()
        return seen


def of_a_statement(factory: sessionmaker[Session]) -> Any:
    with factory() as session:
        session.execute(insert(Guest), [{"name": "bulk"}], execution_options=TRANSLATED)
        session.execute(insert(Guest).values(name="single").execution_options(**TRANSLATED))
        session.execute(insert(Guest.__table__), {"name": "core"}, execution_options=TRANSLATED)
        session.commit()
        session.execute(update(Guest).values(name=Guest.name + "!"), execution_options=TRANSLATED)
        seen = session.scalars(select(Guest.name).order_by(Guest.name).execution_options(**TRANSLATED)).all()
        session.commit()
        return seen


def of_a_given_connection(factory: sessionmaker[Session]) -> Any:
    with factory() as session:
        # Keys of the other table are reserved by now.
        session.add(Guest(name="of no tenant"))
        session.commit()
    engine: Engine = factory.kw["bind"]
    with engine.connect().execution_options(**TRANSLATED) as connection, factory(bind=connection) as session:
        session.add_all([Guest(name="one"), Guest(name="two")])
        session.commit()
        return session.scalars(select(Guest.name).order_by(Guest.id)).all()


def in_a_savepoint(factory: sessionmaker[Session]) -> Any:
    with factory() as session:
        session.connection(execution_options=TRANSLATED)
        with session.begin_nested() as savepoint:
            session.add(Guest(name="gone"))
            session.flush()
            savepoint.rollback()
        with session.begin_nested():
            session.add(Guest(name="kept"))
        seen = session.scalars(select(Guest.name)).all()
        session.commit()
        return seen


PROGRAMS: list[Program] = [
    of_a_connection,
    of_a_connection_later,
    of_a_statement,
    of_a_given_connection,
    in_a_savepoint,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("taken", [0, 3], ids=["", "keys are taken there"])
def test_what_is_translated_goes_where_it_is_meant(
    engine: Engine, factory: sessionmaker[Session], tmp_path: Path, program: Program, taken: int
) -> None:
    results = []
    for attached in (False, True):
        with engine.begin() as connection:
            for _ in range(taken):
                connection.execute(insert(Guest).values(name="taken").execution_options(**TRANSLATED))
        if attached:
            with walsync.attach(factory, tmp_path / "log") as journal:
                result = program(factory)
                journal.wait_applied(timeout=60)
                assert sum(journal.stats().direct_reasons.values())
        else:
            result = program(sessionmaker(engine))
        results.append((result, names(engine)))
    assert results[0] == results[1]
    assert results[0][1][1]


def test_a_session_made_with_such_options(engine: Engine, tmp_path: Path) -> None:
    if "execution_options" not in inspect.signature(Session.__init__).parameters:
        return  # since SQLAlchemy 2.1
    factory = sessionmaker(engine, execution_options=TRANSLATED)
    with walsync.attach(factory, tmp_path / "log") as journal:
        for _ in range(2):
            with factory() as session:
                session.add(Guest(name="added"))
                session.execute(insert(Guest), [{"name": "bulk"}])
                session.commit()
                assert session.scalars(select(Guest.name).order_by(Guest.name)).all()[:1] == ["added"]
        assert journal.stats().direct_reasons == {REASON: 2}
    assert names(engine) == ([], ["added", "added", "bulk", "bulk"])


def test_options_for_a_connection_that_is_there_are_ignored_with_a_warning(
    engine: Engine, factory: sessionmaker[Session], tmp_path: Path
) -> None:
    def program(factory: sessionmaker[Session]) -> None:
        with factory() as session:
            session.add(Guest(name="one"))
            session.flush()
            with pytest.warns(SAWarning, match="execution_options ignored"):
                session.connection(execution_options=TRANSLATED)
            session.add(Guest(name="two"))
            session.commit()

    program(sessionmaker(engine))
    assert names(engine) == (["one", "two"], [])
    with walsync.attach(factory, tmp_path / "log") as journal:
        program(factory)
        assert journal.stats().buffered_transactions == 1
    assert names(engine) == (["one", "two"], [])


def test_an_isolation_level_is_kept_to(engine: Engine, factory: sessionmaker[Session], tmp_path: Path) -> None:
    with walsync.attach(factory, tmp_path / "log") as journal:
        with factory() as session:
            connection = session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            session.add(Guest(name="one"))
            session.flush()
            assert session.connection() is connection
            assert connection.get_isolation_level() == "SERIALIZABLE"
            session.commit()
        assert journal.stats().direct_reasons == {REASON: 1}
        with factory() as session:
            session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            session.scalars(select(Guest)).all()
            session.commit()
            session.add(Guest(name="two"))
            session.commit()
        assert journal.stats().direct_transactions == 1, "of reads it is nobody's affair, and of the next transaction"
        assert journal.stats().buffered_transactions == 1
    assert names(engine) == (["one", "two"], [])


def test_other_options_change_nothing(engine: Engine, factory: sessionmaker[Session], tmp_path: Path) -> None:
    with walsync.attach(factory, tmp_path / "log") as journal:
        with factory() as session:
            session.connection(execution_options={"logging_token": "mine", "stream_results": True})
            session.add(Guest(name="one"))
            session.commit()
        assert journal.stats().buffered_transactions == 1
    assert names(engine) == (["one"], [])

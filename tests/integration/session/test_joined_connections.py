"""Sessions that work in a transaction of their caller's: without the log, and with everything that is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, text
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session import models
from tests.integration.session.conftest import Attach
from tests.integration.session.models import Audit, Author, Tag
from tests.support.databases import make_transactions_real

Factory = sessionmaker[Session]
SHORT = walsync.SessionConfig(read_timeout_s=0.05)
PAUSED = walsync.CheckpointConfig(paused=True)


@pytest.fixture
def engine(target_url: str) -> Any:
    # MariaDB's own default shows a transaction what its first read saw.
    engine = create_engine(target_url, isolation_level="READ COMMITTED") if "mysql" in target_url else None
    engine = engine or create_engine(target_url)
    models.create(engine)
    yield engine
    engine.dispose()


def commit(factory: Factory, *objects: Any) -> None:
    with factory() as session:
        session.add_all(objects)
        session.commit()


def names(session: Session) -> list[str]:
    return list(session.scalars(select(Tag.name).order_by(Tag.name)))


def test_what_is_committed_is_waited_for(attach: Attach, factory: Factory, engine: Engine) -> None:
    journal = attach(checkpoint=PAUSED, session=SHORT)
    commit(factory, Tag(name="committed"))
    with engine.connect() as connection, factory(bind=connection) as session:
        for _ in range(2):  # the second time its transaction has begun
            with pytest.raises(walsync.ReadTimeoutError):
                names(session)
        with pytest.raises(walsync.ReadTimeoutError):
            session.get(Tag, "committed")
        session.rollback()
        journal.resume()
        journal.wait_applied(timeout=20)
        assert names(session) == ["committed"]


def test_a_later_read_waits_as_well(attach: Attach, factory: Factory, engine: Engine) -> None:
    journal = attach()
    with engine.connect() as connection, factory(bind=connection) as session:
        assert names(session) == []
        for number in range(5):
            commit(factory, Tag(name=f"tag {number}"))
            assert len(names(session)) == number + 1
    assert journal.stats().direct_reasons == {"bound to a connection": 1}


@pytest.mark.parametrize("how", ["flush", "statement", "text"])
def test_once_it_has_written_it_waits_no_more(attach: Attach, factory: Factory, engine: Engine, how: str) -> None:
    journal = attach(session=SHORT)
    with engine.connect() as connection:
        outer = connection.begin()
        with factory(bind=connection) as session:
            if how == "flush":
                session.add(Tag(name="own"))
                session.flush()
            elif how == "statement":
                session.execute(insert(Tag), [{"name": "own"}])
            else:
                session.execute(text("INSERT INTO tag (name) VALUES ('own')"))
            journal.pause()
            commit(factory, Tag(name="waiting"))
            assert names(session) == ["own"]
            session.commit()
            # The session's next transaction lies in the same one of the connection.
            assert names(session) == ["own"]
        outer.rollback()
    journal.resume()
    with factory() as session:
        journal.wait_applied(timeout=20)
        assert names(session) == ["waiting"]


def test_a_rollback_of_the_caller_takes_everything_back(attach: Attach, factory: Factory, engine: Engine) -> None:
    make_transactions_real(engine)
    journal = attach()
    commit(factory, Author(name="before"))
    for _ in range(3):
        with engine.connect() as connection:
            outer = connection.begin()
            with factory(bind=connection, join_transaction_mode="create_savepoint") as session:
                session.add(Author(name="gone"))
                session.execute(insert(Author), [{"name": "gone as well"}])
                session.commit()
                session.add(Audit(what="gone, too"))
                session.flush()
                session.rollback()
                assert session.scalar(select(func.count()).select_from(Author)) == 3
            outer.rollback()
    commit(factory, Author(name="after"))
    with factory() as session:
        assert session.scalars(select(Author.name).order_by(Author.name)).all() == ["after", "before"]
    assert journal.stats().buffered_transactions == 2


def test_its_keys_are_nobody_elses(attach: Attach, factory: Factory, engine: Engine) -> None:
    journal = attach(keys=walsync.KeyConfig(block_keys=3))
    expected = 0
    for turn in range(8):
        commit(factory, *[Author(name=f"buffered {turn}") for _ in range(2)])
        with engine.begin() as connection, factory(bind=connection) as session:
            session.add_all([Author(name=f"joined {turn}") for _ in range(2)])
            session.flush()
            session.execute(insert(Author), [{"name": f"bulk {turn}"}])
            session.commit()
        expected += 5
    journal.wait_applied(timeout=20)
    with factory() as session:
        assert session.scalar(select(func.count()).select_from(Author)) == expected
    assert journal.stats().rejected_entry_id is None


def test_what_the_session_had_buffered_goes_with_it(attach: Attach, factory: Factory, engine: Engine) -> None:
    journal = attach()
    other = engine.execution_options(logging_token="other")
    with factory() as session:
        session.add(Tag(name="buffered"))
        session.flush()
        session.connection(bind_arguments={"bind": other})
        session.rollback()
    assert journal.stats().buffered_transactions == 0
    with factory() as session:
        assert names(session) == []


def test_a_session_in_another_sessions_transaction(attach: Attach, factory: Factory) -> None:
    attach()
    with factory() as outer:
        outer.add(Tag(name="outer"))
        outer.flush()
        with factory(bind=outer.connection()) as inner:
            inner.add(Tag(name="inner"))
            inner.commit()
            assert names(inner) == ["inner", "outer"]
        outer.commit()
    with factory() as session:
        assert names(session) == ["inner", "outer"]


def test_a_connection_to_another_database_is_left_alone(attach: Attach, factory: Factory, tmp_path: Path) -> None:
    journal = attach(checkpoint=PAUSED, session=SHORT)
    commit(factory, Tag(name="waiting"))
    other = create_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
    models.create(other)
    with other.begin() as connection, factory(bind=connection) as session:
        session.add_all([Tag(name="elsewhere"), Author(name="elsewhere")])
        session.commit()
        assert names(session) == ["elsewhere"]
    stats = journal.stats()
    assert (stats.buffered_transactions, stats.direct_transactions) == (1, 0)
    other.dispose()


def test_a_session_can_go_back_to_the_log(attach: Attach, factory: Factory, engine: Engine) -> None:
    journal = attach()
    with factory() as session:
        with engine.begin() as connection:
            session.bind = connection
            session.add(Tag(name="direct"))
            session.commit()
            session.close()
        session.bind = engine
        session.add(Tag(name="buffered"))
        session.commit()
        assert names(session) == ["buffered", "direct"]
    stats = journal.stats()
    assert (stats.buffered_transactions, stats.direct_transactions) == (1, 1)

"""attach(): what it takes, what it refuses, and what is left when the journal is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import walsync
from tests.integration.session.models import Audit, Author, Base


@pytest.fixture
def engine(sqlite_url: str) -> Any:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Author)) or 0


def commit_one(session: Session) -> None:
    session.add(Author(name="Ada"))
    session.commit()
    session.close()


def test_a_sessionmaker(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        commit_one(factory())
        assert journal.stats().buffered_transactions == 1
    assert count(engine) == 1, "closing drains"


def test_two_sessionmakers_of_one_engine_do_not_disturb_each_other(engine: Engine, tmp_path: Path) -> None:
    attached, other = sessionmaker(engine), sessionmaker(engine)
    with walsync.attach(attached, tmp_path / "log") as journal:
        commit_one(other())
        assert journal.stats().buffered_transactions == 0
        assert count(engine) == 1


def test_a_sessionmaker_of_a_session_subclass_keeps_its_methods(engine: Engine, tmp_path: Path) -> None:
    class Own(Session):
        def greet(self) -> str:
            return "hello"

    factory = sessionmaker(engine, class_=Own)
    with walsync.attach(factory, tmp_path / "log") as journal:
        session = factory()
        assert session.greet() == "hello"
        commit_one(session)
        assert journal.stats().buffered_transactions == 1


def test_a_session_subclass_with_an_execute_of_its_own(engine: Engine, tmp_path: Path) -> None:
    """It gets what its caller gave, and no argument more."""
    seen: list[dict[str, Any]] = []

    class Own(Session):
        def execute(self, statement: Any, params: Any = None, **kw: Any) -> Any:
            seen.append(kw)
            return super().execute(statement, params, **kw)

    factory = sessionmaker(engine, class_=Own)
    with walsync.attach(factory, tmp_path / "log") as journal, factory() as session:
        session.execute(insert(Author).values(name="Ada"))
        session.commit()
        options = {"walsync_read": "fresh"}
        assert session.execute(select(Author.name), execution_options=options).scalar() == "Ada"
        assert journal.stats().buffered_transactions == 1
    assert seen == [{}, {"execution_options": options}]


def test_a_scoped_session(engine: Engine, tmp_path: Path) -> None:
    registry = scoped_session(sessionmaker(engine))
    with walsync.attach(registry, tmp_path / "log") as journal:
        registry.add(Author(name="Ada"))
        registry.commit()
        assert journal.last_entry(registry) == 1
        registry.remove()
    assert count(engine) == 1


def test_a_scoped_session_that_is_in_use_is_refused(engine: Engine, tmp_path: Path) -> None:
    registry = scoped_session(sessionmaker(engine))
    registry()
    with pytest.raises(walsync.AttachError, match="remove"):
        walsync.attach(registry, tmp_path / "log")
    registry.remove()


def test_a_session_subclass(engine: Engine, tmp_path: Path) -> None:
    class Own(Session):
        def __init__(self, **kw: Any) -> None:
            super().__init__(engine, expire_on_commit=False, **kw)

    class Sibling(Session):
        pass

    with walsync.attach(Own, tmp_path / "log", target=engine) as journal:
        commit_one(Own())
        with Sibling(engine) as sibling:
            sibling.add(Audit(what="by the way"))
            sibling.commit()
        assert journal.stats().buffered_transactions == 1
    assert count(engine) == 1
    commit_one(Own())
    assert count(engine) == 2


def test_a_single_session(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine, expire_on_commit=False)
    with walsync.attach(session, tmp_path / "log") as journal:
        session.add(Author(name="Ada"))
        session.commit()
        assert journal.stats().buffered_transactions == 1
        assert session.scalars(select(Author.name)).all() == ["Ada"]
        session.close()
        journal.wait_applied(timeout=20)
        commit_one(Session(engine))
        assert journal.stats().buffered_transactions == 1
    session.add(Author(name="Eve"))
    session.commit()
    session.close()
    assert count(engine) == 3
    assert type(session) is Session


def test_an_unbound_factory_with_a_target(engine: Engine, tmp_path: Path) -> None:
    factory: sessionmaker[Session] = sessionmaker()
    with walsync.attach(factory, tmp_path / "log", target=engine):
        commit_one(factory())
    assert count(engine) == 1
    assert factory.kw["bind"] is None


def test_a_session_made_with_another_bind_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    other = create_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
    Base.metadata.create_all(other)
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        commit_one(factory(bind=other))
        assert journal.stats().buffered_transactions == 0
    assert (count(engine), count(other)) == (0, 1)
    other.dispose()


def test_factories_do_not_expire_unless_told(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(engine)
    for wanted in (False, True):
        with walsync.attach(factory, tmp_path / f"log{wanted}", expire_on_commit=wanted):
            assert factory().expire_on_commit is wanted
        assert factory().expire_on_commit is True


def test_closing_detaches_and_a_second_attach_works(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(engine)
    for _ in range(2):
        with walsync.attach(factory, tmp_path / "log") as journal:
            commit_one(factory())
            assert journal.stats().buffered_transactions == 1
        commit_one(factory())
    assert count(engine) == 4
    assert "get_bind" not in vars(factory.class_)


def test_a_transaction_left_open_by_close_raises_when_it_commits(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(engine)
    journal = walsync.attach(factory, tmp_path / "log")
    session = factory()
    session.add(Author(name="Ada"))
    session.flush()
    journal.close()
    with pytest.raises(walsync.WalsyncError):
        session.commit()
    session.close()
    assert count(engine) == 0


def test_a_second_journal_on_a_directory_that_is_not_shared_is_refused(engine: Engine, tmp_path: Path) -> None:
    alone = walsync.LogConfig(shared=False)
    with walsync.attach(sessionmaker(engine), tmp_path / "log", log=alone):
        with pytest.raises(walsync.LogLockedError, match="log"):
            walsync.attach(sessionmaker(engine), tmp_path / "log")


def test_two_journals_of_one_process_share_a_log(engine: Engine, tmp_path: Path) -> None:
    one, other = sessionmaker(engine), sessionmaker(engine)
    with walsync.attach(one, tmp_path / "log") as first, walsync.attach(other, tmp_path / "log") as second:
        assert (first.stats().state, second.stats().state) == ("running", "standby")
        with one() as session:
            session.add(Author(name="Ada"))
            session.commit()
        with other() as session:
            assert session.scalars(select(Author.name)).all() == ["Ada"]


@pytest.mark.parametrize("wrong", ["engine", "text", "object", "Session", "unbound", "binds", "twophase", "connection"])
def test_what_cannot_be_attached_raises_and_nothing_is_opened(engine: Engine, tmp_path: Path, wrong: str) -> None:
    connection = engine.connect()
    given: Any = {
        "engine": engine,
        "text": "sqlite://",
        "object": object(),
        "Session": Session,
        "unbound": sessionmaker(),
        "binds": sessionmaker(engine, binds={Author: create_engine("sqlite://")}),
        "twophase": sessionmaker(engine, twophase=True),
        "connection": sessionmaker(connection),
    }[wrong]
    with pytest.raises(walsync.AttachError):
        walsync.attach(given, tmp_path / "log")
    connection.close()
    assert not (tmp_path / "log").exists()


def test_sessions_that_are_attached_are_not_attached_again(engine: Engine, tmp_path: Path) -> None:
    """Each journal would take the other's engine for a strange one."""
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        for again in (factory, scoped_session(factory), factory()):
            with pytest.raises(walsync.AttachError, match="attached already"):
                walsync.attach(again, tmp_path / "second", target=engine)
        assert not (tmp_path / "second").exists()
        commit_one(factory())
        assert journal.stats().buffered_transactions == 1


def test_another_target_than_the_bind_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(walsync.AttachError, match="target="):
        walsync.attach(sessionmaker(engine), tmp_path / "log", target=create_engine("sqlite://"))


def test_a_target_that_is_none_of_the_engines_is_refused(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(binds={Author: engine})
    with pytest.raises(walsync.AttachError, match="target="):
        walsync.attach(factory, tmp_path / "log", target=create_engine("sqlite://"))


def test_binds_to_one_engine_need_no_target_and_no_bind(engine: Engine, tmp_path: Path) -> None:
    factory: sessionmaker[Session] = sessionmaker(binds={Base: engine})
    with walsync.attach(factory, tmp_path / "log") as journal:
        commit_one(factory())
        assert journal.stats().buffered_transactions == 1
        assert factory.kw["bind"] is None
    assert count(engine) == 1


def test_a_single_session_with_binds(engine: Engine, tmp_path: Path) -> None:
    session = Session(binds={Base: engine}, expire_on_commit=False)
    with walsync.attach(session, tmp_path / "log") as journal:
        commit_one(session)
        assert journal.stats().buffered_transactions == 1
        assert session.bind is None
    assert count(engine) == 1


def test_include_takes_only_mapped_classes_and_tables(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(walsync.AttachError, match="include"):
        walsync.attach(sessionmaker(engine), tmp_path / "log", include=["author"])


def test_metadata_of_the_session_travels_with_the_entry(engine: Engine, tmp_path: Path) -> None:
    from sqlalchemy import event

    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        seen: list[Any] = []
        event.listen(journal, "after_append", lambda journal, entry_id, change_set: seen.append(change_set.metadata))
        with factory(info={"walsync.metadata": {"request": "r1"}}) as session:
            commit_one(session)
        with factory(info={"walsync.metadata": "r2"}) as session, pytest.raises(walsync.UsageError, match="dict"):
            commit_one(session)
        assert seen == [{"request": "r1"}]


def test_listeners_of_appends_are_called_from_when_they_listen_until_they_are_removed(
    engine: Engine, tmp_path: Path
) -> None:
    from sqlalchemy import event

    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        seen: list[tuple[str, int]] = []

        def by_journal(journal: walsync.Journal, entry_id: int, change_set: walsync.ChangeSet) -> None:
            assert change_set.entry_id == entry_id
            seen.append(("journal", entry_id))

        def by_class(journal: walsync.Journal, entry_id: int, change_set: walsync.ChangeSet) -> None:
            seen.append(("class", entry_id))

        def commit() -> None:
            with factory() as session:
                commit_one(session)

        commit()
        event.listen(walsync.Journal, "after_append", by_class)
        try:
            commit()
            event.listen(journal, "after_append", by_journal)
            commit()
        finally:
            event.remove(walsync.Journal, "after_append", by_class)
        commit()
        event.remove(journal, "after_append", by_journal)
        commit()
        assert seen == [("class", 2), ("class", 3), ("journal", 3), ("journal", 4)]


def test_the_journals_engine_is_for_core(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        with journal.engine.begin() as connection:
            connection.execute(Author.__table__.insert(), [{"name": "Ada"}, {"name": "Eve"}])
        with journal.engine.connect() as connection:
            connection.execute(Author.__table__.insert().values(name="Joe"))
        with factory() as session:
            assert session.scalars(select(Author.name).order_by(Author.name)).all() == ["Ada", "Eve"]


def test_wait_applied_by_token(engine: Engine, tmp_path: Path) -> None:
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log", checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        with factory() as session:
            assert journal.last_entry(session) is None
            commit_one(session)
            token = journal.last_entry(session)
        assert token == 1
        with pytest.raises(TimeoutError):
            journal.wait_applied(token, timeout=0.05)
        journal.resume()
        journal.wait_applied(token, timeout=20)
        assert count(engine) == 1


def test_a_natural_key_may_be_reused_in_later_entries(engine: Engine, tmp_path: Path) -> None:
    class Other(DeclarativeBase):
        pass

    class Item(Other):
        __tablename__ = "item"
        code: Mapped[str] = mapped_column(primary_key=True)
        value: Mapped[int]

    Other.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log") as journal:
        for value in range(3):
            with factory() as session:
                item = Item(code="a", value=value)
                session.add(item)
                session.commit()
                session.delete(item)
                session.commit()
        journal.wait_applied(timeout=20)
    with Session(engine) as session:
        assert session.scalars(select(Item)).all() == []

"""What a session is bound to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, func, insert, inspect, select, text, update
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.contract.captured.case_unit_of_work import one
from tests.contract.captured.model import Audit, Author, Book, Outside, Tag
from tests.contract.captured.registry import buffered, direct, error, untouched

OWN = "bound to a connection"
JOINED = "session bound to a connection to the target: `factory(bind=connection)`, `session.bind = connection`"


def _work(session: Session) -> Any:
    session.add(Author(label="new", books=[Book(label="one")]))
    one(session, Author, label="bob").visits = 9
    session.flush()
    session.execute(insert(Author), [{"label": "bulk"}])
    session.execute(insert(Tag).values(name="single"))
    session.execute(update(Tag).values(weight=Tag.weight + 1))
    session.commit()
    return session.scalar(select(func.count()).select_from(Author))


def _target(factory: sessionmaker[Session]) -> Engine:
    engine = factory.kw["bind"]
    assert isinstance(engine, Engine)
    return engine


@direct(JOINED, OWN, makes_sessions=True, directs=2)
def the_caller_commits(factory: sessionmaker[Session]) -> Any:
    with _target(factory).begin() as connection, factory(bind=connection) as session:
        return _work(session)


@direct(JOINED, OWN, makes_sessions=True, directs=2)
def the_caller_rolls_back(factory: sessionmaker[Session]) -> Any:
    with _target(factory).connect() as connection:
        transaction = connection.begin()
        with factory(bind=connection, join_transaction_mode="create_savepoint") as session:
            seen = _work(session)
        transaction.rollback()
    return seen


@direct(JOINED, OWN, makes_sessions=True)
def the_session_commits(factory: sessionmaker[Session]) -> None:
    with _target(factory).connect() as connection, factory(bind=connection) as session:
        session.add(Author(label="new"))
        session.commit()


@direct(JOINED, OWN, makes_sessions=True, entries=1)
def the_bind_is_changed(factory: sessionmaker[Session]) -> Any:
    session = factory()
    session.add(Author(label="buffered"))
    session.commit()
    with _target(factory).begin() as connection:
        session.bind = connection
        session.add(Author(label="direct"))
        seen = session.scalars(select(Author.label).order_by(Author.label)).all()
        session.commit()
        session.close()
    return seen


@direct(
    "session bound to an engine that shares the target's pool: `factory(bind=engine.execution_options(...))`, "
    "`bind_arguments`",
    OWN,
    makes_sessions=True,
    directs=2,
)
def an_engine_with_options(factory: sessionmaker[Session]) -> Any:
    with factory(bind=_target(factory).execution_options(logging_token="own")) as session:
        return _work(session)


@untouched("session bound to another database: `factory(bind=other_engine)`", makes_sessions=True, elsewhere=(Outside,))
def another_database(factory: sessionmaker[Session]) -> Any:
    with factory(bind=factory.kw["binds"][Outside], binds=None) as session:
        return _work(session)


ELSEWHERE = (Outside, Audit)


@buffered(
    "several engines (`binds=`), of which `target=` names the one to be journaled: classes of the target",
    elsewhere=ELSEWHERE,
)
def classes_of_the_target(session: Session) -> None:
    one(session, Author, label="bob").visits = 9
    session.add(Author(label="new", books=[Book(label="one")]))
    session.flush()
    session.execute(insert(Author), [{"label": "bulk"}])
    session.execute(update(Tag).values(weight=Tag.weight + 1))


@buffered("several engines: a transaction that reads from others, and writes to the target", elsewhere=ELSEWHERE)
def others_are_read(session: Session) -> Any:
    session.add(Author(label="new"))
    session.flush()
    labels = session.scalars(select(Outside.label)).all()
    session.add(Author(label=f"after {labels[0]}"))
    with session.begin_nested():
        session.add(Tag(name="nested"))
    return labels


@untouched("several engines: a transaction that writes to others alone", elsewhere=ELSEWHERE)
def others_are_written(session: Session) -> Any:
    session.add_all([Outside(label="new"), Audit(label="new")])
    session.flush()
    session.execute(insert(Outside), [{"label": "bulk"}])
    session.execute(update(Audit).values(label="changed"))
    return session.scalars(select(Author.label).order_by(Author.label)).all()


BOTH = "several engines: a transaction that writes to the target and to others"
TWO = "writes to another engine as well"


@direct(BOTH, TWO, elsewhere=ELSEWHERE)
def both_are_written_in_one_flush(session: Session) -> None:
    session.add_all([Author(label="new"), Outside(label="new"), Tag(name="new"), Audit(label="new")])


@direct(BOTH, TWO, elsewhere=ELSEWHERE)
def the_other_one_first(session: Session) -> None:
    session.add(Outside(label="new"))
    session.flush()
    session.add(Author(label="new"))
    session.flush()
    session.execute(update(Tag).values(weight=Tag.weight + 1))


@direct(BOTH, TWO, elsewhere=ELSEWHERE)
def the_target_first(session: Session) -> Any:
    session.add(Author(label="new"))
    session.flush()
    session.execute(insert(Outside), [{"label": "bulk"}])
    return session.scalar(select(func.count()).select_from(Author))


@direct(BOTH, TWO, elsewhere=ELSEWHERE)
def text_for_the_other_one(session: Session) -> None:
    session.add(Author(label="new"))
    session.flush()
    session.execute(text("UPDATE outside SET label = 'changed'"), bind_arguments={"mapper": Outside})


@direct(BOTH, TWO, elsewhere=ELSEWHERE)
def both_are_rolled_back_to_a_savepoint(session: Session) -> None:
    session.add(Author(label="kept"))
    with session.begin_nested() as savepoint:
        session.add_all([Author(label="gone"), Outside(label="gone")])
        session.flush()
        savepoint.rollback()
    session.add(Tag(name="kept"))


class Routing(Session):
    """Audits lie where `Outside` is bound to, and that is said by code."""

    def get_bind(self, mapper: Any = None, **keywords: Any) -> Any:
        if mapper is not None and inspect(mapper).class_ is Audit:
            mapper, keywords = Outside, {}
        return super().get_bind(mapper, **keywords)


OWN_BIND = "a class of sessions with a `get_bind()` of its own: where that answers with the target"


@buffered(OWN_BIND, elsewhere=(Outside,), session_class=Routing)
def a_get_bind_of_its_own(session: Session) -> Any:
    session.add(Author(label="new"))
    session.flush()
    session.execute(update(Tag).values(weight=Tag.weight + 1))
    return session.scalars(select(Audit.label)).all()


@direct(BOTH, TWO, elsewhere=(Outside,), session_class=Routing)
def a_get_bind_of_its_own_for_both(session: Session) -> None:
    session.add_all([Author(label="new"), Audit(label="new")])


class Sharding(Session):
    """Of one class, some objects lie where `Outside` is bound to, as with SQLAlchemy's `ShardedSession`."""

    def connection_callable(self, mapper: Any, instance: Any = None, **keywords: Any) -> Any:
        lies_outside = getattr(instance, "name", "").startswith("far")
        return self.connection(bind_arguments={"mapper": Outside if lies_outside else mapper})


@direct(BOTH, TWO, elsewhere=(Outside,), session_class=Sharding)
def rows_of_one_class_in_both(session: Session) -> None:
    session.add_all([Tag(name="near"), Tag(name="far")])


@error("several engines, and no `target=`", walsync.AttachError, "target=", attaches=True)
def no_engine_is_named(target: Engine, directory: Path) -> None:
    walsync.attach(sessionmaker(target, binds={Outside: create_engine("sqlite://")}), directory)


@error("factory that is bound to a connection", walsync.AttachError, r"factory\(bind=connection\)", attaches=True)
def a_factory_of_a_connection(target: Engine, directory: Path) -> None:
    with target.connect() as connection:
        walsync.attach(sessionmaker(connection), directory)


@error("two-phase sessions (`twophase=True`)", walsync.AttachError, "sessionmaker of their own", attaches=True)
def two_phases(target: Engine, directory: Path) -> None:
    walsync.attach(sessionmaker(target, twophase=True), directory)

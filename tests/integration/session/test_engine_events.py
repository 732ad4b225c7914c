"""Who listens to the target's Engine, to its connections or to their classes hears what attached sessions do there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, select
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session.models import Tag

Factory = sessionmaker[Session]

NAMES = [
    "engine_connect",
    "begin",
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
    "commit",
    "rollback",
]
TARGETS: dict[str, Callable[[Session], Any]] = {
    "engine": lambda session: session.bind,
    "connection": lambda session: session.connection(),
    "class of engines": lambda session: Engine,
}
"""What is listened to."""
if "_has_events" in vars(Connection):
    # Before SQLAlchemy 2.1 who listens to this class is heard only where somebody listens to an Engine as well.
    TARGETS["class of connections"] = lambda session: Connection


@pytest.fixture(autouse=True)
def nobody_has_ever_listened(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a class: SQLAlchemy notes that somebody does, and nobody takes that back."""
    for target in (Engine, Connection):
        monkeypatch.setattr(target, "_has_events", False, raising=False)


@contextmanager
def heard(target: Any) -> Iterator[list[str]]:
    """The names of this thread's events, in order: the checkpointer's connections are the target's as well."""
    names: list[str] = []
    here = threading.get_ident()
    with ExitStack() as stack:
        for name in NAMES:

            def note(*arguments: Any, name: str = name) -> None:
                if threading.get_ident() == here:
                    names.append(name)

            event.listen(target, name, note)
            stack.callback(event.remove, target, name, note)
        yield names


def heard_of_reads(factory: Factory, target: str, *, begun: bool) -> list[str]:
    """Of two reads and their end. `begun`: listening begins between the two."""
    with factory() as session:
        if begun:
            session.scalars(select(Tag)).all()
        with heard(TARGETS[target](session)) as names:
            if not begun:
                session.scalars(select(Tag)).all()
            session.scalars(select(Tag.name)).all()
            session.rollback()
        return names


@pytest.mark.parametrize("begun", [False, True], ids=["before", "while a connection is open"])
@pytest.mark.parametrize("target", TARGETS)
def test_reads_are_heard_as_those_of_a_plain_session(
    engine: Engine, journal: walsync.Journal, factory: Factory, target: str, begun: bool
) -> None:
    expected = heard_of_reads(sessionmaker(engine), target, begun=begun)
    assert "after_cursor_execute" in expected
    assert heard_of_reads(factory, target, begun=begun) == expected


@pytest.mark.parametrize("begun", [False, True], ids=["before", "while a connection is open"])
@pytest.mark.parametrize("target", TARGETS)
def test_direct_writes_are_heard(
    engine: Engine, journal: walsync.Journal, factory: Factory, target: str, begun: bool
) -> None:
    with factory() as session, walsync.direct(session):
        if begun:
            session.scalars(select(Tag)).all()
        with heard(TARGETS[target](session)) as names:
            session.execute(insert(Tag), [{"name": "red"}])
            session.commit()
    assert {"before_cursor_execute", "after_cursor_execute", "commit"} <= set(names)


def test_who_has_stopped_listening_hears_nothing(engine: Engine, journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        with heard(engine) as names:
            session.scalars(select(Tag)).all()
        count = len(names)
        session.scalars(select(Tag)).all()
        session.rollback()
    assert count
    assert len(names) == count

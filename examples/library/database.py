"""The engine and the sessions: made once, when the application starts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import sessionmaker

from library.models import Base, Change

Session = sessionmaker()


def connect(url: str) -> Engine:
    """Open the database, with its tables."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _enforce_foreign_keys)
    Base.metadata.create_all(engine)
    Session.configure(bind=engine)
    return engine


def _enforce_foreign_keys(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys=ON")


@event.listens_for(Session, "before_flush")
def _note_changes(session: OrmSession, *_: Any) -> None:
    """An audit trail, as applications have it."""
    notes = [
        Change(kind=kind, entity=type(thing).__name__, by=session.info.get("user", "desk"))
        for kind, things in (("new", session.new), ("deleted", session.deleted))
        for thing in things
        if not isinstance(thing, Change)
    ]
    session.add_all(notes)

"""Flows of the chapters on using the Session: opening and closing, states, savepoints, merging, scopes."""

from __future__ import annotations

from sqlalchemy import delete, func, inspect, select, text
from sqlalchemy.exc import InvalidRequestError, NoResultFound, PendingRollbackError
from sqlalchemy.orm import (
    make_transient,
    make_transient_to_detached,
    object_session,
    scoped_session,
    was_deleted,
)
from sqlalchemy.orm.attributes import flag_modified, set_committed_value

from tests.integration.applications.tutorial_flows import Flow, Note, Sessions
from tests.integration.applications.tutorial_models import Address, Item, User

__all__ = ["SESSION_FLOWS"]


def opening_and_closing(sessions: Sessions, note: Note) -> None:
    with sessions.begin() as session:
        session.add(Item(name="bun"))
    with sessions() as session:
        with session.begin():
            session.add(Item(name="patty"))
        with session.begin():
            note(session.scalars(select(Item.name).order_by(Item.name)).all())
    try:
        with sessions.begin() as session:
            session.add(Item(name="lost"))
            session.flush()
            raise KeyError("the application's own")
    except KeyError as error:
        note(repr(error))
    session = sessions()
    item = session.scalars(select(Item).order_by(Item.name)).first()
    session.close()
    note((object_session(item), session.in_transaction()))
    session.add(Item(name="kelp"))
    session.commit()
    session.reset()
    note(session.scalar(select(func.count(Item.id))))
    session.close()
    strict = sessions(close_resets_only=False)
    strict.close()
    try:
        strict.scalars(select(Item))
    except InvalidRequestError as error:
        note(type(error).__name__)
    explicit = sessions(autobegin=False)
    try:
        explicit.scalars(select(Item))
    except InvalidRequestError as error:
        note(type(error).__name__)
    with explicit.begin():
        explicit.add(Item(name="ale"))
    explicit.close()
    with sessions() as session, session.begin():
        session.add(Item(name="late"))
        session.rollback()
    with sessions() as session:
        note(session.scalars(select(Item.name).order_by(Item.name)).all())


def getting(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        session.add_all([Item(name="bun"), Item(name="patty")])
        session.commit()
        first = session.scalars(select(Item).order_by(Item.name)).first()
        assert first is not None
        note(session.get(Item, first.id) is first)
        note(session.get_one(Item, first.id) is first)
        note(session.get(Item, -5))
        try:
            session.get_one(Item, -5)
        except NoResultFound as error:
            note(type(error).__name__)
        session.expunge(first)
        note(session.get(Item, first.id) is first)
        note(session.get(Item, first.id, populate_existing=True))
        pending = Item(name="kelp")
        session.add(pending)
        with session.no_autoflush:
            note(session.scalar(select(func.count(Item.id))))
        note(session.scalar(select(func.count(Item.id)).execution_options(autoflush=False)))
        note(session.scalar(select(func.count(Item.id))))
        session.rollback()
        with sessions(autoflush=False) as quiet:
            quiet.add(Item(name="quiet"))
            note(quiet.scalar(select(func.count(Item.id))))
            quiet.flush()
            note(quiet.scalar(select(func.count(Item.id))))
        streamed = session.scalars(select(Item).order_by(Item.name).execution_options(yield_per=1))
        note([list(part) for part in streamed.partitions()])
        note(session.scalars(text("SELECT name FROM item ORDER BY name")).all())


def savepoints(sessions: Sessions, note: Note) -> None:
    with sessions.begin() as session:
        for name in ("bun", "refused", "patty"):
            try:
                with session.begin_nested():
                    session.add(Item(name=name))
                    session.flush()
                    if name == "refused":
                        raise KeyError(name)
            except KeyError:
                note(name)
        kept = session.begin_nested()
        session.add(Item(name="kelp"))
        kept.commit()
        undone = session.begin_nested()
        session.execute(delete(Item))
        note(session.scalars(select(Item.name)).all())
        undone.rollback()
        note(session.scalars(select(Item.name).order_by(Item.name)).all())
        with session.begin_nested():
            with session.begin_nested() as inner:
                session.add(Item(name="inner"))
                inner.rollback()
            session.add(Item(name="outer"))
        note((session.in_nested_transaction(), session.in_transaction()))
    with sessions() as session:
        items = session.scalars(select(Item).order_by(Item.name)).all()
        note(items)
        with session.begin_nested() as nested:
            items[0].price = 99
            session.flush()
            nested.rollback()
        note(items[0].price)
        session.commit()


def states(sessions: Sessions, note: Note) -> None:
    session = sessions()
    user = User(name="sandy", addresses=[Address(email="sandy@sea.org")])
    session.add(user)
    session.expunge(user)
    note((inspect(user).transient, list(session.new)))
    session.add(user)
    session.commit()
    session.expunge(user)
    note(inspect(user).detached)
    user.fullname = "Sandy Cheeks"
    session.add(user)
    session.commit()
    note(session.scalar(select(User.fullname)))
    key = user.id
    make_transient(user)
    user.id, user.name, user.addresses = None, "copy", []  # type: ignore[assignment]
    session.add(user)
    session.commit()
    note(session.scalars(select(User.name).order_by(User.name)).all())
    detached = User(id=key)
    make_transient_to_detached(detached)
    session.add(detached)
    note((detached.name, detached.addresses))
    set_committed_value(detached, "fullname", "not written")
    session.commit()
    note(detached.name)
    flag_modified(detached, "name")
    session.commit()
    note(session.scalars(select(User.fullname).order_by(User.name)).all())
    session.expire(detached)
    session.refresh(detached, ["name"])
    note(sorted(set(inspect(detached).unloaded) & {"name", "fullname"}))
    session.delete(detached)
    session.flush()
    note((inspect(detached).deleted, was_deleted(detached), detached in session))
    session.commit()
    note(inspect(detached).detached)
    note(session.scalar(select(func.count(Address.id))))
    session.close()


def merging(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        session.add(User(name="sandy", addresses=[Address(email="one@sea.org"), Address(email="two@sea.org")]))
        session.commit()
        key, address = session.execute(select(User.id, Address.id).join(User.addresses).order_by(Address.email)).all()[
            0
        ]
    given = User(id=key, name="sandy", fullname="Sandy", addresses=[Address(id=address, email="uno@sea.org")])
    with sessions() as session:
        merged = session.merge(given)
        note((merged is given, sorted(map(repr, session.dirty)), merged.addresses))
        session.commit()
        note(session.scalars(select(Address.email).order_by(Address.email)).all())
        new = session.merge(User(name="patrick"))
        note(new in session.new)
        session.commit()
        with sessions() as other:
            unloaded = other.merge(merged, load=False)
            note((unloaded.name, inspect(unloaded).persistent, bool(other.dirty)))
        note(session.scalars(select(User).order_by(User.name)).all())


def scopes(sessions: Sessions, note: Note) -> None:
    scoped = scoped_session(sessions)
    note(scoped() is scoped())
    scoped.add(Item(name="bun"))
    scoped.commit()
    note(scoped.scalars(select(Item)).all())
    scoped.remove()
    with scoped() as session:
        note(session.scalars(select(Item.name)).all())
        session.add(Item(name="lost"))
    scoped.remove()
    note(scoped.query(Item).filter_by(name="bun").one())
    note((scoped.query(Item).count(), scoped.query(Item).filter(Item.name == "none").first()))
    scoped.query(Item).update({"price": Item.price + 1})
    scoped.commit()
    note(scoped.query(Item.price).scalar())
    scoped.remove()


def errors(sessions: Sessions, note: Note) -> None:
    """What the session itself refuses, and what it says then."""
    session = sessions()
    session.add(Item())
    try:
        session.flush()
    except Exception as error:  # noqa: BLE001 - which error it is, is what is noted
        note(type(error).__name__)
    try:
        session.scalars(select(Item)).all()
    except PendingRollbackError as error:
        note(type(error).__name__)
    session.rollback()
    note(session.scalars(select(Item)).all())
    item = Item(name="bun")
    session.add(item)
    with sessions() as other:
        try:
            other.add(item)
        except InvalidRequestError as error:
            note(type(error).__name__)
    session.commit()
    try:
        session.delete(Item(name="never added"))
    except InvalidRequestError as error:
        note(type(error).__name__)
    session.close()


SESSION_FLOWS: tuple[Flow, ...] = (opening_and_closing, getting, savepoints, states, merging, scopes, errors)

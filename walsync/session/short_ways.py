"""The hooks that every read and every flush passes, for what is most frequent there; the rest goes to `SessionHooks`.

They are functions that know what they need: an attribute that is looked up, and a function that is called, show in the
time of a short read. They come to the same answers as the general ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql.dml import UpdateBase

from walsync.checkpoint.transaction import APPLYING
from walsync.session.state import MODE, binds_of
from walsync.session.upgrade import upgrade

if TYPE_CHECKING:
    from walsync.session.routing import SessionHooks

__all__ = ["after_begin_of", "execute_of", "get_bind_of", "is_given"]


def get_bind_of(hooks: SessionHooks) -> Any:
    """The class's `get_bind`."""
    journal, own_bind = hooks.journal, hooks.own_get_bind
    target, journal_engine, read_engine = journal.target, journal.session_engine, journal.read_engine
    everything = journal.scope.is_everything
    is_plain = own_bind is Session.get_bind

    def get_bind(session: Session, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kw: Any) -> Any:
        state = session.__dict__.get("_walsync_state")
        if not is_plain or bind is not None or session.bind is not target or binds_of(session):
            if APPLYING in session.info:
                # The checkpointer's: it does not matter what its class would look up.
                return hooks.get_bind(session, mapper, clause) if bind is None else bind
            bound = own_bind(session, mapper, clause=clause, bind=bind, **kw)
            if bound is not target:
                return hooks.elsewhere(session, clause, bound)
        if state is None or state.journal is not journal or session.twophase:
            return hooks.get_bind(session, mapper, clause)
        if state.direct_reason is not None:
            return read_engine
        info = session.info
        if MODE in info:
            if info[MODE] == "direct":
                upgrade(state, "asked for")
                return read_engine
        elif not state.wrote_elsewhere:
            if clause is not None:
                if not isinstance(clause, UpdateBase):
                    return read_engine
            elif session._flushing:
                if (
                    everything
                    and mapper is not None
                    and not state.options
                    and getattr(mapper, "version_id_generator", None) is not False  # else the database may make it
                ):
                    return journal_engine
            elif not state.routing_dml:
                return read_engine
        return hooks.get_bind(session, mapper, clause)

    return get_bind


def execute_of(hooks: SessionHooks) -> Any:
    """The class's `execute`."""
    own_execute = hooks.own_execute

    def execute(session: Session, statement: Any, params: Any = None, **kw: Any) -> Any:
        if not isinstance(statement, UpdateBase):
            state = session.__dict__.get("_walsync_state")
            if state is None or not state.routing_dml:
                return own_execute(session, statement, params, **kw)
        return hooks.execute(session, statement, params, kw)

    return execute


def after_begin_of(hooks: SessionHooks) -> Callable[[Session, SessionTransaction, Connection], None]:
    """The listener to `after_begin`."""
    journal, general = hooks.journal, hooks.after_begin
    read_engine, enroll, begins_anew = journal.read_engine, journal.reads.enroll, journal.reads.is_sqlite

    def after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        if connection.engine is read_engine:
            state = session.__dict__.get("_walsync_state")
            entry: Any = transaction._connections[connection]
            if (
                state is not None
                and state.journal is journal
                and entry[3]  # else it is given, see below
                and not connection.options  # type: ignore[attr-defined]
            ):
                state.held = session
                if state.direct_reason is None or not begins_anew:
                    connection.state = state  # type: ignore[attr-defined]
                else:
                    enroll(connection, state, nested=transaction.nested)
                return
        general(session, transaction, connection)

    return after_begin


def is_given(transaction: SessionTransaction, connection: Connection) -> bool:
    """Whether the session did not open this connection itself, but was bound to it."""
    entry: Any = transaction._connections[connection]
    return not entry[3]

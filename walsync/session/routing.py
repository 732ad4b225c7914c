"""Which Engine an attached session uses for what.

The hooks are put on the session's class: on the private subclass that a `sessionmaker` has, on the class itself where a
`Session` subclass was attached, on a subclass made for it where a single session was. They are taken off again when the
journal is closed.

`get_bind` is SQLAlchemy's own hook for routing. It answers with the journal's Engine while the session flushes and for
DML that can be recorded, and with the target's otherwise. Two things it cannot see are told to it by `execute`: bulk
DML of the ORM, which asks for a connection without naming the statement; and whether the rows of a bulk update must all
be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Table, event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.sql.dml import Insert, Update, UpdateBase

from walsync.exceptions import AttachError, UsageError
from walsync.journal import table_name
from walsync.journal.plan import missing_key
from walsync.session.state import SessionState, state_of
from walsync.session.upgrade import upgrade

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["SessionHooks", "direct"]

MODE: Final = "walsync.mode"

_METHODS: Final = ("get_bind", "execute")


class SessionHooks:
    """The hooks of one journal on one class of sessions."""

    def __init__(self, journal: Journal, session_class: type[Session]) -> None:
        self._journal = journal
        self._class = session_class
        self._own = {name: session_class.__dict__.get(name) for name in _METHODS}
        self._get_bind: Callable[..., Any] = session_class.get_bind
        self._execute: Callable[..., Any] = session_class.execute
        self._listeners: list[tuple[Any, str, Callable[..., Any]]] = []
        self._key_attributes: dict[Mapper[Any], tuple[str, Any] | None] = {}

    def install(self, listen_to: Any) -> None:
        """Put them on; `listen_to` is the class, or the single session, whose events are meant."""
        hooks = self

        target, journal_engine, own_bind = self._journal.target, self._journal.session_engine, self._get_bind
        everything = self._journal.scope.is_everything

        def get_bind(session: Session, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kw: Any) -> Any:
            bound = own_bind(session, mapper, clause=clause, bind=bind, **kw)
            if bound is not target:
                # A bind that was asked for by name, or a session that was made with another one.
                return bound
            state = session.__dict__.get("_walsync_state")
            if (
                clause is None
                and state is not None
                and state.direct_reason is None
                and session._flushing
                and everything
                and MODE not in session.info
                and not session.twophase
            ):
                # The path of every flush; the general one below comes to the same answer.
                return journal_engine
            return hooks.get_bind(session, mapper, clause)

        def execute(session: Session, statement: Any, params: Any = None, **kw: Any) -> Any:
            return hooks.execute(session, statement, params, kw)

        for method in (get_bind, execute):
            setattr(self._class, method.__name__, method)
        for name, listener in (
            ("after_begin", self._after_begin),
            ("before_flush", self._before_flush),
            ("after_transaction_end", self._after_transaction_end),
            ("before_commit", self._before_commit),
        ):
            event.listen(listen_to, name, listener)
            self._listeners.append((listen_to, name, listener))

    def remove(self) -> None:
        """Take them off: the class behaves as it did before `install()`."""
        for target, name, listener in self._listeners:
            event.remove(target, name, listener)
        self._listeners.clear()
        for name, own in self._own.items():
            if own is None:
                delattr(self._class, name)
            else:
                setattr(self._class, name, own)

    # -------------------------------------------------------------------------------------------- routing

    def get_bind(self, session: Session, mapper: Any, clause: Any) -> Any:
        """The Engine for a session that is bound to the target."""
        journal = self._journal
        if session.twophase:
            raise AttachError("a two-phase session cannot be attached: its transaction has more than one commit point")
        state = state_of(session, journal)
        if state.direct_reason is None and self._journal_takes(state, mapper, clause):
            return journal.session_engine
        return journal.read_engine

    def _journal_takes(self, state: SessionState, mapper: Any, clause: Any) -> bool:
        """Whether the journal is what is asked for; upgrades the transaction where it must become direct first."""
        session = state.session
        if _mode(session) == "direct":
            upgrade(state, "asked for")
            return False
        if isinstance(clause, UpdateBase):
            return self._records(clause)
        # With a statement it is a read, also in the middle of a flush: relationships are loaded there.
        if clause is None and (session._flushing or state.routing_dml):
            if mapper is None or self._journal.scope.has_mapper(mapper):
                return True
            upgrade(state, "class that is not journaled")
        return False

    def _records(self, statement: UpdateBase) -> bool:
        """Whether a DML construct can go to the journal as far as one can tell without compiling it."""
        table = statement.table
        return (
            not statement._returning
            and isinstance(table, Table)
            and self._journal.scope.has_table(table_name(table))
            and not getattr(statement, "_independent_ctes", ())
            and not self._leaves_keys_to_target(statement)
        )

    def _leaves_keys_to_target(self, statement: UpdateBase) -> bool:
        """INSERT ... SELECT without the key, where the target would give out keys that are reserved for others."""
        return (
            isinstance(statement, Insert)
            and statement.select is not None
            and self._journal.target.dialect.name != "postgresql"
            and missing_key(statement, ()) is not None
        )

    def execute(self, session: Session, statement: Any, params: Any, kw: dict[str, Any]) -> Any:
        state = session.__dict__.get("_walsync_state")
        if not isinstance(statement, UpdateBase):
            if state is not None and state.routing_dml:
                # The SELECT by which an ORM update finds its objects.
                with _routing(state, dml=False, counted=False):
                    return self._execute(session, statement, params, **kw)
            return self._execute(session, statement, params, **kw)
        state = state_of(session, self._journal)
        counted = isinstance(statement, Update) and isinstance(params, (list, tuple)) and not statement._where_criteria
        with _routing(state, dml=self._records(statement), counted=counted):
            return self._execute(session, statement, params, **kw)

    # --------------------------------------------------------------------------------------------- events

    def _after_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        journal = self._journal
        engine = connection.engine
        if engine is journal.session_engine:
            state = state_of(session, journal)
            if not transaction.nested:
                state.buffer = journal.buffer_of(connection)
                state.buffer.owner = state
        elif engine is journal.read_engine:
            journal.reads.enroll(connection, state_of(session, journal), nested=transaction.nested)

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction._parent is None:
            state = session.__dict__.get("_walsync_state")
            if state is not None:
                state.reset()

    def _before_commit(self, session: Session) -> None:
        state = session.__dict__.get("_walsync_state")
        if state is not None and state.failed is not None:
            raise UsageError(
                "this transaction failed while it was moved to the target, and can only be rolled back"
            ) from state.failed

    def _before_flush(self, session: Session, flush_context: Any, instances: Any) -> None:
        """Give new objects their keys, so that the unit of work can insert them together."""
        if not session._new:
            return
        if self._get_bind(session) is not self._journal.target:
            return
        state = state_of(session, self._journal)
        new = list(session._new)
        if len(new) > 1:
            new.sort(key=_insert_order)
        scope = self._journal.scope
        for obj_state in new:
            mapper = obj_state.mapper
            found = self._key_attribute(mapper)
            if found is None or not scope.has_mapper(mapper):
                continue
            attribute, column = found
            values = obj_state.dict
            if values.get(attribute) is None:
                # As SQLAlchemy does with a key that the database made, but before the INSERT.
                values[attribute] = self._journal.next_key(state, column)

    def _key_attribute(self, mapper: Mapper[Any]) -> tuple[str, Any] | None:
        """The attribute and column of a mapper's autoincrement key, if the database would make it."""
        try:
            return self._key_attributes[mapper]
        except KeyError:
            pass
        found: tuple[str, Any] | None = None
        table = mapper.base_mapper.local_table
        if isinstance(table, Table):
            column = table.autoincrement_column
            if column is not None and (column.default is None or column.default.is_sequence):
                found = (mapper.get_property_by_column(column).key, column)
        self._key_attributes[mapper] = found
        return found


def _insert_order(state: Any) -> int:
    order = state.insert_order
    return int(order) if order is not None else 0


@contextmanager
def _routing(state: SessionState, *, dml: bool, counted: bool) -> Iterator[None]:
    before = state.routing_dml, state.counted_dml
    state.routing_dml, state.counted_dml = dml, counted
    try:
        yield
    finally:
        state.routing_dml, state.counted_dml = before


def _mode(session: Session) -> str | None:
    mode: str | None = session.info.get(MODE)
    if mode not in (None, "buffered", "direct"):
        raise UsageError(f"session.info[{MODE!r}] must be 'buffered' or 'direct', not {mode!r}")
    return mode


@contextmanager
def direct(session: Session) -> Iterator[Session]:
    """Run what is inside of the block directly on the target, in the session's transaction.

    A transaction that has begun becomes direct at its next statement, with what it has flushed so far; one that ends
    inside of the block is followed by direct ones until the block ends. A transaction that is direct stays so until it
    ends. Not thread-safe, as the session is not.
    """
    before = session.info.get(MODE)
    session.info[MODE] = "direct"
    try:
        yield session
    finally:
        if before is None:
            session.info.pop(MODE, None)
        else:
            session.info[MODE] = before

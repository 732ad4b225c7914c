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
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import Table, event, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql.dml import Insert, Update, UpdateBase
from sqlalchemy.sql.selectable import SelectBase
from sqlalchemy.util import warn

from walsync.checkpoint.transaction import APPLYING
from walsync.exceptions import AttachError
from walsync.journal import table_name
from walsync.journal.plan import missing_key
from walsync.session.connection import ReadConnection
from walsync.session.flush_keys import FlushKeys
from walsync.session.options import OPTIONS, TRANSLATE
from walsync.session.short_ways import after_begin_of, execute_of, get_bind_of, is_given
from walsync.session.state import ANOTHER_ENGINE, MODE, NOT_JOURNALED, SessionState, mode_of, state_of
from walsync.session.upgrade import refuse_commit, upgrade

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["TWO_PHASE", "SessionHooks", "direct"]

OWN_CONNECTION: Final = "bound to a connection"
MADE_VERSION: Final = "version made by the database"
TWO_PHASE: Final = (
    "two-phase sessions cannot be attached: their transactions have more than one commit point. Give the transactions "
    "that need two-phase commit a sessionmaker of their own, which is not attached"
)


class _HasInfo(Protocol):
    @property
    def info(self) -> dict[Any, Any]: ...


_S = TypeVar("_S", bound=_HasInfo)

_METHODS: Final = ("get_bind", "execute")


class SessionHooks:
    """The hooks of one journal on one class of sessions."""

    def __init__(self, journal: Journal, session_class: type[Session]) -> None:
        self.journal = journal
        self._class = session_class
        self._own = {name: session_class.__dict__.get(name) for name in _METHODS}
        self.own_get_bind: Callable[..., Any] = session_class.get_bind
        self.own_execute: Callable[..., Any] = session_class.execute
        self._listeners: list[tuple[Any, str, Callable[..., Any]]] = []
        self._keys = FlushKeys(self)
        self._written: WeakSet[Any] = WeakSet()  # transactions of joined connections that hold locks

    def install(self, listen_to: Any) -> None:
        """Put them on; `listen_to` is the class, or the single session, whose events are meant."""
        get_bind, execute, after_begin = get_bind_of(self), execute_of(self), after_begin_of(self)
        get_bind.walsync = True
        for method in (get_bind, execute):
            setattr(self._class, method.__name__, method)
        # Those that begin and end what is known of a transaction come before the application's own listeners: a
        # statement in one of these is seen to like any other, and their exceptions leave nothing half done here.
        for name, listener, first in (
            ("after_begin", after_begin, True),
            ("before_flush", self._keys.before_flush, False),
            ("after_transaction_end", self._after_transaction_end, True),
        ):
            event.listen(listen_to, name, listener, insert=first)
            self._listeners.append((listen_to, name, listener))

    @staticmethod
    def are_on(session_class: type[Session]) -> bool:
        """Whether some journal's hooks are on this class, or on one that it is derived from."""
        return hasattr(session_class.get_bind, "walsync")

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
        """The Engine for a session that is bound to the target, or is the checkpointer's."""
        if APPLYING in session.info:
            # The checkpointer's, which works on the checkpointer's engine, whatever its class would look up.
            return session.bind
        journal = self.journal
        if session.twophase:
            raise AttachError(TWO_PHASE)
        state = state_of(session, journal)
        if state.direct_reason is None and self._journal_takes(state, mapper, clause):
            return journal.session_engine
        return journal.read_engine

    def _journal_takes(self, state: SessionState, mapper: Any, clause: Any) -> bool:
        """Whether the journal is what is asked for; upgrades the transaction where it must become direct first."""
        session = state.session
        if mode_of(session) == "direct":
            upgrade(state, "asked for")
            return False
        if isinstance(clause, UpdateBase):
            return self._records(clause) and not self._must_be_direct(state)
        # With a statement it is a read, also in the middle of a flush: relationships are loaded there.
        # Without a class it is a listener that asks, in the middle of a flush.
        if clause is None and mapper is not None and (session._flushing or state.routing_dml):
            if self._writes_others(session, mapper):
                upgrade(state, NOT_JOURNALED)
            elif session._flushing and _target_makes_version(mapper):
                upgrade(state, MADE_VERSION)
            else:
                return not self._must_be_direct(state)
        return False

    def _must_be_direct(self, state: SessionState) -> bool:
        """Whether the transaction, which is about to write, cannot be buffered for what it did before; direct then."""
        if state.wrote_elsewhere:
            upgrade(state, ANOTHER_ENGINE)
        elif state.options:
            upgrade(state, OPTIONS)
        return state.is_direct

    def elsewhere(self, session: Session, clause: Any, bound: Any) -> Any:
        """The Engine or Connection for what is bound to something else than the target's Engine itself.

        A connection to the target that the application gives, or an engine that shares the target's pool, is worked on
        as it is: the transaction is a direct one, see `_join`. Anything else is another database, or none that the
        journal knows of, and is left alone; a transaction that writes there has a commit point there.
        """
        journal = self.journal
        if bound is journal.session_engine or bound is journal.read_engine:
            return bound
        state = state_of(session, journal)
        is_read = isinstance(clause, SelectBase)
        if self.is_of_target(bound):
            if state.has_changes:
                upgrade(state, OWN_CONNECTION)
            state.joined_writes = session._flushing or state.routing_dml or not (clause is None or is_read)
            if state.joined is not None:
                self._wait_joined(state)
        elif not is_read and (session._flushing or clause is not None or state.has_changes):
            state.wrote_elsewhere = True
            if state.has_changes:
                upgrade(state, ANOTHER_ENGINE)
        return bound

    def is_of_target(self, bound: Any) -> bool:
        return bound.engine.pool is self.journal.target.pool

    def _join(self, state: SessionState, connection: Connection) -> None:
        """The session works on a connection that it was given, or that has options of its own: without the log.

        What is committed must be there when it reads: the backlog is waited for.
        """
        state.joined = connection
        if state.direct_reason is None:
            state.direct_reason = OWN_CONNECTION
            self.journal.note_direct(OWN_CONNECTION)
        self._wait_joined(state)

    def _wait_joined(self, state: SessionState) -> None:
        """Unless the transaction has written: it holds locks, and what it would wait for may be waiting for those.

        The transaction of the connection, that is: it may go on over several of the session's.
        """
        assert state.joined is not None
        transaction = state.joined.get_transaction()
        if transaction not in self._written and self.journal.must_wait(None):
            self.journal.barrier(None)
        if state.joined_writes and transaction is not None:
            self._written.add(transaction)

    def _writes_others(self, session: Session, mapper: Any) -> bool:
        """Whether something that is not journaled is about to be written for this class, or for one derived from it.

        As far as one can tell. What slips through is seen when it arrives in the journal; then the transaction becomes
        direct as well, but what the target says to it cannot be undone by a savepoint alone.
        """
        scope = self.journal.scope
        if scope.is_everything:
            return False
        if not scope.has_mapper(mapper):
            return True
        if not session._flushing or scope.has_hierarchy(mapper):
            return False
        base = inspect(mapper).base_mapper
        touched = chain(session._new, session._dirty_states, session._deleted)
        return any(state.mapper.base_mapper is base and not scope.has_mapper(state.mapper) for state in touched)

    def _records(self, statement: UpdateBase) -> bool:
        """Whether a DML construct can go to the journal as far as one can tell without compiling it."""
        table = statement.table
        return (
            not statement._returning
            and TRANSLATE not in statement._execution_options
            and isinstance(table, Table)
            and self.journal.scope.has_table(table_name(table))
            and not getattr(statement, "_independent_ctes", ())
            and not self._leaves_keys_to_target(statement)
        )

    def _leaves_keys_to_target(self, statement: UpdateBase) -> bool:
        """INSERT ... SELECT without the key, where the target would give out keys that are reserved for others."""
        return (
            isinstance(statement, Insert)
            and statement.select is not None
            and self.journal.target.dialect.name != "postgresql"
            and missing_key(statement, ()) is not None
        )

    def execute(self, session: Session, statement: Any, params: Any, kw: dict[str, Any]) -> Any:
        state = session.__dict__.get("_walsync_state")
        if not isinstance(statement, UpdateBase):
            if state is not None and state.routing_dml:
                # The SELECT by which an ORM update finds its objects.
                with _routing(state, dml=False, counted=False):
                    return self.own_execute(session, statement, params, **kw)
            return self.own_execute(session, statement, params, **kw)
        state = state_of(session, self.journal)
        options = kw.get("execution_options")
        if options and TRANSLATE in options:
            # Where it is seen by all that decide about the statement.
            statement = statement.execution_options(**{TRANSLATE: options[TRANSLATE]})
        counted = isinstance(statement, Update) and isinstance(params, (list, tuple)) and not statement._where_criteria
        with _routing(state, dml=self._records(statement), counted=counted):
            result = self.own_execute(session, statement, params, **kw)
        if isinstance(statement, Insert) and state.joined is not None:
            self._note_key(state.joined)
        return result

    def _note_key(self, connection: Connection) -> None:
        """The database may have given out keys; the allocator must not give them out again."""
        if self.journal.target.dialect.name != "postgresql":
            self.journal.keys.note_target(connection)

    # --------------------------------------------------------------------------------------------- events

    def after_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        journal = self.journal
        engine = connection.engine
        if engine is journal.session_engine:
            state = state_of(session, journal)
            if not transaction.nested:
                state.buffer = journal.buffer_of(connection)
                state.buffer.owner = state
        elif APPLYING in session.info:
            return
        elif engine is journal.read_engine and not is_given(transaction, connection):
            state = state_of(session, journal)
            if not transaction.nested:
                _take_options(state, connection)
            journal.reads.enroll(connection, state, nested=transaction.nested)
        elif self.is_of_target(connection):
            self._join(state_of(session, journal), connection)

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction._parent is None:
            state = session.__dict__.get("_walsync_state")
            if state is not None:
                cancelled = state.cancelled
                if state.failed is not None:
                    event.remove(session, "before_commit", refuse_commit)
                state.reset()
                if cancelled is not None:
                    raise cancelled


def _target_makes_version(mapper: Any) -> bool:
    """Whether nobody can know a version of this class's objects before the database has made it."""
    if getattr(mapper, "version_id_generator", None) is not False:
        return False
    column = inspect(mapper).version_id_col
    return column is not None and (
        getattr(column, "system", False) or column.server_default is not None or column.server_onupdate is not None
    )


def _take_options(state: SessionState, connection: Connection) -> None:
    """The session's connection was opened, maybe with execution options."""
    assert isinstance(connection, ReadConnection)
    if not connection.options:
        return
    if state.buffer is None:
        state.options = connection.options
        return
    # The session has begun to write. Without the log it has this connection since then, and SQLAlchemy ignores these.
    connection._execution_options = connection.engine._execution_options
    connection.options = frozenset()
    warn("Connection is already established for the given bind; execution_options ignored")


@contextmanager
def _routing(state: SessionState, *, dml: bool, counted: bool) -> Iterator[None]:
    before = state.routing_dml, state.counted_dml
    state.routing_dml, state.counted_dml = dml, counted
    try:
        yield
    finally:
        state.routing_dml, state.counted_dml = before


@contextmanager
def direct(session: _S) -> Iterator[_S]:
    """Run what is inside of the block directly on the target, in the session's transaction.

    `session` is a `Session`, a `scoped_session` or an `AsyncSession`.


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

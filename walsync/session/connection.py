"""Engine and connections of the target as attached sessions get them: SQLAlchemy's own, with the barrier built in.

What is here is on the path of every read and of every direct write. So the most frequent case of each, a SELECT while
nothing waits, is answered at once; everything else is `walsync.session.reads`' to say. Where a base class's method goes
on, it is called by its name: `super()` costs a frame's worth.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import getattr_static
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.sql.dml import Insert

from walsync.exceptions import UsageError
from walsync.session.options import OPTIONS, TRANSLATE, meaning
from walsync.session.upgrade import begin_for_savepoint, upgrade

if TYPE_CHECKING:
    from walsync.session.state import SessionState

__all__ = ["STATEMENT_TABLES", "AsyncReadConnection", "ReadConnection", "session_view"]

logger = logging.getLogger("walsync.session")

STATEMENT_TABLES: Final = "_walsync_tables"
"""Where a compiled construct keeps its `StatementTables`."""

_OVERRIDDEN: Final = ("_exec_single_context", "_exec_insertmany_context")
if not set(_OVERRIDDEN) <= set(Connection._execute_context.__code__.co_names):
    raise ImportError(
        "this version of SQLAlchemy sends statements in a way that walsync does not know, and reads would not wait for "
        "what they must see; install a version that walsync's package metadata allows"
    )


_CLASS_HAS_EVENTS: Final = "_has_events" in vars(Connection)
"""Whether who listens to the class `Connection` is heard also where nobody listens to an Engine (SQLAlchemy 2.1)."""


class _JoinedWhenAsked:
    """A connection's dispatch, which is joined with its Engine's when somebody first asks for it.

    SQLAlchemy joins them for each connection that it makes, which is a good part of what a short read costs; and where
    nobody listens, nobody asks. Whoever begins to listen later is heard all the same: a join is a view of both.
    """

    def __init__(self, own: Any) -> None:
        self._own = own

    def __get__(self, connection: Any, owner: Any) -> Any:
        dispatch = self._own.__get__(connection, owner)
        if connection is not None:
            engine = connection.engine
            if type(engine) is _SessionView:
                engine = engine._proxied  # nobody listens to a view; SQLAlchemy 2.0 lets nobody join one and listen
            dispatch = connection.__dict__["dispatch"] = dispatch._join(engine.dispatch)
        return dispatch


class ReadConnection(Connection):
    """A connection to the target that a session reads through, or, once its transaction is direct, works on.

    While the transaction is buffered, nothing of it is here: what ends its part on the target (COMMIT, RELEASE) cannot
    fail for the session. `state` is set when the session's transaction begins to use the connection.

    Methods are overridden in place of listening to the Engine's events: a listener costs each statement several calls.
    """

    state: SessionState | None = None
    options: frozenset[str] = frozenset()
    """The names of the execution options that it was given, of those that say what its statements mean."""
    dispatch: Any = _JoinedWhenAsked(getattr_static(Connection, "dispatch"))

    def __init__(self, engine: Engine) -> None:
        # To be made without joining anything, it is told that it has no events.
        _init(self, engine, None, False)
        if _CLASS_HAS_EVENTS:
            del self._has_events
            if self._has_events and not engine._has_events:
                self.dispatch.engine_connect(self)

    def execution_options(self, **options: Any) -> Connection:
        """Of this connection, from now on."""
        given = meaning(options, self.dialect)
        if given:
            state = self.state
            if state is not None and not state.is_direct:
                if state.has_changes:
                    # They are to be executed without.
                    upgrade(state, OPTIONS)
                state.options |= given
            self.options |= given
        return super().execution_options(**options)

    def execute(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        if isinstance(statement, Insert):
            state = self.state
            if state is not None and not state.upgrading and TRANSLATE not in self.options:
                statement, parameters = state.journal.reads.with_keys(state, statement, parameters)
        return _execute(self, statement, parameters, execution_options=execution_options)

    def _exec_single_context(self, dialect: Any, context: Any, statement: Any, parameters: Any) -> Any:
        state = self.state
        if state is None or state.upgrading:
            return _exec_single_context(self, dialect, context, statement, parameters)
        tables = getattr(context.compiled, STATEMENT_TABLES, None)
        if tables is None:
            pass  # it is new, or not a construct
        elif state.direct_reason is not None:
            if tables.is_plain_dml:
                state.wrote = True
                return _exec_single_context(self, dialect, context, statement, parameters)
        elif (
            tables.read_only
            and not state.read_stale
            and ((buffer := state.buffer) is None or not buffer.changes)
            and "walsync_read" not in context.execution_options
            and (session := state.held) is not None
            and "walsync.read" not in session.info
            and state.nothing_waits()
        ):
            # What a snapshot that begins now shows is everything.
            state.has_snapshot = True
            return _exec_single_context(self, dialect, context, statement, parameters)
        reads = state.journal.reads
        reads.before_statement(self, state, context)
        result = _exec_single_context(self, dialect, context, statement, parameters)
        if state.wrote:
            reads.after_statement(self, state, context, result)
        return result

    def _exec_insertmany_context(self, dialect: Any, context: Any) -> Any:
        state = self.state
        if state is not None and not state.upgrading:
            state.journal.reads.before_statement(self, state, context)
        return super()._exec_insertmany_context(dialect, context)

    def _execute_default(self, default: Any, distilled_parameters: Any, execution_options: Any) -> Any:
        """A sequence, or another default, that is executed by itself: it goes to the cursor on a way of its own."""
        state = self.state
        if state is not None and not state.upgrading:
            if state.direct_reason is None:
                upgrade(state, "SQL text")
            state.wrote = True
        return super()._execute_default(default, distilled_parameters, execution_options)

    @property
    def _only_reads(self) -> bool:
        return self.state is not None and not self.state.is_direct

    def _commit_impl(self) -> None:
        state = self.state
        if state is None:
            _commit_impl(self)
            return
        if state.direct_reason is None:
            self._tolerate(partial(_commit_impl, self))
            return
        if state.failed is not None:
            raise UsageError(
                "this transaction failed while it was moved to the target, and can only be rolled back"
            ) from state.failed
        _commit_impl(self)
        if state.changed_schema:
            state.journal.relations.forget()

    def _savepoint_impl(self, name: str | None = None) -> str:
        if self.state is not None:
            begin_for_savepoint(self, self.state)
        return super()._savepoint_impl(name)

    def _release_savepoint_impl(self, name: str) -> None:
        release = super()._release_savepoint_impl
        if self._only_reads:
            self._tolerate(lambda: release(name))
        else:
            release(name)

    def _rollback_to_savepoint_impl(self, name: str) -> None:
        roll_back = super()._rollback_to_savepoint_impl
        if self._only_reads:
            self._tolerate(lambda: roll_back(name))
        else:
            roll_back(name)

    def _tolerate(self, end: Callable[[], None]) -> None:
        try:
            end()
        except Exception as error:  # noqa: BLE001 - drivers raise what they like, and nothing of the transaction is here
            logger.warning("the target failed at the end of a transaction that only read from it: %s", error)
            if not self.closed and not self.invalidated:
                self.invalidate(error)
        except asyncio.CancelledError as error:
            if self.state is None or self.state.has_changes:
                # Nothing of the transaction is in the log yet.
                raise
            self.state.cancelled = error
            with suppress(asyncio.CancelledError):
                self.invalidate(error)


_init: Final[Any] = Connection.__init__
_execute: Final[Any] = Connection.execute
_exec_single_context: Final[Any] = Connection._exec_single_context
_commit_impl: Final[Any] = Connection._commit_impl


class AsyncReadConnection(ReadConnection):
    """One of an asynchronous Engine."""

    def close(self) -> None:
        """Also by the session, when its transaction is decided: then it is the end of that which a cancelled task gets
        to see first."""
        try:
            super().close()
        except asyncio.CancelledError as error:
            if self.state is None:
                raise
            self.state.cancelled = error


class _SessionView(OptionEngine):
    """What ``Engine.execution_options()`` makes, with a short way to what every statement asks it for, several times.

    Like that one it has the events of the engine that it was made of. One that gets listeners of its own becomes that.
    """

    pool: Any = property(attrgetter("_proxied.pool"), OptionEngine.pool.fset)  # type: ignore[attr-defined]

    def _set_has_events(self, value: bool) -> None:
        self.__class__ = OptionEngine  # type: ignore[assignment]
        self._has_events = value

    _has_events: Any = property(attrgetter("_proxied._has_events"), _set_has_events)


def session_view(target: Engine) -> Engine:
    """Another Engine of the target's pool, whose connections are those of this module."""
    view = target.execution_options()
    if type(view) is OptionEngine:
        view.__class__ = _SessionView
    view._connection_cls = AsyncReadConnection if target.dialect.is_async else ReadConnection
    return view

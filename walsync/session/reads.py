"""The target's Engine as attached sessions see it.

It shares everything with the application's own Engine (pool, dialect, events, compiled cache), and differs in two
points.

*The barrier.* Before a statement is sent, the tables that it reads are known; if entries that touch them are not
applied yet, it waits for them. If the session's own transaction has flushed changes to those tables, or the statement
is not a plain SELECT, the transaction is upgraded to a direct one first. This happens at the Connection and not at the
Session, so that nothing goes around it: lazy loads, refreshes, `session.connection()`, text.

*The guarded COMMIT.* A session's transaction has one commit point. When the transaction is buffered, that is the append
to the log; the COMMIT of the connection that it only read through must neither undo it nor make it look failed, so its
failure is logged and the connection thrown away. When the transaction is direct, the target's COMMIT is the point, and
its failure is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from walsync.exceptions import UsageError
from walsync.journal import StatementTables, tables_of
from walsync.journal.dialects import dialect_variant
from walsync.journal.plan import missing_key
from walsync.journal.statements import with_keys_in_rows
from walsync.session.state import SessionState
from walsync.session.upgrade import begin_anew, release_target, upgrade

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["ReadEngine"]

logger = logging.getLogger("walsync.session")


class ReadConnection(Connection):
    """A connection to the target that a session reads through, or, once its transaction is direct, works on.

    While the transaction is buffered, nothing of it is here: what ends its part on the target (COMMIT, RELEASE) cannot
    fail for the session. `state` is set when the session's transaction begins to use the connection.
    """

    state: SessionState | None = None

    @property
    def _only_reads(self) -> bool:
        return self.state is not None and not self.state.is_direct

    def _commit_impl(self) -> None:
        if self._only_reads:
            self._tolerate(super()._commit_impl)
            return
        if self.state is not None and self.state.failed is not None:
            raise UsageError(
                "this transaction failed while it was moved to the target, and can only be rolled back"
            ) from self.state.failed
        super()._commit_impl()

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


class ReadEngine:
    """Makes and owns the Engine; `engine` is what sessions get from `get_bind`."""

    def __init__(self, journal: Journal, target: Engine) -> None:
        self._journal = journal
        self._tables: WeakKeyDictionary[Any, StatementTables] = WeakKeyDictionary()
        self.engine = target.execution_options()
        self.engine._connection_cls = ReadConnection
        # Without these an ORM update or delete with synchronize_session="fetch" finds its objects by a SELECT first.
        # With them it would rely on the rows of UPDATE ... RETURNING, and what is recorded returns no rows.
        self.engine.dialect = dialect_variant(target.dialect, {"update_returning": False, "delete_returning": False})
        if target.dialect.name != "postgresql":
            event.listen(self.engine, "before_execute", self._before_execute, retval=True)
        event.listen(self.engine, "before_cursor_execute", self._before_cursor_execute)
        event.listen(self.engine, "after_cursor_execute", self._after_cursor_execute)

    def enroll(self, connection: Connection, state: SessionState, *, nested: bool) -> None:
        """A session's transaction (`nested`: a savepoint of it) begins to use this connection."""
        assert isinstance(connection, ReadConnection)
        connection.state = state
        if state.is_direct and not nested and connection.dialect.name == "sqlite" and not state.upgrading:
            state.upgrading = True
            try:
                begin_anew(connection, writes=False, direct=True)
            finally:
                state.upgrading = False

    # ------------------------------------------------------------------------------------------------- keys

    def _before_execute(
        self, connection: Connection, statement: Any, multiparams: Any, params: Any, execution_options: Any
    ) -> tuple[Any, Any, Any]:
        """An INSERT that runs on the target takes the key that it leaves open from the reserved blocks as well.

        The database's own next key may be reserved for somebody else's entry that is not applied yet. PostgreSQL's
        sequences give each key once and need no help; INSERT ... SELECT cannot be helped.
        """
        state = connection.state if isinstance(connection, ReadConnection) else None
        if not isinstance(statement, Insert) or state is None or state.upgrading or statement.select is not None:
            return statement, multiparams, params
        rows = list(multiparams) or ([params] if params else [])
        column = missing_key(statement, rows[0] if rows else ())
        if column is None:
            return statement, multiparams, params

        def next_key(column: Any) -> int:
            return self._journal.next_key(state, column)

        if rows:
            keyed = [{**row, column.key: next_key(column)} for row in rows]
            return (statement, keyed, {}) if multiparams else (statement, [], keyed[0])
        if getattr(statement, "_multi_values", None):
            return with_keys_in_rows(statement, column, next_key), multiparams, params
        return statement, [], {column.key: next_key(column)}

    # ------------------------------------------------------------------------------------------ the barrier

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        state = connection.state if isinstance(connection, ReadConnection) else None
        if state is None or state.upgrading:
            return
        compiled = context.compiled if context is not None else None
        if isinstance(getattr(compiled, "statement", None), _SAVEPOINTS):
            return
        tables = self._analyse(compiled)
        if not tables.read_only:
            if not state.is_direct:
                upgrade(state, _reason(compiled))
            state.wrote = True
        elif state.is_direct:
            # Once it has written it holds locks, and what it would wait for may be waiting for those. Its place in the
            # order is where it became direct: all that was committed before is there.
            if not state.wrote and not _stale(context, state):
                self._barrier(connection, state, tables)
        elif state.buffer is not None and state.buffer.touches(tables.reads):
            upgrade(state, "read of its own uncommitted writes")
        elif not _stale(context, state):
            self._barrier(connection, state, tables)

    def _after_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        state = connection.state if isinstance(connection, ReadConnection) else None
        if state is None or state.upgrading or not state.wrote or connection.dialect.name == "postgresql":
            return
        compiled = context.compiled if context is not None else None
        if isinstance(compiled, SQLCompiler):
            if not compiled.isplaintext and not _inserts_selected(compiled):
                return
        elif compiled is not None:
            return
        if cursor.description is None:
            # The database may have given out keys by itself; the allocator must not give them out again.
            state.upgrading = True
            try:
                self._journal.keys.note_target(connection)
            finally:
                state.upgrading = False

    def _barrier(self, connection: Connection, state: SessionState, tables: StatementTables) -> None:
        """Wait for what the statement must see.

        Where a transaction sees the snapshot of its first read, that read waits for everything: what was committed
        before it, to whatever table, is what the transaction must see.
        """
        reads = tables.reads
        if not state.has_snapshot and keeps_snapshot(connection):
            state.has_snapshot = True
            reads = None
        if self._journal.must_wait(reads):
            release_target(state)
            self._journal.barrier(reads)

    def _analyse(self, compiled: Any) -> StatementTables:
        if compiled is None:
            return tables_of(None)
        tables = self._tables.get(compiled)
        if tables is None:
            tables = self._tables[compiled] = tables_of(compiled)
        return tables


_SAVEPOINTS = (SavepointClause, ReleaseSavepointClause, RollbackToSavepointClause)


def _inserts_selected(compiled: Any) -> bool:
    return bool(compiled.isinsert) and getattr(compiled.compile_state.statement, "select", None) is not None


def keeps_snapshot(connection: Connection) -> bool:
    """Whether later reads of the connection's transaction see what the first one saw."""
    dialect: Any = connection.dialect
    if dialect.name == "sqlite":
        # Python's driver begins a transaction before DML only, so that each read has a snapshot of its own, unless the
        # application begins one in a "begin" listener, as SQLAlchemy's documentation describes.
        return bool(getattr(connection.connection.dbapi_connection, "in_transaction", True))
    level = (
        connection.get_execution_options().get("isolation_level")
        or getattr(dialect, "_on_connect_isolation_level", None)
        or connection.default_isolation_level
    )
    return not isinstance(level, str) or level.upper().replace("_", " ") not in _NO_SNAPSHOT


_NO_SNAPSHOT = frozenset({"READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"})


def _reason(compiled: Any) -> str:
    if compiled is None or getattr(compiled, "isplaintext", False):
        return "SQL text"
    statement = getattr(compiled.compile_state, "statement", compiled.statement)
    if getattr(statement, "_for_update_arg", None) is not None:
        return "SELECT ... FOR UPDATE"
    if getattr(statement, "_returning", ()):
        return "RETURNING"
    return f"{type(statement).__name__} statement on the target"


def _stale(context: Any, state: SessionState) -> bool:
    options = context.execution_options if context is not None else {}
    choice = options.get("walsync_read") or state.session.info.get("walsync.read")
    if choice not in (None, "stale", "fresh"):
        raise UsageError(f"walsync_read must be 'fresh' or 'stale', not {choice!r}")
    return choice == "stale"

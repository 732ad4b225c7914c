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
its failure is the caller's. The same with a task of asyncio that is cancelled: what is decided stays so, and the
cancellation is raised when the transaction is over (see `walsync.session.bridge`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.ddl import BaseDDLElement
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause
from sqlalchemy.sql.selectable import SelectBase

from walsync.changes import TableName
from walsync.exceptions import UsageError
from walsync.journal import StatementTables, tables_of
from walsync.journal.dialects import dialect_variant
from walsync.journal.plan import generated_key, missing_key
from walsync.journal.statements import with_keys_in_rows
from walsync.journal.tables import without_lambda
from walsync.journal.watching import seen_by, watching_compiler
from walsync.session.connection import STATEMENT_TABLES, ReadConnection, session_view
from walsync.session.options import OPTIONS, TRANSLATE
from walsync.session.state import SessionState
from walsync.session.upgrade import begin_anew, release_snapshot, upgrade, wait_without_locks

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["ReadEngine"]


class ReadEngine:
    """Makes and owns the Engine; `engine` is what sessions get from `get_bind`."""

    def __init__(self, journal: Journal, target: Engine) -> None:
        self._journal = journal
        self.engine = session_view(target)
        self._gives_keys = target.dialect.name != "postgresql"
        self.is_sqlite = target.dialect.name == "sqlite"
        # Without these an ORM update or delete with synchronize_session="fetch" finds its objects by a SELECT first.
        # With them it would rely on the rows of UPDATE ... RETURNING, and what is recorded returns no rows.
        self.engine.dialect = dialect_variant(
            target.dialect,
            {
                "update_returning": False,
                "delete_returning": False,
                "statement_compiler": watching_compiler(target.dialect.statement_compiler),
            },
        )

    def enroll(self, connection: Connection, state: SessionState, *, nested: bool) -> None:
        """A session's transaction (`nested`: a savepoint of it) begins to use this connection."""
        assert isinstance(connection, ReadConnection)
        connection.state = state
        state.held = state.session
        if state.direct_reason is None or nested or state.upgrading or not self.is_sqlite:
            return
        driver: Any = connection._dbapi_connection and connection._dbapi_connection.dbapi_connection
        if getattr(driver, "in_transaction", True) is not False:
            state.upgrading = True
            try:
                begin_anew(connection, writes=False, direct=True)
            finally:
                state.upgrading = False

    # ------------------------------------------------------------------------------------------------- keys

    def with_keys(self, state: SessionState, statement: Insert, parameters: Any) -> tuple[Insert, Any]:
        """An INSERT that runs on the target takes the key that it leaves open from the reserved blocks as well.

        The database's own next key may be reserved for somebody else's entry that is not applied yet. PostgreSQL's
        sequences give each key once and need no help; INSERT ... SELECT cannot be helped, and for a table in a schema
        that is translated no keys are reserved. What SQLAlchemy would refuse as parameters is given back as it is.
        """
        if not self._gives_keys or statement.select is not None or TRANSLATE in statement._execution_options:
            return statement, parameters
        row = parameters[0] if type(parameters) is list and parameters else parameters
        if type(row) is dict:
            # As the unit of work gives them: with the key, as a rule.
            table = statement._annotations.get("_emit_insert_table", statement.table)
            column = generated_key(table) if isinstance(table, Table) else None
            if column is None or column.key in row:
                return statement, parameters
        if isinstance(parameters, Mapping):
            rows: list[Any] = [parameters] if parameters else []
        elif isinstance(parameters, (list, tuple)):
            rows = list(parameters)
        else:
            rows = []
        if not all(isinstance(row, Mapping) for row in rows):
            return statement, parameters
        column = missing_key(statement, rows[0] if rows else ())
        if column is None:
            return statement, parameters

        def next_key(column: Any) -> int:
            return self._journal.next_key(state, column)

        if rows:
            keyed = [{**row, column.key: next_key(column)} for row in rows]
            return statement, keyed[0] if isinstance(parameters, Mapping) else keyed
        if getattr(statement, "_multi_values", None):
            return with_keys_in_rows(statement, column, next_key), parameters
        return statement, {column.key: next_key(column)}

    # ------------------------------------------------------------------------------------------ the barrier

    def before_statement(self, connection: ReadConnection, state: SessionState, context: Any) -> None:
        """A statement is about to be sent: wait for what it must see, or make the transaction direct first."""
        compiled = context.compiled
        # Kept with the construct that they belong to: SQLAlchemy's cache, which holds that, is theirs as well.
        tables = compiled.__dict__.get(STATEMENT_TABLES) if compiled is not None else None
        if tables is None:
            if isinstance(getattr(compiled, "statement", None), _SAVEPOINTS):
                return
            tables = self._analyse(compiled)
        if not tables.read_only:
            if state.direct_reason is None:
                upgrade(state, _reason(compiled))
            state.wrote = True
        elif state.direct_reason is not None:
            # Once it has written it holds locks, and what it would wait for may be waiting for those. Its place in the
            # order is where it became direct: all that was committed before is there.
            if state.wrote:
                return
            if _stale(context, state):
                state.read_stale = True
            else:
                self._barrier(connection, state, tables)
        elif self._reads_own_writes(state, tables.reads):
            upgrade(state, "read of its own uncommitted writes")
        elif not _stale(context, state):
            self._barrier(connection, state, tables)
        else:
            state.read_stale = True

    def after_statement(self, connection: ReadConnection, state: SessionState, context: Any, result: Any) -> None:
        """A direct transaction that has written has executed a statement."""
        compiled = context.compiled
        if isinstance(compiled, SQLCompiler) and not compiled.isplaintext:
            may_give_keys = _inserts_selected(compiled)
        else:
            # SQL text, or DDL.
            may_give_keys = compiled is None or isinstance(compiled, SQLCompiler)
            if _SCHEMA_CHANGE.search(context.statement) is not None:
                # Also when it is committed: before that, others see the tables as they were.
                state.changed_schema = True
                self._journal.relations.forget()
        if may_give_keys and self._gives_keys and not result.returns_rows:
            # The database may have given out keys by itself; the allocator must not give them out again.
            state.upgrading = True
            try:
                self._journal.keys.note_target(connection)
            finally:
                state.upgrading = False

    def _reads_own_writes(self, state: SessionState, reads: frozenset[TableName] | None) -> bool:
        """Whether what the transaction has flushed may show in a read of these tables."""
        buffer = state.buffer
        if buffer is None or not buffer.changes:
            return False
        return buffer.touches(reads) or buffer.touches(self._journal.sources(reads))

    def _barrier(self, connection: Connection, state: SessionState, tables: StatementTables) -> None:
        """Wait for what the statement must see.

        Where a transaction sees the snapshot of its first read, that read waits for everything: what was committed
        before it, to whatever table, is what the transaction must see.
        """
        journal, reads = self._journal, tables.reads
        if not state.read_stale and not journal.has_backlog:
            # What a snapshot that begins now shows is everything.
            state.has_snapshot = True
            return
        if not state.has_snapshot and keeps_snapshot(connection):
            if state.read_stale:
                # The snapshot is that of the stale read.
                release_snapshot(state)
            state.has_snapshot = True
            reads = None
        if not journal.has_backlog:
            return
        reads = journal.sources(reads)
        if journal.must_wait(reads):
            wait_without_locks(state, lambda: journal.barrier(reads))

    def _analyse(self, compiled: Any) -> StatementTables:
        if compiled is None:
            return tables_of(None)
        tables = tables_of(compiled)
        if (
            isinstance(compiled, SQLCompiler)
            and not compiled.isplaintext
            and (compiled.isinsert or compiled.isupdate or compiled.isdelete)
        ):
            tables = replace(tables, is_plain_dml=not tables.read_only and not _inserts_selected(compiled))
        compiled.__dict__[STATEMENT_TABLES] = tables
        return tables


_SCHEMA_CHANGE = re.compile(r"\b(?:create|alter|drop|rename|attach|detach)\b", re.IGNORECASE)
"""SQL text with one of these, or DDL, may change which tables there are and what belongs to them."""


_SAVEPOINTS = (SavepointClause, ReleaseSavepointClause, RollbackToSavepointClause)


def _inserts_selected(compiled: Any) -> bool:
    return bool(compiled.isinsert) and getattr(compiled.compile_state.statement, "select", None) is not None


def keeps_snapshot(connection: Connection) -> bool:
    """Whether later reads of the connection's transaction see what the first one saw."""
    dialect: Any = connection.dialect
    if dialect.name == "sqlite":
        # Python's driver begins a transaction before DML only, so that each read has a snapshot of its own, unless the
        # application begins one in a "begin" listener, as SQLAlchemy's documentation describes.
        return bool(getattr(connection.connection.driver_connection, "in_transaction", True))
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
    statement = without_lambda(getattr(compiled.compile_state, "statement", compiled.statement))
    if getattr(statement, "_for_update_arg", None) is not None:
        return "SELECT ... FOR UPDATE"
    if getattr(statement, "_returning", ()) or getattr(compiled.statement, "_returning", ()):
        return "RETURNING"
    if compiled.schema_translate_map:
        return OPTIONS
    for kind, name in ((Insert, "INSERT"), (Update, "UPDATE"), (Delete, "DELETE")):
        if isinstance(statement, kind):
            # Of a mapped class it is an annotated subclass.
            return f"{name} statement on the target"
    if isinstance(statement, SelectBase):
        return (
            "SELECT with a function that is not known"
            if seen_by(compiled).calls
            else "SELECT with an inner statement that writes or locks"
        )
    if isinstance(statement, BaseDDLElement):
        return "DDL"
    return f"{type(statement).__name__} statement on the target"


def _stale(context: Any, state: SessionState) -> bool:
    choice: Any = context.execution_options.get("walsync_read") or state.session.info.get("walsync.read")
    if choice is None:
        return False
    if choice not in ("stale", "fresh"):
        raise UsageError(f"walsync_read must be 'fresh' or 'stale', not {choice!r}")
    return bool(choice == "stale")

"""The dialect ``walsync``: SQLAlchemy compiles and executes against it, and what is executed is recorded.

Three deliberate departures from what a dialect does:

- Bind processing is replaced: a compiled construct's processors are the *recorders* of `walsync.changes.types`, made
  for the target's dialect, so that each value goes through the application's own types once, as it would on the target.
- What a compiled construct renders as text is never used; constructs that only the target's dialect knows (upserts, its
  operators) therefore compile to nothing here, instead of failing, and are compiled by the target's dialect later.
- An INSERT that leaves an autoincrement column to the database gets its key here, from reserved blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy.dialects import registry
from sqlalchemy.engine import URL, Dialect, Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.compiler import SQLCompiler

from walsync.changes import RowChanges, describe_type
from walsync.changes.codec import encode_shape
from walsync.changes.places import row_places
from walsync.exceptions import NotCapturedError
from walsync.journal.buffer import TransactionBuffer
from walsync.journal.dbapi import IntegrityError, JournalConnection, JournalCursor, JournalDBAPI
from walsync.journal.keys import KeyAllocator
from walsync.journal.plan import Plan, RowPlan, make_plan
from walsync.journal.pool import JournalPool
from walsync.journal.statements import recording_dialect, statement_changes

__all__ = ["JournalDialect", "journal_engine"]

_PLAN: Final = "_walsync_plan"
_SHAPES_MAX: Final = 10_000
"""Shapes kept to be shared. Past it they are dropped; sharing is for compactness, not for correctness."""


class _JournalCompiler(SQLCompiler):
    dialect: JournalDialect
    # MySQL updates several tables at once; the target's own compiler refuses it where the target cannot.
    render_table_with_column_in_update_from = True

    @property
    def _bind_processors(self) -> Any:
        processors = self.__dict__.get("_walsync_recorders")
        if processors is None:
            target = self.dialect.target_dialect
            processors = {
                name: describe_type(bind.type, target)[1]
                for bind, name in self.bind_names.items()
                if bind not in self.literal_execute_params and not bind.type._is_tuple_type
            }
            self.__dict__["_walsync_recorders"] = processors
        return processors

    def post_process_text(self, text: str) -> str:
        # SQLAlchemy before 2.0.55 takes %(name)s for a parameter wherever it stands.
        return text.replace("%", "")

    escape_literal_column = post_process_text

    def visit_unsupported_compilation(self, element: Any, err: Exception, **kw: Any) -> str:
        return ""

    def update_from_clause(self, *args: Any, **kw: Any) -> str:
        return ""

    def delete_extra_from_clause(self, *args: Any, **kw: Any) -> str:
        return ""


class JournalDialect(DefaultDialect):
    """See the module's docstring. Made by `journal_engine()`, never by `create_engine()`."""

    name = "walsync"
    driver = "log"
    default_paramstyle = "qmark"
    statement_compiler = _JournalCompiler
    # A row's parameters arrive as a list of its own, which is kept as it is.
    execute_sequence_format = list  # type: ignore[assignment]

    supports_statement_cache = True
    supports_alter = False
    supports_sane_rowcount = True
    supports_sane_multi_rowcount = True
    supports_default_values = True
    supports_default_metavalue = True
    supports_multivalues_insert = True
    supports_identity_columns = True
    supports_native_boolean = True
    supports_native_decimal = True
    supports_native_enum = True
    supports_native_uuid = True
    tuple_in_values = True
    insert_returning = False
    update_returning = False
    delete_returning = False
    use_insertmanyvalues = False
    postfetch_lastrowid = True

    def __init__(self, target_dialect: Dialect, keys: KeyAllocator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dbapi = JournalDBAPI  # type: ignore[assignment]
        self.target_dialect = target_dialect
        self.recording_dialect = recording_dialect(target_dialect)
        self.keys = keys
        self._shapes: dict[Any, RowChanges] = {}

    @classmethod
    def import_dbapi(cls) -> Any:
        return JournalDBAPI

    # ------------------------------------------------------------------------------------------ recording

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        self._record(cursor, [parameters], context)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        self._record(cursor, parameters, context)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        self._record(cursor, [[]], context)

    def _record(self, cursor: JournalCursor, rows: Sequence[Any], context: Any) -> None:
        compiled = context.compiled if context is not None else None
        if not isinstance(compiled, SQLCompiler) or compiled.isplaintext:
            raise NotCapturedError(
                "SQL text and DDL cannot be executed on the journal's engine: what they change is not known. Execute "
                "them through an attached session, where they run directly on the target, or on the target's own engine"
            )
        # Kept with the construct that it belongs to: SQLAlchemy's cache, which holds that, is the plan's cache as well.
        plan: Plan | None = compiled.__dict__.get(_PLAN)
        if plan is None:
            plan = compiled.__dict__[_PLAN] = self._make_plan(compiled)
        buffer = cursor.buffer
        if isinstance(plan, RowPlan):
            cursor.lastrowid = self.record_rows(buffer, plan, rows)
            cursor.rowcount = len(rows)
        else:
            expected = 1 if buffer.expects_rows and not context.isinsert else None
            for change in statement_changes(
                context, plan, self.recording_dialect, expected, self._giver_of_keys(buffer)
            ):
                buffer.add_statement(change)
            # What it will match is not known; the unit of work expects one row for each set of parameters.
            cursor.rowcount = len(rows) if buffer.expects_rows else -1
            if buffer.owner is not None:
                buffer.owner.changes_added()

    def _make_plan(self, compiled: SQLCompiler) -> Plan:
        plan = make_plan(compiled, self.target_dialect)
        if isinstance(plan, RowPlan):
            # One object for equal shapes, so that rows of different constructs come to lie in one change.
            if len(self._shapes) >= _SHAPES_MAX:
                self._shapes.clear()
            plan.shape = self._shapes.setdefault(plan.shape.shape_key(), plan.shape)
            shape = plan.shape
            shape.header = encode_shape(shape)
            primary_key = [str.__str__(column.name) for column in plan.table.primary_key]
            shape.places = row_places(shape.columns, shape.keys, primary_key)
        return plan

    @staticmethod
    def plan_of(compiled: Any) -> Plan | None:
        """The plan of a compiled construct, if it was executed before."""
        plan: Plan | None = compiled.__dict__.get(_PLAN)
        return plan

    def record_rows(self, buffer: TransactionBuffer, plan: RowPlan, rows: Sequence[Any]) -> int | None:
        """Add rows, each a list that is nobody else's, to the buffer. Returns the last key that was given out for them.

        Raises the DBAPI's `IntegrityError` with nothing added.
        """
        if plan.missing is not None:
            raise IntegrityError(f"NOT NULL constraint: {plan.table.fullname}.{plan.missing} has no value")
        if plan.not_null:
            for row in rows:
                for index, name in plan.not_null:
                    if row[index] is None:
                        raise IntegrityError(f"NOT NULL constraint: {plan.table.fullname}.{name} must not be NULL")
        order = plan.order
        key: int | None = None
        if order is not None:
            rows = [[row[index] for index in order] for row in rows]
        elif plan.key_column is not None:
            next_key = self._giver_of_keys(buffer)
            for row in rows:
                key = next_key(plan.key_column)
                row.append(key)
        elif plan.explicit_key is not None:
            column, index = plan.explicit_key
            self.keys.note_keys(column, [row[index] for row in rows])
        shape = plan.shape
        buffer.add_rows(shape, rows, shape.kind != "insert" and buffer.expects_rows)
        if buffer.owner is not None:
            buffer.owner.changes_added()
        return key

    def _giver_of_keys(self, buffer: TransactionBuffer) -> Callable[[Any], int]:
        return self.keys.next_key if buffer.owner is None else buffer.owner.next_key

    # --------------------------------------------------------------------------------- transaction control

    def do_savepoint(self, connection: Any, name: str) -> None:
        self.buffer_of(connection).savepoint(name)

    def do_rollback_to_savepoint(self, connection: Any, name: str) -> None:
        self.buffer_of(connection).rollback_to_savepoint(name)

    def do_release_savepoint(self, connection: Any, name: str) -> None:
        self.buffer_of(connection).release_savepoint(name)

    def do_begin_twophase(self, connection: Any, xid: Any) -> None:
        raise NotCapturedError("two-phase transactions are not supported by the journal")

    @staticmethod
    def buffer_of(connection: Any) -> TransactionBuffer:
        """The buffer behind a SQLAlchemy `Connection` of a journal's engine."""
        dbapi_connection = connection.connection.dbapi_connection
        assert isinstance(dbapi_connection, JournalConnection)
        return dbapi_connection.buffer

    def do_ping(self, dbapi_connection: Any) -> bool:
        return True

    def get_isolation_level_values(self, dbapi_conn: Any) -> Sequence[Any]:
        return ["SERIALIZABLE"]

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        return "SERIALIZABLE"

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        return "SERIALIZABLE"


registry.register("walsync", "walsync.journal.dialect", "JournalDialect")


def journal_engine(
    target_dialect: Dialect, keys: KeyAllocator, on_commit: Callable[[TransactionBuffer], None]
) -> Engine:
    """An Engine whose transactions are handed to `on_commit` when they are committed with changes in them.

    Thread-safe as every Engine is. Opening a connection costs nothing and needs no target; `on_commit` is called in the
    committing thread, and its exception is the commit's.
    """
    dialect = JournalDialect(target_dialect, keys)

    def connect() -> JournalConnection:
        return JournalConnection(TransactionBuffer(on_commit))

    pool = JournalPool(connect, dialect=dialect, reset_on_return=None)
    return Engine(pool, dialect, URL.create("walsync"))

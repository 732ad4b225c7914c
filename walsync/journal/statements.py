"""DML that is not plain rows, as SQL of the target's dialect.

The construct that was executed is compiled once more, by a copy of the target's dialect whose parameter style is
``%(name)s`` (in which SQLAlchemy doubles every literal percent sign, so that the text can be taken apart again without
parsing SQL), and without RETURNING. No connection is needed. "Now" becomes the moment of the recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from walsync.changes import StatementChange, TypeSpec, describe_type
from walsync.exceptions import NotCapturedError
from walsync.journal.commit_time import is_current_time, moment_sql
from walsync.journal.dialects import dialect_variant
from walsync.journal.plan import StatementPlan
from walsync.journal.tables import walk

__all__ = ["recording_dialect", "statement_changes", "with_keys_in_rows"]


def recording_dialect(target_dialect: Dialect) -> Dialect:
    """The target's dialect, but it compiles to named parameters and never asks for rows back."""
    overrides: dict[str, Any] = {
        "paramstyle": "pyformat",
        "positional": False,
        "insert_returning": False,
        "update_returning": False,
        "delete_returning": False,
        "use_insertmanyvalues": False,
        "preexecute_autoincrement_sequences": False,
        "postfetch_lastrowid": True,
        "statement_compiler": _recording_compiler(target_dialect.statement_compiler),
        "identifier_preparer": None,
    }
    dialect = dialect_variant(target_dialect, overrides)
    # The preparer decides about percent signs when it is made.
    overrides["identifier_preparer"] = dialect.preparer(dialect)
    return dialect


def _recording_compiler(base: Any) -> Any:
    """The dialect's compiler, with the current time written out: applied later, it must not become a later time."""

    class RecordingCompiler(base):  # type: ignore[misc]
        moment_us: int | None = None

        def visit_function(self, func: Any, add_to_result_map: Any = None, **kw: Any) -> Any:
            if is_current_time(func):
                if self.moment_us is None:
                    self.moment_us = time.time_ns() // 1000
                sql = moment_sql(self.dialect.name, self.moment_us)
                if sql is not None:
                    return sql
            return super().visit_function(func, add_to_result_map=add_to_result_map, **kw)

    return RecordingCompiler


def statement_changes(
    context: Any, plan: StatementPlan, recording: Dialect, expected_rows: int | None, next_key: Callable[[Any], int]
) -> list[StatementChange]:
    """One change for each parameter set of an execution. `next_key` gives the keys that an INSERT leaves open."""
    source: SQLCompiler = context.compiled
    statement = context.invoked_statement
    if not hasattr(statement, "compile"):
        statement = source.statement
    column_keys = source.column_keys
    key_column = plan.key_column
    if key_column is not None:
        if getattr(statement, "_multi_values", None):
            statement = with_keys_in_rows(statement, key_column, next_key)
            key_column = None
        else:
            column_keys = [*(column_keys or ()), key_column.key]
    compiled = statement.compile(dialect=recording, column_keys=column_keys)
    assert isinstance(compiled, SQLCompiler)
    reads = walk([statement, getattr(compiled.compile_state, "statement", statement)]).reads
    read_tables = [] if reads is None else sorted(reads.difference(plan.tables), key=str)
    changes = []
    for parameters in context.compiled_parameters:
        given = parameters if key_column is None else {**parameters, key_column.key: next_key(key_column)}
        changes.append(_change(compiled, given, plan, recording, read_tables, expected_rows))
    return changes


def with_keys_in_rows(statement: Any, column: Any, next_key: Callable[[Any], int]) -> Any:
    """The same ``insert().values([...])`` with a key in each of its rows."""
    keyed = statement._generate()
    keyed._multi_values = tuple(
        [{**row, column: next_key(column)} if isinstance(row, dict) else row for row in rows]
        for rows in statement._multi_values
    )
    return keyed


def _change(
    compiled: SQLCompiler,
    given: Mapping[str, Any],
    plan: StatementPlan,
    recording: Dialect,
    read_tables: list[Any],
    expected_rows: int | None,
) -> StatementChange:
    # Parameters with a name of their own come from this execution; anonymous ones carry their value, because the
    # construct that was executed is the one that was compiled (SQLAlchemy's cache swaps values only between equals).
    named = {name for bind, name in compiled.bind_names.items() if not bind.unique}
    values = compiled.construct_params({name: given[name] for name in named if name in given})
    sql = compiled.string
    binds = {name: bind.type for bind, name in compiled.bind_names.items()}
    if compiled.literal_execute_params or compiled.post_compile_params:
        state = compiled.construct_expanded_state(values)
        sql = state.statement
        for name, parts in state.parameter_expansion.items():
            binds.update(dict.fromkeys(parts, binds[name]))
        values = dict(state.parameters)
    parameters: dict[str, Any] = {}
    specs: dict[str, TypeSpec] = {}
    for name, value in values.items():
        if getattr(binds[name], "_is_tuple_type", False):
            raise NotCapturedError(
                "a comparison of tuples cannot be recorded; write it as comparisons of single columns, or run this "
                "transaction directly on the target (session.info['walsync.mode'] = 'direct')"
            )
        spec, record = describe_type(binds[name], recording)
        rendered = compiled.escaped_bind_names.get(name, name)
        parameters[str.__str__(rendered)] = record(value)
        specs[str.__str__(rendered)] = spec
    return StatementChange(
        str.__str__(sql),
        parameters,
        specs,
        plan.tables,
        read_tables,
        recording.name,
        expected_rows,
        None if plan.versioned is None or expected_rows is None else plan.versioned.row(given),
    )

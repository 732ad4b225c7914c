"""The short way of a flush's INSERTs into the buffer.

What SQLAlchemy does for one execution (execution context, cursor, result) takes longer than everything that walsync
does for it, and of an INSERT whose values all come with it the unit of work wants next to nothing back. So such rows
are recorded here by the plan that their first execution made.

Whatever is not known to be this simple goes the long way, and so does whatever fails: nothing was recorded then, and
the long way raises SQLAlchemy's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert

from walsync.journal.dbapi import IntegrityError
from walsync.journal.plan import RowPlan

__all__ = ["insert_flushed"]

_RECIPE: Final = "_walsync_recipe"


class _Recipe:
    """How a compiled INSERT's parameters become rows: for each value its parameter, and what it passes through."""

    __slots__ = ("fields", "plan")

    def __init__(self, plan: RowPlan, fields: tuple[tuple[str, Callable[[Any], Any] | None], ...]) -> None:
        self.plan = plan
        self.fields = fields


class _FlushedRows:
    """What the unit of work asks of the result of such an INSERT, and of the result's context: both are this object."""

    __slots__ = ("compiled", "compiled_parameters", "executemany")

    isinsert: Final = True
    returned_defaults: Final = None

    def __init__(self, compiled: SQLCompiler, parameters: Sequence[dict[str, Any]]) -> None:
        self.compiled = compiled
        self.compiled_parameters = parameters
        self.executemany = len(parameters) > 1

    @property
    def context(self) -> _FlushedRows:
        return self


def insert_flushed(
    connection: Connection, statement: Any, parameters: list[dict[str, Any]], options: Any
) -> _FlushedRows | None:
    """Record these rows, or return None with nothing done: then `Connection.execute` is to do it.

    The unit of work's own INSERTs are known by their execution options: they name the mapper's cache, and nothing else.
    """
    if type(statement) is not Insert or not options or len(options) != 1 or not parameters:
        return None
    cache = options.get("compiled_cache")
    transaction, nested = connection._transaction, connection._nested_transaction
    dialect: Any = connection.dialect
    proxied = connection._dbapi_connection
    if (
        cache is None
        or transaction is None
        or not transaction.is_active
        or (nested is not None and not nested.is_active)
        or proxied is None
        or connection._has_events
        or connection.engine._has_events
        or dialect._has_events
        or connection._echo
        or connection._execution_options
        or statement._execution_options
    ):
        return None
    compiled: Any = statement._compile_w_cache(
        dialect, compiled_cache=cache, column_keys=sorted(parameters[0]), for_executemany=len(parameters) > 1
    )[0]
    try:
        recipe = compiled.__dict__[_RECIPE]
    except KeyError:
        plan = dialect.plan_of(compiled)
        if plan is None:
            return None  # not executed yet
        recipe = compiled.__dict__[_RECIPE] = _recipe(compiled, plan, parameters[0])
    if recipe is None:
        return None
    fields = recipe.fields
    buffer = dialect.buffer_of(connection)
    try:
        rows = [[row[name] if record is None else record(row[name]) for name, record in fields] for row in parameters]
    except Exception:  # noqa: BLE001 - the long way meets it again, and knows what SQLAlchemy calls it
        return None
    try:
        dialect.record_rows(buffer, recipe.plan, rows)
    except IntegrityError:
        return None
    return _FlushedRows(compiled, parameters)


def _recipe(compiled: SQLCompiler, plan: Any, parameters: dict[str, Any]) -> _Recipe | None:
    """None where an execution does more than to process the parameters that it is given."""
    names = compiled.positiontup
    if (
        not isinstance(plan, RowPlan)
        or plan.order is not None
        or plan.key_column is not None
        or names is None
        or compiled.insert_prefetch
        or compiled.effective_returning
        or compiled.literal_execute_params
        or compiled.post_compile_params
        or set(names) != set(parameters)
        or set(compiled.bind_names.values()) != set(parameters)
    ):
        return None
    recorders: Any = compiled._bind_processors
    return _Recipe(plan, tuple([(name, recorders.get(name)) for name in names]))

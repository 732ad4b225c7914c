"""Which SQL expressions mean the current time.

Such a value is written when the entry is applied, perhaps hours after the commit, and must be the commit's time all the
same: an outage must not move `created_at`. So a column whose value, default or server default is one of these is
recorded as a *commit time*, and the checkpointer writes the commit's time there.

In a recorded statement the same expressions are replaced by the time at which the statement was executed.

Only the forms that take no argument and give a timestamp are known; anything else is left as it is.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, DateTime, TextClause
from sqlalchemy.schema import DefaultClause
from sqlalchemy.sql.elements import ClauseElement, Grouping
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["has_commit_time_default", "has_commit_time_on_update", "is_current_time", "moment_sql"]

_NAMES: Final = frozenset({"now", "current_timestamp", "localtimestamp", "transaction_timestamp"})


def is_current_time(expression: Any) -> bool:
    """Whether a SQL expression, or the text of one, is the current time and nothing else."""
    if isinstance(expression, Grouping):
        return is_current_time(expression.element)
    if isinstance(expression, FunctionElement):
        name = getattr(expression, "name", "")
        return isinstance(name, str) and name.lower() in _NAMES and not list(expression.clauses)
    if isinstance(expression, TextClause):
        return _is_current_time_text(expression.text)
    return isinstance(expression, str) and _is_current_time_text(expression)


def _is_current_time_text(text: str) -> bool:
    stripped = text.strip().lower()
    while stripped.startswith("(") and stripped.endswith(")"):
        stripped = stripped[1:-1].strip()
    return stripped.removesuffix("()").strip() in _NAMES


def has_commit_time_default(column: Column[Any]) -> bool:
    """Whether a row inserted without this column gets the current time in it from the database."""
    default = column.server_default
    if not isinstance(default, DefaultClause) or not isinstance(column.type, DateTime):
        return False
    argument = default.arg
    # A server default given as a plain string is a literal, not an expression.
    if not isinstance(argument, ClauseElement):
        return False
    return is_current_time(argument) or _is_kept_current(argument)


def has_commit_time_on_update(column: Column[Any]) -> bool:
    """Whether the database writes the current time into this column of a row that is updated without it.

    It is declared so as ``server_onupdate``, or in the way of MySQL, behind the default.
    """
    if not isinstance(column.type, DateTime):
        return False
    declared = column.server_onupdate
    if (
        isinstance(declared, DefaultClause)
        and isinstance(declared.arg, ClauseElement)
        and is_current_time(declared.arg)
    ):
        return True
    default = column.server_default
    return isinstance(default, DefaultClause) and _is_kept_current(default.arg)


def _is_kept_current(default: Any) -> bool:
    """MySQL's ``CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP``."""
    if not isinstance(default, TextClause):
        return False
    made, _, changed = default.text.lower().partition(" on update ")
    return _is_current_time_text(made) and _is_current_time_text(changed)


def moment_sql(dialect_name: str, microseconds: int) -> str | None:
    """SQL for a moment (since the epoch), of the type that the dialect's CURRENT_TIMESTAMP has; None if not known.

    As with CURRENT_TIMESTAMP it is the session's zone in which PostgreSQL, MariaDB and MySQL write it to a column
    without a zone, and UTC to the second on SQLite.
    """
    if dialect_name == "postgresql":
        return f"(TIMESTAMP WITH TIME ZONE 'epoch' + {microseconds} * INTERVAL '1 microsecond')"
    if dialect_name in ("mysql", "mariadb"):
        return f"FROM_UNIXTIME({microseconds // 1_000_000})"
    if dialect_name == "sqlite":
        return f"datetime({microseconds // 1_000_000}, 'unixepoch')"
    return None

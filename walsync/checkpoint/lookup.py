"""Asks the target for values of rows that a batch is about to change, and locks these rows until its end.

A deleted row's entry says which row it was, and not what it referred to. Where that decides whether changes may be
moved past each other (`walsync.checkpoint.ordering`), one statement for a table finds it out for the whole batch. The
rows are those that the batch changes anyway; they are locked a little earlier, so that what was read stays true.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import column, select, table, tuple_
from sqlalchemy.engine import Connection

from walsync.changes import TableName, TypeSpec, restore_type

__all__ = ["Question", "look_up"]

_ROWS_MAX: Final = 1000
"""Rows asked for in one statement."""


class Question(NamedTuple):
    """Rows of one table, by their primary keys, and the columns that are to be known of them."""

    table: TableName
    key: tuple[str, ...]
    key_types: tuple[TypeSpec, ...]
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    """The primary keys, as recorded."""


def look_up(connection: Connection, question: Question) -> list[Sequence[Any]]:
    """Of each row that is there: its primary key, then the columns, in no order. Blocks for locks, as the target does.

    Raises what the target raises, and what a bind processor raises.
    """
    keys = [column(name, restore_type(spec)) for name, spec in zip(question.key, question.key_types, strict=True)]
    # Their values are read as the driver has them.
    others: list[Any] = [column(name) for name in question.columns]
    known = {col.name: col for col in (*keys, *others)}
    target = table(question.table.name, *known.values(), schema=question.table.schema)
    place: Any = target.c[keys[0].name] if len(keys) == 1 else tuple_(*[target.c[key.name] for key in keys])
    statement = select(*[target.c[name] for name in (*question.key, *question.columns)]).with_for_update()
    found: list[Sequence[Any]] = []
    for start in range(0, len(question.rows), _ROWS_MAX):
        part = question.rows[start : start + _ROWS_MAX]
        wanted = [row[0] for row in part] if len(keys) == 1 else part
        found.extend(tuple(row) for row in connection.execute(statement.where(place.in_(wanted))))
    return found

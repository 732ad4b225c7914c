"""Which other tables a change writes by the actions of foreign keys: CASCADE, SET NULL and SET DEFAULT.

The target carries them out, and nothing of them is recorded; but whoever reads those tables must wait for the change
all the same. What is known is what the application's metadata says. Triggers are not known to anybody here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import ForeignKeyConstraint, Table
from sqlalchemy.exc import NoReferenceError

from walsync.changes import ChangeKind, TableName
from walsync.journal.tables import table_name

__all__ = ["acted_on"]

_ACTIONS: Final = ("CASCADE", "SET NULL", "SET DEFAULT")


def acted_on(table: Table, kind: ChangeKind, columns: Iterable[str]) -> set[TableName]:
    """The tables, other than `table` itself, that a change of it writes through foreign keys, however many steps away.

    `columns` are the names of the columns that an update sets. An insert acts on nothing.
    """
    found: dict[Table, None] = {}
    seen: set[tuple[Table, ChangeKind, frozenset[str]]] = set()
    pending: list[tuple[Table, ChangeKind, frozenset[str]]] = [(table, kind, frozenset(columns))]
    while pending:
        step = pending.pop()
        if step in seen or step[1] == "insert":
            continue
        seen.add(step)
        for child, child_kind, child_columns in _acted_on_directly(*step):
            found[child] = None
            pending.append((child, child_kind, child_columns))
    return {table_name(child) for child in found} - {table_name(table)}


def _acted_on_directly(
    table: Table, kind: ChangeKind, columns: frozenset[str]
) -> Iterable[tuple[Table, ChangeKind, frozenset[str]]]:
    for child in table.metadata.tables.values():
        for constraint in child.foreign_key_constraints:
            if not _refers_to(constraint, table):
                continue
            own = frozenset(str.__str__(element.parent.name) for element in constraint.elements)
            referred = {str.__str__(element.column.name) for element in constraint.elements}
            if kind == "delete" and _action(constraint.ondelete) == "CASCADE":
                yield child, "delete", frozenset()
            elif (kind == "delete" and _action(constraint.ondelete)) or (
                kind == "update" and _action(constraint.onupdate) and referred & columns
            ):
                yield child, "update", own


def _refers_to(constraint: ForeignKeyConstraint, table: Table) -> bool:
    try:
        return constraint.referred_table is table
    except NoReferenceError:
        # A key to a table that this metadata does not have.
        return False


def _action(action: str | None) -> str | None:
    normal = None if action is None else " ".join(action.upper().split())
    return normal if normal in _ACTIONS else None

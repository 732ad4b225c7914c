"""The target's compiler, which also notes what it renders: tables, and what may read tables that cannot be seen.

Walking a construct does not show everything that is in the SQL: a SELECT of mapped classes inside of a subquery or a
UNION gets its column properties and loader criteria only when it is compiled, and these may read other tables. So the
compiler that attached sessions use for the target is one that looks on. What it has seen belongs to what it made, which
SQLAlchemy keeps in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from walsync.changes import TableName
from walsync.journal.functions import reads_no_table
from walsync.journal.names import hides_tables, table_name

__all__ = ["Seen", "seen_by", "watching_compiler"]

_SEEN: Final = "_walsync_seen"


@dataclass(slots=True)
class Seen:
    """`known`: nothing was rendered that may read tables without naming them. `calls`: a function that may do anything
    was."""

    tables: set[TableName] = field(default_factory=set)
    known: bool = True
    calls: bool = False


def seen_by(compiler: Any) -> Seen:
    """What was seen while this was compiled; empty for what another compiler made."""
    seen = compiler.__dict__.get(_SEEN)
    if seen is None:
        seen = compiler.__dict__[_SEEN] = Seen()
    assert isinstance(seen, Seen)
    return seen


def watching_compiler(base: Any) -> Any:
    """A subclass of a dialect's statement compiler."""

    class WatchingCompiler(base):  # type: ignore[misc]
        def visit_table(self, table: Any, *args: Any, **kw: Any) -> Any:
            seen_by(self).tables.add(table_name(table))
            return super().visit_table(table, *args, **kw)

        def visit_textclause(self, textclause: Any, *args: Any, **kw: Any) -> Any:
            seen_by(self).known = False
            return super().visit_textclause(textclause, *args, **kw)

        def visit_column(self, column: Any, *args: Any, **kw: Any) -> Any:
            if column.is_literal and hides_tables(column):
                seen_by(self).known = False
            return super().visit_column(column, *args, **kw)

        def visit_function(self, func: Any, *args: Any, **kw: Any) -> Any:
            if not reads_no_table(func):
                seen = seen_by(self)
                seen.known, seen.calls = False, True
            return super().visit_function(func, *args, **kw)

    return WatchingCompiler

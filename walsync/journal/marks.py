"""The marks that an entry bears in the log: the tables that it writes, as names; and the marks that a read waits for.

One table may have several names. Without a schema it is looked for in the connection's default one, which is not known
here, so it may be the table of that name in any schema. And capitals may matter or not, as the database (and for
MariaDB, the file system) likes. So a name with a schema bears one mark more, "this name in some schema", for which the
reads of the name without a schema wait; and names that differ in capitals are one. Two tables that are taken for one
cost a wait, never a wrong read.

An entry with a statement that may write anything, because it calls a function that is not known, names `ANY_TABLE`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from walsync.changes import TableName

__all__ = ["ANY_TABLE", "awaited_marks", "folded", "marks_of"]

_KEPT: Final = 4096

ANY_TABLE: Final = TableName(None, "*")
"""Among the tables that an entry writes: it may write others as well, and every read waits for it."""


def folded(name: str) -> str:
    """A name as it is compared."""
    return str.__str__(name).casefold()


def _bare(table: TableName) -> str:
    return folded(table.name)


def _in_schema(table: TableName) -> str:
    return f"{folded(table.schema or '')}\0{folded(table.name)}"


def _in_some_schema(table: TableName) -> str:
    return f"\0\0{folded(table.name)}"


@lru_cache(maxsize=_KEPT)
def _written(tables: frozenset[TableName]) -> tuple[str, ...]:
    marks: dict[str, None] = {}
    for table in tables:
        if table.schema is None:
            marks[_bare(table)] = None
        else:
            marks[_in_schema(table)] = marks[_in_some_schema(table)] = None
    return tuple(marks)


@lru_cache(maxsize=_KEPT)
def awaited_marks(tables: frozenset[TableName]) -> tuple[str, ...]:
    """The marks of every entry that writes one of these tables, by whatever name; of the same ones, the same tuple."""
    marks: dict[str, None] = {_bare(ANY_TABLE): None}
    for table in tables:
        marks[_bare(table)] = None
        marks[_in_some_schema(table) if table.schema is None else _in_schema(table)] = None
    return tuple(marks)


def marks_of(tables: Iterable[TableName]) -> tuple[str, ...]:
    """The marks of an entry that writes these tables; of the same ones, the same tuple."""
    return _written(tables if isinstance(tables, frozenset) else frozenset(tables))

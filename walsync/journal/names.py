"""The name of a table, and which elements of a statement may read tables that they do not name."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import TextClause
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import TableClause

from walsync.changes import TableName
from walsync.journal.functions import reads_no_table

__all__ = ["hides_tables", "table_name"]

_CONSTANT: Final = re.compile(r"\*|[0-9]+(\.[0-9]*)?|'[^'\\]*'|NULL|TRUE|FALSE", re.IGNORECASE)
"""Literals in which no table can be: `startswith()` is made with one."""


def table_name(table: TableClause) -> TableName:
    """A table's name with plain strings: SQLAlchemy's `quoted_name` is a str subclass that encoders refuse."""
    schema = getattr(table, "schema", None)
    return TableName(None if schema is None else str.__str__(schema), str.__str__(table.name))


def hides_tables(element: Any) -> bool:
    """Text, however small; a function that is not known; what an application compiles itself (`@compiles`)."""
    if isinstance(element, TextClause):
        return True
    if isinstance(element, ColumnClause) and element.is_literal:
        return _CONSTANT.fullmatch(str(element.name)) is None
    if isinstance(element, FunctionElement):
        return not reads_no_table(element)
    return getattr(type(element), "_compiler_dispatcher", None) is not None

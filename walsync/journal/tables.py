"""Which tables a statement reads and writes, found by walking the construct, and by looking on when it is compiled.

`Select.get_final_froms()` does not show tables inside of subqueries, CTEs and EXISTS, and a statement of the ORM gets
its eager-loaded tables only when it is compiled; so what is walked is the compiled construct's own statement. What is
in the SQL all the same, and not there, the compiler has seen (`walsync.journal.watching`). Where the tables cannot be
told (text, however small; a function that is not known), the answer is "unknown", which every caller treats as "all".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Table, TextClause
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.lambdas import LambdaElement
from sqlalchemy.sql.selectable import GenerativeSelect, SelectBase, TableClause

from walsync.changes import TableName
from walsync.journal.names import hides_tables, table_name
from walsync.journal.watching import seen_by

__all__ = ["StatementTables", "table_name", "tables_of"]


@dataclass(frozen=True, slots=True)
class StatementTables:
    """`reads`: the tables of the statement, or None where they cannot be told. `read_only`: a plain SELECT, without
    locks and without functions that may do anything. `is_plain_dml`: an INSERT, UPDATE or DELETE construct, but no
    INSERT ... SELECT."""

    reads: frozenset[TableName] | None
    read_only: bool
    is_plain_dml: bool = False


UNKNOWN: Final = StatementTables(None, False)


def tables_of(compiled: Any) -> StatementTables:
    """The tables of a compiled construct, as `ExecutionContext.compiled` has it (None for a driver-level string)."""
    if not isinstance(compiled, SQLCompiler) or compiled.statement is None:
        return UNKNOWN
    state = compiled.compile_state
    roots: list[Any] = [compiled.statement]
    inner = getattr(state, "statement", None)
    if inner is not None and inner is not compiled.statement:
        roots.append(inner)
    found = walk(roots)
    seen = seen_by(compiled)
    if found.reads is None or not seen.known:
        return StatementTables(None, found.read_only and not seen.calls)
    reads = found.reads | seen.tables
    if compiled.schema_translate_map:
        # Which schema is meant is known at the execution; without one, it may be any.
        reads = frozenset(TableName(None, table.name) for table in reads)
    return StatementTables(reads, found.read_only)


def without_lambda(statement: Any) -> Any:
    """The construct that a `lambda_stmt()` stands for; anything else as it is."""
    return statement._resolved if isinstance(statement, LambdaElement) else statement


def walk(roots: list[Any]) -> StatementTables:
    """The tables of one or more constructs that stand for the same statement."""
    found: set[TableName] = set()
    known = True
    read_only = True
    for root in map(without_lambda, roots):
        if not isinstance(root, SelectBase):
            # DML, text at the top, a stored procedure, a bare function: whatever it does, it is not a plain read.
            read_only = read_only and _is_orm_select(root)
        for element in visitors.iterate(root):
            if isinstance(element, TableClause):
                found.add(table_name(element))
            elif hides_tables(element):
                known = False
            elif isinstance(element, UpdateBase):
                read_only = False
            if isinstance(element, GenerativeSelect) and element._for_update_arg is not None:
                read_only = False
    return StatementTables(frozenset(found) if known else None, read_only)


def _is_orm_select(root: Any) -> bool:
    """A `FromStatement` around a SELECT; around text it is a TextualSelect, which may be anything."""
    element = getattr(root, "element", None)
    return isinstance(element, SelectBase) and not isinstance(getattr(element, "element", None), TextClause)


def is_table(element: Any) -> bool:
    """Whether rows of it can be told apart by a primary key that SQLAlchemy knows."""
    return isinstance(element, Table)

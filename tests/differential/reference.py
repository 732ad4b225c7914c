"""The reference of application: entries one by one, change by change, row by row, each entry in a transaction.

Written with SQLAlchemy's constructs over the schema's own tables, without a line of the checkpointer: what this leaves
in a database, and which entry it stops at, is right by being simple.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable

from sqlalchemy import Connection, Engine, MetaData, Table, delete, insert, text, update
from sqlalchemy.exc import SQLAlchemyError

from walsync.changes import ChangeSet, RowChanges, StatementChange

__all__ = ["apply_in_order"]


class _NotFound(Exception):
    """A row, or a number of rows, that had to be there was not."""


def apply_in_order(engine: Engine, metadata: MetaData, entries: Iterable[ChangeSet]) -> int | None:
    """Applies entries up to the first one that is refused, and returns its id; None if none is."""
    for entry in entries:
        try:
            with engine.begin() as connection:
                for change in entry.changes:
                    if isinstance(change, RowChanges):
                        _apply_rows(connection, metadata.tables[change.table.name], change, entry.commit_time_ns)
                    else:
                        _apply_statement(connection, change)
        except (_NotFound, SQLAlchemyError):
            return entry.entry_id
    return None


def _apply_rows(connection: Connection, table: Table, change: RowChanges, commit_time_ns: int) -> None:
    at = dt.datetime.fromtimestamp(commit_time_ns // 10**9, dt.timezone.utc).replace(tzinfo=None)
    for new, key in change.row_dicts():
        values = {**new, **dict.fromkeys(change.commit_times, at)}
        found = [table.c[name] == value for name, value in key.items()]
        if change.kind == "insert":
            # `inline`: nothing is asked back, and no default of the application's is put in.
            connection.execute(insert(table).inline().values(values))
            continue
        statement = (
            delete(table).where(*found) if change.kind == "delete" else update(table).where(*found).values(values)
        )
        result = connection.execute(statement.execution_options(preserve_rowcount=True))
        if change.must_match and result.rowcount != 1:
            raise _NotFound(f"{change.kind} of {change.table}: {key}")


def _apply_statement(connection: Connection, change: StatementChange) -> None:
    names = {name: f"p{number}" for number, name in enumerate(change.parameters)}

    def replaced(token: re.Match[str]) -> str:
        return "%" if token.group(1) is None else f":{names[token.group(1)]}"

    sql = re.sub(r"%(?:%|\(([^)]*)\)s)", replaced, change.sql.replace(":", "\\:"))
    values = {names[name]: value for name, value in change.parameters.items()}
    result = connection.execute(text(sql).execution_options(preserve_rowcount=True), values)
    if change.expected_rows is not None and result.rowcount != change.expected_rows:
        raise _NotFound(f"a statement on {change.tables}")

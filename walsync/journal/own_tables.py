"""The tables that walsync keeps in the target: made when they are first needed."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, Table, inspect
from sqlalchemy.exc import DBAPIError

__all__ = ["create_if_missing"]


def create_if_missing(engine: Engine, table: Table) -> None:
    """Create the table, unless it is there. Several processes may do this at the same time: one of them wins.

    Its own transactions, for a failed CREATE must not cost the caller's. Raises what the database says if the table is
    not there afterwards.
    """
    with engine.connect() as connection:
        if _exists(connection, table):
            return
    try:
        with engine.begin() as connection:
            # No second look: the CREATE is to be the first statement. On SQLite a transaction that has read and then
            # wants to write is refused at once if somebody else has written in between.
            table.create(connection, checkfirst=False)
    except DBAPIError:
        # Whatever the database says to the loser of the race (PostgreSQL may report a unique violation of its own
        # catalogue): the table is there, and that was wanted. Anything else is a real failure.
        with engine.connect() as connection:
            if not _exists(connection, table):
                raise


def _exists(connection: Connection, table: Table) -> bool:
    # The inspector does not translate schemas, and statements do.
    translate = connection.get_execution_options().get("schema_translate_map") or {}
    return inspect(connection).has_table(table.name, translate.get(table.schema, table.schema))

"""`Catalog`: the facts of tables, read when they are first needed, and kept for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from walsync.changes import TableName
from walsync.checkpoint.catalog import mysql, postgresql, sqlite
from walsync.checkpoint.catalog.facts import TableFacts
from walsync.checkpoint.engine import run_on

__all__ = ["Catalog", "Facts"]

_logger: Final = logging.getLogger("walsync.checkpoint")

Facts = Mapping[TableName, TableFacts | None]
"""By the name in an entry; None for a table of which nothing is known."""

_READERS: Final[dict[str, Callable[[Connection, Collection[TableName]], dict[TableName, TableFacts | None]]]] = {
    "postgresql": postgresql.read_facts,
    "mysql": mysql.read_facts,
    "mariadb": mysql.read_facts,
    "sqlite": sqlite.read_facts,
}

_TABLES_MAX: Final = 10_000
"""Tables whose facts are kept; past it all are dropped and read anew."""


class Catalog:
    """The facts of one target's tables. One thread at a time asks; any may call `forget`."""

    def __init__(self, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._facts: dict[TableName, TableFacts | None] = {}
        self._read_at = 0.0
        self._warned = False

    def forget(self) -> None:
        """The next question is put to the target. After a failure, which may come of a change to its tables."""
        # Another dict: whoever has asked goes on with what was said.
        self._facts = {}

    def facts(self, engine: Engine, tables: Collection[TableName]) -> Facts | None:
        """The facts of at least these tables; None where the database is not known, or does not tell.

        Reads those that are missing, in a transaction of its own; blocks for as long as the target does. Raises what
        the driver raises when the connection is lost, and nothing else: a user who may not read the catalogue has
        its changes applied in order.
        """
        reader = _READERS.get(engine.dialect.name)
        if reader is None:
            return None
        now = self._clock()
        if now - self._read_at > self._max_age_s or len(self._facts) + len(tables) > _TABLES_MAX:
            self.forget()
        missing = [table for table in tables if table not in self._facts]
        if not missing:
            return self._facts
        if not self._facts:
            self._read_at = now

        def read() -> dict[TableName, TableFacts | None]:
            with engine.connect() as connection:
                return reader(connection, missing)

        try:
            found = run_on(engine, read)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "the target's catalogue cannot be read (%s); changes are applied one after the other, which is "
                    "right and slower",
                    error.orig,
                )
            return None
        self._facts.update(found)
        return self._facts

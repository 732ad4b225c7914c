"""The pool of a journal's engine: connections that cost nothing, kept because making one costs something.

Its connections are no database's, and no listener that meets all pools of a process (``event.listen(Engine, "connect",
...)``, as in SQLAlchemy's recipe for SQLite's foreign keys) is told of them: it would execute SQL on them.

There is no bound on how many are in use at once, for a journal's connection holds no resource of any server. At most as
many are kept as were ever in use at the same time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, Pool

__all__ = ["JournalPool"]


class _NoPool:
    """A class of which no listener can have been told."""


class JournalPool(Pool):
    """Thread-safe: a deque's ends are moved atomically."""

    _idle: deque[ConnectionPoolEntry] | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # Listeners of a class are found by the class that the dispatcher is made for.
        of_all_pools: Any = Pool.dispatch
        self.dispatch = of_all_pools._for_class(_NoPool)

    def _do_get(self) -> ConnectionPoolEntry:
        if self._idle is None:
            self._idle = deque()
        try:
            return self._idle.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        connection = record.dbapi_connection
        if connection is not None:
            # Nothing may be left in the buffer for whoever uses it next.
            connection.rollback()
        if self._idle is not None:
            self._idle.append(record)

    def status(self) -> str:
        return f"JournalPool, {len(self._idle or ())} idle"

    def recreate(self) -> JournalPool:
        return JournalPool(self._creator, dialect=self._dialect, reset_on_return=None)

    def dispose(self) -> None:
        self._idle = None

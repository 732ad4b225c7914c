"""The pool of a journal's engine: connections that cost nothing, kept because making one costs something.

There is no bound on how many are in use at once, for a journal's connection holds no resource of any server. At most as
many are kept as were ever in use at the same time.
"""

from __future__ import annotations

from collections import deque

from sqlalchemy.pool import ConnectionPoolEntry, Pool

__all__ = ["JournalPool"]


class JournalPool(Pool):
    """Thread-safe: a deque's ends are moved atomically."""

    _idle: deque[ConnectionPoolEntry] | None = None

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

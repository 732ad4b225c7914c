"""The journal's Engine as sessions get it: with connections that are used again as they are, and a short way for rows.

A session's transaction takes a connection and gives it back, and with a journal that is a good part of what a commit
costs, for nothing: no server is behind it. So here `connect()` hands out whole `Connection` objects that were closed
before. Sessions close a connection once and never look at it again; whoever might, gets the journal's plain Engine.

For the same reason a flush's INSERT whose values all come with it goes into the buffer without a cursor, an execution
context and a result of SQLAlchemy's: see `flushed_rows`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy.engine import Connection, Engine

from walsync.journal.dbapi import JournalConnection
from walsync.journal.flushed_rows import insert_flushed

__all__ = ["SessionJournalEngine"]


class _ReusedConnection(Connection):
    """Closing puts it back, with nothing left of the transaction that it was used for."""

    def execute(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        if type(parameters) is list:
            result = insert_flushed(self, statement, parameters, execution_options)
            if result is not None:
                return result
        return super().execute(statement, parameters, execution_options=execution_options)

    def close(self) -> None:
        engine = self.engine
        dbapi_connection: Any = None if self.closed or self.invalidated else self.connection.dbapi_connection
        if not isinstance(engine, SessionJournalEngine) or not isinstance(dbapi_connection, JournalConnection):
            super().close()
            return
        transaction = self.get_transaction()
        if transaction is not None:
            transaction.close()
        dbapi_connection.buffer.rollback()
        self._execution_options = engine.get_execution_options()
        if engine.is_open:
            engine.idle.append(self)
        else:
            super().close()


class SessionJournalEngine(Engine):
    """Shares pool, dialect and URL of the journal's plain Engine. Thread-safe: a deque's ends are moved atomically."""

    def __init__(self, plain: Engine) -> None:
        super().__init__(plain.pool, plain.dialect, plain.url)
        self.idle: deque[_ReusedConnection] = deque()
        self.is_open = True

    def connect(self) -> Connection:
        """A connection that was closed before, or a new one."""
        try:
            return self.idle.pop()
        except IndexError:
            return _ReusedConnection(self)

    def dispose(self, close: bool = True) -> None:
        """Closes the connections that lie here, and from now on each when it is given back.

        The pool would keep those that nobody closes alive, and with them the journal, for as long as the process runs.
        """
        self.is_open = False
        while self.idle:
            self.idle.pop().close()

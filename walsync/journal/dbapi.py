"""The DBAPI module, connection and cursor that the journal's dialect shows to SQLAlchemy (PEP 249, as far as it asks).

A connection is a `TransactionBuffer` with the methods that a connection has; a cursor carries a row count and the last
key. Nothing here does I/O: the commit's I/O is in the buffer's `on_commit`.
"""

from __future__ import annotations

from typing import Any, Final

from walsync.journal.buffer import TransactionBuffer

__all__ = ["JournalConnection", "JournalCursor", "JournalDBAPI"]


class Error(Exception):
    """PEP 249's base error. SQLAlchemy wraps it, and what descends from it, into its own."""


class InterfaceError(Error):
    """Never raised; SQLAlchemy asks for the name."""


class IntegrityError(Error):
    """A row that no target would take: a NOT NULL column without a value."""


class JournalCursor:
    """The cursor of one execution."""

    __slots__ = ("buffer", "description", "lastrowid", "rowcount")

    arraysize: Final = 1

    def __init__(self, buffer: TransactionBuffer) -> None:
        self.buffer = buffer
        self.description = None
        self.lastrowid: int | None = None
        self.rowcount = -1

    def close(self) -> None:
        """Nothing is open."""


class JournalConnection:
    """A connection of the journal. Not thread-safe, as no DBAPI connection is."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: TransactionBuffer) -> None:
        self.buffer = buffer

    def cursor(self) -> JournalCursor:
        return JournalCursor(self.buffer)

    def commit(self) -> None:
        self.buffer.commit()

    def rollback(self) -> None:
        self.buffer.rollback()

    def close(self) -> None:
        self.buffer.rollback()


class JournalDBAPI:
    """What `Dialect.dbapi` refers to."""

    apilevel: Final = "2.0"
    threadsafety: Final = 1
    paramstyle: Final = "qmark"
    Error = Error
    InterfaceError = InterfaceError
    IntegrityError = IntegrityError
    DatabaseError = Error

    @staticmethod
    def connect(*args: Any, **kwargs: Any) -> JournalConnection:
        raise InterfaceError("a journal's engine is made by walsync.attach(), not by create_engine()")

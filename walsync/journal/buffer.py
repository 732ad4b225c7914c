"""The changes of one transaction that is not committed yet, with its savepoints.

A buffer belongs to one connection of the journal, and so to one thread at a time; it takes no locks. Adjacent rows of
the same shape share one `RowChanges`. A savepoint remembers how many changes there were and ends the last one, so that
rolling back to it is cutting the list, never splitting a change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from walsync.changes import RowChanges, StatementChange, TableName
from walsync.changes.model import Change, tables_of
from walsync.exceptions import UsageError
from walsync.journal.marks import awaited_marks, marks_of

__all__ = ["BufferOwner", "TransactionBuffer"]


class BufferOwner(Protocol):
    """Whose transaction a buffer holds: the session layer's state of one session."""

    @property
    def expects_rows(self) -> bool:
        """Whether the updates and deletes being flushed expect each of their rows to be there."""
        ...

    def next_key(self, column: Any) -> int:
        """The next reserved key of a column, whatever the owner's transaction holds on the target."""
        ...

    def changes_added(self) -> None:
        """Changes were added to the buffer; the owner may take them out at once."""
        ...


class TransactionBuffer:
    """What one transaction has flushed so far.

    `owner` is set by the session layer when a session's transaction begins to use the connection, and is None for a
    connection used by itself. `on_commit` receives the buffer when it is committed with changes in it.
    """

    __slots__ = ("_open_shape", "_savepoints", "changes", "on_commit", "owner")

    def __init__(self, on_commit: Callable[[TransactionBuffer], None]) -> None:
        self.on_commit = on_commit
        self.changes: list[Change] = []
        self.owner: BufferOwner | None = None
        self._savepoints: dict[str, int] = {}
        self._open_shape: Any = None

    @property
    def expects_rows(self) -> bool:
        """Whether updates and deletes recorded now must each find their row."""
        return self.owner is not None and self.owner.expects_rows

    def add_rows(self, shape: RowChanges, rows: Sequence[Any], must_match: bool) -> None:
        """Add rows, each a list that is nobody else's, of a shape: a `RowChanges` without rows, one for each."""
        if self._open_shape is shape:
            last = self.changes[-1]
            assert isinstance(last, RowChanges)
            if last.must_match is must_match:
                last.rows.extend(rows)
                return
        self.changes.append(shape.with_rows(list(rows), must_match))
        self._open_shape = shape

    def add_statement(self, statement: StatementChange) -> None:
        """Add a statement; rows after it never join rows before it."""
        self.changes.append(statement)
        self._open_shape = None

    def touches(self, tables: frozenset[TableName] | None) -> bool:
        """Whether a change writes one of these tables; None stands for every table."""
        if not self.changes:
            return False
        if tables is None:
            return True
        return not set(awaited_marks(tables)).isdisjoint(marks_of(tables_of(self.changes)))

    # ------------------------------------------------------------------------------------ transaction control

    def savepoint(self, name: str) -> None:
        self._savepoints[name] = len(self.changes)
        self._open_shape = None

    def rollback_to_savepoint(self, name: str) -> None:
        del self.changes[self.savepoint_position(name) :]
        self._open_shape = None

    def release_savepoint(self, name: str) -> None:
        self._savepoints.pop(name, None)

    def savepoint_position(self, name: str) -> int:
        """How many changes there were when the savepoint was set."""
        try:
            return self._savepoints[name]
        except KeyError:
            raise UsageError(f"the journal's transaction has no savepoint {name!r}") from None

    def take(self) -> list[Change]:
        """Remove and return the changes; the savepoints stay, and lie before whatever comes next."""
        taken = self.changes
        self.changes = []
        self._savepoints = dict.fromkeys(self._savepoints, 0)
        self._open_shape = None
        return taken

    def commit(self) -> None:
        """Hand the changes on, if there are any. Empty whatever comes of it."""
        try:
            if self.changes:
                self.on_commit(self)
        finally:
            self.rollback()

    def rollback(self) -> None:
        """Forget everything."""
        if self.changes:
            self.changes = []
        if self._savepoints:
            self._savepoints = {}
        self._open_shape = None
        self.owner = None

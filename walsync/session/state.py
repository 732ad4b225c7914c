"""What is known of one session: its current transaction, and its last commit.

A state belongs to its session, and so to one thread at a time; it takes no locks. It is reset when the session's
outermost transaction ends.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from sqlalchemy.orm import Session

from walsync.journal import TransactionBuffer
from walsync.wal import EntryId

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["SessionState", "state_of"]

_ATTRIBUTE: Final = "_walsync_state"


class SessionState:
    """See the module's docstring.

    `direct_reason`: why the current transaction runs directly on the target; None while it is buffered.
    `wrote`: a direct transaction has written, or may have. `has_snapshot`: the target shows the transaction what its
    first read saw. `failed`: why the transaction can only be rolled back.
    `routing_dml`: a DML statement is being executed that goes to the journal, also where SQLAlchemy asks for a
    connection without naming the statement. `counted_dml`: one whose rows must all be found.
    `upgrading`: the buffered changes are being executed on the target at this moment.
    """

    __slots__ = (
        "__weakref__",
        "_session",
        "buffer",
        "counted_dml",
        "direct_reason",
        "failed",
        "has_snapshot",
        "journal",
        "last_entry_id",
        "routing_dml",
        "upgrading",
        "wrote",
    )

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session = weakref.ref(session)
        self.journal = journal
        self.last_entry_id: EntryId | None = None
        self.buffer: TransactionBuffer | None = None
        self.direct_reason: str | None = None
        self.wrote = False
        self.has_snapshot = False
        self.failed: BaseException | None = None
        self.routing_dml = False
        self.counted_dml = False
        self.upgrading = False

    @property
    def session(self) -> Session:
        session = self._session()
        assert session is not None
        return session

    @property
    def is_direct(self) -> bool:
        return self.direct_reason is not None

    @property
    def has_changes(self) -> bool:
        """Whether the transaction has changes that are in the buffer only."""
        return self.buffer is not None and bool(self.buffer.changes)

    @property
    def expects_rows(self) -> bool:
        """The unit of work, and bulk updates by primary key, expect every row that they name to be there."""
        return self.counted_dml or self.session._flushing

    def changes_added(self) -> None:
        """Called by the journal after each execution on it."""
        if self.direct_reason is not None:
            # The transaction became direct in the middle of a flush that still holds the journal's connection.
            from walsync.session.upgrade import forward

            forward(self)

    def reset(self) -> None:
        """The outermost transaction has ended."""
        self.buffer = None
        self.direct_reason = None
        self.wrote = False
        self.has_snapshot = False
        self.failed = None


def state_of(session: Session, journal: Journal) -> SessionState:
    """The state of this session with this journal, made when it is first asked for."""
    state = session.__dict__.get(_ATTRIBUTE)
    if state is None or state.journal is not journal:
        state = session.__dict__[_ATTRIBUTE] = SessionState(session, journal)
    assert isinstance(state, SessionState)
    return state

"""What is known of one session: its current transaction, and its last commit.

A state belongs to its session, and so to one thread at a time; it takes no locks. It is reset when the session's
outermost transaction ends.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from walsync.exceptions import UsageError
from walsync.journal import TransactionBuffer
from walsync.session.options import meaning
from walsync.wal import EntryId

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["ANOTHER_ENGINE", "NOT_JOURNALED", "STATE", "SessionState", "binds_of", "state_of"]

STATE: Final = "_walsync_state"
"""Where a session keeps its state."""

MODE: Final = "walsync.mode"

NOT_JOURNALED: Final = "class that is not journaled"
"""Why a transaction becomes direct that writes what is not in `include`, or in `exclude`."""

ANOTHER_ENGINE: Final = "writes to another engine as well"
"""Why one does that has a commit point there."""


class SessionState:
    """See the module's docstring.

    `direct_reason`: why the current transaction runs directly on the target; None while it is buffered.
    `wrote`: a direct transaction has written, or may have. `has_snapshot`: the target shows the transaction what its
    first read saw. `read_stale`: it may show what a stale read saw, which came before. `changed_schema`: SQL text that
    changes tables was executed. `failed`: why the transaction can only be rolled back.
    `routing_dml`: a DML statement is being executed that goes to the journal, also where SQLAlchemy asks for a
    connection without naming the statement. `counted_dml`: one whose rows must all be found.
    `upgrading`: the buffered changes are being executed on the target at this moment. `cancelled`: an asynchronous
    session's task was cancelled when the outcome of the transaction was decided, or being decided; raised at its end.
    `joined`: a connection to the target that the session was given, and works on without the log; `joined_writes`: what
    it asks the connection for at this moment is no read. `wrote_elsewhere`: the transaction has written to an engine
    that is not the target. `held`: the session, while its transaction uses a connection to the target: who has that one
    may have nothing else of it. `options`: the names of execution options that the log does not carry, and that the
    transaction is to be done with; `session_options`: those that the session was made with (SQLAlchemy 2.1).
    """

    __slots__ = (
        "__weakref__",
        "buffer",
        "cancelled",
        "changed_schema",
        "counted_dml",
        "direct_reason",
        "failed",
        "has_snapshot",
        "held",
        "joined",
        "joined_writes",
        "journal",
        "last_entry_id",
        "nothing_waits",
        "options",
        "read_stale",
        "routing_dml",
        "session_options",
        "session_ref",
        "upgrading",
        "wrote",
        "wrote_elsewhere",
    )

    def __init__(self, session: Session, journal: Journal) -> None:
        self.session_ref = weakref.ref(session)
        self.journal = journal
        self.nothing_waits = journal.log.control.nothing_waits  # which each read asks
        self.last_entry_id: EntryId | None = None
        self.buffer: TransactionBuffer | None = None
        self.direct_reason: str | None = None
        self.wrote = False
        self.has_snapshot = False
        self.session_options = meaning(getattr(session, "execution_options", {}), journal.target.dialect)
        self.options = self.session_options
        self.held: Session | None = None
        self.read_stale = False
        self.changed_schema = False
        self.failed: BaseException | None = None
        self.routing_dml = False
        self.counted_dml = False
        self.upgrading = False
        self.cancelled: asyncio.CancelledError | None = None
        self.joined: Connection | None = None
        self.joined_writes = False
        self.wrote_elsewhere = False

    @property
    def session(self) -> Session:
        session = self.session_ref()
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

    def next_key(self, column: Any) -> int:
        """The next reserved key of a column; see `Journal.next_key`."""
        return self.journal.next_key(self, column)

    def changes_added(self) -> None:
        """Called by the journal after each execution on it."""
        if self.direct_reason is not None:
            # The transaction became direct in the middle of a flush that still holds the journal's connection.
            from walsync.session.upgrade import forward

            forward(self)
            return
        scope = self.journal.scope
        if self.wrote_elsewhere:
            # The flush had asked for both connections before it wrote anything.
            reason = ANOTHER_ENGINE
        elif not scope.is_everything and self.buffer is not None and not scope.has_change(self.buffer.changes[-1]):
            # Nobody could tell before: rows of an association, of a bulk insert, of an orphan.
            reason = NOT_JOURNALED
        else:
            return
        from walsync.session.upgrade import upgrade

        upgrade(self, reason)

    def reset(self) -> None:
        """The outermost transaction has ended."""
        self.buffer = None
        self.direct_reason = None
        self.wrote = False
        self.has_snapshot = False
        self.options = self.session_options
        self.held = None
        self.read_stale = False
        self.changed_schema = False
        self.failed = None
        self.cancelled = None
        self.joined = None
        self.wrote_elsewhere = False


def state_of(session: Session, journal: Journal) -> SessionState:
    """The state of this session with this journal, made when it is first asked for."""
    state = session.__dict__.get(STATE)
    if state is None or state.journal is not journal:
        state = session.__dict__[STATE] = SessionState(session, journal)
    assert isinstance(state, SessionState)
    return state


def mode_of(session: Session) -> str | None:
    mode: str | None = session.info.get(MODE)
    if mode not in (None, "buffered", "direct"):
        raise UsageError(f"session.info[{MODE!r}] must be 'buffered' or 'direct', not {mode!r}")
    return mode


binds_of: Final[Callable[[Session], Mapping[Any, Any]]] = attrgetter(
    "binds" if hasattr(Session(), "binds") else "_Session__binds"  # the former since SQLAlchemy 2.1
)
"""The `binds` of a session: classes and tables, and the engines that they are bound to."""

"""From a buffered transaction to a direct one: always right, simply not buffered.

The backlog is waited for, so that the transaction comes after every entry of the log; the changes that it has buffered
are executed on the session's own connection to the target; from there on the session works on the target, and commits
there. Savepoints are opened on the target in the order in which the session opened them, each with the changes before
it executed outside of it, so that rolling back to one takes back what it should and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.exc import StaleDataError

from walsync.changes import ChangeSet
from walsync.changes.model import Change
from walsync.checkpoint.apply import apply_changes
from walsync.exceptions import EntryRejectedError, UsageError
from walsync.session.state import STATE, SessionState

__all__ = [
    "begin_anew",
    "begin_for_savepoint",
    "forward",
    "refuse_commit",
    "release_snapshot",
    "release_target",
    "upgrade",
    "wait_without_locks",
    "withdraw_commit",
]


def upgrade(state: SessionState, reason: str) -> None:
    """Make the session's current transaction a direct one. Does nothing if it is one already.

    Blocks until the backlog is applied; raises `ReadTimeoutError` after `SessionConfig.read_timeout_s`, with the
    transaction still buffered and whole. Raises what the target raises when it refuses one of the changes, as a flush
    would have; the transaction can only be rolled back then.
    """
    # Where it begins the transaction it is on the path of every direct one, and asks with as few calls as can be.
    if state.direct_reason is not None:
        return
    journal = state.journal
    if not state.nothing_waits():
        release_target(state)
        journal.barrier(None)
    transaction: Any = state.session._transaction
    # To the first level that has a connection already, of whatever engine.
    while transaction is not None and not transaction._connections and not transaction.nested:
        transaction = transaction._parent
    if transaction is None and state.buffer is None:
        # It begins with this.
        state.direct_reason = reason
        journal.note_direct(reason)
        return
    levels = _levels(state.session)
    parts = _parts(state, levels)
    if state.buffer is not None:
        state.buffer.take()
    state.direct_reason = reason
    journal.note_direct(reason)
    if any(parts):
        state.wrote = True
        _apply(state, list(zip(levels, parts, strict=True)), anew=True)
    else:
        _apply(state, [(level, []) for level in levels if journal.read_engine in level._connections], anew=True)


def release_target(state: SessionState) -> None:
    """Let go of what the buffered transaction holds on a SQLite target by having read there.

    Without SQLite's WAL mode a reader in a transaction keeps every writer from committing, also the checkpointer that
    it is about to wait for. The next read begins a transaction again. Other targets' readers block nobody.
    """
    if not state.is_direct and state.journal.target.dialect.name == "sqlite":
        release_snapshot(state)


def release_snapshot(state: SessionState) -> None:
    """End what the session's transaction has read on the target so far, and begin there anew. It has written nothing
    there."""
    engine = state.journal.read_engine
    enrolled = [level for level in _levels(state.session) if engine in level._connections]
    if enrolled:
        _apply(state, [(level, []) for level in enrolled], anew=True)


def wait_without_locks(state: SessionState, wait: Callable[[], None]) -> None:
    """Call `wait` while the session's transaction, which has written nothing on the target, holds nothing there.

    On SQLite a direct one may hold the lock of the one writer, and what it waits for is to be written.
    """
    engine = state.journal.read_engine
    levels = [level for level in _levels(state.session) if engine in level._connections]
    if not state.is_direct or not levels or engine.dialect.name != "sqlite":
        release_target(state)
        wait()
        return
    enrolled: Any = levels[0]._connections[engine]
    connection: Connection = enrolled[0]
    pooled: Any = connection.connection
    had_begun = getattr(pooled.driver_connection, "in_transaction", False)
    pooled.rollback()
    try:
        wait()
    finally:
        if had_begun:
            state.upgrading = True
            try:
                begin_anew(connection, writes=True, direct=True)
            finally:
                state.upgrading = False
        _apply(state, [(level, []) for level in levels if level.nested], anew=True)


def withdraw_commit(state: SessionState) -> None:
    """The append has failed, and the session will roll back: also what it has read through, which may be ended already.

    A session commits its connections in no order. SQLAlchemy warns of a transaction that is rolled back after its
    commit; of this one nothing was committed.
    """
    for level in _levels(state.session):
        enrolled: Any = level._connections.get(state.journal.read_engine)
        if enrolled is not None:
            connection, transaction = enrolled[0], enrolled[1]
            if not transaction.is_active and connection._transaction is None:
                connection._transaction = transaction


def _apply(state: SessionState, work: list[tuple[SessionTransaction, list[Change]]], *, anew: bool = False) -> None:
    """Execute changes on the target, each level's at that level.

    `anew`: what the transaction has done on the target so far is reading. That is ended first: its snapshot is
    older than what was waited for, and SQLite lets no reader with an old snapshot write.
    """
    journal = state.journal
    state.upgrading = True
    try:
        for level, changes in work:
            enrolled: Any = level._connections.get(journal.read_engine) if anew else None
            if enrolled is None:
                connection = level._connection_for_bind(journal.read_engine, None)
            else:
                connection, transaction = enrolled[0], enrolled[1]
                if level.nested:
                    begin_for_savepoint(connection, state)
                    connection.dialect.do_savepoint(connection, transaction._savepoint)
                else:
                    begin_anew(connection, writes=state.wrote, direct=state.is_direct)
            if changes:
                apply_changes(connection, ChangeSet(time.time_ns(), journal.origin, {}, changes))
    except BaseException as error:
        state.failed = error
        # Not one that every session has: each of their commits would ask it.
        event.listen(state.session, "before_commit", refuse_commit)
        if isinstance(error, EntryRejectedError):
            raise StaleDataError(str(error)) from error
        raise
    finally:
        state.upgrading = False


def refuse_commit(session: Session) -> None:
    """What a session listens to until its transaction ends that failed on its way to the target."""
    state: SessionState | None = session.__dict__.get(STATE)
    # Once the journal is closed nobody learns of the transaction's end any more.
    if state is not None and state.failed is not None and not state.journal.closed:
        raise UsageError(
            "this transaction failed while it was moved to the target, and can only be rolled back"
        ) from state.failed


def begin_anew(connection: Connection, *, writes: bool, direct: bool) -> None:
    """End the transaction that the connection is in at the driver, and begin another.

    On SQLite, where there was a real transaction or `writes` says that there must be one, a `direct` one begins as a
    writer: one that begins as a reader can be refused for good when it writes later (SQLITE_BUSY_SNAPSHOT), because the
    checkpointer or the reserving of keys wrote in between.
    """
    pooled: Any = connection.connection
    had_begun = getattr(pooled.driver_connection, "in_transaction", False)
    pooled.rollback()
    if connection.dialect.name == "sqlite" and (writes or had_begun):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes or direct else "BEGIN")


def begin_for_savepoint(connection: Connection, state: SessionState) -> None:
    """Before a savepoint of a direct transaction is opened on this connection.

    Python's SQLite driver begins no transaction before SAVEPOINT, and of a savepoint outside of one the RELEASE is a
    COMMIT: what is released and then rolled back with its transaction would stay.
    """
    if not state.is_direct or connection.dialect.name != "sqlite":
        return
    pooled: Any = connection.connection
    if getattr(pooled.driver_connection, "in_transaction", True) is False:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def forward(state: SessionState) -> None:
    """Execute what has just been recorded of a transaction that is direct already, at the session's present level."""
    assert state.buffer is not None
    changes = state.buffer.take()
    if not changes:
        return
    state.wrote = True
    _apply(state, [(_levels(state.session)[-1], changes)])


def _levels(session: Session) -> list[SessionTransaction]:
    """The outermost transaction and the savepoints inside of it, in order. Flushes' own levels do not count."""
    levels: list[SessionTransaction] = []
    transaction: Any = session._transaction
    while transaction is not None:
        if transaction.nested or transaction._parent is None:
            levels.append(transaction)
        transaction = transaction._parent
    levels.reverse()
    return levels


def _parts(state: SessionState, levels: list[SessionTransaction]) -> list[list[Change]]:
    """The buffered changes of each level."""
    buffer = state.buffer
    if buffer is None or not buffer.changes:
        return [[] for _ in levels]
    # Where each level begins: at its savepoint in the journal, if it ever used the journal; else it has no changes, and
    # begins where the next one does.
    starts = [len(buffer.changes)] * (len(levels) + 1)
    for index in range(len(levels) - 1, 0, -1):
        entry: Any = levels[index]._connections.get(state.journal.session_engine)
        starts[index] = starts[index + 1]
        if entry is not None:
            starts[index] = min(buffer.savepoint_position(entry[1]._savepoint), starts[index + 1])
    starts[0] = 0
    return [buffer.changes[starts[index] : starts[index + 1]] for index in range(len(levels))]

"""From a buffered transaction to a direct one: always right, simply not buffered.

The backlog is waited for, so that the transaction comes after every entry of the log; the changes that it has buffered
are executed on the session's own connection to the target; from there on the session works on the target, and commits
there. Savepoints are opened on the target in the order in which the session opened them, each with the changes before
it executed outside of it, so that rolling back to one takes back what it should and no more.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.exc import StaleDataError

from walsync.changes import ChangeSet
from walsync.changes.model import Change
from walsync.checkpoint.apply import apply_changes
from walsync.exceptions import EntryRejectedError
from walsync.session.state import SessionState

__all__ = ["begin_anew", "forward", "release_target", "upgrade"]


def upgrade(state: SessionState, reason: str) -> None:
    """Make the session's current transaction a direct one. Does nothing if it is one already.

    Blocks until the backlog is applied; raises `ReadTimeoutError` after `SessionConfig.read_timeout_s`, with the
    transaction still buffered and whole. Raises what the target raises when it refuses one of the changes, as a flush
    would have; the transaction can only be rolled back then.
    """
    if state.is_direct:
        return
    journal = state.journal
    journal.barrier(None)
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
    journal = state.journal
    if state.is_direct or journal.target.dialect.name != "sqlite":
        return
    enrolled = [level for level in _levels(state.session) if journal.read_engine in level._connections]
    if enrolled:
        _apply(state, [(level, []) for level in enrolled], anew=True)


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
                    connection.dialect.do_savepoint(connection, transaction._savepoint)
                else:
                    begin_anew(connection, writes=state.wrote, direct=state.is_direct)
            if changes:
                apply_changes(connection, ChangeSet(time.time_ns(), journal.origin, {}, changes))
    except BaseException as error:
        state.failed = error
        if isinstance(error, EntryRejectedError):
            raise StaleDataError(str(error)) from error
        raise
    finally:
        state.upgrading = False


def begin_anew(connection: Connection, *, writes: bool, direct: bool) -> None:
    """End the transaction that the connection is in at the driver, and begin another.

    On SQLite, where there was a real transaction or `writes` says that there must be one, a `direct` one begins as a
    writer: one that begins as a reader can be refused for good when it writes later (SQLITE_BUSY_SNAPSHOT), because the
    checkpointer or the reserving of keys wrote in between.
    """
    pooled: Any = connection.connection
    had_begun = getattr(pooled.dbapi_connection, "in_transaction", False)
    pooled.rollback()
    if connection.dialect.name == "sqlite" and (writes or had_begun):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes or direct else "BEGIN")


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

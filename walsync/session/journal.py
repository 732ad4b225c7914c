"""`Journal`: what `walsync.attach()` returns.

It owns the log, the checkpointer, the keys and the two Engines that attached sessions use, and closes them. Committing
is here: a transaction's buffered changes become an entry of the log.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet, TableName, encode_change_set
from walsync.changes.codec import decode_parts
from walsync.checkpoint import Quarantine, SQLAlchemyCheckpointer
from walsync.checkpoint.events import EventSource
from walsync.checkpoint.rates import RateMeter
from walsync.exceptions import (
    ApplyTimeoutError,
    EntryNotFoundError,
    EntryRejectedError,
    LogError,
    ReadTimeoutError,
    UsageError,
)
from walsync.journal import JournalDialect, KeyAllocator, SessionJournalEngine, TransactionBuffer, journal_engine
from walsync.session.config import SessionConfig
from walsync.session.pending import PendingTables
from walsync.session.reads import ReadEngine
from walsync.session.scope import Scope
from walsync.session.state import SessionState, state_of
from walsync.session.stats import JournalStats, estimate
from walsync.session.upgrade import release_target
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["Journal"]

METADATA: Final = "walsync.metadata"
DURABILITY: Final = "walsync.durability"

_AGE_SAMPLES: Final = 4096
"""Commit times kept for the age of the backlog. In a longer one the oldest entry is asked itself."""


class Journal(EventSource):
    """A log attached to sessions. Made by `walsync.attach()`; a context manager that closes it.

    Thread-safe. The target of the events of `walsync.checkpoint.events.WalsyncEvents`:
    ``event.listen(journal, "rejected", fn)``.
    """

    def __init__(
        self,
        *,
        target: Engine,
        log: WriteAheadLog,
        checkpointer: SQLAlchemyCheckpointer,
        pending: PendingTables,
        keys: KeyAllocator,
        scope: Scope,
        config: SessionConfig,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.target = target
        self.log = log
        self.checkpointer = checkpointer
        self.keys = keys
        self.scope = scope
        self.config = config
        self.origin = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self.engine: Engine = journal_engine(target.dialect, keys, self._commit)
        self.session_engine: Engine = SessionJournalEngine(self.engine)
        self.reads = ReadEngine(self, target)
        self.read_engine: Engine = self.reads.engine
        self._pending = pending
        self._detach: list[Callable[[], None]] = []
        self._lock = threading.Lock()  # guards the counters below and _closed; no I/O while it is held
        self._closed = False
        self._clock = clock
        self._clock_ns = clock_ns
        self._buffered = 0
        self._direct: Counter[str] = Counter()
        self._recent: deque[tuple[EntryId, float]] = deque(maxlen=_AGE_SAMPLES)
        self._committed_rate = RateMeter(log.last_id, clock=clock)
        self._oldest: tuple[EntryId, int] | None = None  # an entry that was looked at for the age, and its commit time

    # ------------------------------------------------------------------------------------------ committing

    def _commit(self, buffer: TransactionBuffer) -> None:
        """Append the buffered changes as one entry. Called by the journal's dialect, in the committing thread."""
        owner = buffer.owner
        state = owner if isinstance(owner, SessionState) else None
        metadata: Any = None
        durability: Any = None
        if state is not None:
            info = state.session.info
            metadata, durability = info.get(METADATA), info.get(DURABILITY)
        if metadata is None:
            metadata = {}
        elif not isinstance(metadata, dict):
            raise UsageError(f"session.info[{METADATA!r}] must be a dict, not {type(metadata).__qualname__}")
        change_set = ChangeSet(self._clock_ns(), self.origin, metadata, buffer.changes)
        checkpointer = self.checkpointer
        checkpointer.raise_if_failed()
        checkpointer.admit()
        # An unknown level is refused there, before anything is written.
        entry_id = self.log.append(*encode_change_set(change_set), durability=durability)
        change_set.entry_id = entry_id
        self._pending.note(change_set.tables, entry_id)
        if state is not None:
            state.last_entry_id = entry_id
        self._buffered += 1
        self._recent.append((entry_id, self._clock()))
        self._committed_rate.note(entry_id)
        for listener in self.dispatch.after_append:
            listener(self, entry_id, change_set)

    def next_key(self, state: SessionState, column: Any) -> int:
        """The next reserved key, in the middle of a session's transaction, whatever locks that holds on the target."""
        key = self.keys.reserved_key(column)
        if key is not None:
            return key
        if state.wrote:
            connection = state.session.connection(bind_arguments={"bind": self.read_engine})
            return self.keys.next_key_on(connection, column)
        if not self.keys.has_key(column):
            release_target(state)
        return self.keys.next_key(column)

    def note_direct(self, reason: str) -> None:
        """A transaction became direct."""
        with self._lock:
            self._direct[reason] += 1

    def buffer_of(self, connection: Connection) -> TransactionBuffer:
        """The buffer behind a connection of the journal's engine."""
        return JournalDialect.buffer_of(connection)

    # --------------------------------------------------------------------------------------------- waiting

    def must_wait(self, tables: frozenset[TableName] | None) -> bool:
        """Whether entries that touch these tables (None: any) are not applied yet."""
        return self._pending.last_entry(tables) > self.checkpointer.applied_id

    def barrier(self, tables: frozenset[TableName] | None) -> None:
        """Wait until the entries that touch these tables (None: all) are applied.

        Costs a look into a dict when there are none. Raises `ReadTimeoutError` after `SessionConfig.read_timeout_s`,
        and the checkpointer's error at once if it has stopped.
        """
        last = self._pending.last_entry(tables)
        if last <= self.checkpointer.applied_id:
            return
        timeout = self.config.read_timeout_s
        if last > self.log.durable_id:
            # Committed with the durability "interval". What is not durable is not applied, and somebody waits now.
            self.log.sync()
        try:
            self.checkpointer.wait_applied(last, timeout)
        except ApplyTimeoutError as error:
            which = "the whole backlog" if tables is None else ", ".join(sorted(map(str, tables)))
            raise ReadTimeoutError(
                f"entry {last} was not applied within read_timeout_s = {timeout} s, so a read of {which} would not see "
                "what is committed. See journal.stats() for what holds the checkpointer up; "
                "execution_options(walsync_read='stale') reads what is there"
            ) from error

    def last_entry(self, session: Session | Any) -> EntryId | None:
        """The entry of the session's last buffered commit: a commit token for `wait_applied`. None before the first.

        `session` may be a `scoped_session`.
        """
        return state_of(_plain_session(session), self).last_entry_id

    def wait_applied(self, entry_id: EntryId | None = None, timeout: float | None = None) -> None:
        """Block until this entry is applied; None: all that is committed now.

        `timeout` is in seconds; None waits for as long as it takes. Raises `ApplyTimeoutError` when it is over, and at
        once what has stopped the checkpointer; and `EntryRejectedError` if `entry_id` is in the quarantine, while for
        all that is committed now it does not matter what is there.
        """
        through = self.log.last_id if entry_id is None else entry_id
        if through > self.log.durable_id:
            self.log.sync()
        self.checkpointer.wait_applied(self.log.durable_id if entry_id is None else entry_id, timeout)
        if entry_id is not None and self.checkpointer.is_quarantined(entry_id):
            raise EntryRejectedError(
                f"entry {entry_id} is not in the target but in the quarantine; see `walsync quarantine show` for the "
                "reason",
                entry_id,
            )

    # ------------------------------------------------------------------------------------ control and state

    def pause(self) -> None:
        """Stop applying after the batch under way. Commits go on."""
        self.checkpointer.pause()

    def resume(self) -> None:
        """Go on applying, also after a halt: the entry that was refused is tried again."""
        self.checkpointer.resume()

    @property
    def quarantine(self) -> Quarantine:
        """The entries that the target refused and that were put aside; for looking at them, and for deciding.

        Raises `UsageError` for a log without a directory.
        """
        return self.checkpointer.quarantine

    def stats(self) -> JournalStats:
        """The figures of this moment. Reads one entry of the log where many wait, or some from before it was opened."""
        status = self.checkpointer.status
        applied = self.checkpointer.applied_id
        durable = self.log.durable_id
        waiting = max(0, durable - applied)
        commits_per_s = self._committed_rate.per_second()
        trend, catch_up_s = estimate(waiting, commits_per_s, status.applied_per_s, status.state)
        with self._lock:
            direct = dict(self._direct)
        return JournalStats(
            durable_entry_id=durable,
            applied_entry_id=applied,
            backlog_entries=waiting,
            backlog_bytes=self.log.backlog_bytes if waiting else 0,
            backlog_age_s=self._age(applied) if waiting else None,
            backlog_trend=trend,
            catch_up_s=catch_up_s,
            commits_per_s=commits_per_s,
            applied_per_s=status.applied_per_s,
            state=status.state,
            state_since=status.since,
            last_error=status.last_error,
            failures=status.failures,
            next_retry_s=status.next_retry_s,
            rejected_entry_id=status.rejected_entry_id,
            replay_pending=status.replay_pending,
            quarantined_entries=status.quarantined_entries,
            buffered_transactions=self._buffered,
            direct_transactions=sum(direct.values()),
            direct_reasons=direct,
        )

    def _age(self, applied: EntryId) -> float | None:
        """Seconds since the commit of the first entry after `applied`; None if it cannot be told."""
        recent = list(self._recent)
        # Threads note their entries as they come: one that is a little late is younger than the first by nothing.
        if recent and recent[0][0] <= applied + 1:
            now = self._clock()
            return next((max(0.0, now - committed) for entry_id, committed in recent if entry_id > applied), None)
        oldest = self._oldest
        if oldest is None or oldest[0] <= applied:
            oldest = self._oldest = self._look_up_oldest(applied)
        return None if oldest is None else max(0.0, (self._clock_ns() - oldest[1]) / 1e9)

    def _look_up_oldest(self, applied: EntryId) -> tuple[EntryId, int] | None:
        try:
            for entry in self.log.entries(applied):
                header = next(iter(decode_parts(entry.id, entry.chunks())))
                assert isinstance(header, ChangeSet)
                return entry.id, header.commit_time_ns
        except (LogError, EntryNotFoundError):
            # Released at this moment, or unreadable: figures are no place to report that.
            return None
        return None

    # --------------------------------------------------------------------------------------------- closing

    def on_detach(self, undo: Callable[[], None]) -> None:
        """What gives the sessions back as they were; called when the journal is closed."""
        self._detach.append(undo)

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Detach the sessions, apply the backlog if `drain`, and close the log. Idempotent.

        `timeout` bounds the drain, in seconds; None is `SessionConfig.drain_timeout_s` (30). What is not applied by
        then stays in the log and is replayed when it is opened again; nothing is lost. The drain ends early when the
        checkpointer is paused, blocked or halted. A transaction that is open when its session is detached can only be
        rolled back.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for undo in self._detach:
            undo()
        try:
            self.keys.close()
        finally:
            try:
                # What a poisoned log says is said again by its close.
                with suppress(LogError):
                    self.log.sync()
                self.checkpointer.stop(drain=drain, timeout=self.config.drain_timeout_s if timeout is None else timeout)
            finally:
                try:
                    self.log.close()
                finally:
                    self.session_engine.dispose()
                    self.engine.dispose()

    def __enter__(self) -> Journal:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.checkpointer.status.state
        return f"<Journal {self.log.directory!r} to {self.target.url!r}: {state}>"


class JournalCheckpointer(SQLAlchemyCheckpointer):
    """Calls a journal's listeners. What an entry writes is looked up by `TableIndexer`, and not while opening."""

    recovers_entries = False

    def report_to(self, journal: Journal) -> None:
        """Call this journal's listeners. Before `start()`."""
        self._events = journal


def _plain_session(session: Any) -> Session:
    if isinstance(session, Session):
        return session
    registry = getattr(session, "registry", None)
    if registry is not None:
        found = registry()
        if isinstance(found, Session):
            return found
    raise UsageError(f"a Session or scoped_session is wanted here, not {type(session).__qualname__}")

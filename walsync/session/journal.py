"""`Journal`: what `walsync.attach()` returns.

It owns the log, the checkpointer, the keys and the two Engines that attached sessions use, and closes them. Committing
is here: a transaction's buffered changes become an entry of the log.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet, TableName, encode_change_set
from walsync.changes.codec import decode_parts
from walsync.changes.model import Change
from walsync.checkpoint import Quarantine, SQLAlchemyCheckpointer
from walsync.checkpoint.engine import run_on
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
from walsync.journal import (
    JournalDialect,
    KeyAllocator,
    SessionJournalEngine,
    TransactionBuffer,
    journal_engine,
    renew_in_child,
)
from walsync.journal.marks import awaited_marks, marks_of
from walsync.session.asynchronous import plain_session
from walsync.session.bridge import Bridge, await_in_thread
from walsync.session.config import SessionConfig
from walsync.session.reads import ReadEngine
from walsync.session.relations import Relations, TargetRelations
from walsync.session.scope import Scope
from walsync.session.state import SessionState, state_of
from walsync.session.stats import JournalStats, estimate
from walsync.session.upgrade import release_target, withdraw_commit
from walsync.session.versions import VersionGuard, WantedVersion, has_version
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["Journal"]

_T = TypeVar("_T")

METADATA: Final = "walsync.metadata"
DURABILITY: Final = "walsync.durability"

_LISTED: Final = 10
"""Tables named in a message."""


class Journal(EventSource):
    """A log attached to sessions. Made by `walsync.attach()`; a context manager that closes it.

    `checkpointer` is this process's part in applying: it applies, or stands by while another process does, or, attached
    with ``checkpoint="external"``, never applies; what it tells of the backlog, and what can be waited for, is the same
    in each case.

    `aclose`, `await_applied` and ``async with`` are for coroutines, where what else blocks or reads files (`stats`, the
    quarantine) is called by `asyncio.to_thread`.

    Thread-safe. It may be used in forked children, too: see "Run several processes" in the documentation. The target of
    the events of `walsync.checkpoint.events.WalsyncEvents`:
    ``event.listen(journal, "rejected", fn)``.
    """

    def __init__(
        self,
        *,
        target: Engine,
        log: WriteAheadLog,
        checkpointer: SQLAlchemyCheckpointer,
        keys: KeyAllocator,
        scope: Scope,
        config: SessionConfig,
        bridge: Bridge,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.target = target
        self.log = log
        self.checkpointer = checkpointer
        self.keys = keys
        self.scope = scope
        self.config = config
        self._bridge = bridge
        self.engine: Engine = journal_engine(target.dialect, keys, self._commit)
        self.session_engine: Engine = SessionJournalEngine(self.engine)
        self.reads = ReadEngine(self, target)
        self.read_engine: Engine = self.reads.engine
        self.relations = TargetRelations(
            self._ask_target,
            target.dialect.name,
            max_age_s=checkpointer.config.catalog_max_age_s,
            timeout_s=min(checkpointer.config.check_timeout_s, config.read_timeout_s),
        )
        self.versions = VersionGuard(config.tracked_versions, lambda: log.control.applied_id, self.must_wait)
        self._detach: list[Callable[[], None]] = []
        self._closed = False
        self._drained = False
        self._clock = clock
        self._clock_ns = clock_ns
        self._begin_anew()
        renew_in_child(self)

    def _begin_anew(self) -> None:
        """What each process has for itself: its name, its lock and its counters."""
        self.origin = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()  # guards the counters below and _closed; no I/O while it is held
        self._buffered = 0
        self._direct: Counter[str] = Counter()
        self._committed_rate = RateMeter(self.log.last_id, clock=self._clock)
        self._last_id = self.log.last_id  # of this process's commits; noted for the rate when its slot is over
        self._slot_began = self._clock()
        self._slot_ns = range(0)  # the times of commits that lie in that slot
        # What the last commit wrote, what was known of the target, and the marks. Replaced whole.
        self._written: tuple[AbstractSet[TableName] | None, Relations | None, tuple[str, ...]] = (None, None, ())
        self._oldest: tuple[EntryId, int] | None = None  # an entry that was looked at for the age, and its commit time

    def forget_parent(self) -> None:
        """Called in a forked child, which commits, reads and applies with this journal as its parent does.

        The log, the checkpointer and the keys do their part themselves. Nothing is started before the first use.
        """
        self._begin_anew()
        self.versions.forget_all()

    # ------------------------------------------------------------------------------------------ committing

    def _commit(self, buffer: TransactionBuffer) -> None:
        """Append the buffered changes as one entry. Called by the journal's dialect, in the committing thread."""
        owner = buffer.owner
        state = owner if isinstance(owner, SessionState) else None
        try:
            self._append(buffer, state)
        except BaseException:
            if state is not None:
                withdraw_commit(state)
            raise

    def _append(self, buffer: TransactionBuffer, state: SessionState | None) -> None:
        metadata: Any = None
        durability: Any = None
        if state is not None:
            session = state.session_ref()
            if session is not None:
                metadata, durability = session.info.get(METADATA), session.info.get(DURABILITY)
        if metadata is None:
            metadata = {}
        elif not isinstance(metadata, dict):
            raise UsageError(f"session.info[{METADATA!r}] must be a dict, not {type(metadata).__qualname__}")
        changes = buffer.changes
        commit_time_ns = self._clock_ns()
        change_set = ChangeSet(commit_time_ns, self.origin, metadata, changes)
        tables, known = change_set.tables, self.relations.known
        written = self._written
        # Of one shape of changes the tables are always the same object.
        marks = written[2] if written[0] is tables and written[1] is known else self._note_written(tables, known)
        chunks = encode_change_set(change_set)
        cancelled: asyncio.CancelledError | None = None
        # An unknown durability is refused by the log, before anything is written.
        if self._bridge.is_async and self._bridge.is_needed:
            entry_id, cancelled = self._append_awaited(changes, chunks, durability, marks)
        else:
            self.checkpointer.admit()
            if self.versions.concerns(changes):
                append = partial(self.log.append, *chunks, durability=durability, marks=marks)
                entry_id = self.versions.append(changes, self._has_version, append)
            else:
                entry_id = self.log.append(*chunks, durability=durability, marks=marks)
        change_set.entry_id = entry_id
        if state is not None:
            state.last_entry_id = entry_id
        self._buffered += 1
        if commit_time_ns not in self._slot_ns:
            self._begin_slot(commit_time_ns)
        self._last_id = entry_id
        if cancelled is not None and state is not None:
            state.cancelled = cancelled
        for listener in self.dispatch.after_append:
            listener(self, entry_id, change_set)
        if cancelled is not None and state is None:
            raise cancelled

    def _note_written(self, tables: AbstractSet[TableName], known: Relations | None) -> tuple[str, ...]:
        """The marks of these tables. What there is to be said of them is not said again for the next commit."""
        marks = marks_of(tables)
        if self.relations.note_written(tables, known):
            self._written = tables, known, marks
        return marks

    def _begin_slot(self, commit_time_ns: int) -> None:
        """Of all commits of a slot the last one is enough: noting each would be a call, and a look at a clock."""
        self._note_rate()
        now = self._slot_began = self._clock()
        left_s = self._committed_rate.slot_end(now) - now
        self._slot_ns = range(commit_time_ns, commit_time_ns + round(left_s * 1e9))

    def _note_rate(self) -> None:
        self._committed_rate.note(self._last_id, self._slot_began)

    def _append_awaited(
        self, changes: list[Change], chunks: list[bytes], durability: Any, marks: tuple[str, ...]
    ) -> tuple[EntryId, asyncio.CancelledError | None]:
        """By a thread of the bridge's. Returns the cancellation that was held back meanwhile as well."""
        cancelled: asyncio.CancelledError | None = None

        def append() -> EntryId:
            nonlocal cancelled
            in_thread = partial(self._append_in_thread, chunks, durability, marks, self._clock())
            entry_id, cancelled = self._bridge.finish(in_thread)
            return entry_id

        return self.versions.append(changes, self._has_version, append), cancelled

    def _has_version(self, wanted: WantedVersion) -> bool:
        return has_version(self, wanted)

    def _append_in_thread(self, chunks: Any, durability: Any, marks: tuple[str, ...], began: float) -> EntryId:
        """In a thread of the bridge's, which was to begin with it at `began`."""
        self.checkpointer.admit(self._clock() - began)
        return self.log.append(*chunks, durability=durability, marks=marks)

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

    def ask_target(self, question: Callable[[Connection], _T]) -> _T:
        """What `question` finds out on a connection of the checkpointer's own. Raises what the driver raises."""

        return self._bridge.wait(lambda: self._ask_target(question))

    def _ask_target(self, question: Callable[[Connection], _T]) -> _T:
        """The same in this thread."""
        engine = self.checkpointer.own_engine()

        def asked() -> _T:
            with engine.connect() as connection:
                return question(connection)

        return run_on(engine, asked)

    # --------------------------------------------------------------------------------------------- waiting

    def must_wait(self, tables: frozenset[TableName] | None) -> bool:
        """Whether entries that touch these tables (None: any) are not applied yet, whoever has committed them."""
        control = self.log.control
        return not control.nothing_waits() and self._last_entry(tables) > control.applied_id

    def _last_entry(self, tables: frozenset[TableName] | None) -> EntryId:
        """An entry after which none touches one of these tables; None stands for every table."""
        return self.log.last_id if tables is None else self.log.control.last_marked(awaited_marks(tables))

    @property
    def has_backlog(self) -> bool:
        """Whether any entry is not applied yet. A word of the log where nothing was written since there was none."""
        return not self.log.control.nothing_waits()

    def sources(self, tables: frozenset[TableName] | None) -> frozenset[TableName] | None:
        """All tables whose changes may change what a read of these shows, by the target's catalogue; None: any table's.

        Costs a look into a dict once the target has been asked; blocks until then, within the bound of the questions to
        it. To be called only where it matters: while entries wait, or after the transaction itself has written.
        """
        if tables is None:
            return None
        found = self.relations.known_sources(tables)
        return self._bridge.wait(partial(self.relations.sources, tables)) if found is None else found

    def barrier(self, tables: frozenset[TableName] | None) -> None:
        """Wait until the entries that touch these tables (None: all) are applied, whoever commits or applies them.

        Costs a look into the log's control block when there are none. Raises `ReadTimeoutError` after
        `SessionConfig.read_timeout_s`, and the checkpointer's error at once if it has stopped.
        """
        control = self.log.control
        if control.nothing_waits():
            return
        last = self._last_entry(tables)
        if last <= control.applied_id:
            return
        if self._bridge.is_needed:
            self._bridge.wait(partial(self._wait_for_read, last, tables, self._clock()))
        else:
            self._wait_for_read(last, tables, None)

    def _wait_for_read(self, last: EntryId, tables: frozenset[TableName] | None, began: float | None) -> None:
        timeout = self.config.read_timeout_s
        if last > self.log.durable_id:
            # Committed with the durability "interval", or in this moment by somebody else. What is not durable is not
            # applied, and somebody waits now.
            self.log.sync()
        try:
            waited_s = 0.0 if began is None else self._clock() - began
            self.checkpointer.wait_applied(last, max(0.0, timeout - waited_s))
        except ApplyTimeoutError as error:
            which = "the whole backlog" if tables is None else _listed(tables)
            raise ReadTimeoutError(
                f"entry {last} was not applied within read_timeout_s = {timeout} s, so a read of {which} would not see "
                f"what is committed ({error}). See journal.stats() for what holds the checkpointer up; "
                "execution_options(walsync_read='stale') reads what is there"
            ) from error

    def last_entry(self, session: Session | Any) -> EntryId | None:
        """The entry of the session's last buffered commit: a commit token for `wait_applied`. None before the first.

        `session` may be a `scoped_session`, an `AsyncSession` or an `async_scoped_session`.
        """
        return state_of(_plain_session(session), self).last_entry_id

    def wait_applied(self, entry_id: EntryId | None = None, timeout: float | None = None) -> None:
        """Block until this entry is applied; None: all that is committed now.

        `timeout` is in seconds; None waits for as long as it takes. Raises `ApplyTimeoutError` when it is over, and at
        once what has stopped the checkpointer; and `EntryRejectedError` if `entry_id` is in the quarantine, while for
        all that is committed now it does not matter what is there.
        """
        self._bridge.wait(partial(self._wait_applied, entry_id, timeout))

    async def await_applied(self, entry_id: EntryId | None = None, timeout: float | None = None) -> None:
        """`wait_applied` for coroutines. A task that is cancelled is let go at once."""
        await await_in_thread(partial(self._wait_applied, entry_id, timeout), "walsync-wait")

    def _wait_applied(self, entry_id: EntryId | None, timeout: float | None) -> None:
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
        """Stop applying after the batch under way. Commits go on.

        It is this process's applier that is paused. Where it is the one that applies, it keeps its turn, and nothing is
        applied by any process; where it stands by, it does not take over. Raises `UsageError` if this process only
        writes.
        """
        self.checkpointer.pause()

    def resume(self) -> None:
        """Go on applying, also after a halt: the entry that was refused is tried again.

        To be called in the process that applies. Raises `UsageError` if this process only writes.
        """
        self.relations.forget()
        self.checkpointer.resume()

    @property
    def quarantine(self) -> Quarantine:
        """The entries that the target refused and that were put aside; for looking at them, and for deciding.

        Raises `UsageError` for a log without a directory.
        """
        return self.checkpointer.quarantine

    def stats(self) -> JournalStats:
        """The figures of this moment. Reads the first entry that waits, if another one does than the last time."""
        status = self.checkpointer.status
        applied = self.checkpointer.applied_id
        durable = self.log.durable_id
        waiting = max(0, durable - applied)
        self._note_rate()
        self._committed_rate.note(self.log.last_id)
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
            applier=status.applier,
            buffered_transactions=self._buffered,
            direct_transactions=sum(direct.values()),
            direct_reasons=direct,
        )

    def _age(self, applied: EntryId) -> float | None:
        """Seconds since the commit of the first entry after `applied`; None if it cannot be told."""
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

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Detach the sessions, apply the backlog if `drain`, and close the log. True if all that is durable is applied.

        `timeout` bounds the drain, in seconds; None is `SessionConfig.drain_timeout_s` (30). What is not applied by
        then stays in the log and is replayed when it is opened again; nothing is lost. Where another process applies,
        it is waited for. The drain ends early when the checkpointer is paused, blocked or halted. Another process takes
        over the applying, if one has the log open. A transaction that is open when its session is detached can only be
        rolled back. May be called again, and answers the same.
        """
        with self._lock:
            if self._closed:
                return self._drained
            self._closed = True
        for undo in self._detach:
            undo()
        self._bridge.close()
        try:
            self.keys.close()
        finally:
            try:
                # What a poisoned log says is said again by its close.
                with suppress(LogError):
                    self.log.sync()
                timeout = self.config.drain_timeout_s if timeout is None else timeout
                self._drained = self.checkpointer.stop(drain=drain, timeout=timeout)
            finally:
                try:
                    self.log.close()
                finally:
                    self.session_engine.dispose()
                    self.engine.dispose()
        return self._drained

    def __enter__(self) -> Journal:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self, drain: bool = True, timeout: float | None = None) -> bool:
        """`close` for coroutines. Where the task is cancelled, the closing goes on in its thread."""
        return await await_in_thread(partial(self.close, drain, timeout), "walsync-close")

    async def __aenter__(self) -> Journal:  # noqa: PYI034
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.checkpointer.status.state
        return f"<Journal {self.log.directory!r} to {self.target.url!r}: {state}>"


class JournalCheckpointer(SQLAlchemyCheckpointer):
    """Calls a journal's listeners. What an entry writes is looked up by `TableIndexer`, and not while opening."""

    recovers_entries = False

    def report_to(self, journal: Journal) -> None:
        """Call this journal's listeners. Before `start()`."""
        self._events = journal


def _listed(tables: frozenset[TableName]) -> str:
    names = sorted(map(str, tables))
    more = f" and {len(names) - _LISTED} more tables" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _plain_session(session: Any) -> Session:
    found = plain_session(session)
    if not isinstance(found, Session):
        raise UsageError(
            f"a Session, an AsyncSession or a scoped session is wanted here, not {type(session).__qualname__}"
        )
    return found

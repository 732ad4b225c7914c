"""`Journal`: what `walsync.attach()` returns.

It owns the log, the checkpointer, the keys and the two Engines that attached sessions use, and closes them. What a
commit does is in `walsync.session.committing`; here is what sessions ask, what waits for entries, and the figures.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet, TableName
from walsync.changes.codec import decode_parts
from walsync.checkpoint import Quarantine, SQLAlchemyCheckpointer
from walsync.checkpoint.engine import run_on
from walsync.checkpoint.events import EventSource
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
from walsync.journal.marks import awaited_marks
from walsync.session.asynchronous import plain_session
from walsync.session.bridge import Bridge, await_in_thread
from walsync.session.committing import Committer
from walsync.session.config import SessionConfig
from walsync.session.reads import ReadEngine
from walsync.session.relations import TargetRelations
from walsync.session.scope import Scope
from walsync.session.state import STATE, SessionState
from walsync.session.stats import JournalStats, estimate
from walsync.session.upgrade import release_target
from walsync.session.versions import VersionGuard, has_version
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["Journal"]

_T = TypeVar("_T")

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
        self.reads = ReadEngine(self, target)
        self.read_engine: Engine = self.reads.engine
        self.relations = TargetRelations(
            self._ask_target,
            target.dialect.name,
            max_age_s=checkpointer.config.catalog_max_age_s,
            timeout_s=min(checkpointer.config.check_timeout_s, config.read_timeout_s),
        )
        self.versions = VersionGuard(config.tracked_versions, lambda: log.control.applied_id, self.must_wait)
        self._committer = Committer(
            log,
            checkpointer,
            self.versions,
            self.relations,
            bridge,
            source=self,
            has_version=partial(has_version, self),
            clock=clock,
            clock_ns=clock_ns,
        )
        self.engine: Engine = journal_engine(target.dialect, keys, self._committer.commit)
        self.session_engine: Engine = SessionJournalEngine(self.engine)
        self._detach: list[Callable[[], None]] = []
        self._closed = False
        self._drained = False
        self._clock = clock
        self._clock_ns = clock_ns
        self._begin_anew()
        renew_in_child(self)

    def _begin_anew(self) -> None:
        """What each process has for itself."""
        self._lock = threading.Lock()  # guards _direct and _closed; no I/O while it is held
        self._direct: Counter[str] = Counter()
        self._oldest: tuple[EntryId, int] | None = None  # an entry that was looked at for the age, and its commit time

    def forget_parent(self) -> None:
        """Called in a forked child, which commits, reads and applies with this journal as its parent does.

        The log, the checkpointer and the keys do their part themselves. Nothing is started before the first use.
        """
        self._begin_anew()
        self._committer.begin_anew()
        self.versions.forget_all()

    @property
    def origin(self) -> str:
        """This process's name, as its entries bear it: another one in a forked child."""
        return self._committer.origin

    # ------------------------------------------------------------------------------------------- transactions

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
        state: SessionState | None = _plain_session(session).__dict__.get(STATE)
        return None if state is None or state.journal is not self else state.last_entry_id

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
        commits_per_s = self._committer.commits_per_s()
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
            buffered_transactions=self._committer.count,
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

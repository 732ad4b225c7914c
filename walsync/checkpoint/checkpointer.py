"""`SQLAlchemyCheckpointer`: applies a log's entries to a database, in a thread of its own.

It composes the parts of this package and adds no logic of its own: `Target` (one transaction), `Applier` (the thread),
`Turn` (one applier at a time), `Progress` (what both sides share), `Elsewhere` (what another process applies),
`Backlog` (the bound), `Watermark` (exactly once), `StatusReporter` (what other processes see).

It keeps nothing per entry: a backlog of any length costs it one batch of memory.

In a forked child all of it is made anew, and its thread is started when the checkpointer is first used.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from walsync.checkpoint.applier import Applier
from walsync.checkpoint.asking import ask_watermark
from walsync.checkpoint.backlog import Backlog
from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.elsewhere import Elsewhere
from walsync.checkpoint.engine import ApplyingEngine, LoopEngine, make_engine
from walsync.checkpoint.events import EventSource
from walsync.checkpoint.lease import Turn
from walsync.checkpoint.progress import Progress
from walsync.checkpoint.quarantine import Gate, Quarantine, QuarantineStore
from walsync.checkpoint.status import CheckpointStatus
from walsync.checkpoint.status_file import StatusReporter
from walsync.checkpoint.transaction import Target
from walsync.checkpoint.watermark import Watermark
from walsync.exceptions import ConfigurationError, UsageError
from walsync.journal import close_before_fork, leave_to_parent, renew_in_child
from walsync.wal import Checkpointer, Entry, EntryId, Recovery, SegmentInfo, WriteAheadLog

__all__ = ["SQLAlchemyCheckpointer"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_STOP_WAKE_S: Final = 0.05
"""While stopping, the thread is woken again at this interval: it may have been about to fall asleep."""

_DEFAULT_CONFIG: Final = CheckpointConfig()


def _default_session(engine: Engine) -> Session:
    return Session(engine, expire_on_commit=False)


class SQLAlchemyCheckpointer(Checkpointer, EventSource):
    """Applies the entries of a log to `target`, in order, each exactly once.

    With a journal (`walsync.attach`) there is nothing to do. With a bare log::

        checkpointer = SQLAlchemyCheckpointer(engine)
        with WriteAheadLog.recover("var/wal", checkpointer) as log:
            checkpointer.start(log)
            ...
            checkpointer.stop()

    Of all that work on one log, in this process and in others, one applies at a time; the others stand by, and one of
    them takes over when that one is stopped or its process ends. With `CheckpointConfig.external` it never applies, and
    everything else is as it is: what is applied, by whomever, can be asked and waited for.

    `target` is the application's engine; the thread uses a pool of its own made from it. `session_factory` makes the
    Session of each transaction from the engine that it is given. `events` is whose listeners are called: a journal, or
    this object itself. `origin` is written next to the watermark, for the operator.

    Raises `ConfigurationError` for an engine that a thread cannot use. Thread-safe. Does no I/O before `start`.
    """

    self_driven = True

    def __init__(
        self,
        target: Engine,
        *,
        config: CheckpointConfig = _DEFAULT_CONFIG,
        session_factory: Callable[[Engine], Session] = _default_session,
        events: EventSource | None = None,
        origin: str | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self.config: Final = config
        self.engine: Final = make_engine(target, config)
        self._application_engine = target
        self._owns_engine = self.engine is not target
        self._session_factory = session_factory
        self._events = events or self
        self._origin = origin
        self._jitter = jitter
        self._recovered_id = EntryId(0)
        self._log: WriteAheadLog | None = None
        self._dormant = False
        self._begin_anew()
        close_before_fork(target, own=False)
        if self._owns_engine:
            close_before_fork(self.engine, own=True)
        renew_in_child(self)

    def _begin_anew(self) -> None:
        """Everything that a process has of its own. The lock is for the first use in a forked child."""
        self._progress = Progress(paused=self.config.paused)
        self._target: Target | None = None
        self._backlog: Backlog | None = None
        self._gate: Gate | None = None
        self._elsewhere: Elsewhere | None = None
        self._thread: threading.Thread | None = None
        self._reporter: StatusReporter | None = None
        self._waking = threading.Lock()

    def forget_parent(self) -> None:
        """Called in a forked child: the thread and the connections are the parent's, and so is its turn to apply."""
        runs = self._dormant or (self._elsewhere is not None and not self._progress.stopping)
        paused = self._progress.paused
        self._begin_anew()
        self._progress.order(pause=paused)
        self._recovered_id = EntryId(0)
        self._dormant = runs
        for engine in {self.engine, self._application_engine}:
            leave_to_parent(engine)

    # ------------------------------------------------------------------------- what the log calls on opening

    def should_recover_segment(self, segment: SegmentInfo) -> Recovery:
        """Every segment is recovered. Override it to look at `segment.version_info`."""
        return Recovery.RECOVER

    def recover(self, entry: Entry) -> None:
        """An entry waits in the log that is being opened. It will be replayed if the watermark does not know it."""
        self._recovered_id = entry.id

    def checkpoint_to(self, last_id: EntryId, entries: Iterator[Entry], log: WriteAheadLog) -> None:
        """Waits until the entries up to `last_id` are applied. The log calls this only when somebody asks it to."""
        self.wait_applied(last_id, None)

    # ---------------------------------------------------------------------------------------- life and orders

    def start(self, log: WriteAheadLog) -> None:
        """Starts the thread for a log that is open. Returns at once, whether the target is there or not.

        Raises `UsageError` if this checkpointer has been started before.
        """
        if self.config.on_reject == "quarantine" and log.directory is None:
            raise ConfigurationError(
                'CheckpointConfig.on_reject="quarantine" keeps entries in the log\'s directory, and this log has none; '
                'open it in a directory, or set on_reject="halt"'
            )
        target = self._connect(log)
        target.replay_through = EntryId(self._recovered_id or log.last_id)
        self._launch(log, target)

    def _launch(self, log: WriteAheadLog, target: Target) -> None:
        config, progress, control = self.config, self._progress, log.control
        progress.begin(
            control,
            replay_pending=target.replay_through > control.applied_id,
            here=not config.external and control.try_lease(),
            external=config.external,
        )
        self._backlog = Backlog(log, config, progress, lambda: self.status)
        self._elsewhere = Elsewhere(log, config, progress, target.replay_through)
        if config.external:
            return
        if log.directory is not None:
            self._gate = Gate(
                self._store(log),
                target,
                log,
                timeout_s=config.quarantine_timeout_s,
                interrupted=lambda: progress.interrupted,
            )
            self._reporter = StatusReporter(log.directory, progress.status, progress.state_changed)
        turn = Turn(
            control,
            progress,
            config.standby_interval_s,
            taken=lambda: None if self._reporter is None else self._reporter.start(),
            giving_up=lambda: None if self._reporter is None else self._reporter.stop(),
        )
        applier = Applier(target, log, config, progress, turn, gate=self._gate, jitter=self._jitter)
        self._thread = threading.Thread(target=self._run, args=(applier,), name="walsync-checkpointer", daemon=True)
        self._thread.start()

    def _wake_up(self) -> None:
        """The first use in a forked child: what the parent had started is started here."""
        with self._waking:
            log = self._log
            if not self._dormant or log is None:
                return
            target = self._connect(log)
            target.replay_through = log.last_id
            self._launch(log, target)
            # Not earlier: who finds it awake takes for granted that the thread runs.
            self._dormant = False

    def _connect(self, log: WriteAheadLog) -> Target:
        """The target for this log; made once."""
        if self._log is not None and self._log is not log:
            raise UsageError("this checkpointer belongs to another log; make one checkpointer for each log")
        if self._target is None:
            name = f"log {log.uuid}" + (f" ({log.directory})" if log.directory else "")
            origin = self._origin or f"{socket.gethostname()}:{os.getpid()}"
            watermark = Watermark(log.uuid, origin, self.config.watermark_schema)
            self._log = log
            self._target = Target(self.engine, self._session_factory, self._events, watermark, name, self.config)
        return self._target

    def _store(self, log: WriteAheadLog) -> QuarantineStore:
        assert log.directory is not None
        return QuarantineStore.of_log(
            log.directory,
            log.uuid,
            max_entries=self.config.max_quarantine_entries,
            max_bytes=self.config.max_quarantine_bytes,
        )

    def _run(self, applier: Applier) -> None:
        try:
            applier.run()
        finally:
            self._dispose()

    def pause(self) -> None:
        """Stops applying after the batch that is under way. Commits go on. Returns at once.

        One that applies keeps its turn: nothing is applied, by no process, until `resume()`. One that stands by does
        not take over while it is paused. Raises `UsageError` with `CheckpointConfig.external`.
        """
        self._order_own()
        self._progress.order(pause=True)
        self._wake()

    def resume(self) -> None:
        """Ends a pause; and tries at once again what is halted, blocked or waiting for a retry. Returns at once.

        What is known of the target's tables is asked anew: they may have been changed meanwhile. Another process's
        checkpointer is resumed there. Raises `UsageError` with `CheckpointConfig.external`.
        """
        self._order_own()
        if self._target is not None:
            self._target.forget_tables()
        self._progress.order(pause=False, retry=True)
        self._wake()

    def _order_own(self) -> None:
        if self._dormant:
            self._wake_up()
        if self.config.external:
            raise UsageError(
                "this process does not apply (checkpoint='external'), so there is nothing to pause or resume; do it "
                "where entries are applied"
            )

    def urge(self, through: EntryId | None = None) -> None:
        """Somebody waits for the entries up to `through` (all that are durable now): no delay for company."""
        log = self._log
        if self._dormant:
            self._wake_up()
        if log is not None:
            through = log.durable_id if through is None else through
            self._progress.order(urge_through=through)
            log.control.urge(through)

    def stop(self, drain: bool = False, timeout: float = 30.0) -> bool:
        """Ends the thread; with `drain`, first waits until what is durable now is applied, by whomever. True if all of
        that is applied.

        Waits up to `timeout` seconds for both together; a drain ends early when the one that applies is paused,
        blocked, halted or dead. Afterwards the thread is over, and another process may apply; unless it is inside of a
        call to the database that does not return: then it ends by itself when that does, and applies nothing more. May
        be called again; never raises for what waits.
        """
        log = self._log
        if log is None:
            self._dispose()
            return True
        through = log.durable_id
        deadline = _deadline(timeout)
        if self._dormant and drain and log.control.applied_id < through:
            self._wake_up()
        self._dormant = False
        thread, elsewhere = self._thread, self._elsewhere
        if drain and elsewhere is not None:
            if self._progress.applies_here:
                self._progress.wait_drained(through, timeout)
            else:
                elsewhere.wait_drained(through, timeout)
        self._progress.order(stop=True)
        while thread is not None and thread.is_alive() and thread is not threading.current_thread():
            self._wake()
            thread.join(min(_STOP_WAKE_S, max(0.001, deadline())))
            if deadline() <= 0:
                _logger.warning("the checkpointer's thread is still inside of a call to the target; it ends after it")
                break
        if self.config.external and elsewhere is not None:
            self._progress.end(None)
        self._dispose()
        if isinstance(self.engine, LoopEngine):
            self.engine.loop.stop()
        return log.control.applied_id >= through

    def _dispose(self) -> None:
        """Closes the connections that lie in the pool; those in use are closed when they are given back."""
        if self._owns_engine:
            self.engine.dispose()

    def _wake(self) -> None:
        if self._log is not None:
            self._log.wake()

    def own_engine(self) -> Engine:
        """The Engine with the checkpointer's own pool, ready for use by others in the background.

        Connects to the target when it is called for the first time, and raises what that raises.
        """
        if isinstance(self.engine, ApplyingEngine):
            self.engine.initialise()
        return self.engine

    # ---------------------------------------------------------------------------------------------- questions

    @property
    def applied_id(self) -> EntryId:
        """The last entry known to be committed in the target, or put into the quarantine, by whomever."""
        log = self._log
        return EntryId(0) if log is None else log.control.applied_id

    @property
    def status(self) -> CheckpointStatus:
        """State, progress and the failure that lasts, if one does; where another process applies, as it tells them."""
        if self._dormant:
            self._wake_up()
        progress, log, elsewhere = self._progress, self._log, self._elsewhere
        status = progress.status()
        if log is None or elsewhere is None:
            return status
        if progress.applies_here:
            return elsewhere.complete_own(status)
        return elsewhere.complete(status, 0 if log.directory is None else len(self._store(log).ids()))

    @property
    def quarantine(self) -> Quarantine:
        """The entries that the target refused and that were put aside; for looking at them, and for deciding.

        Raises `UsageError` before `start`, and for a log without a directory.
        """
        log, target = self._log, self._target
        if log is None or target is None:
            raise UsageError("the quarantine is the log's: start the checkpointer first")
        if log.directory is None:
            raise UsageError("this log has no directory, and so no quarantine")
        return Quarantine(self._store(log), lambda: target, self.config, self._wake)

    def is_quarantined(self, entry_id: int) -> bool:
        """Whether an entry that the checkpointer has passed is in the quarantine, as far as it has looked."""
        log = self._log
        if log is None or log.directory is None:
            return False
        if self._gate is not None and self._progress.applies_here:
            return entry_id in self._gate
        return entry_id in self._store(log).ids()

    def wait_applied(self, through: EntryId, timeout: float | None) -> None:
        """Blocks until the entries up to `through` are committed in the target, or put into the quarantine.

        Returns at once if they are. Raises `ApplyTimeoutError` after `timeout` seconds (None: no bound), and at once
        when the checkpointer cannot get there by itself: `TargetBlockedError`, `EntryRejectedError`,
        `WatermarkGapError`, `CheckpointFailedError`, or `UsageError` when it is not running. A paused one is waited
        for. So it is where another process applies; and with `CheckpointConfig.external`, `ApplyTimeoutError` is also
        raised when no process has applied for `no_applier_timeout_s`.
        """
        if self._dormant:
            self._wake_up()
        if self.applied_id >= through:
            return
        elsewhere = self._elsewhere
        if elsewhere is None or self._progress.applies_here:
            self._progress.wait_applied(through, timeout)
        else:
            elsewhere.wait_applied(through, timeout)

    def raise_if_failed(self) -> None:
        """Raises `CheckpointFailedError` if the thread has died. An attribute read when it has not."""
        self._progress.raise_if_failed()

    def admit(self, waited_s: float = 0.0) -> None:
        """Returns when the backlog has room; call it before an append. See `walsync.checkpoint.backlog`.

        Raises `CheckpointFailedError` if the thread has died.
        """
        if self._progress.has_failed:
            self._progress.raise_if_failed()
        if self._dormant:
            self._wake_up()
        backlog, log = self._backlog, self._log
        # On the path of each commit, where a call costs a microsecond: what `admit` looks at first is looked at here.
        if backlog is not None and log is not None and (backlog.is_warned or not log.is_before(*backlog.room_until)):
            backlog.admit(waited_s)

    def check_watermark(self, log: WriteAheadLog | None = None) -> bool:
        """Asks the target now whether it fits the log. False if the target cannot say (unreachable, blocked).

        Makes the watermark's table and row if they are missing. Raises `WatermarkGapError` if log and target do not
        fit. Blocks for up to `check_timeout_s` seconds; the question goes on in the background then, and nobody waits
        for its answer. `log` is needed before `start`.
        """
        log = log or self._log
        if log is None:
            raise UsageError("check_watermark() needs the log while the checkpointer is not started")
        return ask_watermark(self._connect(log), log, self.config.check_timeout_s)


def _deadline(timeout: float) -> Callable[[], float]:
    end = time.monotonic() + timeout
    return lambda: end - time.monotonic()

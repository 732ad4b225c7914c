"""The checkpointer's thread: reads durable entries, applies them batch by batch, and decides what a failure means.

It applies while it holds the log's lease (`walsync.checkpoint.lease`), and until then stands by.

One round: *synchronise* (ask the watermark; at the start, and after every failure, because a COMMIT whose answer was
lost may be in), *gather* a batch, *commit* it in one transaction of the target, release it in the log, tell everybody.

A failed batch is rolled back. What then happens depends on whose fault it is (`walsync.checkpoint.failures`):

- transient: a wait that doubles each time, with jitter, and another round, with a smaller batch; for ever.
- anything else, in a batch of several entries: the batch is applied again in parts, so that what stands before the
  culprit arrives, and the culprit is known.
- rejected: `CheckpointConfig.on_reject`, or a listener, says what happens. The thread halts: it applies nothing until
  `resume()`, and commits go on until the backlog is full. Or the entry is put aside, and later ones that touch the same
  rows are too (`walsync.checkpoint.quarantine`).
- blocked or unknown: a slow retry; the state says what is missing.

What is not the target's failure (a fault in walsync, an exception of a listener, a log that cannot be read for lack of
its disk) ends the thread: state *failed*, and the error reaches the next caller.

Invariants: entries are applied in commit order, whole, each exactly once; nothing is applied after an entry that is
not, unless that is kept in the quarantine and nothing of it is touched; the thread never sleeps in a way that `stop()`
cannot end, except inside of a call to the database's driver.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Final

from walsync.changes import ChangeSet
from walsync.checkpoint.batch import Batch, BatchSize, ids
from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.events import Verdict
from walsync.checkpoint.failures import Failure, FailureKind, classify, describe_error
from walsync.checkpoint.lease import Turn
from walsync.checkpoint.progress import Progress
from walsync.checkpoint.quarantine.gate import Gate
from walsync.checkpoint.transaction import FencedError, ListenerError, Target
from walsync.checkpoint.waits import Again, Delayed, Halted, Stuck, Waits, waiting_for
from walsync.exceptions import (
    DamagedLogError,
    EntryNotFoundError,
    EntryRejectedError,
    LogClosedError,
    LogPoisonedError,
    LogVersionError,
    QuarantineFullError,
    WatermarkGapError,
)
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["Applier"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_IDLE_S: Final = 60.0
"""The longest sleep in the log while there is nothing to do; orders and new entries end it at once."""

_IDLE_HOLDING_S: Final = 1.0
"""The same while something is in the quarantine, which other processes may change without a sign."""

_NEXT: Final = {
    Verdict.HALT: "It and everything after it are kept in the log. Mend the cause in the target and call resume()",
    Verdict.RETRY: "A listener of 'rejected' wants it tried again; everything after it waits",
    Verdict.QUARANTINE: "It is put into the quarantine with what depends on it, and the others go on. Mend the cause "
    "and call `walsync quarantine retry`, or discard it",
    Verdict.DISCARD: "A listener of 'rejected' wants it discarded; its record is kept in the quarantine",
}

_SWEEPS: Final = 4
_SWEEP_MAX_S: Final = 0.05
"""How often a waiting batch looks for company: this often within `batch_delay_s`, and at least at this interval. Seldom
enough to leave committers the processor, often enough to notice that it is full."""


class Applier:
    """The body of the thread. `run` is called once, in a thread of its own; the rest is that thread's alone."""

    def __init__(
        self,
        target: Target,
        log: WriteAheadLog,
        config: CheckpointConfig,
        progress: Progress,
        turn: Turn,
        *,
        gate: Gate | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._target = target
        self._log = log
        self._config = config
        self._progress = progress
        self._size = BatchSize(config)
        self._turn = turn
        self._gate = gate
        self._quarantined = 0
        self._waits = Waits(config, progress, jitter or random.Random(), lambda error: target.announce("halted", error))
        self._after = EntryId(0)
        self._synchronised = False
        self._recovered_from: EntryId | None = None
        self._replay_done = False

    def run(self) -> None:
        """Applies when it is its turn, until it is told to stop. Never raises: a fault is kept in `Progress`."""
        try:
            self._run()
        finally:
            self._turn.give_up()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            if self._turn.wait():
                self._rounds()
        except LogClosedError as closed:
            # Whoever closes a log first stops what reads it; otherwise this is a fault like any other.
            error = None if self._progress.stopping else closed
        except BaseException as fault:  # noqa: BLE001  Even SystemExit: no way out of this thread may be silent.
            error = fault
        if error is None:
            self._progress.end(None)
            return
        if isinstance(error, ListenerError) and error.__cause__ is not None:
            _logger.error("the checkpointer has failed: %s", error, exc_info=error.__cause__)
        else:
            _logger.error("the checkpointer has failed: %s", describe_error(error), exc_info=error)
        self._progress.end(error)
        try:
            self._target.announce("halted", error)
        except Exception:  # The thread is at its end: there is nobody left to hand a listener's fault to.
            _logger.exception("a listener of 'halted' failed")

    def _rounds(self) -> None:
        while self._progress.hold():
            self._round()

    def _round(self) -> None:
        try:
            if not self._synchronised:
                self._synchronise()
                self._synchronised = True
            elif self._gate is not None:
                with waiting_for(None):
                    self._gate.refresh()
                self._count_quarantined()
            change_sets = self._gather()
            if change_sets:
                self._apply(change_sets)
        except (LogClosedError, ListenerError):
            raise
        except Exception as error:  # noqa: BLE001  What is nobody's but the program's is raised again.
            # Whatever it was, ask where the target stands before going on.
            self._synchronised = False
            self._wait_after(error)

    def _wait_after(self, error: Exception) -> None:
        """What a failure leads to. Raises it again if it is nobody's but the program's."""
        waits = self._waits
        if isinstance(error, (FencedError, EntryNotFoundError)):
            # EntryNotFoundError: the entries being read were applied and released by the other one.
            _logger.warning("another applier moved the watermark of this log; asking the target where it stands")
        elif isinstance(error, (WatermarkGapError, DamagedLogError, LogVersionError)):
            waits.halt(error, None, None)
        elif isinstance(error, Halted):
            waits.halt(error.error, error.kind, error.entry_id)
        elif isinstance(error, Again):
            waits.transient(error.error, error.failure, error.entry_id)
        elif isinstance(error, Delayed):
            waits.quarantine(error.error, error.entry_id)
        elif isinstance(error, Stuck):
            waits.blocked(error.error, error.failure, error.entry_id)
        else:
            # Whatever the target's driver may raise: the tables say what it is, and what they do not claim goes on.
            failure = classify(error, self._target.dialect_name)
            if failure is None:
                raise error
            if failure.kind is FailureKind.TRANSIENT:
                waits.transient(error, failure)
            elif failure.kind is FailureKind.REJECTED:
                # No entry was being applied: the watermark's own statements were refused.
                waits.blocked(error, Failure(FailureKind.UNKNOWN, failure.reason), None)
            else:
                waits.blocked(error, failure, None)

    # ------------------------------------------------------------------------------------------ one round

    def _synchronise(self) -> None:
        found = self._target.synchronise(self._log)
        if self._recovered_from is None:
            self._recovered_from = found
        if found > self._progress.applied_id or found != self._after:
            self._after = found
            self._release(found)
            self._progress.advance(found, 0, 0)
        if self._gate is not None:
            with waiting_for(None):
                self._gate.synchronise(found)
            self._count_quarantined()
        self._check_recovered()

    def _gather(self) -> list[ChangeSet]:
        """The next batch; empty when there is nothing to apply, or orders to look at."""
        log, progress, after = self._log, self._progress, self._after
        if log.durable_id <= after:
            # All is in, whatever was wrong before. While something waits, only a commit proves that the target is well:
            # a watermark that can be read says nothing about a full disk.
            self._waits.well()
            try:
                holding = self._gate is not None and self._gate.active
                if not log.wait_durable(after, _IDLE_HOLDING_S if holding else _IDLE_S):
                    return []
            except LogPoisonedError:
                # Nothing more can become durable, and all that is has been applied. Committers get the log's own error.
                progress.wait_interrupted()
                return []
        if log.checkpointed_id > after:
            raise FencedError
        durable_id = log.durable_id
        batch = Batch(self._config, self._size.changes)
        delay_s = self._config.batch_delay_s
        sweep_s = min(delay_s / _SWEEPS, _SWEEP_MAX_S)
        deadline = time.monotonic() + delay_s
        while not progress.interrupted:
            last = ids(batch.change_sets)[1] if len(batch) else after
            try:
                batch.add_from(log.entries(last))
            except DamagedLogError:
                # What is whole before the damage is applied first; the next round meets the damage again.
                if not len(batch):
                    raise
                break
            if batch.full or delay_s == 0 or time.monotonic() >= deadline:
                break
            if not progress.linger(min(sweep_s, max(0.0, deadline - time.monotonic())), after):
                # In a hurry: take what came in the meantime, and go.
                if not progress.interrupted:
                    batch.add_from(log.entries(ids(batch.change_sets)[1] if len(batch) else after))
                break
        if progress.interrupted:
            return []
        if not len(batch):
            self._pass_over(durable_id)
        return batch.change_sets

    def _pass_over(self, through: EntryId) -> None:
        """There are no entries up to this one: they were in segments that were abandoned when the log was opened.

        That is the only way in which ids go missing, and passing over an entry would lose it. So the log is read from
        its beginning once more before anything is done.
        """
        for entry in self._log.entries():
            if self._after < entry.id <= through:
                raise DamagedLogError(
                    f"entry {entry.id} is in the log, and reading on after entry {self._after} did not find it; "
                    "nothing is applied. Look at the log with `walsync verify`"
                )
            if entry.id > through:
                break
        if self._log.checkpointed_id > self._after:
            raise FencedError
        _logger.warning("passing over entries %d to %d, which were abandoned", self._after + 1, through)
        self._target.pass_over(self._after, through)
        self._after = through
        self._release(through)
        self._waits.well()
        self._progress.advance(through, 0, 0)
        self._check_recovered()

    def _apply(self, change_sets: list[ChangeSet]) -> None:
        """Applies what may be applied, in order, and puts aside what may not.

        What is refused together is halved until the culprit stands alone: a culprit costs as many transactions as its
        batch can be halved, and not as many as there are entries before it.
        """
        start, refused_end, warned = 0, 0, False
        while start < len(change_sets) and not self._progress.interrupted:
            searching = refused_end > start
            end = start + max(1, (refused_end - start) // 2) if searching else len(change_sets)
            part = change_sets[start:end]
            try:
                self._commit(part, searching=searching)
            except (FencedError, ListenerError, LogClosedError):
                raise
            except QuarantineFullError as error:
                if len(part) == 1:
                    raise Halted(error, None, ids(part)[0]) from error
                # What stands before the one that has no room is applied.
                refused_end = end
                continue
            except Exception as error:
                # As in _round: the tables decide, and what they do not claim goes on.
                failure = classify(error, self._target.dialect_name)
                if failure is not None and failure.kind is FailureKind.TRANSIENT:
                    self._size.failed(part)
                if failure is None or failure.kind is FailureKind.TRANSIENT or ids(part)[1] <= self._after:
                    raise
                if len(part) > 1 or not searching:
                    # Alone it is tried a second time, to find out which row it is.
                    refused_end = end
                    if len(part) > 1 and not warned:
                        warned = True
                        self._say_refused(part, error)
                    continue
                self._refuse(part[0], error, failure)
                refused_end = 0
            start = end

    def _say_refused(self, change_sets: list[ChangeSet], error: Exception) -> None:
        first_id, last_id = ids(change_sets)
        _logger.warning(
            "the target refused the batch of entries %d to %d (%s); applying it in parts",
            first_id,
            last_id,
            describe_error(error),
        )

    def _refuse(self, change_set: ChangeSet, error: Exception, failure: Failure) -> None:
        """An entry that was refused alone. Returns when it is put aside; else raises what is to happen."""
        entry_id, _ = ids([change_set])
        if failure.kind is not FailureKind.REJECTED:
            raise Stuck(error, failure, entry_id) from error
        policy = Verdict(self._config.on_reject)
        rejection = self._rejection(entry_id, error, policy)
        verdict = self._target.announce_rejected(change_set, rejection) or policy
        if verdict is not policy:
            rejection = self._rejection(entry_id, error, verdict)
        if verdict is Verdict.RETRY:
            raise Again(rejection, failure, entry_id) from error
        if verdict is Verdict.HALT:
            raise Halted(rejection, FailureKind.REJECTED, entry_id) from error
        self._put_aside(change_set, describe_error(error), discarded=verdict is Verdict.DISCARD)

    def _rejection(self, entry_id: EntryId, error: Exception, verdict: Verdict) -> EntryRejectedError:
        rejection = EntryRejectedError(
            f"the target refuses entry {entry_id} ({describe_error(error)}). {_NEXT[verdict]}", entry_id
        )
        rejection.__cause__ = error
        return rejection

    def _put_aside(self, change_set: ChangeSet, reason: str, *, discarded: bool) -> None:
        entry_id, _ = ids([change_set])
        if self._gate is None:
            raise Halted(
                EntryRejectedError(
                    f"the target refuses entry {entry_id} ({reason}), and a listener of 'rejected' wants it put aside; "
                    "but this log has no directory, and so no quarantine. The entry and everything after it are kept "
                    "in the log. Let the listener answer otherwise, and call resume()",
                    entry_id,
                ),
                FailureKind.REJECTED,
                entry_id,
            )
        with waiting_for(entry_id):
            self._gate.put_aside(change_set, self._after, reason, discarded=discarded)
        self._after = entry_id
        self._release(entry_id)
        self._advanced(entry_id, 0, 0)

    def _count_quarantined(self) -> None:
        if self._gate is not None and self._gate.count != self._quarantined:
            self._quarantined = self._gate.count
            self._progress.quarantined(self._quarantined)

    def _commit(self, change_sets: list[ChangeSet], *, searching: bool) -> None:
        _, last_id = ids(change_sets)

        def on_committed() -> None:
            # Whatever happens from here on, these entries are in.
            self._after = last_id
            self._log.control.note_applied(last_id)
            self._release(last_id)

        entries = len(change_sets)
        pinpoint = searching and entries == 1
        if self._gate is None:
            changes = self._target.commit(
                change_sets, self._after, pinpoint=pinpoint, in_order=searching, on_committed=on_committed
            )
        else:
            with waiting_for(None):
                entries, changes = self._gate.commit(
                    change_sets, self._after, pinpoint=pinpoint, in_order=searching, on_committed=on_committed
                )
        self._advanced(last_id, entries, changes)

    def _advanced(self, through: EntryId, entries: int, changes: int) -> None:
        """The watermark is past these entries."""
        self._size.succeeded()
        self._waits.well()
        self._progress.advance(through, entries, changes)
        self._count_quarantined()
        self._check_recovered()

    def _release(self, through: EntryId) -> None:
        try:
            self._log.checkpoint(through)
        except LogPoisonedError as error:
            # The next commit gets this error from the log itself. What is applied stays applied: it is kept in the log,
            # and after the next opening the watermark says that it is in.
            _logger.error("entries up to %d are applied and cannot be released: %s", through, error)

    def _check_recovered(self) -> None:
        if self._replay_done or self._after < self._target.replay_through:
            return
        self._replay_done = True
        self._progress.recovered()
        assert self._recovered_from is not None
        count = self._target.replay_through - self._recovered_from
        if count > 0:
            _logger.info("recovered: %d entries that were in the log when it was opened are applied", count)
            self._target.announce("recovered", count)

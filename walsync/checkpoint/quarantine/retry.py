"""`Quarantine`: what is in the quarantine, and what users do with it: try again, or discard.

It works beside the application's checkpointer, in the same process or in another one. Each change holds the store's
lock for one entry, so neither waits long for the other.

A retry applies entries in the order of their ids, each in a transaction of its own. One that touches what an earlier
entry in the quarantine touches is not applied before that. For each entry:

1. in one transaction of the target, its receipt is inserted and its changes are applied;
2. its file is removed, durably;
3. the receipt is removed.

A crash, or a lost answer, before 2 leaves the file and, if the transaction is in, the receipt: the next retry finds it,
applies nothing, and goes on with 2. After 2 nobody ever asks for the receipt again; one that is left over is removed by
the next retry.

An entry that the watermark has not passed is met again in the log, so it is left alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from walsync.changes import ChangeSet, decode_change_set
from walsync.changes.codec import decode_parts
from walsync.changes.model import Change
from walsync.checkpoint.catalog import Catalog
from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.engine import ApplyingEngine
from walsync.checkpoint.failures import FailureKind, classify, describe_error
from walsync.checkpoint.quarantine.gate import waits_for
from walsync.checkpoint.quarantine.held import Footprint, HeldRows, tables_of
from walsync.checkpoint.quarantine.record import QuarantinedEntry
from walsync.checkpoint.quarantine.store import QuarantineStore
from walsync.checkpoint.transaction import ListenerError, Target
from walsync.exceptions import DamagedLogError, EntryNotFoundError, LogError, TargetBlockedError, TargetUnavailableError
from walsync.wal import EntryId

# `Quarantine.list` hides the built-in from annotations in its class.
_Ids: TypeAlias = "list[EntryId]"
_Entries: TypeAlias = "list[QuarantinedEntry]"

__all__ = ["Quarantine", "QuarantineRetry"]

_AHEAD: Final = (
    "the target's watermark has not passed it, or this is not the log's target; the checkpointer has not moved past it "
    "yet and does so by itself: let the application run, and try again"
)


@dataclass(frozen=True, kw_only=True)
class QuarantineRetry:
    """What a retry has done. Entries that are neither applied nor left out are still in the quarantine."""

    applied: tuple[int, ...] = ()
    """They are in the target now, and no longer in the quarantine."""

    left_out: tuple[int, ...] = ()
    """A listener of `before_replay` answered `SKIP`: they are among the discarded now."""

    refused: Mapping[int, str]
    """By entry, what the target says: they are refused again."""

    waiting: Mapping[int, str]
    """By entry, what it waits for: they were not tried."""

    @property
    def complete(self) -> bool:
        """Whether nothing of what was to be retried is left."""
        return not self.refused and not self.waiting


class Quarantine:
    """The entries of a log that the target refused, and those that depend on them. Thread-safe.

    ``journal.quarantine``, or ``checkpointer.quarantine``. Looking needs no target; a retry does.
    """

    def __init__(
        self,
        store: QuarantineStore,
        target: Callable[[], Target],
        config: CheckpointConfig,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._target = target
        self._config = config
        self._changed = changed

    # -------------------------------------------------------------------------------------------- looking

    def ids(self, *, discarded: bool = False) -> _Ids:
        """The entries in the quarantine, in order; or those that were discarded."""
        return self._store.ids(discarded=discarded)

    def list(self, *, discarded: bool = False) -> _Entries:
        """What is known of each, in order. Raises `DamagedLogError` for a file that cannot be read."""
        found = []
        for entry_id in self._store.ids(discarded=discarded):
            with contextlib.suppress(EntryNotFoundError):  # taken out in this moment
                found.append(self._store.entry(entry_id, discarded=discarded))
        return found

    def show(self, entry_id: int, *, discarded: bool = False) -> QuarantinedEntry:
        """What is known of one. Raises `EntryNotFoundError` if it is not there, `DamagedLogError`."""
        return self._store.entry(EntryId(entry_id), discarded=discarded)

    def changes(self, entry_id: int, *, discarded: bool = False) -> Iterator[ChangeSet | Change]:
        """The entry's header, as a `ChangeSet` without changes, and then its changes; a chunk in memory at a time."""
        chunks = self._store.chunks(EntryId(entry_id), discarded=discarded)
        return decode_parts(EntryId(entry_id), chunks)

    # --------------------------------------------------------------------------------------------- deciding

    def retry(self, entry_ids: Iterable[int] | None = None, timeout: float | None = None) -> QuarantineRetry:
        """Apply these entries (None: all) to the target, in order, each exactly once.

        What the target refuses stays, with its new reason, and so does what depends on it; the others go on. An entry
        that depends on one that is not among `entry_ids` waits for it.

        `timeout` bounds, in seconds, the wait for a target that is away and for others that change the quarantine; each
        entry that is applied begins it anew. None is `CheckpointConfig.quarantine_timeout_s`. Blocks for as long as the
        target takes.

        Raises `EntryNotFoundError` before anything is done if one of them is not in the quarantine;
        `TargetUnavailableError` and `TargetBlockedError` when the target cannot apply an entry now (what was done
        before is done); `DamagedLogError`; `LogTimeoutError`.
        """
        timeout_s = self._config.quarantine_timeout_s if timeout is None else timeout
        present = self._store.ids()
        wanted = present if entry_ids is None else self._found(entry_ids, present)
        run = _Run(self._store, self._target(), self._config, timeout_s, present)
        if not wanted:
            # A receipt may be left, which is nobody's business but ours.
            with contextlib.suppress(SQLAlchemyError, TargetUnavailableError, LogError):
                run.clear_receipts()
            return QuarantineRetry(refused={}, waiting={})
        try:
            run.begin()
            while wanted:
                for entry_id in wanted:
                    run.retry(entry_id)
                # What the checkpointer has put in meanwhile belongs to "all".
                done = wanted[-1]
                wanted = [] if entry_ids is not None else [new for new in self._store.ids() if new > done]
                for entry_id in wanted:
                    run.know(entry_id)
        finally:
            self._changed()
        return QuarantineRetry(
            applied=tuple(run.applied), left_out=tuple(run.left_out), refused=run.refused, waiting=run.waiting
        )

    def discard(self, entry_ids: Iterable[int], timeout: float | None = None) -> dict[int, tuple[int, ...]]:
        """Give these entries up: they are never applied, and kept among the discarded for the record.

        Returns, by entry, those in the quarantine that were put there because of it. They stay, and can be retried.
        `timeout` as for `retry`. Raises `EntryNotFoundError` before anything is done if one of them is not there.
        """
        timeout_s = self._config.quarantine_timeout_s if timeout is None else timeout
        wanted = self._found(entry_ids, self._store.ids())
        try:
            for entry_id in wanted:
                with self._store.locked(timeout_s):
                    self._store.discard(entry_id)
        finally:
            self._changed()
        dependents: dict[int, set[int]] = {entry_id: set() for entry_id in wanted}
        for entry_id in self._store.ids():
            with contextlib.suppress(EntryNotFoundError, DamagedLogError):
                for before in self._store.entry(entry_id).depends_on:
                    if before in dependents:
                        dependents[before].add(entry_id)
        return {entry_id: tuple(sorted(found)) for entry_id, found in dependents.items()}

    def _found(self, entry_ids: Iterable[int], present: _Ids) -> _Ids:
        wanted = sorted({EntryId(entry_id) for entry_id in entry_ids})
        missing = [entry_id for entry_id in wanted if entry_id not in set(present)]
        if missing:
            raise EntryNotFoundError(
                f"{'entry' if len(missing) == 1 else 'entries'} {', '.join(map(str, missing[:20]))} "
                f"{'is' if len(missing) == 1 else 'are'} not in {self._store.where}; nothing was done. See `walsync "
                "quarantine list` for what is"
            )
        return wanted


class _Run:
    """One call of `retry`."""

    def __init__(
        self,
        store: QuarantineStore,
        target: Target,
        config: CheckpointConfig,
        timeout_s: float,
        present: list[EntryId],
    ) -> None:
        self._store = store
        self._target = target
        self._config = config
        self._timeout_s = timeout_s
        self._present = present
        self._catalog = Catalog(config.catalog_max_age_s)
        self._held = HeldRows()
        self.applied: list[int] = []
        self.left_out: list[int] = []
        self.refused: dict[int, str] = {}
        self.waiting: dict[int, str] = {}

    def begin(self) -> None:
        """Learn what is there, and clear away the receipts that a crash has left."""
        self._patiently(None, self._begin)

    def _begin(self) -> None:
        self.clear_receipts()
        for entry_id in self._present:
            self.know(entry_id)

    def clear_receipts(self) -> None:
        """Remove the receipts of entries that are in the target and whose files are gone."""
        if isinstance(self._target.engine, ApplyingEngine):
            self._target.engine.initialise()
        with self._store.locked(self._timeout_s):
            for left in set(self._target.receipts()) - set(self._store.ids()):
                self._target.remove_receipt(left)

    def know(self, entry_id: EntryId) -> None:
        """What an entry touches holds back those behind it."""
        footprint = Footprint()
        try:
            for part in decode_parts(entry_id, self._store.chunks(entry_id)):
                if not isinstance(part, ChangeSet):
                    footprint.add(part, self._catalog.facts(self._target.engine, tables_of([part])))
        except EntryNotFoundError:
            return
        self._held.add(entry_id, footprint)

    def retry(self, entry_id: EntryId) -> None:
        """Try one entry."""
        self._patiently(entry_id, lambda: self._retry(entry_id))

    def _retry(self, entry_id: EntryId) -> None:
        with self._store.locked(self._timeout_s):
            present = set(self._store.ids())
            for gone in self._held.ids() - present:
                self._held.remove(gone)
            if entry_id not in present:
                # Somebody else was faster.
                return
            change_set = decode_change_set(entry_id, self._store.chunks(entry_id))
            facts = self._catalog.facts(self._target.engine, tables_of(change_set.changes))
            blockers = self._held.conflicts(change_set.changes, facts, entry_id)
            if blockers:
                self.waiting[entry_id] = waits_for(sorted(blockers))
                return
            try:
                outcome = self._target.apply_beside(change_set)
            except Exception as error:
                # The tables say whose fault it is.
                failure = classify(error, self._target.dialect_name)
                if failure is None or failure.kind is not FailureKind.REJECTED:
                    raise
                self.refused[entry_id] = describe_error(error)
                self._store.change_reason(self._store.entry(entry_id), self.refused[entry_id])
                return
            if outcome == "ahead":
                self.waiting[entry_id] = _AHEAD
                return
            self._held.remove(entry_id)
            if outcome == "left out":
                self._store.discard(entry_id)
                self.left_out.append(entry_id)
                return
            self._store.remove(entry_id)
            self.applied.append(entry_id)
            with contextlib.suppress(SQLAlchemyError):
                # One that stays is removed by the next retry.
                self._target.remove_receipt(entry_id)

    def _patiently(self, entry_id: EntryId | None, step: Callable[[], None]) -> None:
        """Do it, again and again while the target is away."""
        deadline = time.monotonic() + self._timeout_s
        wait_s = self._config.retry_initial_s
        while True:
            try:
                step()
            except ListenerError as error:
                raise error.__cause__ or error from None
            except Exception as error:
                # The tables say whose fault it is; what they do not claim is raised again.
                failure = classify(error, self._target.dialect_name)
                if failure is None:
                    raise
                which = (
                    "the quarantine cannot be retried"
                    if entry_id is None
                    else f"entry {entry_id} stays in the quarantine"
                )
                done = f"{len(self.applied)} entries of it were applied before"
                if failure.kind is not FailureKind.TRANSIENT:
                    raise TargetBlockedError(
                        f"{which}: {describe_error(error)} ({failure.reason}); {done}. Change what the target lacks, "
                        "and retry again"
                    ) from error
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TargetUnavailableError(
                        f"{which}: the target cannot apply it now ({describe_error(error)}, {failure.reason}); {done}. "
                        "Retry again when the target is well: what is in already is not applied again"
                    ) from error
                # In the caller's thread, which has nothing else to wait for; `timeout` bounds all waits together.
                time.sleep(min(wait_s, left_s))
                wait_s = min(2 * wait_s, self._config.waited_retry_max_s)
            else:
                return

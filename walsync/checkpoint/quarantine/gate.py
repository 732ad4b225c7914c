"""Between the applier and the target: which entries pass, and what becomes of the others. One thread's alone.

An entry goes into the quarantine in three steps, and a crash between any two of them is made good by the next opening:

1. its file is durable in the quarantine;
2. the watermark is moved past it, in a transaction of the target;
3. it is released in the log.

Step 1 is done inside of the transaction of step 2, behind the compare-and-set of the watermark: so whoever writes the
file knows that nobody has applied the entry, nor can before this transaction ends. After a crash between 1 and 2 the
entry is met again in the log while it is in the quarantine already. Such entries are *settled*: they are never applied
from the log, whatever has become of their files since, and steps 2 and 3 are all that is left to do.

Entries that depend on what is in the quarantine go there with the batch that they stand in: the others of it are
applied, in order, and the same transaction moves the watermark past all.

Files are taken out by others (a retry, a discard), perhaps in another process. What this object remembers is then more
than what is there, and keeps back more than it need: never less. It looks again when the directory has changed, and
before it adds an entry because of what it remembers.

Invariant: while an entry is in the quarantine, no later entry in conflict with it is applied.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from walsync.changes import ChangeSet
from walsync.changes.codec import decode_parts
from walsync.checkpoint.batch import ids
from walsync.checkpoint.catalog import Facts
from walsync.checkpoint.quarantine.held import Footprint, HeldRows, tables_of
from walsync.checkpoint.quarantine.record import QuarantinedEntry
from walsync.checkpoint.quarantine.store import QuarantineStore
from walsync.checkpoint.transaction import Target
from walsync.exceptions import EntryNotFoundError
from walsync.wal import Entry, EntryId, WriteAheadLog

__all__ = ["Gate"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_SHOWN: Final = 10


class Gate:
    """Between the applier and the target: which entries may pass."""

    def __init__(
        self,
        store: QuarantineStore,
        target: Target,
        log: WriteAheadLog,
        *,
        timeout_s: float,
        interrupted: Callable[[], bool],
    ) -> None:
        self._store = store
        self._target = target
        self._log = log
        self._catalog = target.catalog
        self._timeout_s = timeout_s
        self._interrupted = interrupted
        self._held = HeldRows()
        self._settled: set[EntryId] = set()
        self._version: int | None = None

    # -------------------------------------------------------------------------------------------- questions

    @property
    def where(self) -> str:
        """The directory, for messages."""
        return self._store.where

    @property
    def active(self) -> bool:
        """Whether there is anything to keep back. If not, nothing here costs anything."""
        return bool(self._held) or bool(self._settled)

    @property
    def count(self) -> int:
        """How many entries are in the quarantine. For any thread."""
        return len(self._held)

    def __contains__(self, entry_id: object) -> bool:
        """Whether an entry is in the quarantine. For any thread."""
        return entry_id in self._held

    def _facts(self, change_sets: Iterable[ChangeSet]) -> Facts | None:
        tables = {table for change_set in change_sets for table in tables_of(change_set.changes)}
        return self._catalog.facts(self._target.engine, tables)

    # ----------------------------------------------------------------------------------------- looking again

    def synchronise(self, after: EntryId) -> None:
        """After the watermark was asked, which is at `after`: what is in the quarantine, and what is settled."""
        found = self._look()
        self._settled = {entry_id for entry_id in found if entry_id > after}
        self._settled.update(entry_id for entry_id in self._store.ids(discarded=True) if entry_id > after)

    def refresh(self) -> None:
        """Looks whether somebody took entries out. Costs a call of the system while there are any, else nothing."""
        if not self._held:
            return
        version = self._store.version()
        if version is None or version != self._version:
            self._look()

    def _look(self) -> list[EntryId]:
        version = self._store.version()
        found = self._store.ids()
        for entry_id in self._held.ids() - set(found):
            self._held.remove(entry_id)
        for entry_id in found:
            if entry_id not in self._held:
                try:
                    self._held.add(entry_id, self.footprint(entry_id))
                except EntryNotFoundError:
                    # Taken out in this moment.
                    continue
        self._version = version
        return found

    def footprint(self, entry_id: EntryId) -> Footprint:
        """What an entry in the quarantine touches; reads all of it, a chunk at a time."""
        footprint = Footprint()
        for part in decode_parts(entry_id, self._store.chunks(entry_id)):
            if not isinstance(part, ChangeSet):
                footprint.add(part, self._catalog.facts(self._target.engine, tables_of([part])))
        return footprint

    # --------------------------------------------------------------------------------------------- applying

    def commit(
        self,
        change_sets: Sequence[ChangeSet],
        after: EntryId,
        *,
        pinpoint: bool = False,
        in_order: bool = False,
        on_committed: Callable[[], None] = lambda: None,
    ) -> tuple[int, int]:
        """`Target.commit` of those that may be applied; the others are put aside with it. (Entries, changes) applied.

        Raises what `Target.commit` and `put_aside` raise; then nothing was done, except where the answer to COMMIT was
        lost: ask `Target.synchronise` and `synchronise`.
        """
        if not self.active or not self._keeps_any(change_sets):
            changes = self._target.commit(
                change_sets, after, pinpoint=pinpoint, in_order=in_order, on_committed=on_committed
            )
            return len(change_sets), changes
        with self._store.locked(self._timeout_s, self._interrupted):
            # With the lock held nobody takes anything out.
            self.refresh()
            return self._commit_some(change_sets, after, pinpoint, in_order, on_committed)

    def _keeps_any(self, change_sets: Sequence[ChangeSet]) -> bool:
        facts = self._facts(change_sets)
        for change_set in change_sets:
            entry_id, _ = ids([change_set])
            if entry_id in self._settled or self._held.conflicts(change_set.changes, facts, entry_id):
                return True
        return False

    def _commit_some(
        self,
        change_sets: Sequence[ChangeSet],
        after: EntryId,
        pinpoint: bool,
        in_order: bool,
        on_committed: Callable[[], None],
    ) -> tuple[int, int]:
        facts = self._facts(change_sets)
        free: list[ChangeSet] = []
        new: list[tuple[QuarantinedEntry, Entry]] = []
        # Held only in thought: what is kept back holds back those behind it, from now on or not at all.
        supposed: set[EntryId] = set()

        def write() -> None:
            if not new:
                # Those that are aside already, of a process that was killed.
                self._store.confirm()
                return
            self._store.add((entry, logged.chunks()) for entry, logged in new)
            # Whatever becomes of the transaction, they are not applied from the log any more.
            self._settled.update(supposed)
            supposed.clear()

        try:
            for change_set in change_sets:
                entry_id, _ = ids([change_set])
                if entry_id in self._settled:
                    continue
                blockers = self._held.conflicts(change_set.changes, facts, entry_id)
                if not blockers:
                    free.append(change_set)
                    continue
                logged = self._entry(entry_id)
                new.append((_describe(change_set, logged, None, sorted(blockers)), logged))
                supposed.add(entry_id)
                self._hold(change_set, facts)
            if new:
                self._store.check_room([entry for entry, _ in new])
            _, through = ids(change_sets)
            changes = 0
            if free:
                changes = self._target.commit(
                    free,
                    after,
                    through=through,
                    pinpoint=pinpoint,
                    in_order=in_order,
                    before_commit=write,
                    on_committed=on_committed,
                )
            else:
                self._target.pass_over(after, through, write)
                on_committed()
        finally:
            for entry_id in supposed:
                self._held.remove(entry_id)
        self._settled.difference_update([ids([change_set])[0] for change_set in change_sets])
        for entry, _ in new:
            _logger.info("entry %d is put into the quarantine %s: %s", entry.entry_id, self.where, entry.reason)
        return len(free), changes

    def _hold(self, change_set: ChangeSet, facts: Facts | None) -> None:
        footprint = Footprint()
        for change in change_set.changes:
            footprint.add(change, facts)
        self._held.add(ids([change_set])[0], footprint)

    def put_aside(self, change_set: ChangeSet, after: EntryId, reason: str, *, discarded: bool = False) -> None:
        """Puts an entry that the target refuses into the quarantine, and moves the watermark past it.

        `discarded`: only its record is kept. Raises `QuarantineFullError`, `LogTimeoutError`, `LogError`, and what
        `Target.pass_over` raises. Whatever is raised, nothing was lost: ask `Target.synchronise` and `synchronise`.
        """
        entry_id, _ = ids([change_set])
        facts = self._facts([change_set])
        with self._store.locked(self._timeout_s, self._interrupted):
            self.refresh()
            logged = self._entry(entry_id)
            entry = _describe(change_set, logged, reason, ())
            if not discarded:
                self._store.check_room([entry])

            def write() -> None:
                self._store.add([(entry, logged.chunks())], discarded=discarded)
                self._settled.add(entry_id)
                if not discarded:
                    self._hold(change_set, facts)

            self._target.pass_over(after, entry_id, write)
            self._settled.discard(entry_id)
        what = "discarded, and kept for the record in" if discarded else "put into the quarantine"
        _logger.warning("entry %d is %s %s: %s", entry_id, what, self.where, reason)

    def _entry(self, entry_id: EntryId) -> Entry:
        for entry in self._log.entries(EntryId(entry_id - 1), entry_id):
            if entry.id == entry_id:
                return entry
        raise EntryNotFoundError(f"entry {entry_id} is not in the log any more")


def _describe(change_set: ChangeSet, logged: Entry, reason: str | None, blockers: Sequence[int]) -> QuarantinedEntry:
    return QuarantinedEntry(
        entry_id=logged.id,
        kind="depends" if reason is None else "rejected",
        reason=waits_for(blockers) if reason is None else reason,
        depends_on=tuple(blockers),
        tables=tuple(sorted(change_set.tables, key=str)),
        commit_time_ns=change_set.commit_time_ns,
        origin=change_set.origin,
        quarantined_at=time.time(),
        change_count=change_set.change_count,
        byte_length=logged.byte_length,
        chunk_count=logged.chunk_count,
    )


def waits_for(blockers: Sequence[int]) -> str:
    """Why an entry depends on others, in words."""
    named = ", ".join(map(str, blockers[:_SHOWN]))
    more = f" and {len(blockers) - _SHOWN} more" if len(blockers) > _SHOWN else ""
    return f"it touches rows that entry {named}{more} touches, which is in the quarantine"

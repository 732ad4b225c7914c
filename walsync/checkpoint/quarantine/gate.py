"""What the applier asks before it applies, and how it puts an entry aside. One thread's alone, except where said.

An entry goes into the quarantine in three steps, and a crash between any two of them is made good by the next opening:

1. its file is durable in the quarantine;
2. the watermark is moved past it, in a transaction of the target;
3. it is released in the log.

Step 1 is done inside of the transaction of step 2, behind the compare-and-set of the watermark: so whoever writes the
file knows that nobody has applied the entry, nor can before this transaction ends. After a crash between 1 and 2 the
entry is met again in the log while it is in the quarantine already. Such entries are *settled*: they are never applied
from the log, whatever has become of their files since, and steps 2 and 3 are all that is left to do.

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
from walsync.checkpoint.catalog import Catalog
from walsync.checkpoint.catalog.catalog import Facts
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
        catalog: Catalog,
        *,
        timeout_s: float,
        interrupted: Callable[[], bool],
    ) -> None:
        self._store = store
        self._target = target
        self._log = log
        self._catalog = catalog
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

    def is_settled(self, entry_id: EntryId) -> bool:
        """Whether an entry that is met in the log has been put aside before."""
        return entry_id in self._settled

    def free(self, change_sets: Sequence[ChangeSet], start: int) -> int:
        """The end of those from `start` on that may be applied now, without a gap."""
        if not self.active:
            return len(change_sets)
        facts = self._facts(change_sets[start:]) if self._held else None
        for index in range(start, len(change_sets)):
            change_set = change_sets[index]
            if self._settled and change_set.entry_id in self._settled:
                return index
            if self._held and self._held.conflicts(change_set.changes, facts, change_set.entry_id):
                return index
        return len(change_sets)

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

    # ---------------------------------------------------------------------------------------- putting aside

    def pass_settled(self, entry_id: EntryId, after: EntryId) -> None:
        """Steps 2 and 3 were left: moves the watermark past an entry that was put aside before."""
        self._target.pass_over(after, entry_id, self._store.confirm)
        self._settled.discard(entry_id)

    def put_aside(self, change_set: ChangeSet, after: EntryId, reason: str | None, *, discarded: bool = False) -> bool:
        """Puts an entry into the quarantine, and moves the watermark past it. False: it may be applied after all.

        `reason` is why the target refuses it; None: it depends on what is in the quarantine. `discarded`: only its
        record is kept. Raises `QuarantineFullError`, `LogTimeoutError`, `LogError`, and what `Target.pass_over` raises.
        Whatever is raised, nothing was lost: ask `Target.synchronise` and `synchronise`.
        """
        entry_id, _ = ids([change_set])
        facts = self._facts([change_set])
        with self._store.locked(self._timeout_s, self._interrupted):
            # With the lock held nobody takes anything out.
            self.refresh()
            blockers = sorted(self._held.conflicts(change_set.changes, facts, entry_id))
            if reason is None and not blockers:
                return False
            logged = self._entry(entry_id)
            entry = _describe(change_set, logged, reason, blockers)
            if not discarded:
                self._store.check_room([entry])

            def write() -> None:
                self._store.add(entry, logged.chunks(), discarded=discarded)

            self._target.pass_over(after, entry_id, write)
            if discarded:
                _logger.warning("entry %d is discarded, and kept in %s: %s", entry_id, self.where, entry.reason)
                return True
            footprint = Footprint()
            for change in change_set.changes:
                footprint.add(change, facts)
            self._held.add(entry_id, footprint)
        level = logging.WARNING if reason is not None else logging.INFO
        _logger.log(level, "entry %d is put into the quarantine %s: %s", entry_id, self.where, entry.reason)
        return True

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

"""From a transaction's buffered changes to an entry of the log: what every buffered commit does once it is captured.

Owns this process's name and the count and rate of its commits. The entry is encoded, admitted by the bound of the
backlog, and appended; what versions and marks it bears is said with it.

This runs between an application's own work and a sync of the disk, with none of its code or data in the processor's
caches: each call costs a microsecond there, and each attribute a fraction of one. So the form that nearly all
transactions have is looked at here, without calls, and what is the same for all transactions of one shape is kept.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, Final, TypeAlias

from walsync.changes import ChangeSet, TableName
from walsync.changes.codec import encode_changes
from walsync.changes.model import Change, tables_of
from walsync.checkpoint import SQLAlchemyCheckpointer
from walsync.checkpoint.events import EventSource
from walsync.checkpoint.rates import RateMeter
from walsync.exceptions import UsageError
from walsync.journal import TransactionBuffer
from walsync.journal.marks import marks_of
from walsync.session.bridge import Bridge
from walsync.session.relations import Relations, TargetRelations
from walsync.session.state import SessionState
from walsync.session.upgrade import withdraw_commit
from walsync.session.versions import VersionGuard, WantedVersion
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["Committer"]

METADATA: Final = "walsync.metadata"
DURABILITY: Final = "walsync.durability"

_NO_METADATA: Final[Mapping[str, Any]] = {}

_Written: TypeAlias = tuple[AbstractSet[TableName] | None, Relations | None, tuple[str, ...], tuple[int, ...]]


class Committer:
    """Commits to one log, for one journal. Thread-safe."""

    def __init__(
        self,
        log: WriteAheadLog,
        checkpointer: SQLAlchemyCheckpointer,
        versions: VersionGuard,
        relations: TargetRelations,
        bridge: Bridge,
        *,
        source: EventSource,
        has_version: Callable[[WantedVersion], bool],
        clock: Callable[[], float],
        clock_ns: Callable[[], int],
    ) -> None:
        """`source`: whose listeners hear of each entry. `has_version`: whether the target has a row's version."""
        self._log = log
        self._checkpointer = checkpointer
        self._versions = versions
        self._relations = relations
        self._bridge = bridge
        self._source = source
        self._has_version = has_version
        self._clock = clock
        self._clock_ns = clock_ns
        self.begin_anew()

    def begin_anew(self) -> None:
        """What each process has for itself: its name and its counters."""
        self.origin = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self.count = 0
        """Transactions committed."""
        self._rate = RateMeter(self._log.last_id, clock=self._clock)
        self._last_id = self._log.last_id  # noted for the rate when its slot is over
        self._slot_began = self._clock()
        self._slot_from_ns = self._slot_to_ns = 0  # commit times between these lie in that slot
        # What the last commit wrote, what was known of the target, and its marks and their places. Replaced whole.
        self._written: _Written = (None, None, (), ())

    # ------------------------------------------------------------------------------------------ committing

    def commit(self, buffer: TransactionBuffer) -> None:
        """Append the buffered changes as one entry. Called by the journal's dialect, in the committing thread."""
        owner = buffer.owner
        state = owner if isinstance(owner, SessionState) else None
        try:
            metadata, durability = _NO_METADATA, None
            if state is not None:
                session = state.session_ref()
                if session is not None and session.info:
                    metadata, durability = _settings(session.info)
            changes = buffer.changes
            commit_time_ns = self._clock_ns()
            tables, known = tables_of(changes), self._relations.known
            written = self._written
            # Of one shape of changes the tables are always the same object.
            if written[0] is not tables or written[1] is not known:
                written = self._note_written(tables, known)
            chunks = encode_changes(commit_time_ns, self.origin, metadata, changes)
            cancelled: asyncio.CancelledError | None = None
            # An unknown durability is refused by the log, before anything is written.
            if self._bridge.is_async and self._bridge.is_needed:
                entry_id, cancelled = self._append_awaited(changes, chunks, durability, written[2])
                if state is not None and cancelled is not None:
                    state.cancelled = cancelled
            else:
                self._checkpointer.admit()
                if len(chunks) == 1 and durability is None and not self._versions.concerns(changes):
                    entry_id = self._log.append_chunk(chunks[0], written[3])
                else:
                    append = partial(self._log.append, *chunks, durability=durability, marks=written[2])
                    entry_id = self._versions.append(changes, self._has_version, append)
            if not self._slot_from_ns <= commit_time_ns < self._slot_to_ns:
                self._begin_slot(commit_time_ns)
            self._last_id = entry_id
            self.count += 1
            if state is not None:
                state.last_entry_id = entry_id
            if self._source.hears_appends:
                change_set = ChangeSet(commit_time_ns, self.origin, dict(metadata), changes, entry_id)
                for listener in self._source.dispatch.after_append:
                    listener(self._source, entry_id, change_set)
        except BaseException:
            if state is not None:
                withdraw_commit(state)
            raise
        if cancelled is not None and state is None:
            raise cancelled

    def _note_written(self, tables: AbstractSet[TableName], known: Relations | None) -> _Written:
        """The marks of these tables. What there is to be said of them is not said again for the next commit."""
        marks = marks_of(tables)
        written = tables, known, marks, self._log.control.places(marks)
        if self._relations.note_written(tables, known):
            self._written = written
        return written

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

        return self._versions.append(changes, self._has_version, append), cancelled

    def _append_in_thread(self, chunks: Any, durability: Any, marks: tuple[str, ...], began: float) -> EntryId:
        """In a thread of the bridge's, which was to begin with it at `began`."""
        self._checkpointer.admit(self._clock() - began)
        return self._log.append(*chunks, durability=durability, marks=marks)

    # ----------------------------------------------------------------------------------------------- the rate

    def _begin_slot(self, commit_time_ns: int) -> None:
        """Of all commits of a slot the last one is enough: noting each would be a call, and a look at a clock."""
        self._note_rate()
        now = self._slot_began = self._clock()
        left_s = self._rate.slot_end(now) - now
        self._slot_from_ns, self._slot_to_ns = commit_time_ns, commit_time_ns + round(left_s * 1e9)

    def _note_rate(self) -> None:
        self._rate.note(self._last_id, self._slot_began)

    def commits_per_s(self) -> float:
        """Entries a second that were committed to the log lately, by any process."""
        self._note_rate()
        self._rate.note(self._log.last_id)
        return self._rate.per_second()


def _settings(info: Mapping[Any, Any]) -> tuple[Mapping[str, Any], Any]:
    """What a session's `info` says of its entries: metadata, and durability."""
    metadata = info.get(METADATA)
    if metadata is None:
        metadata = _NO_METADATA
    elif not isinstance(metadata, dict):
        raise UsageError(f"session.info[{METADATA!r}] must be a dict, not {type(metadata).__qualname__}")
    return metadata, info.get(DURABILITY)

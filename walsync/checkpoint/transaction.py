"""One transaction of the target: watermark, events, changes, COMMIT. Knows nothing of retries, states or threads.

The order inside is the whole of exactly-once: the watermark is moved first, by compare-and-set, and everything else is
committed with it or not at all.

A batch is first tried with its changes arranged into few statements (`walsync.checkpoint.ordering`). If the target
refuses that, it is rolled back and tried once more in the order of the log, which alone says what is to be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet, RowChanges
from walsync.checkpoint.apply import apply_changes
from walsync.checkpoint.batch import ids
from walsync.checkpoint.catalog import Catalog, Facts
from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.engine import ApplyingEngine, begin
from walsync.checkpoint.events import EventSource, call_before_replay
from walsync.checkpoint.failures import FailureKind, classify, describe_error
from walsync.checkpoint.ordering import worth_arranging
from walsync.checkpoint.watermark import Watermark, resume_after
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["FencedError", "ListenerError", "Target"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_IN_ORDER_BATCHES: Final = 16
"""So many batches are not arranged after one that was refused for it: what an application does once, it does again."""


class FencedError(Exception):
    """Another applier moved the watermark. Nothing was done; ask where it is. Never leaves the checkpointer."""


class ListenerError(Exception):
    """An event listener raised something that is not an error of the target; it is the `__cause__`."""


class Target:
    """The target as the checkpointer uses it. Keeps no connection between calls. One call at a time."""

    def __init__(
        self,
        engine: Engine,
        session_factory: Callable[[Engine], Session],
        events: EventSource,
        watermark: Watermark,
        log_name: str,
        config: CheckpointConfig,
    ) -> None:
        self.engine: Final = engine
        self.dialect_name: Final = engine.dialect.name
        self._session_factory = session_factory
        self._events = events
        self._watermark = watermark
        self._log_name = log_name
        self._catalog = Catalog(config.catalog_max_age_s)
        self._reorder = config.reorder
        self._in_order_for = 0
        self.replay_through = EntryId(0)
        """Entries up to this one were in the log when it was opened: applying them is replay."""

    def synchronise(self, log: WriteAheadLog) -> EntryId:
        """Asks the target what is in, and returns it; makes table and row if this is the first time.

        Raises `WatermarkGapError`, or what the target raises.
        """
        if isinstance(self.engine, ApplyingEngine):
            self.engine.initialise()
        self._catalog.forget()
        self._watermark.ensure_table(self.engine)
        found = self._read(log)
        if found is None:
            try:
                with self.engine.connect() as connection, connection.begin():
                    self._watermark.insert(connection)
            except DBAPIError:
                # Another applier inserted the row in this moment, or the answer was lost; the row says it.
                found = self._read(log)
                if found is None:
                    raise
                return EntryId(found)
            return EntryId(0)
        return EntryId(found)

    def forget_tables(self) -> None:
        """What is known of the target's tables is asked anew. From any thread; a batch under way is not affected."""
        self._catalog.forget()

    def _read(self, log: WriteAheadLog) -> int | None:
        # Everything moves while this looks at it, always upwards, and checkpointed <= watermark <= last. So the lower
        # bound is read before the watermark and the upper one after it, or work that goes well would look like a gap.
        checkpointed_id = log.checkpointed_id
        with self.engine.connect() as connection:
            found = self._watermark.read(connection)
        return resume_after(found, checkpointed_id, log.last_id, log=self._log_name, where=self._watermark.where)

    def commit(
        self,
        change_sets: Sequence[ChangeSet],
        after: EntryId,
        *,
        pinpoint: bool = False,
        on_committed: Callable[[], None] = lambda: None,
    ) -> int:
        """Applies entries in one transaction and returns how many changes that were.

        `after` is where the watermark must be. `pinpoint` names the very row in an error, at the cost of speed.
        `on_committed` is called as soon as COMMIT was answered, before `after_checkpoint`. Raises `FencedError`,
        `ListenerError`, `EntryRejectedError`, and what the target raises; then nothing was committed, except where the
        answer to COMMIT was lost: ask `synchronise`.
        """
        facts = None if pinpoint else self._facts(change_sets)
        if facts is None:
            return self._commit(change_sets, after, None, pinpoint, on_committed)
        committed = False

        def note_committed() -> None:
            nonlocal committed
            committed = True
            on_committed()

        try:
            return self._commit(change_sets, after, facts, False, note_committed)
        except (FencedError, ListenerError):
            raise
        except Exception as error:
            # The tables decide what an error means, and what they do not claim goes on.
            failure = classify(error, self.dialect_name)
            if committed or failure is None or failure.kind is FailureKind.TRANSIENT:
                raise
            self._catalog.forget()
            refusal = describe_error(error)
        count = self._commit(change_sets, after, None, False, on_committed)
        self._in_order_for = _IN_ORDER_BATCHES
        _logger.info("the target took a batch in the order of the log only; rearranged it said: %s", refusal)
        return count

    def _facts(self, change_sets: Sequence[ChangeSet]) -> Facts | None:
        """What is known of the tables of these entries; None if their changes are to be left in their order."""
        if not self._reorder or not worth_arranging(change_sets):
            return None
        if self._in_order_for:
            self._in_order_for -= 1
            return None
        tables = {c.table for change_set in change_sets for c in change_set.changes if isinstance(c, RowChanges)}
        return self._catalog.facts(self.engine, tables)

    def _commit(
        self,
        change_sets: Sequence[ChangeSet],
        after: EntryId,
        facts: Facts | None,
        pinpoint: bool,
        on_committed: Callable[[], None],
    ) -> int:
        first_id, last_id = ids(change_sets)
        session = self._session_factory(self.engine)
        try:
            connection = begin(session, self.engine)
            if not self._watermark.advance(connection, after, last_id):
                raise FencedError
            self._fire("before_checkpoint", session, first_id, last_id)
            count = self._apply(session, connection, change_sets, pinpoint, facts)
            session.commit()
            on_committed()
            self._fire("after_checkpoint", session, first_id, last_id)
        finally:
            # Rolls back what is not committed.
            session.close()
        return count

    def pass_over(self, after: EntryId, through: EntryId) -> None:
        """Moves the watermark over entries that no longer exist. Raises as `commit` does."""
        session = self._session_factory(self.engine)
        try:
            if not self._watermark.advance(begin(session, self.engine), after, through):
                raise FencedError
            session.commit()
        finally:
            session.close()

    def _apply(
        self,
        session: Session,
        connection: Connection,
        change_sets: Sequence[ChangeSet],
        pinpoint: bool,
        facts: Facts | None,
    ) -> int:
        dispatch: Any = self._events.dispatch
        first_id, _ = ids(change_sets)
        if first_id > self.replay_through or not (dispatch.before_replay or dispatch.after_replay):
            return apply_changes(connection, change_sets, row_by_row=pinpoint, facts=facts)
        count = 0
        for change_set in change_sets:
            assert change_set.entry_id is not None
            if change_set.entry_id > self.replay_through:
                count += apply_changes(connection, change_set, row_by_row=pinpoint)
                continue
            # One by one: a listener may look at what the entries before this one have done.
            rewritten = self._call(call_before_replay, dispatch, session, change_set)
            if rewritten is None:
                continue
            count += apply_changes(connection, rewritten, row_by_row=pinpoint)
            self._fire("after_replay", session, rewritten)
        return count

    def announce_rejected(self, change_set: ChangeSet, error: BaseException) -> None:
        """Fires `rejected`, with a session for looking into the target."""
        dispatch: Any = self._events.dispatch
        if not dispatch.rejected:
            return
        session = self._session_factory(self.engine)
        try:
            self._fire("rejected", session, change_set, error)
        finally:
            session.close()

    def announce(self, name: str, *arguments: Any) -> None:
        """Fires `halted` or `recovered`, whose first argument is the source of the events."""
        self._fire(name, self._events, *arguments)

    def _fire(self, name: str, *arguments: Any) -> None:
        listeners: Any = getattr(self._events.dispatch, name)
        if listeners:
            self._call(listeners, *arguments)

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except DBAPIError:
            # A listener's SQL met the target as it is; that is the target's failure.
            raise
        except Exception as error:
            # A listener may raise anything; all of it means the same here.
            raise ListenerError(f"{type(error).__name__} in an event listener: {error}") from error

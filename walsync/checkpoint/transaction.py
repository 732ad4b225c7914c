"""One transaction of the target: watermark, events, changes, COMMIT. Knows nothing of retries, states or threads.

The order inside is the whole of exactly-once: the watermark is moved first, by compare-and-set, and everything else is
committed with it or not at all.

A batch is first tried with its changes arranged into few statements (`walsync.checkpoint.ordering`). If the target
refuses that, it is rolled back and tried once more in the order of the log, which alone says what is to be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, Concatenate, Final, Literal, NamedTuple, ParamSpec, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet, RowChanges
from walsync.checkpoint.apply import apply_changes
from walsync.checkpoint.batch import ids
from walsync.checkpoint.catalog import Catalog, Facts
from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.engine import ApplyingEngine, begin, run_on
from walsync.checkpoint.events import EventSource, Verdict, call_before_replay, call_rejected
from walsync.checkpoint.failures import FailureKind, classify, describe_error
from walsync.checkpoint.ordering import worth_arranging
from walsync.checkpoint.watermark import Watermark, resume_after
from walsync.exceptions import TargetUnavailableError
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["APPLYING", "FencedError", "ListenerError", "Target"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_IN_ORDER_BATCHES: Final = 16
"""So many batches are not arranged after one that was refused for it: what an application does once, it does again."""


APPLYING: Final = "walsync.applying"
"""What `session.info` of a session that applies entries has, so that an application's listeners can tell it."""


class FencedError(Exception):
    """Another applier moved the watermark. Nothing was done; ask where it is. Never leaves the checkpointer."""


class ListenerError(Exception):
    """An event listener raised something that is not an error of the target; it is the `__cause__`."""


_PINPOINT_CHANGES: Final = 5000
"""An entry of the quarantine of up to so many changes is applied so that a refusal names the very row."""


class _Passing(NamedTuple):
    """How a transaction moves the watermark, and what is done before it is committed."""

    after: EntryId
    through: EntryId
    before_commit: Callable[[], None]


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _on_target(method: Callable[Concatenate[Target, _P], _T]) -> Callable[Concatenate[Target, _P], _T]:
    """A method that runs where the target's connections can be used: see `walsync.checkpoint.loop`."""

    def run(self: Target, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run_on(self.engine, lambda: method(self, *args, **kwargs))

    update_wrapper(run, method)
    return run


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
        self.catalog = Catalog(config.catalog_max_age_s)
        self._reorder = config.reorder
        self._in_order_for = 0
        self.replay_through = EntryId(0)
        """Entries up to this one were in the log when it was opened: applying them is replay."""

    def _session(self) -> Session:
        session = self._session_factory(self.engine)
        session.info[APPLYING] = True
        return session

    @_on_target
    def synchronise(self, log: WriteAheadLog) -> EntryId:
        """Asks the target what is in, and returns it; makes table and row if this is the first time.

        Raises `WatermarkGapError`, or what the target raises.
        """
        if isinstance(self.engine, ApplyingEngine):
            self.engine.initialise()
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
        self.catalog.forget()

    def _read(self, log: WriteAheadLog) -> int | None:
        # Everything moves while this looks at it, always upwards, and checkpointed <= watermark <= last. So the lower
        # bound is read before the watermark and the upper one after it, or work that goes well would look like a gap.
        checkpointed_id = log.checkpointed_id
        with self.engine.connect() as connection:
            found = self._watermark.read(connection)
        return resume_after(found, checkpointed_id, log.last_id, log=self._log_name, where=self._watermark.where)

    @_on_target
    def commit(
        self,
        change_sets: Sequence[ChangeSet],
        after: EntryId,
        *,
        through: EntryId | None = None,
        pinpoint: bool = False,
        in_order: bool = False,
        before_commit: Callable[[], None] = lambda: None,
        on_committed: Callable[[], None] = lambda: None,
    ) -> int:
        """Applies entries in one transaction and returns how many changes that were.

        `after` is where the watermark must be, `through` where it is moved to; None: to the last of the entries.
        `pinpoint` names the very row in an error, at the cost of speed. `before_commit` is called when all is executed,
        and what it raises undoes everything; `on_committed` as soon as COMMIT was answered, before `after_checkpoint`.
        `in_order`: in the order of the log from the beginning, because it is being found out what is wrong. Raises
        `FencedError`, `ListenerError`, `EntryRejectedError`, and what the target raises; then nothing was committed,
        except where the answer to COMMIT was lost: ask `synchronise`.
        """
        _, last_id = ids(change_sets)
        passing = _Passing(after, last_id if through is None else through, before_commit)
        facts = None if pinpoint or in_order else self._facts(change_sets)
        if facts is None:
            return self._commit_in_order(change_sets, passing, pinpoint, on_committed)
        committed = False

        def note_committed() -> None:
            nonlocal committed
            committed = True
            on_committed()

        try:
            return self._commit(change_sets, passing, facts, False, note_committed)
        except (FencedError, ListenerError):
            raise
        except Exception as error:
            if committed or not self._is_refusal(error):
                raise
            refusal = describe_error(error)
        count = self._commit_in_order(change_sets, passing, False, on_committed)
        self._in_order_for = _IN_ORDER_BATCHES
        _logger.info("the target took a batch in the order of the log only; rearranged it said: %s", refusal)
        return count

    def _commit_in_order(
        self, change_sets: Sequence[ChangeSet], passing: _Passing, pinpoint: bool, on_committed: Callable[[], None]
    ) -> int:
        try:
            return self._commit(change_sets, passing, None, pinpoint, on_committed)
        except (FencedError, ListenerError):
            raise
        except Exception as error:
            self._is_refusal(error)
            raise

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the target would say the same again. Then its tables may not be what they were thought to be."""
        failure = classify(error, self.dialect_name)
        if failure is None or failure.kind is FailureKind.TRANSIENT:
            return False
        self.catalog.forget()
        return True

    def _facts(self, change_sets: Sequence[ChangeSet]) -> Facts | None:
        """What is known of the tables of these entries; None if their changes are to be left in their order."""
        if not self._reorder or not worth_arranging(change_sets):
            return None
        if self._in_order_for:
            self._in_order_for -= 1
            return None
        tables = {c.table for change_set in change_sets for c in change_set.changes if isinstance(c, RowChanges)}
        return self.catalog.facts(self.engine, tables)

    def _commit(
        self,
        change_sets: Sequence[ChangeSet],
        passing: _Passing,
        facts: Facts | None,
        pinpoint: bool,
        on_committed: Callable[[], None],
    ) -> int:
        first_id, last_id = ids(change_sets)
        session = self._session()
        try:
            connection = begin(session, self.engine)
            if not self._watermark.advance(connection, passing.after, passing.through):
                raise FencedError
            self._fire("before_checkpoint", session, first_id, last_id)
            count = self._apply(session, connection, change_sets, pinpoint, facts)
            passing.before_commit()
            session.commit()
            on_committed()
            self._fire("after_checkpoint", session, first_id, last_id)
        finally:
            # Rolls back what is not committed.
            session.close()
        return count

    @_on_target
    def pass_over(self, after: EntryId, through: EntryId, before_commit: Callable[[], None] = lambda: None) -> None:
        """Moves the watermark over entries that are not applied. Raises as `commit` does.

        `before_commit` is called when no other applier can move it any more, and what it raises undoes the move.
        """
        session = self._session()
        try:
            if not self._watermark.advance(begin(session, self.engine), after, through):
                raise FencedError
            before_commit()
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

    @_on_target
    def apply_beside(self, change_set: ChangeSet) -> Literal["applied", "present", "ahead", "left out"]:
        """Applies an entry that the watermark has passed, in a transaction of its own, with its receipt.

        ``"present"``: its receipt was there. ``"ahead"``: the watermark has not passed it. ``"left out"``: a listener
        of `before_replay` says so. In these cases nothing was done. Raises as `commit` does; what went into the target
        is told by asking again.
        """
        entry_id, _ = ids([change_set])
        receipt = self._watermark.receipt(entry_id)
        session = self._session()
        try:
            connection = begin(session, self.engine)
            try:
                # First, because it waits for whoever is at the same: a COMMIT that arrives late, for instance.
                receipt.insert(connection, entry_id)
            except IntegrityError as error:
                session.rollback()
                if receipt.read(begin(session, self.engine)) is None:
                    # Removed in this moment by whoever was faster.
                    raise TargetUnavailableError(f"the receipt of entry {entry_id} has come and gone") from error
                return "present"
            passed = self._watermark.read(connection)
            if passed is None or passed < entry_id:
                return "ahead"
            rewritten: ChangeSet | None = self._call(call_before_replay, self._events.dispatch, session, change_set)
            if rewritten is None:
                return "left out"
            apply_changes(connection, rewritten, row_by_row=rewritten.change_count <= _PINPOINT_CHANGES)
            self._fire("after_replay", session, rewritten)
            session.commit()
        finally:
            session.close()
        return "applied"

    @_on_target
    def receipts(self) -> list[int]:
        """The entries of the log that have a receipt."""
        with self.engine.connect() as connection:
            return self._watermark.receipts(connection)

    @_on_target
    def remove_receipt(self, entry_id: int) -> None:
        """Removes the receipt of an entry that is in and can never be met again."""
        with self.engine.connect() as connection:
            self._watermark.receipt(entry_id).remove(connection)
            connection.commit()

    @_on_target
    def announce_rejected(self, change_set: ChangeSet, error: BaseException) -> Verdict | None:
        """Fires `rejected`, with a session for looking into the target. What the listeners want done, if anything."""
        dispatch: Any = self._events.dispatch
        if not dispatch.rejected:
            return None
        session = self._session()
        try:
            verdict: Verdict | None = self._call(call_rejected, dispatch, session, change_set, error)
            return verdict
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

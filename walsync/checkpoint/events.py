"""The events of a journal and of a checkpointer, in SQLAlchemy's own event system.

::

    from sqlalchemy import event

    @event.listens_for(journal, "before_replay")
    def rename(session, change_set):
        ...

`WalsyncEvents` lists them; each says who calls it, in which thread, and what a listener may not do. A listener that
raises stops what called it: in the checkpointer's thread that is the checkpointer itself, which goes to the state
*failed* and shows the error to the next caller (an error of the target that a listener meets in its own SQL is treated
as any other failure of the target). Nothing is lost by it: the batch is rolled back, its entries stay in the log.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.orm import Session

from walsync.changes import ChangeSet

if TYPE_CHECKING:
    from sqlalchemy.event import dispatcher

    from walsync.wal import EntryId

__all__ = ["SKIP", "EventSource", "Verdict", "WalsyncEvents"]


class Verdict(enum.Enum):
    """What a listener may answer: `SKIP` to `before_replay`, the others to `rejected`."""

    SKIP = "skip"
    """`before_replay`: the entry is not applied; the watermark moves past it all the same."""

    HALT = "halt"
    """`rejected`: nothing more is applied until `resume()`. The entry and all after it stay in the log."""

    RETRY = "retry"
    """`rejected`: the entry is tried again after a wait, as after a passing failure; everything after it waits."""

    QUARANTINE = "quarantine"
    """`rejected`: the entry is put into the quarantine, with later ones that touch the same rows; others go on."""

    DISCARD = "discard"
    """`rejected`: the entry is not applied, and kept among the discarded for the record. Later ones go on."""


SKIP: Final = Verdict.SKIP


class EventSource(event.EventTarget):
    """What `sqlalchemy.event.listen` accepts as the target of the events below: a journal, or a checkpointer."""

    hears_appends = False
    """Whether anybody ever listened to `after_append`: asking SQLAlchemy's dispatch costs a commit two calls."""

    if TYPE_CHECKING:
        dispatch: dispatcher[EventSource]


class WalsyncEvents(event.Events[EventSource]):
    """The events. The methods here are documentation: SQLAlchemy makes a hook of each."""

    _target_class_doc = "SomeJournal"
    _dispatch_target = EventSource

    @classmethod
    def _listen(cls, event_key: Any, **settings: Any) -> None:
        super()._listen(event_key, **settings)
        if event_key.identifier == "after_append":
            event_key.dispatch_target.hears_appends = True

    def after_append(self, journal: EventSource, entry_id: EntryId, change_set: ChangeSet) -> None:
        """A transaction is durable in the log. Called in the committer's thread, before its commit returns.

        A listener may not undo the transaction: it is committed, and an exception here does not change that. It may not
        use the committing session, and should be quick: the commit waits for it.
        """

    def before_replay(self, session: Session, change_set: ChangeSet) -> ChangeSet | Verdict | None:
        """An entry that was in the log when this process opened it, or that is retried from the quarantine, is about to
        be applied.

        Called in the checkpointer's thread (a retry: in the thread that asked for it), inside the transaction that will
        apply it, after the entries before it have been executed in it. Return None to apply the entry as it is, a
        `ChangeSet` to apply that instead (a column renamed since), or `walsync.SKIP` to leave it out. With several
        listeners, each gets what the one before it returned; the first SKIP ends it.

        A listener may read and write through `session`; it may not commit, roll back or close it, nor wait for the
        checkpointer. It may be called again for the same entry, when the transaction has to be repeated.
        """

    def after_replay(self, session: Session, change_set: ChangeSet) -> None:
        """An entry of which `before_replay` told has been executed; its transaction is not committed yet.

        `change_set` is what was applied. As for `before_replay`: `session` may be used, not ended, and the call may be
        repeated. Not called for an entry that was left out.
        """

    def before_checkpoint(self, session: Session, first_id: EntryId, last_id: EntryId) -> None:
        """A batch, entries `first_id` to `last_id`, is about to be applied: the watermark has been moved, nothing else.

        Called in the checkpointer's thread. What a listener writes through `session` is committed with the batch. It
        may not commit, roll back or close the session, nor wait for the checkpointer, and may be called again for the
        same entries, in another division.
        """

    def after_checkpoint(self, session: Session, first_id: EntryId, last_id: EntryId) -> None:
        """A batch, entries `first_id` to `last_id`, is committed in the target.

        Called in the checkpointer's thread. Readers see the batch from the moment of its COMMIT and do not wait for
        listeners; those of this process that were waiting are told after this call. Use of `session` begins a new
        transaction; what is not committed by the listener is rolled back. A listener may not wait for the checkpointer.
        It is not called for a batch whose COMMIT went unanswered and turned out to be in.
        """

    def rejected(self, session: Session, change_set: ChangeSet, error: BaseException) -> Verdict | None:
        """The target refuses this entry. Its transaction has been rolled back; everything before it is applied.

        Return what is to become of it: `Verdict.HALT`, `RETRY`, `QUARANTINE` or `DISCARD`; None leaves it to the other
        listeners, and if none of them answers, to `CheckpointConfig.on_reject`. All listeners are called, and the first
        answer counts. `error.__cause__` is what the target said, `change_set` tells tables and rows: so a listener opts
        in to the quarantine per error or per table.

        Called in the checkpointer's thread, each time the entry is tried and refused. `session` may be used to look
        into the target; what is not committed is rolled back. A listener may not wait for the checkpointer. It is not
        called for entries that go into the quarantine because they depend on one, nor when a retry from the quarantine
        is refused.
        """

    def halted(self, source: EventSource, error: BaseException) -> None:
        """The checkpointer has stopped applying: an entry was refused, log and target do not fit, or its thread died.

        Called once for each time it stops, in the checkpointer's thread, after its state has changed. A listener may
        call `resume()`, but should have changed something first: otherwise it stops again at once, for ever.
        """

    def recovered(self, source: EventSource, count: int) -> None:
        """The `count` entries that were in the log when it was opened, and not in the target, are in the target now.

        Called once, in the checkpointer's thread; not at all if there were none, or if another process has applied
        them. A listener may not wait for
        the checkpointer.
        """


def call_before_replay(dispatch: Any, session: Session, change_set: ChangeSet) -> ChangeSet | None:
    """What the listeners leave of an entry; None if they leave it out."""
    for listener in dispatch.before_replay:
        answer = listener(session, change_set)
        if answer is SKIP:
            return None
        if answer is None:
            continue
        if not isinstance(answer, ChangeSet):
            raise TypeError(
                f"a before_replay listener returned {answer!r:.200}; it must return None, a ChangeSet or walsync.SKIP"
            )
        change_set = answer
    return change_set


def call_rejected(dispatch: Any, session: Session, change_set: ChangeSet, error: BaseException) -> Verdict | None:
    """The first answer of the listeners; each of them is called."""
    verdict: Verdict | None = None
    for listener in dispatch.rejected:
        answer = listener(session, change_set, error)
        if answer is None:
            continue
        if not isinstance(answer, Verdict) or answer is SKIP:
            raise TypeError(
                f"a rejected listener returned {answer!r:.200}; it must return None, or HALT, RETRY, QUARANTINE or "
                "DISCARD of walsync.Verdict"
            )
        verdict = verdict or answer
    return verdict

"""Asks the target for its relations, on a connection that is nobody's, and keeps the answer for a while.

Never on the reader's connection: a question there, in the middle of its transaction and before its wait, would fix what
the transaction sees to the moment before the wait. And in a thread, because a driver may block for far longer than a
reader can wait: without an answer within the time, a read waits for everything, which is right and slower.

Nothing is asked as long as no entry waits and no transaction reads after it has written.

The answer is kept for `max_age_s` seconds. It is dropped before that when a table is read or written that it does not
know, when a session has executed SQL text that changes tables, and when the journal is resumed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, Final

from walsync.changes import TableName
from walsync.journal import renew_in_child
from walsync.session.relations.model import Facts, Relations
from walsync.session.relations.queries import READERS

__all__ = ["TargetRelations"]

_logger: Final = logging.getLogger("walsync.session")

_AGAIN_S: Final = 1.0
"""After a question that failed, and for a name that is not known, the target is not asked again within this time."""


class TargetRelations:
    """The relations of one target. Thread-safe. `ask` calls what it is given with a connection, and may block."""

    def __init__(
        self,
        ask: Callable[[Callable[[Any], Facts]], Facts],
        dialect_name: str,
        *,
        max_age_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._reader = READERS.get(dialect_name)
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._clock = clock
        self.forget_parent()
        renew_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: who was asking is not there."""
        self._condition = threading.Condition()  # guards what is below; nothing is asked with it held
        self.known: Relations | None = None
        """What was heard last; another object whenever it is heard anew."""
        self._known_at = self._failed_at = self._asking_since = float("-inf")
        self._asking = False
        self._forgotten = 0

    def forget(self) -> None:
        """What the target said may not be true any more; also what it is saying in this moment."""
        with self._condition:
            self.known = None
            self._failed_at = float("-inf")
            self._forgotten += 1

    def note_written(self, tables: AbstractSet[TableName], known: Relations | None) -> bool:
        """Entries write these. Of one that is not known, it is not known either what it changes. Without a lock.

        `known` is what this object's is. False if it is to be called again for these tables though that stays the same.
        """
        if known is None or known.knows(tables):
            return True
        if self._clock() - self._known_at > _AGAIN_S:
            self.forget()
        return False

    def known_sources(self, reads: frozenset[TableName]) -> frozenset[TableName] | None:
        """`sources`, if that is known without asking; else None."""
        known = self.known
        if known is None or self._clock() - self._known_at > self._max_age_s:
            return None
        return known.sources(reads)

    def sources(self, reads: frozenset[TableName]) -> frozenset[TableName] | None:
        """See `Relations.sources`; also None if the target does not tell. Blocks for up to `timeout_s` to hear it."""
        known = self._current(older_s=self._max_age_s)
        if known is not None and not known.knows(reads):
            # Made since; or a temporary one, which nobody else sees.
            known = self._current(older_s=_AGAIN_S)
        return None if known is None else known.sources(reads)

    def _current(self, older_s: float) -> Relations | None:
        """What the target said last, if that is not older; else what it says now."""
        with self._condition:
            now = self._clock()
            if self.known is not None and now - self._known_at <= older_s:
                return self.known
            if self._reader is None or now - self._failed_at <= _AGAIN_S:
                return None
            if not self._asking:
                self._asking, self._asking_since = True, now
                threading.Thread(target=self._run, name="walsync-relations", daemon=True).start()
            while self._asking:
                remaining = self._asking_since + self._timeout_s - self._clock()
                if remaining <= 0:
                    return None
                self._condition.wait(remaining)
            return self.known

    def _run(self) -> None:
        assert self._reader is not None
        with self._condition:
            forgotten, asked_at = self._forgotten, self._clock()
        found: Relations | None = None
        try:
            found = Relations(self._ask(self._reader))
        except BaseException as error:  # noqa: BLE001  Whatever it is: reads wait for everything.
            _logger.warning("the target's catalogue cannot be read (%s); reads wait for the whole backlog", error)
        with self._condition:
            self._asking = False
            if found is None:
                self._failed_at = self._clock()
                self.known = None
            elif forgotten == self._forgotten:
                self.known, self._known_at = found, asked_at
            self._condition.notify_all()

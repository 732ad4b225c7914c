"""Whether a thread that could lead waits a moment, so that other threads' entries come along.

The threads whose entries the last sync made durable are likely to have another one soon: they wake up now, one after
the other. If the first of them syncs at once, the others' entries come too late for it, and two threads get no more
done than one. If it waits for them, one sync serves them all: the last one to come leads, so that nobody is woken only
to sync. (PostgreSQL's `commit_delay` and `commit_siblings` are the same idea, with times that somebody has to find.)

Nobody waits later than the last sync took after it ended, nor longer than `LogConfig.gather_s` after it: where
so many threads wake up that this takes longer, it is better that some of them sync while others wake up. If not all
came in time, threads do something else between their commits: then the next sync is made at once, and after each such
failure twice as many.

`walsync.wal.sharing.gathering` does this for processes.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Siblings"]

_MOST_HASTE: Final = 64


class Siblings:
    """The threads of this process that the last sync served. Guarded by group commit's mutex."""

    __slots__ = ("_haste", "_longest_s", "_next_haste", "_sync_s", "_until", "expected")

    def __init__(self, longest_s: float) -> None:
        self.expected = 1
        """How many threads the last sync served, with the one that led."""
        self._longest_s = longest_s
        self._sync_s = self._until = 0.0
        self._haste = 0
        self._next_haste = 1

    def note_sync(self, seconds: float) -> None:
        """So long took the last sync."""
        self._sync_s = min(seconds, self._longest_s)

    def were_served(self, count: int) -> None:
        """A sync ends that serves so many threads."""
        self.expected = count
        if count > 1:
            self._until = time.monotonic() + self._sync_s

    def patience_s(self, here: int) -> float:
        """How long a thread waits that nobody leads and that is the `here`-th to come; 0: it leads at once."""
        if here >= self.expected:
            self._next_haste = 1
            return 0.0
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            return 0.0
        if self._haste:
            self._haste -= 1
            return 0.0
        return left_s

    def did_not_come(self) -> None:
        """Somebody waited in vain."""
        self._haste = self._next_haste
        self._next_haste = min(2 * self._next_haste, _MOST_HASTE)

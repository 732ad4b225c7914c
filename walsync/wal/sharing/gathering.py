"""Whether who is about to sync waits a moment, so that other processes' entries come along.

The processes whose entries the last sync made durable are likely to have another one soon: they wake up now. If the
next sync begins before they are there, half of all processes wait for every second sync, each time. If it begins some
microseconds later, one sync serves them all. (PostgreSQL's `commit_delay` and `commit_siblings` are the same idea, with
times that somebody has to find.)

Nobody waits for more processes than had an entry to commit during the last sync, nor longer than that sync took, nor
than `LogConfig.gather_s`. If fewer came than half of those that were missing, processes do something else between their
commits: then the next sync is made at once, and after each such failure twice as many.
"""

from __future__ import annotations

import time
from typing import Final

from walsync.wal.control_block import COMMITTING, HASTE, NEXT_HASTE, SYNC_NS
from walsync.wal.sharing.locks import give_way
from walsync.wal.sharing.posts import Posts
from walsync.wal.storage.protocol import SharedWords

__all__ = ["Gathering"]

_MOST_HASTE: Final = 64
_DISPENSABLE: Final = 4
"""Of so many processes one need not be there: the last ones to come are worth less than the others' time."""


class Gathering:
    """Used by one at a time, who has the sync lock. What it learns is shared by all processes."""

    def __init__(self, words: SharedWords, posts: Posts, longest_s: float) -> None:
        self._words = words
        self._posts = posts
        self._longest_ns = int(longest_s * 1e9)

    def wait(self) -> None:
        """Let others post their entries, if they are likely to."""
        words = self._words
        others = words[COMMITTING] - 1
        if others <= 0 or not self._longest_ns:
            return
        haste = words[HASTE]
        if haste:
            words[HASTE] = haste - 1
            return
        enough = others - others // _DISPENSABLE
        here = self._posts.count()
        if here >= enough:
            return
        least = here + (enough - here + 1) // 2
        deadline = time.monotonic_ns() + min(self._longest_ns, words[SYNC_NS])
        while here < enough and time.monotonic_ns() < deadline:
            give_way()
            here = self._posts.count()
        if here >= least:
            words[NEXT_HASTE] = 1
        else:
            haste = words[NEXT_HASTE] or 1
            words[HASTE] = haste
            words[NEXT_HASTE] = min(2 * haste, _MOST_HASTE)

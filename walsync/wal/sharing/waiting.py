"""Waiting for another process's sync: by looking, and by a bell that it rings where the system has such.

Whoever waits tries now and then to have the sync lock itself: the process that had it may have died, or may have ended
its sync before what is waited for was written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from walsync.exceptions import LogTimeoutError
from walsync.wal.control_block import (
    BELLS,
    DURABLE,
    GROUP,
    POISONED,
    POST_NUMBER_MASK,
    SYNCING,
    TAKEN,
    TAKEN_ID_SHIFT,
)
from walsync.wal.sharing.locks import locking_failed
from walsync.wal.sharing.tail import SharedTail
from walsync.wal.storage.protocol import SharedBells, SharedWords

__all__ = ["SyncWaiting"]

_SYNC_PAUSE_S: Final = 0.0001
_SYNC_PAUSE_OF_ENTRY_S: Final = 0.00004
"""How long to wait for another process's sync at first, and how much longer for each entry written together last: the
more processes there are, the likelier it is that one of them looks in time. Where nobody can be woken."""
_LONGEST_SYNC_PAUSE_S: Final = 0.002


class SyncWaiting:
    """For the thread that leads in this process. Each wait is bounded by `LogConfig.sync_timeout_s`."""

    def __init__(self, words: SharedWords, tail: SharedTail, bells: SharedBells, timeout_s: float) -> None:
        self._words = words
        self._tail = tail
        self._bells = bells
        self._timeout_s = timeout_s

    def for_post(self, box: int, number: int) -> int:
        """The id of the one entry of a post when it is durable. 0 when it came back, or when this has the sync lock."""
        words, keeping, try_exclusive = self._words, self._tail.keeping, self._tail.sync_lock.try_exclusive
        bell, taken = BELLS + box, TAKEN + box
        pause_s = deadline = 0.0
        heard = -1
        while True:
            rung = words[bell]
            # Read first, and of the generation that is valid: the other half may hold what is not durable yet.
            generation = words[DURABLE]
            durable_id = words[DURABLE + 2 + (generation & 1) * 4]
            if words[DURABLE] != generation:
                durable_id = self._tail.durable()[1]
            state = words[taken]
            if not (state ^ number) & POST_NUMBER_MASK:
                # 0 when it was refused.
                entry_id: int = state >> TAKEN_ID_SHIFT
                if entry_id <= durable_id:
                    return entry_id
            if words[POISONED]:
                self._tail.poison.raise_told()
            # Asked after the post is in its box: whoever syncs looks for posts after saying that it does not any more.
            # If it is not heard of in time, it may be dead.
            if not words[SYNCING] or rung == heard:
                try:
                    try_exclusive()
                except BlockingIOError:
                    keeping.want()
                    if not deadline:
                        deadline = time.monotonic() + self._timeout_s
                    elif time.monotonic() > deadline:
                        raise self._too_long() from None
                except OSError as error:
                    raise locking_failed(error) from error
                else:
                    words[SYNCING] = 1
                    return 0
            heard = rung
            pause_s = self._next_pause(pause_s)
            self._bells.wait(bell, rung, pause_s)

    def _next_pause(self, pause_s: float) -> float:
        """How long to wait for a sync, after a wait of `pause_s`, or 0, was not enough."""
        if self._bells.wakes:
            return _LONGEST_SYNC_PAUSE_S
        if not pause_s:
            group: int = self._words[GROUP]
            return _SYNC_PAUSE_S + _SYNC_PAUSE_OF_ENTRY_S * group
        return min(pause_s * 1.2, _LONGEST_SYNC_PAUSE_S)

    def for_sync(self, box: int, served: Callable[[tuple[int, int]], bool]) -> tuple[int, int] | None:
        """What is durable, when another process's sync covers `own_id` and `served` says so; None with the sync lock.

        `served` is asked with what was durable before the question. `box`: where this process's post lies, or -1.
        """
        deadline = time.monotonic() + self._timeout_s
        tail, words = self._tail, self._words
        bell = BELLS + box
        pause_s = 0.0
        seen = -1
        while True:
            rung = words[bell] if box >= 0 else 0
            if words[POISONED]:
                tail.poison.raise_told()
            generation = words[DURABLE]
            if generation != seen:
                seen = generation
                durable = tail.durable()
                if durable[1] >= tail.own_id and served(durable):
                    return durable
            if tail.try_sync_lock():
                return None
            if time.monotonic() > deadline:
                raise self._too_long()
            if box >= 0:
                pause_s = self._next_pause(pause_s)
                self._bells.wait(bell, rung, pause_s)
            else:
                # What was written without a post nobody is told of.
                pause_s = min(1.2 * pause_s or _SYNC_PAUSE_S, _LONGEST_SYNC_PAUSE_S)
                time.sleep(pause_s)

    def _too_long(self) -> LogTimeoutError:
        return LogTimeoutError(
            f"another process did not finish its sync of the log within {self._timeout_s} s "
            "(LogConfig.sync_timeout_s). Whether the entry becomes durable shows later. "
            "Look at the disk, and whether a process that has the log open was stopped"
        )

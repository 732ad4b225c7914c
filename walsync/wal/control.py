"""`LogControl`: what those who use a log tell each other, in one process or in several.

Owns the words of the control block that tell how far entries are applied, who waits, and which entries bear which
marks; and the lease of the applier. Never touches a segment. What is where: `walsync.wal.control_block`.

A *mark* is a name that an entry bears: of a table that it writes, say. Of each name only the last entry that bears it
is kept, and that in a table of fixed size: a name's place is told by its hash, twice, and the smaller answer counts
(a count-min sketch: Cormode and Muthukrishnan, 2005). Two names that meet in both places share their answer: it is then
too high for one of them, which costs a reader time and is never wrong.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Final, Protocol

from walsync.wal.control_block import APPLIED, MARK_ROW_WORDS, MARKS, RECOVERED, UNMARKED, URGENT, Words
from walsync.wal.positions import EntryId

__all__ = ["Lease", "LocalLease", "LogControl"]

_FIRST_PAUSE_S: Final = 0.0001
_LONGEST_PAUSE_S: Final = 0.005
_CHECK_S: Final = 0.2
"""How often somebody who waits asks whether it is in vain."""

_MAX_CACHED_NAMES: Final = 65_536


class Lease(Protocol):
    """The right to be the one that applies. Given up by the system when its process ends."""

    @property
    def held(self) -> bool:
        """Whether it is this object's."""

    def try_acquire(self) -> bool:
        """Have it, if nobody else does. Does not wait."""

    def release(self) -> None:
        """Let others have it. May be called twice."""

    def forget_in_child(self) -> None:
        """In a forked child: it stays the parent's."""


class LocalLease:
    """The lease of a log that no other process can have."""

    def __init__(self) -> None:
        self.held = False

    def try_acquire(self) -> bool:
        """Nobody else is there."""
        self.held = True
        return True

    def release(self) -> None:
        """Give it up."""
        self.held = False

    def forget_in_child(self) -> None:
        """The child's copy of the log is of no use."""
        self.held = False


class LogControl:
    """What the users of a log share, as `WriteAheadLog.control`. Thread-safe."""

    def __init__(
        self,
        words: Words,
        *,
        shared: bool,
        lease: Lease,
        last_id: Callable[[], int],
        stamp: Callable[[], int],
        released_id: Callable[[], int],
        exclusive: Callable[[], AbstractContextManager[object]],
        ring: Callable[[], None],
    ) -> None:
        """Called by the log.

        `stamp` is another number after each write, `exclusive` gives the append lock, `ring` wakes the applier,
        wherever it is.
        """
        self.shared: Final = shared
        """Whether other processes may have the log open as well."""
        self._words = words
        self._lease = lease
        self._last_id = last_id
        self._stamp = stamp
        self._idle_stamp = -1
        self._released_id = released_id
        self._exclusive = exclusive
        self._ring = ring
        self._places: dict[str, tuple[int, int]] = {}
        self._known_places: dict[tuple[str, ...], tuple[int, ...]] = {}

    # ------------------------------------------------------------------------------------------------- applied

    @property
    def recovered_id(self) -> EntryId:
        """The last entry that was in the log when it was recovered, by whatever process."""
        return EntryId(self._words[RECOVERED])

    @property
    def applied_id(self) -> EntryId:
        """The last entry that is in the target, as far as an applier has said. Takes no lock."""
        return EntryId(max(self._words[APPLIED], self._released_id()))

    def nothing_waits(self) -> bool:
        """Whether every entry is applied that any process had written before the call. Takes no lock.

        What was written and applied when this was last true needs no second look while nothing is written.
        """
        stamp = self._stamp()
        if stamp == self._idle_stamp:
            return True
        if self._last_id() > self.applied_id:
            return False
        self._idle_stamp = stamp
        return True

    def note_applied(self, through: int) -> None:
        """The entries up to this one are in the target. Only the holder of the lease may say so."""
        if through > self._words[APPLIED]:
            self._words[APPLIED] = through

    @property
    def urgent_id(self) -> EntryId:
        """The last entry that somebody waits for, in whatever process. Takes no lock."""
        return EntryId(self._words[URGENT])

    def urge(self, through: int) -> None:
        """Somebody waits for the entries up to this one. Wakes the applier, and does not wait."""
        # Two who write at once may leave the lower word; whoever waits says it again.
        if through > self._words[URGENT]:
            self._words[URGENT] = through
        self._ring()

    def wait_applied(self, through: int, timeout_s: float | None, check: Callable[[], None] | None = None) -> bool:
        """Wait until the entries up to `through` are applied: True; False after `timeout_s` seconds (None: no bound).

        Works in every process, also in one that does not apply. `check` is called now and then and may raise.
        """
        words = self._words
        if self.applied_id >= through:
            return True
        began = time.monotonic()
        checked, pause_s = began, _FIRST_PAUSE_S
        self.urge(through)
        while self.applied_id < through:
            now = time.monotonic()
            if timeout_s is not None and now - began >= timeout_s:
                return False
            if now - checked >= _CHECK_S:
                checked = now
                if check is not None:
                    check()
            if words[URGENT] < through:
                self.urge(through)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _LONGEST_PAUSE_S)
        return True

    # --------------------------------------------------------------------------------------------------- marks

    def places(self, names: Iterable[str]) -> tuple[int, ...]:
        """The words that belong to these marks, for the appender."""
        key = names if type(names) is tuple else tuple(names)
        places = self._known_places.get(key)
        if places is None:
            places = tuple(dict.fromkeys(place for name in key for place in self._places_of(name)))
            if len(self._known_places) >= _MAX_CACHED_NAMES:
                self._known_places.clear()
            self._known_places[key] = places
        return places

    def _places_of(self, name: str) -> tuple[int, int]:
        found = self._places.get(name)
        if found is None:
            digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            first = int.from_bytes(digest[:4], "little") % MARK_ROW_WORDS
            second = int.from_bytes(digest[4:], "little") % MARK_ROW_WORDS
            if len(self._places) >= _MAX_CACHED_NAMES:
                self._places.clear()
            found = self._places[name] = (MARKS + first, MARKS + MARK_ROW_WORDS + second)
        return found

    @property
    def unmarked_through(self) -> EntryId:
        """The entries up to this one may bear any mark: they were found at recovery. 0 when all is known."""
        return EntryId(self._words[UNMARKED])

    def last_marked(self, names: Iterable[str]) -> EntryId:
        """An entry after which none bears one of these marks; 0 if none does. Never past the log's last entry."""
        words, known = self._words, self._places
        # First: what ceases to be unmarked after this is noted by then.
        last = words[UNMARKED]
        for name in names:
            first, second = known.get(name) or self._places_of(name)
            entry_id = min(words[first], words[second])
            if entry_id > last:
                last = entry_id
        # A process that died may have marked an entry that it never wrote.
        return EntryId(min(last, self._last_id())) if last else EntryId(0)

    def note_marks(self, last: Mapping[str, int]) -> None:
        """The entries that were found at recovery are looked through: these are their marks."""
        words = self._words
        with self._exclusive():
            for name, entry_id in last.items():
                for place in self._places_of(name):
                    if words[place] < entry_id:
                        words[place] = entry_id
            # Last: a reader that finds nothing unmarked must find everything that is noted.
            words[UNMARKED] = 0

    # --------------------------------------------------------------------------------------------------- lease

    def try_lease(self) -> bool:
        """Become the one applier of this log, over all processes; False if another is. Does not wait."""
        return self._lease.try_acquire()

    def release_lease(self) -> None:
        """Let another apply. May be called twice."""
        self._lease.release()

    @property
    def holds_lease(self) -> bool:
        """Whether this object is the applier."""
        return self._lease.held

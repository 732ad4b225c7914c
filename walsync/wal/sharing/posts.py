"""Entries that a process hands to whoever syncs, in place of writing them itself.

While one process syncs, another that wants to commit puts its entries into a box of the control block; the next to sync
writes the posts of all boxes with its own entries, in one write. So a sync serves everybody who came during the one
before, and an entry costs its process no lock and no call to the system but those that wait.

A box belongs to the process that holds its lock, which it takes when it first writes anything. Its owner writes the
post and then its number (POSTED); who takes it, under the append lock and before the tail is published, says with one
word (TAKEN) how far the ids reach. An owner's entries are durable when they are taken and the durable entry is at or
past that id. It must look at what is durable *first*: an id that a dead process gave out and never published is given
back before another entry gets it.

A post that lies in its box for some time is taken only while its owner lives, so that what a dead process wanted does
not come into the log long after. Nothing here is read after a crash of the machine.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from walsync.wal.checksum import ChecksumFunction
from walsync.wal.control_block import (
    BELLS,
    BOX_WORDS,
    BOXES,
    BOXES_END,
    COMMITTING,
    MARK_ROW_WORDS,
    MARKS,
    MAX_BOXES,
    POST_NUMBER_MASK,
    POSTED,
    REFUSED,
    SOME_REFUSED,
    TAKEN,
    TAKEN_ID_SHIFT,
)
from walsync.wal.storage.protocol import SharedBells, SharedLock, SharedWords

__all__ = ["Outcome", "Post", "Posts"]

_HEAD: Final = struct.Struct("<IIQ")  # length and checksum of what follows, when it was posted (monotonic, ns)
_ENTRY: Final = struct.Struct("<II")  # length of the data, number of places
_BOX_BYTES: Final = 8 * BOX_WORDS
_POST_BYTES: Final = _BOX_BYTES - _HEAD.size
_MARKS_END: Final = MARKS + 2 * MARK_ROW_WORDS
MAX_ENTRIES: Final = _POST_BYTES // _ENTRY.size
_FRESH_NS: Final = 50_000_000
"""A younger post is taken without a look at its owner's lock."""


class Post(NamedTuple):
    """What lies in a box: entries of one chunk each, and the words that are to hold their ids."""

    box: int
    number: int
    entries: list[tuple[bytes, Sequence[int]]]


class Outcome(NamedTuple):
    """What became of a post: the id of its last entry that was written, and how many at its end were refused."""

    last_id: int
    refused: int


class Posts:
    """The boxes of all processes, and the one of this process.

    What the owner does is for the thread that leads in this process; `collect` and what follows it for one that has
    the append lock of all processes as well.
    """

    def __init__(
        self,
        words: SharedWords,
        bells: SharedBells,
        box_lock: Callable[[int], SharedLock],
        checksum: ChecksumFunction,
    ) -> None:
        self._words = words
        self._bells = bells
        self._bytes = memoryview(words).cast("B")  # type: ignore[arg-type]
        self._box_lock = box_lock
        self._checksum = checksum
        self._locks: dict[int, SharedLock] = {}
        self.own_box = -1
        """The box of this process; -1 if it has none."""
        self._claimed = False
        self._collected: list[Post] = []
        """What was found last. For the one who has the sync lock."""

    # --------------------------------------------------------------------------------------------------- the box

    def claim(self) -> None:
        """Have a box nobody has; if there is none left, this process writes its entries itself.

        Under the append lock of all processes, as whatever else tries a box's lock: who finds one held knows that its
        owner lives. Does nothing if it was called before.
        """
        if self._claimed:
            return
        words = self._words
        self._claimed = True
        for box in range(MAX_BOXES):
            lock = self._lock_of(box)
            try:
                lock.try_exclusive()
            except OSError:
                # Somebody's; or the system does not lock, which the first commit will be told.
                continue
            # Whatever a dead process has left there is gone: it may have been taken, and not published.
            number = words[POSTED + box] % POST_NUMBER_MASK + 1
            words[REFUSED + box] = MAX_ENTRIES << TAKEN_ID_SHIFT | number
            words[TAKEN + box] = SOME_REFUSED | number
            words[POSTED + box] = number
            words[BOXES_END] = max(words[BOXES_END], box + 1)
            self.own_box = box
            return

    def _lock_of(self, box: int) -> SharedLock:
        lock = self._locks.get(box)
        if lock is None:
            lock = self._locks[box] = self._box_lock(box)
        return lock

    def _is_pending(self, box: int) -> bool:
        return bool((self._words[TAKEN + box] ^ self._words[POSTED + box]) & POST_NUMBER_MASK)

    # ---------------------------------------------------------------------------------------------- for the owner

    def pack(self, entries: Sequence[tuple[bytes, Sequence[int]]]) -> tuple[bytes, int]:
        """The bytes of a post of the first entries, and of how many. Of none while another post lies in the box."""
        if self.own_box < 0 or self._is_pending(self.own_box):
            return b"", 0
        pieces: list[bytes] = []
        room = _POST_BYTES
        for data, places in entries:
            room -= _ENTRY.size + 8 * len(places) + len(data)
            if room < 0:
                break
            pieces += (_ENTRY.pack(len(data), len(places)), array("Q", places).tobytes(), data)
        return b"".join(pieces), len(pieces) // 3

    @property
    def next_number(self) -> int:
        """Of the post that is put into the box next."""
        return int(self._words[POSTED + self.own_box]) % POST_NUMBER_MASK + 1

    def put(self, number: int, body: bytes) -> None:
        """Put a post into the box."""
        box, words = self.own_box, self._words
        begin = 8 * (BOXES + box * BOX_WORDS)
        head = _HEAD.pack(len(body), self._checksum(body, number), time.monotonic_ns())
        self._bytes[begin : begin + len(head) + len(body)] = head + body
        words[POSTED + box] = number

    def put_one(self, data: bytes, places: Sequence[int]) -> int:
        """Put a post of one entry into the box, and return its number; 0 if it does not fit, or another lies there."""
        box, words = self.own_box, self._words
        length = _ENTRY.size + 8 * len(places) + len(data)
        if length > _POST_BYTES or box < 0:
            return 0
        number: int = words[POSTED + box]
        if (words[TAKEN + box] ^ number) & POST_NUMBER_MASK:
            return 0
        number = number % POST_NUMBER_MASK + 1
        if places:
            body = b"".join((_ENTRY.pack(len(data), len(places)), array("Q", places).tobytes(), data))
        else:
            body = _ENTRY.pack(len(data), 0) + data
        begin = 8 * (BOXES + box * BOX_WORDS)
        _HEAD.pack_into(self._bytes, begin, length, self._checksum(body, number), time.monotonic_ns())
        begin += _HEAD.size
        self._bytes[begin : begin + length] = body
        words[POSTED + box] = number
        return number

    def outcome(self, number: int) -> Outcome | None:
        """What became of a post; None if nobody has taken it. Look at what is durable before this."""
        words, box = self._words, self.own_box
        taken = words[TAKEN + box]
        if (taken ^ number) & POST_NUMBER_MASK:
            return None
        if not taken & SOME_REFUSED:
            return Outcome(taken >> TAKEN_ID_SHIFT, 0)
        refused = words[REFUSED + box]
        return (
            Outcome(taken >> TAKEN_ID_SHIFT, refused >> TAKEN_ID_SHIFT)
            if refused & POST_NUMBER_MASK == number
            else None
        )

    def withdraw(self, number: int) -> None:
        """Take the post out of the box, if it is there. Under the append lock of all processes."""
        box = self.own_box
        if self._words[POSTED + box] == number:
            self._drop(box, number)

    # ----------------------------------------------------------------------------------------- for who takes them

    def collect(self) -> list[Post]:
        """The posts that are to be written now. Those of dead processes are dropped."""
        now = time.monotonic_ns()
        found = []
        for box, number in self._pending():
            post = self._read(box, number, now)
            if post is not None:
                found.append(post)
        self._collected = found
        return found

    def _pending(self) -> list[tuple[int, int]]:
        """The boxes in which a post lies, and its number."""
        words = self._words
        end = min(words[BOXES_END], MAX_BOXES)
        if end == 1 and self.own_box == 0 and not self._is_pending(0):
            # The only process so far.
            return []
        taken = words[TAKEN : TAKEN + end].tolist()
        posted = words[POSTED : POSTED + end].tolist()
        return [(box, number) for box, number in enumerate(posted) if (taken[box] ^ number) & POST_NUMBER_MASK]

    def count(self) -> int:
        """How many posts lie in their boxes. Takes no lock."""
        return len(self._pending())

    def ring(self) -> None:
        """Wake those whose posts were collected, for they are durable, and one whose post came since, to sync next.

        For the one who had the sync lock, after it is given back: who posts later finds it free.
        """
        collected, self._collected = self._collected, []
        words, bells = self._words, self._bells
        pending = self._pending()
        words[COMMITTING] = 1 + len(collected) + len(pending)
        if not collected and not pending:
            return
        # Two may ring one bell at once, but no two in the same nanosecond, with another number before.
        now = time.monotonic_ns()
        for box in [post.box for post in collected] + [box for box, _ in pending[:1]]:
            words[BELLS + box] = now
            bells.ring(BELLS + box)

    def _read(self, box: int, number: int, now: int) -> Post | None:
        begin = 8 * (BOXES + box * BOX_WORDS)
        view = self._bytes
        length, check, posted_ns = _HEAD.unpack_from(view, begin)
        begin += _HEAD.size
        if length > _POST_BYTES:
            return None
        body = bytes(view[begin : begin + length])
        if self._checksum(body, number) != check:
            # Its number is there and not yet all of it: the next one takes it.
            return None
        if not 0 <= now - posted_ns < _FRESH_NS and box != self.own_box and self._owner_is_gone(box, number):
            return None
        entries: list[tuple[bytes, Sequence[int]]] = []
        at = 0
        while at < length:
            size, count = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            places: Sequence[int] = ()
            if count:
                places = [place for place in array("Q", body[at : at + 8 * count]) if MARKS <= place < _MARKS_END]
                at += 8 * count
            entries.append((body[at : at + size], places))
            at += size
        return Post(box, number, entries)

    def _owner_is_gone(self, box: int, number: int) -> bool:
        lock = self._lock_of(box)
        try:
            lock.try_exclusive()
        except OSError:
            return False
        try:
            self._drop(box, number)
        finally:
            lock.unlock()
        return True

    def _drop(self, box: int, number: int) -> None:
        self._words[REFUSED + box] = MAX_ENTRIES << TAKEN_ID_SHIFT | number
        self._words[TAKEN + box] = SOME_REFUSED | number

    def took(self, post: Post, last_id: int, refused: int) -> None:
        """Say what became of a post, before the tail is published. `last_id` 0: nothing of it was written."""
        words = self._words
        if refused:
            words[REFUSED + post.box] = refused << TAKEN_ID_SHIFT | post.number
            words[TAKEN + post.box] = last_id << TAKEN_ID_SHIFT | SOME_REFUSED | post.number
        else:
            words[TAKEN + post.box] = last_id << TAKEN_ID_SHIFT | post.number

    def give_back(self, next_id: int) -> None:
        """Whoever gave out ids from this one on died before it published them: those posts are to be taken again."""
        words = self._words
        for box in range(min(words[BOXES_END], MAX_BOXES)):
            if words[TAKEN + box] >> TAKEN_ID_SHIFT >= next_id:
                words[TAKEN + box] = 0

    # ------------------------------------------------------------------------------------------------ the end

    def close(self) -> None:
        """Give the box back for good."""
        self.own_box = -1
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def forget_in_child(self) -> None:
        """In a forked child: the box is the parent's, and another is to be had."""
        # Closed, not unlocked: the parent still holds its own.
        self.close()
        self._claimed = False

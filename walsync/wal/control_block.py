"""The control block: what the processes that have a log open tell each other, in words of 64 bits.

Owns the layout. It is a hint and never the truth: the first process to open a log builds it from the segments, and it
lives as long as somebody has the log open. Nothing in it is read after a crash of the machine.

A word is read and written whole. What takes several words is a *record*: a generation, and twice the fields and a
check word. It is written where it is not valid and made valid by the generation, so that a process that dies while it
writes one leaves no trace, and one that reads it without a lock sees all of it or reads again.

A slot file's word is 0 if there is no such file, the sequence of the segment that it holds (which may be released:
then it is free), or one of `FREE`, `MAKING` (a process makes it, or died over it) and `FOREIGN` (another log's).

Words:

    0            magic and version
    1            0 while the block is being built, 1 when it is whole
    2, 3         the log's uuid
    4            1 while somebody writes at the log's tail, under the append lock
    5            1 when the log is poisoned
    6            the last entry that is in the target, as far as an applier has said
    7            the last entry that somebody waits for
    8            the last entry found when the log was recovered
    9            entries up to this one may bear any mark
    10           1 + the highest number of a slot file
    11           1 + the highest number of a box that anybody has had
    12           how many entries were written together last
    13           how long the last sync took, in nanoseconds
    14 to 30     tail: position, next entry id, chain and epoch, segment's sequence, its slot file, promise, base
    32 to 40     durable: position, entry id, segment's sequence
    44 to 54     released: position, entry id, sequence of the first segment in use, generation of the checkpoint slot
    56           how many processes had an entry to commit during the last sync
    57, 58       syncs still to be made before anybody waits for others' entries again, and how many it will be next
    59           1 while somebody has the sync lock
    60           another one whenever somebody wants a lock that another process has
    61           1 while a process keeps both locks, see `walsync.wal.sharing.keeping`
    62           another one whenever a process that does not apply begins to wait for an entry to be applied
    64 to 127    why the log is poisoned: the length of a text in bytes, and the text
    128          bells: a word for each box, which is another one after each sync that its owner waited for
    512          marks: two tables of 8192 words
    16896        slot files: a word for each
    82432        boxes, see `walsync.wal.sharing.posts`: 64 words each for the number of the post that lies in one, how
                 far it is taken, and what was refused of it; then the boxes, of 4 KiB
"""

from __future__ import annotations

import struct
from array import array
from typing import Final, Protocol

from walsync.exceptions import LogError
from walsync.wal.storage.protocol import SharedWords

__all__ = ["Record", "Words", "durable_record", "local_words", "released_record", "tail_record"]

CONTROL_FILE: Final = "control"
"""Where it is kept. Who has a log for itself removes it: nobody may take up what says nothing of that one's entries."""
MAGIC: Final = int.from_bytes(b"walsync\0", "little")
VERSION: Final = 4
"""Of the layout. Another one is not joined; the first process to open a log builds the block anew in its own."""

HEAD: Final = 0
WHOLE: Final = 1
UUID: Final = 2
IN_PROGRESS: Final = 4
POISONED: Final = 5
APPLIED: Final = 6
URGENT: Final = 7
RECOVERED: Final = 8
UNMARKED: Final = 9
SLOTS_END: Final = 10
BOXES_END: Final = 11
GROUP: Final = 12
SYNC_NS: Final = 13
TAIL: Final = 14
DURABLE: Final = 32
RELEASED: Final = 44
COMMITTING: Final = 56
HASTE: Final = 57
NEXT_HASTE: Final = 58
SYNCING: Final = 59
WANTED: Final = 60
KEPT: Final = 61
URGED: Final = 62
POISON_TEXT: Final = 64
POISON_TEXT_BYTES: Final = 63 * 8
BELLS: Final = 128
MARKS: Final = 512
MARK_ROW_WORDS: Final = 8192
SLOTS: Final = MARKS + 2 * MARK_ROW_WORDS
MAX_SLOT_FILES: Final = 65_536
MAX_BOXES: Final = 64
BOX_WORDS: Final = 512
POSTED: Final = SLOTS + MAX_SLOT_FILES
TAKEN: Final = POSTED + MAX_BOXES
REFUSED: Final = TAKEN + MAX_BOXES
BOXES: Final = REFUSED + MAX_BOXES
POST_NUMBER_MASK: Final = 0x7FFF
SOME_REFUSED: Final = 0x8000
TAKEN_ID_SHIFT: Final = 16
TOTAL_WORDS: Final = BOXES + MAX_BOXES * BOX_WORDS

FREE: Final = 1 << 63
MAKING: Final = FREE + 1
FOREIGN: Final = FREE + 2

WORD_MASK: Final = (1 << 64) - 1
_MAX_READS: Final = 100_000
"""Of a record: each is over when two writes fall into it, which take far longer than it does."""


class Words(Protocol):
    """A block's words."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


def local_words() -> Words:
    """The words that a log which nobody shares needs: all but those of the slot files."""
    return array("Q", bytes(8 * SLOTS))


class Record:
    """A record of a shared block. Read by anybody; written by one at a time, who holds the lock that belongs to it.

    What was read is kept until the generation is another one: a published record is never changed in place.
    """

    __slots__ = ("_at", "_bytes", "_packed", "_width", "_words", "seen")

    def __init__(self, words: SharedWords, at: int, fields: int) -> None:
        self._words = words
        self._at = at
        self._width = fields + 1
        self._bytes = memoryview(words).cast("B")  # type: ignore[arg-type]
        self._packed = struct.Struct(f"@{fields + 1}Q")  # native: each word is written whole
        self.seen: tuple[int, tuple[int, ...]] | None = None
        """The last generation known here, and its fields. Replaced whole: any thread may, and so may one that writes
        the record itself, as `write` does, having no time for a call."""

    @property
    def generation(self) -> int:
        """Changes with each write."""
        return self._words[self._at]  # type: ignore[no-any-return]

    def read(self) -> tuple[int, ...]:
        """The fields. Raises `LogError` for a block that somebody else has overwritten."""
        words, at = self._words, self._at
        seen = self.seen
        if seen is not None and seen[0] == words[at]:
            return seen[1]
        width = self._width
        for _ in range(_MAX_READS):
            generation = words[at]
            start = at + 1 + (generation & 1) * width
            fields: list[int] = words[start : start + width].tolist()
            check = fields.pop()
            if words[at] == generation and check == (sum(fields) + generation) & WORD_MASK:
                found = tuple(fields)
                self.seen = (generation, found)
                return found
        raise LogError(
            "the control block of the log was overwritten. Close the log in every process, and open it again"
        )

    def write(self, *fields: int) -> None:
        """Replace them all at once."""
        words, at = self._words, self._at
        generation = words[at] + 1
        self._packed.pack_into(
            self._bytes,
            8 * (at + 1 + (generation & 1) * self._width),
            *fields,
            (sum(fields) + generation) & WORD_MASK,
        )
        words[at] = generation
        self.seen = (generation, fields)


def tail_record(words: SharedWords) -> Record:
    """Position, next entry id, chain | epoch << 32, sequence, slot number, promise, base."""
    return Record(words, TAIL, 7)


def durable_record(words: SharedWords) -> Record:
    """Position, entry id, sequence of the segment that it lies in."""
    return Record(words, DURABLE, 3)


def released_record(words: SharedWords) -> Record:
    """Position, entry id, sequence of the first segment in use, generation of the checkpoint slot."""
    return Record(words, RELEASED, 4)

"""The tail of a log while this process keeps both of its locks: a commit with fewer steps.

Nobody else writes or syncs then (`walsync.wal.sharing.keeping`), so nothing need be looked at that others may have
done; but everything is published as always, for those who read, and for who takes over if this process dies. What
`SharedTail` does in several calls is done here in one: each costs a microsecond where the processor has slept through a
sync.
"""

from __future__ import annotations

import struct
from typing import Final

from walsync.wal.control_block import DURABLE, IN_PROGRESS, POISONED, TAIL, WORD_MASK
from walsync.wal.sharing.tail import EPOCH_SHIFT, TAIL_WIDTH, TAIL_WORDS, SharedTail

__all__ = ["KeptTail"]

_DURABLE_WIDTH: Final = 4
_DURABLE_WORDS: Final = struct.Struct(f"@{_DURABLE_WIDTH}Q")
"""Native: each word is written whole."""


class KeptTail(SharedTail):
    """A `SharedTail` whose `write_kept` and `sync_kept` are for who leads, while `keeping.is_on`."""

    def write_kept(self, work: bytes, places: tuple[int, ...]) -> int:
        """Write an entry of one chunk and publish it; returns its id. `enter`, the appender and `leave` in one, with
        fewer steps. After an exception `fail` must be called.
        """
        words, appender, generation = self._words, self._appender, self._generation
        if words[TAIL] != generation or words[IN_PROGRESS] or words[POISONED]:
            self.enter()
            generation = self._generation
        else:
            words[IN_PROGRESS] = 1
            self._entered = True
        entry_id = self.own_id = appender.write_chunk_entry(work, to_sync=True)
        for place in places:
            words[place] = entry_id
        segment = appender.segment
        if segment is not self._numbered[0]:
            self._publish()
            appender.retired.clear()
        else:
            sequence, number = segment.sequence, self._numbered[1]
            chain = appender._chain | appender._epoch << EPOCH_SHIFT
            position, next_id, promised, base = appender.written[0], entry_id + 1, appender.promised, segment.base
            generation += 1
            TAIL_WORDS.pack_into(
                self._bytes,
                8 * (TAIL + 1 + (generation & 1) * TAIL_WIDTH),
                position, next_id, chain, sequence, number, promised, base,
                (position + next_id + chain + sequence + number + promised + base + generation) & WORD_MASK,
            )  # fmt: skip
            words[TAIL] = self._generation = generation
            self._tail.seen = generation, (position, next_id, chain, sequence, number, promised, base)
        words[IN_PROGRESS] = 0
        self._entered = False
        return entry_id

    def sync_kept(self) -> tuple[int, int]:
        """Make durable what is written. `sync` with fewer steps."""
        # What is published, not what the appender has written: whoever died in between would leave a tail that ends
        # before what is durable.
        appender, words, seen, file = self._appender, self._words, self._tail.seen, self._synced_file[1]
        if seen is None or file is None or seen[1][3] != self._durable_sequence:
            return self._sync_written()
        position, next_id, _, sequence, _, _, _ = seen[1]
        target = position, next_id - 1
        if target == appender.durable:
            return target
        # Written before the sync, while the disk is at work already; made valid after it.
        position, entry_id = target
        generation = words[DURABLE] + 1
        _DURABLE_WORDS.pack_into(
            self._bytes,
            8 * (DURABLE + 1 + (generation & 1) * _DURABLE_WIDTH),
            position, entry_id, sequence, (position + entry_id + sequence + generation) & WORD_MASK,
        )  # fmt: skip
        file.sync()
        appender.durable = target
        words[DURABLE] = self._durable_generation = self._synced_generation = generation
        self._durable.seen = generation, (position, entry_id, sequence)
        return target

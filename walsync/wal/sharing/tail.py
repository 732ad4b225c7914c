"""The log's tail, written by one process at a time and synced by one at a time.

Owns the append lock and the sync lock between processes, and what is published under them. Between `enter` and `leave`
this process's appender stands where the log ends, whoever wrote last; what it wrote is published by `leave`, whole or
not at all. `sync` returns when this process's entries are durable, through a sync of its own or of another process.

A writer that dies before it publishes leaves the word IN_PROGRESS behind: whoever writes next begins at the published
end, with a RECOVERY frame and the next epoch, so that nothing of what lies there can be taken for a continuation. It is
not synced by itself: no entry is acknowledged before a sync that covers it, and until then the dead writer's frames, if
the disk has them, are an entry that was never acknowledged, whole or torn.

A signal's handler that raises in the middle of a write is a death as far as the log is concerned; the process goes on.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from typing import Final

from walsync.exceptions import LogTimeoutError
from walsync.wal.appender import Appender
from walsync.wal.config import LogConfig
from walsync.wal.control_block import (
    DURABLE,
    IN_PROGRESS,
    POISONED,
    SYNC_NS,
    SYNCING,
    TAIL,
    WORD_MASK,
    durable_record,
    tail_record,
)
from walsync.wal.format import RECOVERY
from walsync.wal.segment import Segment, slot_number
from walsync.wal.sharing.keeping import Keeping
from walsync.wal.sharing.locks import give_way, locking_failed, wait_for
from walsync.wal.sharing.poison import Poison
from walsync.wal.sharing.slot_files import SharedSlotFiles
from walsync.wal.storage.protocol import SharedBells, SharedLock, SharedWords, StorageFile

__all__ = ["EPOCH_SHIFT", "TAIL_WIDTH", "TAIL_WORDS", "SharedTail"]

_YIELDS: Final = 3
_LONGEST_APPEND_PAUSE_S: Final = 0.001
_ORPHANED_S: Final = 0.5
EPOCH_SHIFT: Final = 32
TAIL_WIDTH: Final = 8
TAIL_WORDS: Final = struct.Struct(f"@{TAIL_WIDTH}Q")
"""Native: each word is written whole."""
_CHAIN_MASK: Final = (1 << EPOCH_SHIFT) - 1


class SharedTail:
    """Between `enter` and `leave`, or `fail`, the caller has the appender's thread lock as well."""

    def __init__(
        self,
        words: SharedWords,
        append_lock: SharedLock,
        sync_lock: SharedLock,
        bells: SharedBells,
        appender: Appender,
        slot_files: SharedSlotFiles,
        config: LogConfig,
        *,
        segment_of: Callable[[int], Segment],
        file_of: Callable[[Segment], StorageFile],
        forget_after: Callable[[int], None],
        give_back: Callable[[int], None],
    ) -> None:
        """`segment_of` finds a segment by its sequence; `forget_after` drops those that nobody published; `give_back`
        is told the first id that was not.
        """
        self._words = words
        self._bytes = memoryview(words).cast("B")  # type: ignore[arg-type]
        self._append_lock = append_lock
        self.sync_lock = sync_lock
        self._appender = appender
        self._slot_files = slot_files
        self.poison = Poison(words)
        self.keeping = Keeping(words, bells, append_lock, sync_lock, appender, config.keep_s)
        self._config = config
        self._segment_of = segment_of
        self._file_of = file_of
        self._forget_after = forget_after
        self._give_back = give_back
        self._tail = tail_record(words)
        self._durable = durable_record(words)
        # Not what the block says now: the appender was made from what it said a moment ago.
        self._generation = -1
        self._durable_generation = -1
        self._durable_sequence = -1
        self._synced_file: tuple[int, StorageFile | None] = (-1, None)
        self._synced_generation = -1
        self.orphaned_after_s = _ORPHANED_S + 2 * config.sync_interval_s
        """Entries that are written for so long and not durable have lost the process that was to sync them."""
        self._entered = False
        self._leaving = False
        self._numbered: tuple[Segment | None, int] = (None, 0)
        self.own_id = 0
        """The last entry that this process wrote, or that somebody here waits for."""

    # --------------------------------------------------------------------------------------------------- asking

    def durable(self) -> tuple[int, int]:
        """Position and entry up to which everything is durable. Takes no lock."""
        position, entry_id, _ = self._durable.read()
        return position, entry_id

    def written(self) -> tuple[int, int]:
        """Position and entry up to which everything is written. Takes no lock."""
        fields = self._tail.read()
        return fields[0], fields[1] - 1

    def is_before(self, position: float, entry_id: float) -> bool:
        """Whether what is written ends before this position and before this entry. Asked before each commit."""
        tail = self._tail
        seen = tail.seen
        fields = seen[1] if seen is not None and seen[0] == self._words[TAIL] else tail.read()
        return fields[0] < position and fields[1] <= entry_id

    @property
    def last_sequence(self) -> int:
        """The segment that is being appended to. Takes no lock."""
        return self._tail.read()[3]

    # -------------------------------------------------------------------------------------------------- writing

    def enter(self) -> None:
        """Have the append lock, and the appender at the log's end. After an exception `fail` must be called as well."""
        if not self.keeping.is_on:
            try:
                self._append_lock.try_exclusive()
            except BlockingIOError:
                self.keeping.want()
                self._wait_to_append()
            except OSError as error:
                raise locking_failed(error) from error
        # On the path of every commit: words are read and written here, not through records, which are calls.
        words = self._words
        if words[POISONED]:
            self.poison.raise_told()
        if words[TAIL] != self._generation or words[IN_PROGRESS]:
            self._catch_up()
        if words[DURABLE] != self._durable_generation:
            self._read_durable()
        words[IN_PROGRESS] = 1
        self._leaving = False
        self._entered = True

    def leave(self) -> None:
        """Publish what was written, and let others write. If it is interrupted, `finish` must be called."""
        self._leaving = True
        words = self._words
        if not words[POISONED]:
            appender = self._appender
            self.own_id = appender.next_id - 1
            self._publish()
            if appender.retired:
                appender.retired.clear()
            words[IN_PROGRESS] = 0
        self._entered = False
        if not self.keeping.is_on:
            self._append_lock.unlock()

    def finish(self) -> bool:
        """After an interrupt between `enter` and the end of `leave`: come to an end. Whether anything is published."""
        if not self._leaving:
            if self._entered:
                self.fail(nothing_written=False)
            return False
        if self._entered:
            # Others still wait for the lock. What was published already is published once more.
            self.leave()
        if not self.keeping.is_on:
            with contextlib.suppress(OSError):
                self._append_lock.unlock()
        return True

    def fail(self, *, nothing_written: bool) -> None:
        """What was to be written is not. What of it lies in the file is for the next writer to overwrite."""
        try:
            if nothing_written and self._entered:
                self._words[IN_PROGRESS] = 0
            else:
                self._generation = -1
        finally:
            self._entered = False
            # Where the system does not unlock, whoever wants to write next is told so.
            if not self.keeping.is_on:
                with contextlib.suppress(OSError):
                    self._append_lock.unlock()

    def _wait_to_append(self) -> None:
        # It is held for some ten microseconds: sleeping takes longer, and leaves it free while everybody sleeps.
        for _ in range(_YIELDS):
            give_way()
            with contextlib.suppress(BlockingIOError):
                self._append_lock.try_exclusive()
                return
        timeout_s = self._config.append_timeout_s
        if not wait_for(self._append_lock, timeout_s, _LONGEST_APPEND_PAUSE_S):
            raise LogTimeoutError(
                f"another process did not finish its write to the log within {timeout_s} s "
                "(LogConfig.append_timeout_s). The entry was not written; look whether a process that has the log open "
                "was stopped"
            )

    def _publish(self) -> None:
        appender, words = self._appender, self._words
        position, next_id, chain, epoch, promised, base = appender.place()
        segment = appender.segment
        if segment is not self._numbered[0]:
            self._numbered = (segment, slot_number(segment.name) or 0)
        number, sequence = self._numbered[1], segment.sequence
        chain |= epoch << EPOCH_SHIFT
        # As `Record.write` does.
        generation = words[TAIL] + 1
        TAIL_WORDS.pack_into(
            self._bytes,
            8 * (TAIL + 1 + (generation & 1) * TAIL_WIDTH),
            position, next_id, chain, sequence, number, promised, base,
            (position + next_id + chain + sequence + number + promised + base + generation) & WORD_MASK,
        )  # fmt: skip
        words[TAIL] = generation
        self._generation = generation
        self._tail.seen = generation, (position, next_id, chain, sequence, number, promised, base)

    def publish_first(self) -> None:
        """While the block is built: where recovery left the log."""
        position, entry_id = self._appender.durable
        self._durable.write(position, entry_id, self._appender.segment.sequence)
        self._publish()

    def _catch_up(self) -> None:
        """Another process wrote last, or died over it, or this one was interrupted."""
        words, appender = self._words, self._appender
        interrupted = bool(words[IN_PROGRESS])
        generation = words[TAIL]
        place = TAIL + 1 + (generation & 1) * TAIL_WIDTH
        # Under the lock a record is whole.
        position, next_id, chain_epoch, sequence, _, promised = words[place : place + 6].tolist()
        if not interrupted and self._generation >= 0 and appender.segment.sequence == sequence:
            appender.adopt(
                appender.segment,
                position,
                chain_epoch & _CHAIN_MASK,
                chain_epoch >> EPOCH_SHIFT,
                next_id,
                promised,
            )
            self._generation = generation
            return
        # Until this is done, a failure leaves the tail to be taken up again.
        self._generation = -1
        words[IN_PROGRESS] = 1
        if interrupted or appender.segment.sequence != sequence:
            self._forget_after(sequence)
        segment = appender.segment if appender.segment.sequence == sequence else self._segment_of(sequence)
        appender.adopt(segment, position, chain_epoch & _CHAIN_MASK, chain_epoch >> EPOCH_SHIFT, next_id, promised)
        self._read_durable()
        if interrupted:
            self._give_back(next_id)
            self._slot_files.take_back(sequence)
            if not appender.has_room_for(2):
                self._slot_files.reserve(1)
                appender.next_segment(next_id - 1)
            appender.write_boundary(RECOVERY)
            appender.mark_written()
            self._publish()
        self._generation = self._tail.generation

    def _read_durable(self) -> None:
        # The generation first: what is read may be newer.
        self._durable_generation = self._words[DURABLE]
        self._appender.durable = self.durable()

    def try_hold(self) -> Callable[[], None] | None:
        """The append lock without anything else: what gives it back; None if it is not free. For the slot files."""
        lock = self._appender.lock
        if not lock.acquire(False):
            return None
        try:
            if not self.keeping.is_on:
                self._append_lock.try_exclusive()
        except BlockingIOError:
            self.keeping.want()
            lock.release()
            return None
        except BaseException:
            lock.release()
            raise

        def give_back() -> None:
            try:
                if not self.keeping.is_on:
                    self._append_lock.unlock()
            finally:
                lock.release()

        return give_back

    # -------------------------------------------------------------------------------------------------- syncing

    def need_all(self) -> None:
        """The next sync is to cover what any process has written by now."""
        self.own_id = max(self.own_id, self.written()[1])

    def try_sync_lock(self) -> bool:
        """Be the one who syncs, unless another process is."""
        if not self.keeping.is_on:
            try:
                self.sync_lock.try_exclusive()
            except BlockingIOError:
                self.keeping.want()
                return False
            except OSError as error:
                raise locking_failed(error) from error
        self._words[SYNCING] = 1
        return True

    def release_sync_lock(self) -> None:
        """Let others sync. May be called without having the lock."""
        self._words[SYNCING] = 0
        keeping = self.keeping
        if not keeping.is_on:
            keeping.keep_or_release()
        elif keeping.is_wanted:
            keeping.let_go()

    def release_at_once(self) -> None:
        """`release_sync_lock` that waits for no thread: what is kept, the thread of `keeping` gives back."""
        self._words[SYNCING] = 0
        if not self.keeping.is_on:
            self.sync_lock.unlock()

    def sync(self) -> tuple[int, int]:
        """Make durable what is written, if `own_id` is not yet. With the sync lock."""
        words = self._words
        if words[POISONED]:
            self.poison.raise_told()
        generation = words[DURABLE]
        if generation != self._synced_generation:
            # Another process has synced since.
            self._synced_generation = generation
            durable = self.durable()
            if durable[1] >= self.own_id:
                return durable
        return self._sync_written()

    def _sync_written(self) -> tuple[int, int]:
        """Sync all segments from the one that is durable in part to the last. With the sync lock."""
        position, next_id, _, sequence, _, _, _ = self._tail.read()
        first = self._durable.read()[2]
        for earlier in range(first, sequence):
            self._file_of(self._segment_of(earlier)).sync()
        if self._synced_file[0] != sequence:
            self._synced_file = (sequence, self._file_of(self._segment_of(sequence)))
        file = self._synced_file[1]
        assert file is not None
        began_ns = time.monotonic_ns()
        if not self.keeping.is_on:
            self.keeping.note_sync(began_ns)
        file.sync()
        self._words[SYNC_NS] = time.monotonic_ns() - began_ns
        self._durable.write(position, next_id - 1, sequence)
        self._durable_sequence = sequence
        # What this process has written there it need not read again.
        self._appender.durable = position, next_id - 1
        self._synced_generation = self._durable_generation = self._words[DURABLE]
        return position, next_id - 1

    # ------------------------------------------------------------------------------------------------ the end

    def close(self) -> None:
        """Give up both locks for good."""
        self.keeping.stop()
        self._append_lock.close()
        self.sync_lock.close()

    def forget_in_child(self) -> None:
        """In a forked child: it holds nothing, and stands where the parent's threads may have been in mid-write."""
        self.keeping.forget_in_child()
        self._append_lock.reopen()
        self.sync_lock.reopen()
        self._generation = self._durable_generation = self._durable_sequence = self._synced_generation = -1
        self._synced_file = (-1, None)
        self.own_id = 0

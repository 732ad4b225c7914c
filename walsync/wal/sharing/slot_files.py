"""The pool of slot files that several processes take from: the same files as `SegmentPool` keeps, in a shared table.

Owns the table in the control block: what each slot file holds. A file is free when it was never used or when the
segment in it is released, so that a release frees it with nothing else to be written. Files are made and removed under
the lock of the slot files, by whoever finds that one is missing or too many; one is taken under the append lock alone.
A process that dies over a file leaves a word that says so, and the next one that has the lock removes the file.

A free file is looked at before it is taken: it must be there and have this process's segment size.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from walsync.wal.config import LogConfig
from walsync.wal.control_block import FREE, MAKING, MAX_SLOT_FILES, SLOTS, SLOTS_END, Record
from walsync.wal.open_files import OpenFiles
from walsync.wal.segment import slot_name, slot_number
from walsync.wal.segments import log_is_at_its_bound, make_slot_file, making_failed, no_segment_in_time
from walsync.wal.sharing.locks import TimedLock
from walsync.wal.storage.protocol import SharedWords, Storage

__all__ = ["SharedSlotFiles"]


class SharedSlotFiles:
    """The slot files of one log. `reserve` and `take` are called under the append lock; the rest from any thread."""

    def __init__(
        self,
        storage: Storage,
        config: LogConfig,
        words: SharedWords,
        released: Record,
        lock: TimedLock,
        files: OpenFiles,
    ) -> None:
        self._storage = storage
        self._config = config
        self._words = words
        self._released = released
        self._lock = lock
        self._files = files
        self.try_append_lock: Callable[[], Callable[[], None] | None] = lambda: None
        """Takes the append lock if it is free, and returns what gives it back."""
        self._chosen: list[int] = []
        self._closed = False
        self.threaded = True
        self.wake: Callable[[], None] = lambda: None

    # ----------------------------------------------------------------------------------------------- the table

    def _table(self) -> list[int]:
        words = self._words
        return words[SLOTS : SLOTS + words[SLOTS_END]].tolist()  # type: ignore[no-any-return]

    def number_of(self, sequence: int) -> int | None:
        """The slot file that holds the segment with this sequence."""
        try:
            return self._table().index(sequence)
        except ValueError:
            return None

    def _free(self) -> list[int]:
        head = self._released.read()[2]
        return [number for number, word in enumerate(self._table()) if word == FREE or 0 < word < head]

    def _in_use(self) -> int:
        head = self._released.read()[2]
        return sum(head <= word < FREE for word in self._table())

    def _fits(self, number: int) -> bool:
        """Whether a free file can be used by this process."""
        try:
            file = self._storage.open(slot_name(number), read_only=True)
        except OSError:
            return False
        try:
            return file.size() == self._config.segment_bytes
        finally:
            file.close()

    def _usable(self, count: int) -> list[int]:
        """At most `count` free files that fit."""
        found: list[int] = []
        for number in self._free():
            if len(found) == count:
                break
            if self._fits(number):
                found.append(number)
        return found

    @property
    def free_count(self) -> int:
        """Files that are ready to be taken."""
        return len(self._free())

    @property
    def free_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(slot_name(number) for number in self._free())

    # --------------------------------------------------------------------------------------- taking, under append

    def reserve(self, count: int) -> None:
        """Return when `count` files are ready. Raises `LogFullError` if there is no room for them."""
        self._chosen = self._usable(count)
        if len(self._chosen) == count:
            return
        limit = self._config.max_log_bytes
        if limit is not None and (self._in_use() + count) * self._config.segment_bytes > limit:
            raise log_is_at_its_bound(self._storage, limit)
        timeout_s = self._config.segment_timeout_s
        # Whoever has the lock is making one, most likely.
        if not self._lock.acquire(timeout_s):
            raise no_segment_in_time(self._storage, timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            self._clean()
            self._chosen = self._usable(count)
            while len(self._chosen) < count:
                if time.monotonic() > deadline:
                    raise no_segment_in_time(self._storage, timeout_s)
                self._chosen.append(self._make())
        finally:
            self._lock.release()

    def take(self, sequence: int) -> str:
        """A file that `reserve` has made sure of, for the segment with this sequence."""
        number = self._chosen.pop(0)
        name = slot_name(number)
        # Another process may have removed the file that this one has open, and made a new one of the name.
        self._files.drop(name)
        self._words[SLOTS + number] = sequence
        self.wake()
        return name

    def take_back(self, last_sequence: int) -> None:
        """Whoever took files for later segments has died: they are free. Under the append lock."""
        for number, word in enumerate(self._table()):
            if last_sequence < word < FREE:
                self._words[SLOTS + number] = FREE

    # ------------------------------------------------------------------------------ making, under the files' lock

    def _make(self) -> int:
        table = self._table()
        # Number 0 is not used.
        number = next((number for number in range(1, len(table)) if not table[number]), max(1, len(table)))
        words, size = self._words, self._config.segment_bytes
        if number >= MAX_SLOT_FILES:
            raise log_is_at_its_bound(self._storage, MAX_SLOT_FILES * size)
        words[SLOTS + number] = MAKING
        words[SLOTS_END] = max(words[SLOTS_END], number + 1)
        try:
            with contextlib.suppress(FileNotFoundError):
                # Nobody's: whoever was to remove it has died.
                self._storage.remove(slot_name(number))
            make_slot_file(self._storage, size, number)
        except OSError as error:
            words[SLOTS + number] = 0
            raise making_failed(self._storage, size, number, error) from error
        words[SLOTS + number] = FREE
        return number

    def _clean(self) -> None:
        """Remove what those have left who died while they made a file."""
        for number, word in enumerate(self._table()):
            if word == MAKING:
                with contextlib.suppress(FileNotFoundError):
                    self._storage.remove(slot_name(number))
                self._words[SLOTS + number] = 0

    def prepare(self) -> None:
        """Make the files that are missing and remove those that are too many. Does nothing while others do that.

        Raises nothing for a full disk: whoever needs a file gets that error.
        """
        wanted = self._config.preallocated_segments
        while not self._closed and len(self._usable(wanted)) < wanted and self._has_room():
            if not self._lock.try_acquire():
                return
            try:
                self._clean()
                if len(self._usable(wanted)) >= wanted:
                    break
                self._make()
            except Exception:  # noqa: BLE001 - whoever needs the file meets the same, and tells its caller
                return
            finally:
                self._lock.release()
        self.trim(2 * self._config.max_free_segments + 2)

    def _has_room(self) -> bool:
        limit = self._config.max_log_bytes
        return limit is None or (self._in_use() + self.free_count + 1) * self._config.segment_bytes <= limit

    # ------------------------------------------------------------------------------------------------- removing

    def give_back(self, names: list[str]) -> None:
        """They are free since their segments are released."""
        self.wake()

    def forget(self, names: list[str]) -> None:
        """Files whose segments are released and that are of no use to this process: remove them.

        A process with another segment size may have taken one since, or may do so now. Where others are at work they
        stay, free, until `trim`.
        """
        if names:
            numbers = {slot_number(name) for name in names}
            self._remove_free(lambda free: [number for number in free if number in numbers])

    def trim(self, kept: int | None = None) -> None:
        """Remove free files beyond `kept`, by default `LogConfig.max_free_segments`, unless somebody is at work."""
        kept = max(self._config.max_free_segments if kept is None else kept, self._config.preallocated_segments)
        if self.free_count > kept:
            # Those with small numbers are kept, so that the table stays short.
            self._remove_free(lambda free: free[kept:])

    def _remove_free(self, choose: Callable[[list[int]], list[int]]) -> None:
        """Remove those of the free files that `choose` picks, unless somebody is at work."""
        if not self._lock.try_acquire():
            return
        try:
            give_back = self.try_append_lock()
            if give_back is None:
                return
            try:
                # Nobody takes a file now.
                chosen = choose(self._free())
                for number in chosen:
                    self._words[SLOTS + number] = 0
            finally:
                give_back()
            for number in chosen:
                with contextlib.suppress(OSError):
                    self._storage.remove(slot_name(number))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Make no more files."""
        self._closed = True
        self._lock.close()

    def forget_in_child(self) -> None:
        """In a forked child."""
        self._chosen = []
        self.wake = lambda: None
        self._lock.forget_in_child()

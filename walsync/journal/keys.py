"""Primary keys before the target sees the row.

An autoincrement key comes from a block that was reserved in the target. For each key column a process has its *current*
block, in memory. The *reserve*, for the time when the target is away, also across a restart, is a file of the log
directory that all processes share (`walsync.journal.key_file`). When the current block is used up, a block is first
taken out of the reserve, durably, and only then used: no key can be given out twice, and a crash costs at most the rest
of one block, a gap in the numbers. Whoever takes a block puts a new one in, fetched in the background, and a process
that begins by taking one puts in two; so the reserve comes to hold a block for each process, within a bound.

A forked child begins without a current block: the parent's is the parent's.

Invariants: a key is given out once; a key that the application chose itself is never given out after it; nothing is
fetched while a lock that another column needs is held.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Column, Connection, func, select

from walsync.exceptions import ConfigurationError, KeysExhaustedError
from walsync.journal.forks import renew_in_child
from walsync.journal.key_file import KeyFile, KeyRange
from walsync.journal.key_sources import column_id

__all__ = ["KeyAllocator", "KeyConfig", "KeySource"]

logger = logging.getLogger("walsync.keys")

_RESERVE_BLOCKS: Final = 8
"""A process that begins adds a block of its own to the reserve until it holds so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyConfig:
    """How autoincrement keys are reserved. Immutable; validated when made.

    `block_keys`: keys in one block, 1 to 10,000,000. Each process has one in use per table, and puts one into the
    reserve that all processes share, which holds up to 8: with the target away, the rest of those in use and
    what is in the reserve can still be given out. A process that ends leaves a gap of up to one block.
    `close_timeout_s`: how long closing waits for a fetch that is under way.
    """

    block_keys: int = 10_000
    close_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.block_keys <= 10_000_000:
            raise ConfigurationError(f"block_keys must be from 1 to 10,000,000, not {self.block_keys}")
        if not 0 <= self.close_timeout_s <= 3600:
            raise ConfigurationError(f"close_timeout_s must be from 0 to 3600 seconds, not {self.close_timeout_s}")


class KeySource(Protocol):
    """Where blocks come from. Implementations do I/O on the target and raise what its driver raises."""

    def fetch(self, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        """Reserve `count` keys, all of them greater than `above` where the source can see to that."""
        ...

    def reserve_on(self, connection: Connection, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        """The same inside of a transaction that the caller has begun and will end."""
        ...


_T = TypeVar("_T")


class Offload(Protocol):
    """Calls a function that may block, where it may, and returns what it returns."""

    def __call__(self, function: Callable[[], _T], /) -> _T: ...


class _KeyColumn:
    """The current block of one column. `lock` guards all fields."""

    __slots__ = ("column", "current", "fetching", "lock", "new", "noted", "owed")

    def __init__(self, column: Column[Any]) -> None:
        self.column = column
        self.noted = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """With a lock that nobody holds, and no block."""
        self.lock = threading.Lock()
        self.current: deque[KeyRange] = deque()
        self.fetching = False
        self.new = True  # no block was taken yet
        self.owed = 1  # blocks that are to be put into the reserve

    def take(self) -> int | None:
        """The next key of the current block, or None; the lock is held."""
        while self.current:
            first, last = self.current[0]
            key = max(first, self.noted + 1)
            if key >= last:
                self.current.popleft()
            else:
                self.current[0] = (key + 1, last)
            if key <= last:
                return key
        return None


class KeyAllocator:
    """Gives out keys. Thread-safe. `next_key` blocks for the target only when neither the current block of a column nor
    the reserve has one; without a `file` there is no reserve.

    With `offload` nothing blocks the calling thread itself, but what is handed to that.
    """

    def __init__(
        self, source: KeySource, file: KeyFile | None, config: KeyConfig, offload: Offload | None = None
    ) -> None:
        self._source = source
        self._file = file
        self._config = config
        self._offload = offload
        self._lock = threading.Lock()  # guards _columns and _threads; taken inside a column's lock, never around
        self._columns: dict[str, _KeyColumn] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._by_column: dict[Column[Any], _KeyColumn] = {}
        renew_in_child(self)

    def forget_parent(self) -> None:
        """Called in a forked child: blocks, threads and locks are the parent's."""
        self._lock = threading.Lock()
        self._threads = set()
        for state in self._columns.values():
            state.begin_anew()
        if self._file is not None:
            self._file.forget_parent()

    def next_key(self, column: Column[Any]) -> int:
        """The next key of this column. Raises `KeysExhaustedError` if none is left and the target gives no more."""
        state = self._by_column.get(column) or self._state(column)
        if self._offload is not None:
            key = self._take_at_once(state)
            return self._offload(lambda: self._next_key(state)) if key is None else key
        return self._next_key(state)

    def _next_key(self, state: _KeyColumn) -> int:
        with state.lock:
            key = state.take()
            if key is None:
                self._next_block(state)
                key = state.take()
                while key is None:
                    # The whole block lies below keys that the application chose.
                    self._fetch_current(state)
                    key = state.take()
            return key

    def _take_at_once(self, state: _KeyColumn) -> int | None:
        """As `take`, and None where somebody has the lock, who may be fetching a block under it."""
        if not state.lock.acquire(blocking=False):
            return None
        try:
            return state.take()
        finally:
            state.lock.release()

    def reserved_key(self, column: Column[Any]) -> int | None:
        """The next key of the block in use, or None if it is used up. Never asks the target, does no I/O.

        None as well where that cannot be told at once, and this must not block.
        """
        state = self._by_column.get(column) or self._state(column)
        if self._offload is not None:
            return self._take_at_once(state)
        with state.lock:
            return state.take()

    def has_key(self, column: Column[Any]) -> bool:
        """Whether a key can be given out without asking the target, as far as one can tell without a lock."""
        state = self._by_column.get(column) or self._state(column)
        return bool(state.current) or (self._file is not None and self._file.count(column_id(column)) > 0)

    def next_key_on(self, connection: Connection, column: Column[Any]) -> int:
        """The next key for a transaction that may hold locks of the target: without a fetch on another connection.

        Where no reserved key is left, one is reserved inside of the transaction that `connection` is in: if that is
        rolled back, so is the reservation, and the row that was to have the key.
        """
        state = self._by_column.get(column) or self._state(column)

        def from_reserve() -> int | None:
            with state.lock:
                key = state.take()
                if key is None and self._take_reserve(state):
                    self._start_refill(state)
                    key = state.take()
                return key

        key = from_reserve() if self._offload is None else self._offload(from_reserve)
        if key is not None:
            return key
        ((first, _),) = self._source.reserve_on(connection, column, 1, state.noted)
        return first

    def note_keys(self, column: Column[Any], keys: Sequence[Any]) -> None:
        """Keys that the application chose itself: none of them is given out later."""
        state = self._by_column.get(column) or self._state(column)
        highest = 0
        for key in keys:
            if type(key) is int and key > highest:
                highest = key
        if highest > state.noted:
            if self._offload is None:
                self._note(state, highest)
            elif state.lock.acquire(blocking=False):
                state.noted = max(state.noted, highest)
                state.lock.release()
            else:
                self._offload(lambda: self._note(state, highest))

    def _note(self, state: _KeyColumn, highest: int) -> None:
        with state.lock:
            state.noted = max(state.noted, highest)

    def note_target(self, connection: Connection) -> None:
        """Note the largest key of every column that keys were given out for, as this transaction sees it."""
        with self._lock:
            columns = list(self._by_column)
        for column in columns:
            highest = connection.execute(select(func.max(column))).scalar()
            self.note_keys(column, (highest,))

    def close(self) -> None:
        """Stop fetching. Waits for a fetch under way, up to `KeyConfig.close_timeout_s`."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for thread in threads:
            thread.join(self._config.close_timeout_s)

    # ---------------------------------------------------------------------------------------------- inside

    def _state(self, column: Column[Any]) -> _KeyColumn:
        name = column_id(column)
        with self._lock:
            state = self._columns.get(name)
            if state is None:
                state = self._columns[name] = _KeyColumn(column)
            self._by_column[column] = state
            return state

    def _next_block(self, state: _KeyColumn) -> None:
        """Take a block out of the reserve, or fetch one. I/O under the column's lock: there is no key without it."""
        if not self._take_reserve(state):
            self._fetch_current(state)
        self._start_refill(state)

    def _take_reserve(self, state: _KeyColumn) -> bool:
        if self._file is None:
            return False
        ranges = self._file.take(column_id(state.column), self._config.block_keys)
        state.current.extend(ranges)
        state.owed = 2 if ranges and state.new else 1
        state.new = False
        return bool(ranges)

    def _fetch_current(self, state: _KeyColumn) -> None:
        name = column_id(state.column)
        try:
            ranges = self._source.fetch(state.column, self._config.block_keys, state.noted)
        except Exception as error:
            # Whatever the driver raises, the caller's question was for a key.
            raise KeysExhaustedError(
                f"no reserved key is left for {name}, and the target could not be asked for more "
                f"({type(error).__name__}: {error}). Nothing of this transaction is lost but its key: roll back and "
                "repeat it when the target is back, raise KeyConfig.block_keys, or use keys that the application makes"
            ) from error
        state.current.extend(ranges)

    def _start_refill(self, state: _KeyColumn) -> None:
        """Fetch a block for the reserve in the background; the column's lock is held."""
        if state.fetching or self._file is None:
            return
        thread = threading.Thread(target=self._refill, args=(state,), name="walsync-keys", daemon=True)
        with self._lock:
            if self._closed:
                return
            self._threads.add(thread)
        state.fetching = True
        thread.start()

    def _owed_keys(self, state: _KeyColumn) -> int:
        assert self._file is not None
        block_keys = self._config.block_keys
        count = self._file.count(column_id(state.column)) + state.owed * block_keys
        return block_keys if count > _RESERVE_BLOCKS * block_keys else state.owed * block_keys

    def _refill(self, state: _KeyColumn) -> None:
        try:
            try:
                # Outside of the column's lock: keys of the current block go on being given out.
                ranges = self._source.fetch(state.column, self._owed_keys(state), state.noted)
            except Exception as error:  # noqa: BLE001 - whatever the driver raises
                # Not lost: whoever uses up the current block asks again, and gets the error if it is still there.
                logger.warning("no reserve of keys for %s: %s", column_id(state.column), error)
                return
            assert self._file is not None
            self._file.add(column_id(state.column), ranges)
        except Exception:
            # The reserve could not be stored; it stays unused, and is fetched anew.
            logger.exception("could not store the reserve of keys for %s", column_id(state.column))
        finally:
            with state.lock:
                state.fetching = False
            with self._lock:
                self._threads.discard(threading.current_thread())

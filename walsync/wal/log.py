"""`WriteAheadLog`: the log as its users see it.

Owns the life of an open log: the directory's lock, its threads, which segments are in use, how far it is released. The
work is done by the parts: `opening` recovers, `group_commit` and `appender` write, `reader` reads, `segments` keeps the
files.

A log on files is shared: any number of processes, and of objects in one, may have the directory open at once
(`walsync.wal.sharing`), unless `LogConfig.shared` is False or the system has no `flock`.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from walsync.exceptions import (
    EntryTooLargeError,
    LogClosedError,
    LogError,
    LogPoisonedError,
    UsageError,
)
from walsync.wal.checkpointer import Checkpointer
from walsync.wal.config import Durability, LogConfig, check_durability
from walsync.wal.control import LogControl
from walsync.wal.driver import CheckpointDriver
from walsync.wal.entry import ChunkReader, Entry, EntryWriter
from walsync.wal.housekeeper import Housekeeper
from walsync.wal.interval import IntervalSync
from walsync.wal.open_segments import OpenSegments
from walsync.wal.parts import LogParts, open_alone
from walsync.wal.pending import PendingEntry
from walsync.wal.positions import EntryId, LogPosition
from walsync.wal.reader import LogReader
from walsync.wal.sharing.membership import open_shared
from walsync.wal.stats import LogStats
from walsync.wal.storage.file import FileStorage
from walsync.wal.storage.protocol import Storage

__all__ = ["LOCK_FILE", "WriteAheadLog", "storage_of"]

LOCK_FILE = "lock"
_logger = logging.getLogger(__name__)

_READ_BYTES = 1024 * 1024
_open_logs: weakref.WeakSet[WriteAheadLog] = weakref.WeakSet()


def storage_of(directory: str | os.PathLike[str] | Storage, config: LogConfig) -> Storage:
    """The storage itself, or the one for a path."""
    if isinstance(directory, (str, os.PathLike)):
        return FileStorage(directory, network_file_systems=config.network_file_systems)
    return directory


class WriteAheadLog:
    """A durable sequence of entries. Make one with `WriteAheadLog.recover`; usable from many threads at once.

    Returning from `append` or `EntryWriter.commit` means that the entry is on stable storage, unless it was asked for
    with the durability `"interval"`.
    """

    def __init__(self, storage: Storage, parts: LogParts, checkpointer: Checkpointer | None, config: LogConfig) -> None:
        """Called by `recover`."""
        self.config = config
        self._storage = storage
        self._checkpointer = checkpointer
        self._membership = parts.membership
        self._appender = parts.appender
        self._pool = parts.pool
        self._files = parts.files
        self._torn_bytes = parts.torn_bytes
        self._uuid = parts.uuid
        self._commits = parts.commits
        self._releases = parts.releases
        self._durable = parts.durable
        self._written = parts.written
        self.is_before = parts.is_before
        """Whether what is written, durable or not, ends before a position and before an entry. Takes no lock."""
        self._interval = IntervalSync(parts.commits, parts.appender, config.sync_interval_s)
        self._commit = self._committer(config.durability)
        self._max_entry_bytes = config.max_entry_bytes
        self.control = LogControl(
            parts.words,
            shared=parts.shared,
            lease=parts.lease,
            last_id=lambda: self._written()[1],
            stamp=parts.written_stamp,
            released_id=lambda: self._releases.through[1],
            exclusive=parts.commits.exclusive,
            ring=parts.ring,
        )
        """What the users of the log tell each other, in this process and in others."""
        self.recovered_here = parts.recovered_here
        """Whether this object's opening recovered the log; False if others had it open."""
        self._segments = OpenSegments(storage, parts.releases, parts.files, parts.durable, lambda: self._closed)
        self._reader = LogReader(self._segments, parts.appender._checksum, parts.appender._seed)
        self._driver: CheckpointDriver | None = None
        self._housekeeper: Housekeeper | None = None
        self._trouble = False
        """The next call has something to see to: the driver's error, or what a fork has left undone."""
        self._closed = False
        self._process_id = os.getpid()
        self._is_forked = False
        self._fork_mutex = threading.Lock()
        """Guards the starting of threads in a forked child."""

    @classmethod
    def recover(
        cls,
        directory: str | os.PathLike[str] | Storage,
        checkpointer: Checkpointer | None = None,
        *,
        config: LogConfig | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> WriteAheadLog:
        """Open the log in a directory (or another `Storage`), making it if there is none, and recover what is in it.

        The first process to open a directory recovers it: it blocks while everything that is not checkpointed is read
        and checked; then `checkpointer` is asked about each segment and given each entry. What it raises ends the
        opening and is raised here. Whoever opens the directory while others have it open joins them, without that.
        `clock_ns` and `new_uuid` are where a new segment's creation time and a new log's identity come from.

        Raises `LogLockedError` if another process keeps the directory for itself (or this one wants to, and others
        have it open), `LogPoisonedError` if one that has it open has met a failing disk, `DamagedLogError` if bytes
        that were durable are not there (nothing is changed then), `LogVersionError` for a log of another version,
        `ConfigurationError` for a directory that cannot keep the promises or for a `version_info` that is not that of
        the others, and `LogError` where the system refuses.
        """
        config = LogConfig() if config is None else config
        storage = storage_of(directory, config)
        where = storage.describe("")
        try:
            storage.prepare()
            share = storage.share() if config.shared else None
            if share is not None:
                parts = open_shared(
                    storage, share, LOCK_FILE, config, checkpointer, clock_ns=clock_ns, new_uuid=new_uuid
                )
            else:
                parts = open_alone(storage, LOCK_FILE, config, checkpointer, clock_ns=clock_ns, new_uuid=new_uuid)
        except OSError as error:
            raise LogError(
                f"the log in {where} cannot be opened: {error}. Nothing durable was lost; look at the disk and the "
                "directory's permissions, then open it again"
            ) from error
        log = cls(storage, parts, checkpointer, config)
        _open_logs.add(log)
        try:
            # Whoever has the protocol's methods without its base class is given the entries.
            if parts.recovered_here and checkpointer is not None and getattr(checkpointer, "recovers_entries", True):
                for entry in log.entries():
                    checkpointer.recover(entry)
            log._start_threads()
        except BaseException:
            log.close()
            raise
        return log

    def _start_threads(self) -> None:
        config = self.config
        if config.preallocated_segments or config.idle_hint_s is not None:
            self._pool.threaded = bool(config.preallocated_segments)
            self._housekeeper = Housekeeper(self._pool, self._appender, self._commits, config.idle_hint_s)
            self._housekeeper.start()
        checkpointer = self._checkpointer
        if checkpointer is not None and not getattr(checkpointer, "self_driven", False):
            self._driver = CheckpointDriver(self, checkpointer)
            self._driver.start()

    # --------------------------------------------------------------------------------------------- committing

    def append(
        self,
        *chunks: bytes | bytearray | memoryview,
        durability: Durability | None = None,
        marks: Sequence[str] = (),
    ) -> EntryId:
        """Commit one entry of these chunks and return its id when it is on stable storage. Blocks for one sync or two.

        `marks`: names of which `control.last_marked` tells the last entry that bears them, in every process.

        With the durability `"interval"` it returns when the entry is written, and a thread makes it durable soon after;
        None is `LogConfig.durability`.

        Raises `LogFullError` (the disk is full; nothing was written, the log stays usable), `EntryTooLargeError`,
        `LogPoisonedError` (a write or a sync failed; whether this entry survives shows when the log is opened again),
        `LogClosedError`, and once `CheckpointFailedError` after the log's own driver failed: then nothing was written.
        """
        if self._trouble:
            self._see_to_trouble()
        commit = self._commit if durability is None else self._committer(durability)
        places = self.control.places(marks) if marks else ()
        if len(chunks) == 1:
            work = chunks[0]
            if type(work) is not bytes:
                work = _as_bytes(work)
            if len(work) > self._max_entry_bytes:
                self._refuse_size(len(work))
            return commit(work, places)  # type: ignore[return-value]
        pieces = [chunk if type(chunk) is bytes else _as_bytes(chunk) for chunk in chunks]
        size = sum(map(len, pieces))
        if size > self.config.max_entry_bytes:
            self._refuse_size(size)
        return commit(PendingEntry(pieces), places)  # type: ignore[return-value]

    def append_chunk(self, chunk: bytes, places: tuple[int, ...] = ()) -> EntryId:
        """`append` of one chunk, with the log's own durability and by fewer steps, for who appends very often.

        `places`: what `control.places` answers for the marks. Raises what `append` raises.
        """
        if self._trouble:
            self._see_to_trouble()
        if len(chunk) > self._max_entry_bytes:
            self._refuse_size(len(chunk))
        return self._commit(chunk, places)  # type: ignore[return-value]

    def begin_entry(self, durability: Durability | None = None, marks: Sequence[str] = ()) -> EntryWriter:
        """Begin an entry of any size. It takes no lock and no place in the log before it is committed.

        `durability` and `marks` as in `append`.
        """
        self._check_open()
        commit = self._commit if durability is None else self._committer(durability)
        places = self.control.places(marks)

        def commit_entry(entry: PendingEntry) -> int:
            if self._trouble:
                self._see_to_trouble()
            return commit(entry, places)

        return EntryWriter(
            commit_entry,
            self._appender._checksum,
            buffer_bytes=self.config.buffer_bytes,
            max_entry_bytes=self.config.max_entry_bytes,
        )

    def _committer(self, durability: Durability) -> Callable[[bytes | PendingEntry, tuple[int, ...]], int]:
        check_durability("durability", durability)
        return self._interval.commit if durability == "interval" else self._commits.commit

    def sync(self) -> None:
        """Make durable what was written before the call. Blocks for a sync or two, or returns at once if all is.

        Raises `LogPoisonedError` if that fails, or an earlier write or sync did, and `LogClosedError`.
        """
        self._check_open()
        if self._durable()[1] < self._written()[1]:
            self._commits.sync_all()

    def _refuse_size(self, size: int) -> None:
        raise EntryTooLargeError(
            f"the entry has {size} bytes, and LogConfig.max_entry_bytes is {self.config.max_entry_bytes}. Nothing of "
            "it was written; split it, or raise the bound"
        )

    def _see_to_trouble(self) -> None:
        self._trouble = False
        if self._is_forked:
            # Not in the fork itself: most children of most processes never use the log.
            with self._fork_mutex:
                if self._is_forked:
                    self._is_forked = False
                    self._start_threads()
        error = self._driver.take_error() if self._driver is not None else None
        if error is not None:
            raise error

    def report_trouble(self) -> None:
        """Called by the driver: the next caller gets the checkpointer's error."""
        self._trouble = True

    def _check_open(self) -> None:
        if self._commits.refusal is not None:
            self._commits._refuse()

    # ------------------------------------------------------------------------------------------------- figures

    @property
    def uuid(self) -> uuid.UUID:
        """The log's identity, made when it was created."""
        return self._uuid

    @property
    def directory(self) -> str | None:
        """The directory's path, or None for a storage that has none."""
        return self._storage.directory

    @property
    def last_id(self) -> EntryId:
        """The last entry written, durable or not. Takes no lock."""
        return EntryId(self._written()[1])

    @property
    def durable_id(self) -> EntryId:
        """The last entry that is on stable storage. Takes no lock."""
        return EntryId(self._durable()[1])

    @property
    def checkpointed_id(self) -> EntryId:
        """The last entry that was released. Takes no lock."""
        return EntryId(self._releases.through[1])

    @property
    def backlog_entries(self) -> int:
        """How many entries are durable and not released. Takes no lock."""
        return max(0, self._durable()[1] - self._releases.through[1])

    @property
    def backlog_bytes(self) -> int:
        """How many bytes of the log they take, frames and unused ends of segments included. Takes no lock."""
        position, entry_id = self._releases.through
        durable_position, durable_id = self._durable()
        return max(0, durable_position - position) if durable_id > entry_id else 0

    @property
    def released(self) -> tuple[int, EntryId]:
        """Position and entry up to which everything was released. Takes no lock."""
        position, entry_id = self._releases.through
        return position, EntryId(entry_id)

    @property
    def poisoned(self) -> BaseException | None:
        """What a write or a sync failed with, in whatever process, or None while the log is well."""
        self._commits.look()
        return self._commits.poison_cause

    def stats(self) -> LogStats:
        """All figures at once."""
        driver = self._driver
        return LogStats(
            last_id=self.last_id,
            durable_id=self.durable_id,
            checkpointed_id=self.checkpointed_id,
            backlog_entries=self.backlog_entries,
            backlog_bytes=self.backlog_bytes,
            segments=len(self._releases.segments),
            free_segments=self._pool.free_count,
            segment_bytes=self.config.segment_bytes,
            syncs=self._commits.sync_count,
            torn_bytes=self._torn_bytes,
            poisoned=self.poisoned is not None,
            last_checkpoint_error=repr(driver.last_error) if driver is not None and driver.last_error else None,
        )

    # ------------------------------------------------------------------------------------------------- reading

    def entries(self, after: EntryId = EntryId(0), through: EntryId | None = None) -> Iterator[Entry]:  # noqa: B008
        """The durable entries after `after`, up to `through` (None: up to the last that is durable when it is reached).

        Entries that were released are passed over: iteration starts at the first one that is kept. Going on where the
        last iteration stopped costs nothing extra. Raises `DamagedLogError` if bytes changed on the disk, and
        `EntryNotFoundError` if what is being read is released by somebody else in the meantime.
        """
        self._check_readable()
        return self._reader.entries(after, through)

    def read_at(self, position: LogPosition) -> bytes:
        """The chunk at a position, verified.

        Raises `EntryNotFoundError` if its entry was released or never was, `DamagedLogError` if the bytes changed.
        """
        self._check_readable()
        pieces = list(self._reader.fragments(position))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def open_chunk(self, position: LogPosition) -> io.BufferedReader:
        """The chunk at a position as a binary stream; it takes some 2 MiB of memory at most. Errors as in `read_at`."""
        self._check_readable()
        return io.BufferedReader(ChunkReader(self._reader.fragments(position)), _READ_BYTES)

    def _check_readable(self) -> None:
        # A poisoned log can be read: what was durable stays durable.
        if self._closed or self._process_id != os.getpid():
            self._check_open()

    def wait_durable(self, after: EntryId, timeout: float | None = None) -> bool:
        """Wait until an entry after `after` is durable: True. False after `timeout` seconds, or at a call of `wake()`.

        Raises `LogClosedError` or `LogPoisonedError` when nothing more can become durable.
        """
        return self._commits.wait_durable(after, timeout)

    def wake(self) -> None:
        """Make every `wait_durable` return now."""
        self._commits.wake()

    # --------------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, through: EntryId) -> None:
        """Release the entries up to `through`: they are durable elsewhere. Recycles the segments that nobody needs now.

        Writes to the disk, and waits for it, only when a segment is recycled. An older `through` does nothing.
        """
        durable_id = self._durable()[1]
        if through > durable_id:
            raise UsageError(f"entry {through} cannot be released: the last durable entry is {durable_id}")
        if through <= self._releases.through[1]:
            return
        self._check_readable()
        self._releases.release(through)

    def checkpoint_active(self) -> None:
        """Ask the checkpointer for everything that is durable now, and wait until it is released.

        Waits at most `LogConfig.checkpoint_timeout_s` (`LogTimeoutError`). Raises `CheckpointFailedError` if the
        checkpointer fails, and `UsageError` if there is none.
        """
        self._check_open()
        through = self.durable_id
        checkpointer = self._checkpointer
        if checkpointer is None:
            raise UsageError("this log was opened without a checkpointer; release entries with checkpoint(through)")
        if through <= self.checkpointed_id:
            return
        if self._driver is not None:
            self._driver.checkpoint_through(through, self.config.checkpoint_timeout_s)
            return
        urge = getattr(checkpointer, "urge", None)
        self._releases.wait(
            through,
            self.config.checkpoint_timeout_s,
            urge=lambda: None if urge is None else urge(through),
            check=self._check_open,
        )

    # ------------------------------------------------------------------------------------------------- closing

    def close(self, timeout: float | None = None) -> None:
        """Finish the commits in flight, record how far the log is durable and released, and let the directory go.

        Does not checkpoint: the backlog stays in the log. Waits at most `timeout` seconds (None:
        `LogConfig.close_timeout_s`) for the log's threads. May be called twice. Raises `LogPoisonedError` if entries
        that were committed with the durability `"interval"` could not be made durable.
        """
        if self._closed or self._process_id != os.getpid():
            return
        self._closed = True
        deadline = time.monotonic() + (self.config.close_timeout_s if timeout is None else timeout)
        where = self._storage.describe("")
        try:
            for part in (self._driver, self._housekeeper, self._interval):
                if part is not None:
                    part.stop(max(0.0, deadline - time.monotonic()))
            self._finish(f"the log in {where} was closed; open it again with WriteAheadLog.recover")
            self._interval.raise_if_lost()
        finally:
            self._pool.close()
            self._commits.refuse(LogClosedError(f"the log in {where} was closed"))
            _open_logs.discard(self)
            self._files.close()
            self._releases.close()
            self._membership.release()

    def _finish(self, message: str) -> None:
        commits = self._commits
        refused = LogClosedError(message)
        if commits.refusal is not None:
            return
        try:
            # Entries that are written and not synced have a thread that waits for them.
            commits.sync_all()
            commits.run_locked(type(self._appender).write_hint)
            # Under the lock, so that no entry is on its way to the disk when the files are closed.
            with self._appender.lock:
                commits.refuse(refused)
            commits.sync_all()
        except LogPoisonedError:
            # Whoever committed has been told; closing goes on.
            return
        self._pool.trim()
        self._releases.record_end()

    def shutdown(self, timeout: float | None = None) -> None:
        """Another name of `close`."""
        self.close(timeout)

    def __enter__(self) -> WriteAheadLog:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "poisoned" if self.poisoned is not None else "open"
        return f"<WriteAheadLog {self._storage.describe('')!r}: {state}, entries to {self.last_id}>"

    def _forget_in_child(self) -> None:
        # The threads that held these locks are not in the child.
        shared = self.control.shared
        try:
            self._releases.forget_in_child()
            self._commits.forget_in_child()
            self._pool.forget_in_child()
            self._interval.forget_in_child(goes_on=shared)
            self._files.forget_in_child()
            self._reader.forget_in_child()
            self._membership.forget_in_child()
        except OSError as error:
            shared = False
            _logger.warning("a forked child cannot have the log of its parent: %s", error)
        self._housekeeper = self._driver = None
        if shared:
            self._process_id = os.getpid()
            self._fork_mutex = threading.Lock()
            self.recovered_here = False
            self._is_forked = self._trouble = True
            return
        self._commits.refuse(
            LogClosedError(
                f"the log in {self._storage.describe('')} was opened by process {self._process_id}, and this is its "
                f"forked child {os.getpid()}: only one of them may use it. Open logs after the fork"
            )
        )


def _as_bytes(chunk: object) -> bytes:
    if isinstance(chunk, (bytes, bytearray, memoryview)):
        # A copy: what others change during the write would no longer match its checksum.
        return bytes(chunk)
    raise UsageError(f"a chunk is bytes, bytearray or memoryview, not {type(chunk).__name__}")


def _after_fork_in_child() -> None:
    for log in list(_open_logs):
        log._forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

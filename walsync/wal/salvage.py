"""Salvage: everything that can be read of a damaged log goes into a new one, and what cannot is named.

Owns `salvage_log` and its report. Never writes to the damaged directory, never copies a byte whose checksum does not
match, and never fills a gap with anything.

    salvage_source   what the directory still tells: identity, checkpoint, headers
    salvage_frames   whole frames, wherever they lie
    salvage_plan     which of them are the log's
    salvage_reader   entries, losses, the end of the log
    salvage_writer   the new log, with tombstones over the gaps

The new log has the old one's uuid and its entries their ids, so the target's watermark stays true: what is applied is
not applied again. Positions (`LogPosition`) are new ones, past all of the old log's. Over a gap the checkpointer goes
on, as it does over segments that were abandoned; whether it may is for the operator to decide, who has the report.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from walsync.exceptions import DamagedLogError, LogError, LogLockedError, UsageError
from walsync.wal.config import LogConfig
from walsync.wal.format import SegmentHeader
from walsync.wal.log import LOCK_FILE
from walsync.wal.pending import PendingEntry
from walsync.wal.positions import EntryId
from walsync.wal.salvage_frames import BASE_ALIGNMENT, FrameFinder, Run, find_runs
from walsync.wal.salvage_plan import best_headers, choose_runs
from walsync.wal.salvage_reader import EntryFinder, LostBytes, LostEntries
from walsync.wal.salvage_source import MAX_POSITION, LogSource, read_source
from walsync.wal.salvage_writer import SalvageWriter
from walsync.wal.storage.file import FileStorage
from walsync.wal.storage.protocol import Storage
from walsync.wal.verify import verify_log

__all__ = ["LostBytes", "LostEntries", "SalvageReport", "salvage_log"]


@dataclass(frozen=True, kw_only=True)
class SalvageReport:
    """What `salvage_log` copied, and what it did not find."""

    uuid: uuid.UUID
    """The identity of both logs."""
    entries: int
    """Entries that were copied."""
    first_id: EntryId | None
    """The first of them."""
    last_id: EntryId | None
    """The last of them."""
    checkpointed_id: EntryId
    """The last entry that is released in the new log: those up to it were not copied, because they are applied."""
    next_id: EntryId
    """The id that the new log gives its next entry."""
    copied_bytes: int
    """Bytes of the chunks that were copied."""
    lost: list[LostEntries] = field(default_factory=list)
    """Entries of which no whole copy was found, in order."""
    abandoned: list[tuple[EntryId, EntryId]] = field(default_factory=list)
    """Entries that are missing for another reason: a checkpointer had their segments moved aside. First and last id."""
    left_out: tuple[EntryId, EntryId] | None = None
    """Entries that can be read and were not copied, because of `through`. First and last id."""
    doubtful_id: EntryId | None = None
    """From this entry on nothing but their own checksums says that entries were durable: they may never have been
    acknowledged. None: no such entry."""
    damage: list[LostBytes] = field(default_factory=list)
    """Stretches of the segment files that the log went through and that cannot be read."""
    torn_bytes: int = 0
    """Bytes of whole frames behind the log's end: of a commit that a crash cut short, never acknowledged."""
    notes: list[str] = field(default_factory=list)
    """What else was damaged, and what could not be told. A sentence each."""

    @property
    def ok(self) -> bool:
        """No entry is lost."""
        return not self.lost


def _storage(directory: str | os.PathLike[str] | Storage, config: LogConfig) -> Storage:
    if isinstance(directory, (str, os.PathLike)):
        return FileStorage(directory, network_file_systems=config.network_file_systems)
    return directory


def salvage_log(
    source: str | os.PathLike[str] | Storage,
    destination: str | os.PathLike[str] | Storage,
    *,
    log_uuid: uuid.UUID | None = None,
    through: EntryId | None = None,
    known_id: EntryId = EntryId(0),  # noqa: B008 - a number
    network_file_systems: bool = False,
    progress: Callable[[int, int], None] | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> SalvageReport:
    """Copy what can be read of the log in `source` into a new log in `destination`, a new or empty directory.

    No log may have `source` open: it is read, without its lock, and not changed. Entries that are released are not
    copied. `log_uuid` is needed where nothing in the directory says which log it is. `through` ends the new log with
    that entry, before a loss, say. The new log gives out no id up to `known_id`: say, the target's watermark.
    `progress(bytes done, bytes at most)` is called as it goes.

    Raises `UsageError` if `destination` holds anything or lies in `source`, `LogError` if there is no log in `source`
    or the new one cannot be written, `DamagedLogError` if nothing tells which log it is or nothing of it can be read,
    and `LogVersionError` for one of another version. What was written of the new log then cannot be opened; remove it.
    """
    config = LogConfig(network_file_systems=network_file_systems)
    from_storage, to_storage = _storage(source, config), _storage(destination, config)
    _require_apart(from_storage, to_storage)
    _require_empty(to_storage)
    found = read_source(from_storage, log_uuid)
    total = 2 * sum(file.size for file in found.files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    runs = _find_all_runs(found, advance)
    headers = best_headers(found.headers())
    if not runs and found.checkpoint is None:
        raise DamagedLogError(
            f"nothing of log {found.log_uuid} in {from_storage.describe('')} can be read: no frame and no checkpoint "
            f"slot is whole. {to_storage.describe('')} was not made"
        )
    lock = None
    try:
        to_storage.prepare()
        lock = to_storage.lock(LOCK_FILE, 0.0)
        if lock is None:
            raise LogLockedError(f"{to_storage.describe('')} is open elsewhere; give a new directory")
        copy = _Copy(found, headers, runs, to_storage, through, clock_ns)
        report = copy.run(choose_runs(runs, headers), known_id, advance)
        _verify(to_storage, report)
    except OSError as error:
        raise LogError(
            f"the new log in {to_storage.describe('')} could not be written: {error}. {from_storage.describe('')} was "
            "not changed. Remove what is in the new directory, make room, and salvage again"
        ) from error
    finally:
        if lock is not None:
            lock.release()
    return report


def _require_apart(source: Storage, destination: Storage) -> None:
    if source is destination:
        raise UsageError("a log cannot be salvaged into itself; give another directory")
    if source.directory is None or destination.directory is None:
        return
    old, new = os.path.realpath(source.directory), os.path.realpath(destination.directory)
    if os.path.commonpath([old, new]) == old:
        raise UsageError(f"{new} lies in the damaged log, in which nothing is changed; give a directory beside it")


def _require_empty(destination: Storage) -> None:
    path = destination.directory
    try:
        if path is None:
            empty = not destination.list()
        elif os.path.lexists(path):
            empty = os.path.isdir(path) and not os.listdir(path)
        else:
            empty = True
    except OSError as error:
        raise LogError(f"{destination.describe('')} cannot be looked into: {error}. Nothing was written") from error
    if not empty:
        raise UsageError(f"{destination.describe('')} is not an empty directory; a new log is made in a new one")


def _find_all_runs(source: LogSource, advance: Callable[[int], None]) -> list[Run]:
    runs: list[Run] = []
    for file in source.files:
        try:
            handle = source.storage.open(file.name, read_only=True)
        except OSError as error:
            source.notes.append(f"{source.storage.describe(file.name)} cannot be opened: {error}")
            continue
        try:
            finder = FrameFinder(handle, file.size, file.bases, source.checksum, source.seed)
            found, broken = find_runs(file.name, finder)
        finally:
            handle.close()
        usable = [run for run in found if run.end < MAX_POSITION]
        runs.extend(usable)
        where = source.storage.describe(file.name)
        for header in file.headers:
            if not header.abandoned and file.size < header.segment_bytes:
                source.notes.append(f"{where} was cut off at offset {file.size}; it had {header.segment_bytes} bytes")
        if finder.unreadable_bytes:
            source.notes.append(f"{where} has {finder.unreadable_bytes} bytes that the system cannot read")
        source.notes.extend(
            f"{where} has a frame of entry {frame.entry_id} at offset {frame.start} whose content is damaged"
            for frame in broken
        )
        advance(file.size)
    return runs


class _Copy:
    """One copying. Used once."""

    def __init__(
        self,
        source: LogSource,
        headers: dict[int, SegmentHeader],
        runs: list[Run],
        destination: Storage,
        through: EntryId | None,
        clock_ns: Callable[[], int],
    ) -> None:
        self._source = source
        self._destination = destination
        self._through = through
        self._clock_ns = clock_ns
        self._headers = headers
        ends = [header.base + header.segment_bytes for header in headers.values()] + [run.end for run in runs]
        if source.checkpoint is not None and source.checkpoint.position < MAX_POSITION:
            ends.append(source.checkpoint.position)
        end = max(ends, default=0)
        self._base = end + (-end % BASE_ALIGNMENT)
        self._released_id = None if source.checkpoint is None else source.checkpoint.checkpointed_id
        self._writer: SalvageWriter | None = None
        self._entries = self._bytes = 0
        self._first_id: EntryId | None = None
        self._last_id: EntryId | None = None
        self._left_out: list[int] = []

    def run(self, runs: list[Run], known_id: int, advance: Callable[[int], None]) -> SalvageReport:
        finder = EntryFinder(
            self._source, runs, self._headers, self._give, released_id=self._released_id, progress=advance
        )
        try:
            finder.read()
            writer = self._writer or self._begin(
                finder.known_next_id - 1 if self._released_id is None else self._released_id
            )
            # No id that was ever given out is given out again: not one of a lost entry either.
            next_id = known_id + 1 if self._through is not None else max(finder.known_next_id, known_id + 1)
            if next_id > writer.next_id:
                writer.skip_to(next_id)
            writer.finish()
        finally:
            if self._writer is not None:
                self._writer.close()
        source = self._source
        notes = [*source.notes, *self._unused_files(runs)]
        if finder.ends_with_seal:
            notes.append(
                "the log goes on in a segment of which nothing can be read. If that held entries, they are lost; after "
                "a crash it may hold none yet"
            )
        return SalvageReport(
            uuid=source.log_uuid,
            entries=self._entries,
            first_id=self._first_id,
            last_id=self._last_id,
            checkpointed_id=EntryId(writer.checkpointed_id),
            next_id=EntryId(writer.next_id),
            copied_bytes=self._bytes,
            lost=finder.lost,
            abandoned=[(EntryId(first), EntryId(last)) for first, last in finder.abandoned],
            left_out=(EntryId(self._left_out[0]), EntryId(self._left_out[-1])) if self._left_out else None,
            doubtful_id=None if finder.doubtful_id is None else EntryId(finder.doubtful_id),
            damage=finder.damage,
            torn_bytes=finder.torn_bytes,
            notes=notes,
        )

    def _give(self, entry_id: int, content: bytes | PendingEntry, version_info: bytes | None) -> None:
        if self._through is not None and entry_id > self._through:
            self._left_out = [*self._left_out[:1], entry_id]
            return
        writer = self._writer or self._begin(entry_id - 1 if self._released_id is None else self._released_id)
        writer.add(entry_id, content, version_info)
        self._entries += 1
        self._bytes += len(content) if isinstance(content, bytes) else sum(content.lengths)
        self._first_id = self._first_id or EntryId(entry_id)
        self._last_id = EntryId(entry_id)

    def _begin(self, checkpointed_id: int) -> SalvageWriter:
        usual = LogConfig()
        sizes = Counter(header.segment_bytes for header in self._headers.values())
        segment_bytes = sizes.most_common(1)[0][0] if sizes else usual.segment_bytes
        latest = self._headers[max(self._headers)] if self._headers else None
        self._writer = SalvageWriter(
            self._destination,
            log_uuid=self._source.log_uuid,
            checksum_kind=self._source.checksum_kind,
            base=self._base,
            checkpointed_id=checkpointed_id,
            segment_bytes=segment_bytes,
            version_info=latest.version_info if latest is not None else b"",
            clock_ns=self._clock_ns,
        )
        return self._writer

    def _unused_files(self, runs: list[Run]) -> list[str]:
        used = {run.name for run in runs}
        checkpoint = self._source.checkpoint
        head = checkpoint.head_sequence if checkpoint is not None else 0
        notes = []
        for file in self._source.files:
            free = not file.headers and self._is_blank(file.name)
            released = any(header.sequence < head or header.abandoned for header in file.headers)
            if file.name not in used and not free and not released:
                notes.append(f"{self._source.storage.describe(file.name)} holds no whole frame of the log")
        return notes

    def _is_blank(self, name: str) -> bool:
        """Whether the file is one that waits for its next use: zeros where the header would be."""
        try:
            file = self._source.storage.open(name, read_only=True)
        except OSError:
            return False
        try:
            return not any(file.pread(512, 0)) and not any(file.pread(512, 4096))
        except OSError:
            return False
        finally:
            file.close()


def _verify(storage: Storage, report: SalvageReport) -> None:
    """Read the new log from its first byte to its last."""
    found = verify_log(storage)
    if found.damage or found.entries != report.entries or (found.entries and found.last_id != report.last_id):
        raise LogError(
            f"the new log in {storage.describe('')} was read again and is not what was written: {found.entries} of "
            f"{report.entries} entries, {'; '.join(found.damage) or 'no damage found'}. Look at its disk, and salvage "
            "into another directory"
        )

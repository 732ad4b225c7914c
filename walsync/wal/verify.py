"""Reading a directory that is not open here: `verify_log` checks all of it, `read_log` gives its entries.

Both open files for reading only, take no lock and change nothing, so they may look at a log that is in use; what is
being written or recycled at that moment may then look like the end of the log.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from walsync.exceptions import DamagedLogError, EntryNotFoundError, LogError
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE
from walsync.wal.directory import LogDirectory, read_directory, require_checkpoint
from walsync.wal.entry import Entry
from walsync.wal.open_files import OpenFiles
from walsync.wal.opening import holds_frames
from walsync.wal.positions import EntryId
from walsync.wal.reader import LogReader
from walsync.wal.recovery import LogWalk, Opening, decide_opening
from walsync.wal.segment import Segment
from walsync.wal.storage.file import FileStorage
from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = ["LogVerification", "read_log", "verify_log"]


@dataclass(frozen=True, kw_only=True)
class LogVerification:
    """What `verify_log` found."""

    uuid: uuid.UUID | None
    """The log's identity; None if it cannot be told."""
    entries: int
    """Entries that are whole, released ones that are still there included."""
    segments: int
    """Segments that were read."""
    first_id: EntryId | None
    """The first entry that is still there."""
    last_id: EntryId | None
    """The last whole entry."""
    checkpointed_id: EntryId
    """The last entry known to be released."""
    bytes_read: int
    """Bytes of frames that were checked."""
    torn_tail_bytes: int
    """Bytes behind the last whole entry that opening the log will cut: normal after a crash."""
    damage: list[str] = field(default_factory=list)
    """What is damaged, one message each, naming file and offset. Empty: the log is well."""
    notes: list[str] = field(default_factory=list)
    """What is not as it should be and harms nothing: a header copy that a crash left behind."""

    @property
    def ok(self) -> bool:
        """No damage."""
        return not self.damage


def _storage(directory: str | os.PathLike[str] | Storage) -> Storage:
    if isinstance(directory, (str, os.PathLike)):
        return FileStorage(directory)
    return directory


def _walk(storage: Storage) -> tuple[LogDirectory, LogWalk]:
    found = read_directory(storage)
    frames = found.checkpoint is None and any(holds_frames(storage, slot) for slot in found.slots)
    opening = decide_opening(
        checkpoint_exists=found.checkpoint_exists,
        checkpoint_whole=found.checkpoint is not None,
        segments_with_frames=frames,
    )
    if opening is Opening.CREATE:
        raise LogError(f"there is no log in {storage.describe('')}; give the directory of one")
    return found, LogWalk(storage, found, require_checkpoint(storage, found))


def verify_log(
    directory: str | os.PathLike[str] | Storage, progress: Callable[[int, int], None] | None = None
) -> LogVerification:
    """Read and check every byte of a log that is in use. `progress(bytes checked, bytes at most)` is called as it goes.

    Raises `LogError` if there is no log, and `LogVersionError` for one of another version. Damage is in the answer.
    """
    storage = _storage(directory)
    try:
        found, walk = _walk(storage)
    except DamagedLogError as error:
        return LogVerification(
            uuid=None,
            entries=0,
            segments=0,
            first_id=None,
            last_id=None,
            checkpointed_id=EntryId(0),
            bytes_read=0,
            torn_tail_bytes=0,
            damage=[str(error)],
        )
    checkpoint = walk.checkpoint
    total = sum(
        slot.size
        for slot in found.slots
        if slot.header is not None and slot.header.sequence >= checkpoint.head_sequence
    )
    checked = 0

    def advance(count: int) -> None:
        nonlocal checked
        checked += count
        if progress is not None:
            progress(checked, total)

    count = 0
    first_id: int | None = None
    last_id: int | None = None
    damage: list[str] = []
    try:
        for _, entries in walk.batches(released=True, progress=advance):
            count += len(entries)
            if first_id is None:
                first_id = entries[0][0]
            last_id = entries[-1][0]
    except DamagedLogError as error:
        damage.append(str(error))
    except OSError as error:
        damage.append(f"{storage.describe(walk.segments[-1].name)} cannot be read: {error}")
    if not damage and walk.scanner.next_id <= checkpoint.checkpointed_id:
        damage.append(
            f"the log ends with entry {walk.scanner.next_id - 1}, and {storage.describe(CHECKPOINT_FILE)} says that "
            f"entry {checkpoint.checkpointed_id} was released: segments are missing or damaged"
        )
    return LogVerification(
        uuid=checkpoint.log_uuid,
        entries=count,
        segments=len(walk.segments),
        first_id=None if first_id is None else EntryId(first_id),
        last_id=None if last_id is None else EntryId(last_id),
        checkpointed_id=EntryId(checkpoint.checkpointed_id),
        bytes_read=walk.bytes_read,
        torn_tail_bytes=max(0, walk.stop_position - walk.cut[0]),
        damage=damage,
        notes=_notes(storage, found, walk),
    )


def _notes(storage: Storage, found: LogDirectory, walk: LogWalk) -> list[str]:
    notes = [
        f"{storage.describe(slot.name)} has a copy of its header at offset {slot.damaged_copy} that is not whole; the "
        "other one is used"
        for slot in walk.slots
        if slot.damaged_copy is not None
    ]
    if found.whole_slots < 2 and walk.checkpoint.generation > 1:
        notes.append(f"{storage.describe(CHECKPOINT_FILE)} has one slot that is not whole; the other one is used")
    return notes


class _ClosedLog:
    """A directory's segments for `LogReader`: everything that the walk found whole."""

    def __init__(self, storage: Storage, walk: LogWalk, released: int) -> None:
        self._storage = storage
        self._files = OpenFiles(storage, read_only=True)
        self.readable_segments: tuple[Segment, ...] = ()
        self.readable_through = (0, 0)
        self.released_through = released
        self.reader = LogReader(self, walk.checksum, walk.seed)

    def extend(self, walk: LogWalk) -> None:
        self.readable_segments = tuple(walk.segments)
        self.readable_through = (walk.scanner.boundary[0], walk.scanner.next_id - 1)

    def file_of(self, segment: Segment) -> StorageFile:
        try:
            return self._files.get(segment.name)
        except OSError as error:
            raise self.reading_failed(segment, error) from error

    def path_of(self, segment: Segment) -> str:
        return self._storage.describe(segment.name)

    def reading_failed(self, segment: Segment, error: OSError) -> Exception:
        return LogError(f"{self._storage.describe(segment.name)} cannot be read: {error}. Look at the disk")

    def close(self) -> None:
        self._files.close()


def read_log(directory: str | os.PathLike[str] | Storage, *, released: bool = False) -> Iterator[Entry]:
    """The entries of a log, read without its lock: those not checkpointed, or with `released` all that are still there.

    For looking at a log that is in use or that cannot be opened: entries before damage are given out, then
    `DamagedLogError` is raised. In a log in use, entries that are being released may be missing.
    """
    storage = _storage(directory)
    _, walk = _walk(storage)
    log = _ClosedLog(storage, walk, 0 if released else walk.checkpoint.checkpointed_id)
    try:
        for segment, entries in walk.batches(released=released):
            log.extend(walk)
            for raw in entries:
                yield Entry(raw, segment, log.reader)
    except FileNotFoundError as error:
        raise EntryNotFoundError(
            f"a segment of {storage.describe('')} was removed while it was read; read the log again"
        ) from error
    except OSError as error:
        raise LogError(
            f"a file of the log in {storage.describe('')} cannot be read: {error}. Look at the disk"
        ) from error
    finally:
        log.close()

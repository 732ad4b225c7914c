"""The segments of a log that is open, as its reader sees them: `walsync.wal.reader.ReadableLog`.

Every answer is that of the moment: segments are added and released while they are read. Holds no locks of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from walsync.exceptions import EntryNotFoundError, LogClosedError, LogError
from walsync.wal.open_files import OpenFiles
from walsync.wal.releases import Releases
from walsync.wal.segment import Segment
from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = ["OpenSegments"]


class OpenSegments:
    """See the module's docstring. Thread-safe."""

    def __init__(
        self,
        storage: Storage,
        releases: Releases,
        files: OpenFiles,
        durable: Callable[[], tuple[int, int]],
        is_closed: Callable[[], bool],
    ) -> None:
        self._storage = storage
        self._releases = releases
        self._files = files
        self._durable = durable
        self._is_closed = is_closed

    @property
    def readable_segments(self) -> tuple[Segment, ...]:
        """The segments in use, in order."""
        return self._releases.segments

    @property
    def readable_through(self) -> tuple[int, int]:
        """Position and id of what is durable."""
        return self._durable()

    @property
    def released_through(self) -> int:
        """The last released id."""
        return self._releases.through[1]

    def file_of(self, segment: Segment) -> StorageFile:
        """The segment's file."""
        try:
            return self._files.get(segment.name)
        except OSError as error:
            raise self.reading_failed(segment, error) from error

    def path_of(self, segment: Segment) -> str:
        """What messages call the segment's file."""
        return self._storage.describe(segment.name)

    def reading_failed(self, segment: Segment, error: OSError) -> Exception:
        """What a failed read is to its caller."""
        if self._is_closed():
            return LogClosedError(f"the log in {self._storage.describe('')} was closed while it was read")
        if isinstance(error, FileNotFoundError):
            return EntryNotFoundError(
                f"segment {segment.sequence} was released, and its file removed, while it was read"
            )
        return LogError(
            f"{self._storage.describe(segment.name)} cannot be read: {error}. Look at the disk; the log was not changed"
        )

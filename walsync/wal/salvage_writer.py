"""Writing the new log of a salvage: the entries' own ids, the old log's identity, and tombstones over the gaps.

Owns the new directory until it is finished. The checkpoint file comes last, so that a log that was cut short in the
making cannot be opened as if it were whole.

A gap in the ids is written as opening a log writes a segment that was abandoned: a segment without frames whose header
says with which id the log goes on. Whoever reads the log passes over it, and so does the checkpointer.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable

from walsync.wal.appender import Appender, Tail
from walsync.wal.checkpoint_file import create_checkpoint_file
from walsync.wal.checkpoint_slots import CheckpointSlot
from walsync.wal.checksum import KINDS, checksum_function
from walsync.wal.config import LogConfig
from walsync.wal.format import FRAMES_OFFSET, RECOVERY, SegmentHeader, header_seed
from walsync.wal.open_files import OpenFiles
from walsync.wal.pending import PendingEntry
from walsync.wal.segment import Segment
from walsync.wal.segments import SegmentPool, write_all
from walsync.wal.storage.protocol import Storage

__all__ = ["SalvageWriter"]

_SYNC_BYTES = 64 * 1024 * 1024
"""After so many bytes the new log is synced: little is left to do at the end, and promises are spread over it."""


class SalvageWriter:
    """Writes one log, from the entry after `checkpointed_id` on. Used by one thread, and once."""

    def __init__(
        self,
        storage: Storage,
        *,
        log_uuid: uuid.UUID,
        checksum_kind: int,
        base: int,
        checkpointed_id: int,
        segment_bytes: int,
        version_info: bytes,
        clock_ns: Callable[[], int],
    ) -> None:
        checksum_name = next(name for name, kind in KINDS.items() if kind == checksum_kind)
        self._storage = storage
        self._config = LogConfig(
            segment_bytes=segment_bytes,
            preallocated_segments=0,
            version_info=version_info,
            checksum=checksum_name,  # type: ignore[arg-type]
        )
        self._checksum = checksum_function(checksum_kind)
        self._seed = header_seed(log_uuid, self._checksum)
        self._clock_ns = clock_ns
        self._pool = SegmentPool(storage, self._config, threaded=False)
        self._files = OpenFiles(storage)
        self._slot = CheckpointSlot(checksum_kind, log_uuid, 1, checkpointed_id, base + FRAMES_OFFSET, 1)
        self._synced_position = base
        self._pool.reserve(1)
        name = self._pool.take(1)
        header = SegmentHeader(
            checksum_kind=checksum_kind,
            log_uuid=log_uuid,
            sequence=1,
            base=base,
            previous_end=0,
            previous_chain=0,
            epoch=0,
            segment_bytes=segment_bytes,
            created_ns=clock_ns(),
            next_id=checkpointed_id + 1,
            version_info=version_info,
        )
        write_all(self._files.get(name), header.pack_area(), 0)
        self._appender = self._appender_in(Segment(name, header), 0, 0, checkpointed_id + 1)
        self._appender.write_boundary(RECOVERY)
        self._appender.mark_written()

    def _appender_in(self, segment: Segment, chain: int, epoch: int, next_id: int) -> Appender:
        return Appender(
            Tail(segment, segment.start, chain, epoch, next_id),
            config=self._config,
            pool=self._pool,
            open_file=self._files.get,
            checksum=self._checksum,
            seed=self._seed,
            clock_ns=self._clock_ns,
            on_segment=lambda segment: None,
        )

    @property
    def checkpointed_id(self) -> int:
        """The last entry that counts as released."""
        return self._slot.checkpointed_id

    @property
    def next_id(self) -> int:
        """The id of the next entry."""
        return self._appender.next_id

    def add(self, entry_id: int, work: bytes | PendingEntry, version_info: bytes | None) -> None:
        """Write an entry: one chunk, or any other. Ids grow. `version_info` of its segment; None: not known."""
        if entry_id > self.next_id:
            self.skip_to(entry_id)
        if version_info is not None and version_info != self._config.version_info:
            self._config = dataclasses.replace(self._config, version_info=version_info)
            self._turn_over(self.next_id, version_info=version_info)
        if isinstance(work, bytes):
            self._appender.write_chunk_entry(work)
        else:
            self._appender.write_entry(work)
        if self._appender.written[0] - self._synced_position >= _SYNC_BYTES:
            self._sync()

    def skip_to(self, next_id: int) -> None:
        """There are no entries up to this id: write a tombstone, and go on behind it."""
        self._turn_over(next_id, abandoned=True)
        self._pool.reserve(1)
        self._appender.start_segment()
        self._appender.mark_written()

    def _turn_over(self, next_id: int, *, abandoned: bool = False, version_info: bytes | None = None) -> None:
        """Go on in a new segment whose header says something that the appender would not."""
        old = self._appender
        self._pool.reserve(1)
        old.next_segment(last_id=old.next_id - 1)
        header = old.segment.header
        if version_info is not None:
            header = header._replace(version_info=version_info)
        if abandoned:
            header = header._replace(
                abandoned=True,
                end=header.base + FRAMES_OFFSET,
                end_chain=header.previous_chain,
                end_epoch=header.epoch,
                end_next_id=next_id,
            )
        write_all(old.file, header.pack_area(), 0)
        old.mark_written()
        self._sync()
        segment = Segment(old.segment.name, header)
        self._appender = self._appender_in(segment, header.previous_chain, header.epoch, next_id)
        self._appender.durable = (old.durable[0], next_id - 1)

    def _sync(self) -> None:
        self._appender.durable = self._appender.sync()
        self._synced_position = self._appender.durable[0]

    def finish(self) -> None:
        """Make everything durable, and the directory a log."""
        self._sync()
        if self._appender.write_hint():
            self._sync()
        create_checkpoint_file(self._storage, self._slot)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

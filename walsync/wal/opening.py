"""Opening a directory: making a log, or recovering one and making its end fit to be written behind.

Owns every change that recovery makes on the disk. What it finds is judged by `recovery`. The order is:

1. read and check everything; damage ends here, with nothing changed;
2. write the checkpoint slot again that was read, and sync it: it may have come from memory only, and free files are
   about to be used on its word;
3. move aside the segments that the checkpointer abandons;
4. write the kept tail again, from the last promise on, and sync it: a read after a failed sync may come from pages that
   never reached the disk, and a sync that finds them clean does nothing;
5. take stale segments out of the log, so that none is mistaken for a continuation later;
6. write RECOVERY with the next epoch and sync; only then are appends accepted.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from walsync.exceptions import DamagedLogError
from walsync.wal.appender import Appender, Tail
from walsync.wal.checkpoint_file import CheckpointFile, create_checkpoint_file
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, CheckpointSlot
from walsync.wal.checkpointer import Recovery
from walsync.wal.checksum import KINDS, checksum_function
from walsync.wal.config import LogConfig
from walsync.wal.directory import LogDirectory, SlotFile, read_directory, read_exactly, require_checkpoint
from walsync.wal.format import (
    BOUNDARY_HEADER_BYTES,
    CRC,
    DATA,
    DATA_HEADER_BYTES,
    FRAMES_OFFSET,
    HINT,
    RECOVERY,
    SegmentHeader,
    header_seed,
)
from walsync.wal.open_files import OpenFiles
from walsync.wal.recovery import LogWalk, Opening, decide_opening
from walsync.wal.scanner import Stop
from walsync.wal.segment import Segment, slot_name, slot_number
from walsync.wal.segments import SegmentPool, SlotFiles, write_all
from walsync.wal.storage.protocol import Storage

if TYPE_CHECKING:
    from walsync.wal.checkpointer import Checkpointer

__all__ = ["ABANDONED_DIRECTORY", "OpenedLog", "holds_frames", "open_log"]

ABANDONED_DIRECTORY = "abandoned"
_COPY_BYTES = 1024 * 1024
_PAGE_BYTES = 4096


class OpenedLog:
    """A log that is ready for its first append. `segments` is in order and ends with the one being appended to."""

    def __init__(
        self,
        checkpoint_file: CheckpointFile,
        appender: Appender,
        pool: SlotFiles,
        files: OpenFiles,
        segments: list[Segment],
        torn_bytes: int,
    ) -> None:
        self.checkpoint_file = checkpoint_file
        self.appender = appender
        self.pool = pool
        self.files = files
        self.segments = segments
        self.torn_bytes = torn_bytes


def holds_frames(storage: Storage, slot: SlotFile) -> bool:
    """Whether the first frame of a segment was ever written: its header's CRC fits."""
    if slot.header is None:
        return False
    file = storage.open(slot.name, read_only=True)
    try:
        data = read_exactly(file, BOUNDARY_HEADER_BYTES, FRAMES_OFFSET)
    finally:
        file.close()
    if len(data) < BOUNDARY_HEADER_BYTES or not DATA <= data[4] <= HINT:
        return False
    checksum = checksum_function(slot.header.checksum_kind)
    end = DATA_HEADER_BYTES if data[4] == DATA else BOUNDARY_HEADER_BYTES
    return bool(checksum(data[4:end], header_seed(slot.header.log_uuid, checksum)) == CRC.unpack_from(data)[0])


def open_log(
    storage: Storage,
    config: LogConfig,
    checkpointer: Checkpointer | None,
    *,
    clock_ns: Callable[[], int],
    new_uuid: Callable[[], uuid.UUID],
) -> OpenedLog:
    """Open the log in `storage`, making one if there is none. The caller holds the directory's lock."""
    found = read_directory(storage)
    opening = decide_opening(
        checkpoint_exists=found.checkpoint_exists,
        checkpoint_whole=found.checkpoint is not None,
        segments_with_frames=found.checkpoint is None and any(holds_frames(storage, slot) for slot in found.slots),
    )
    if opening is Opening.CREATE:
        _create(storage, config, found, clock_ns, new_uuid)
        found = read_directory(storage)
    checkpoint = require_checkpoint(storage, found)
    return _Opener(storage, config, checkpointer, clock_ns, found, checkpoint).open()


def _create(
    storage: Storage,
    config: LogConfig,
    found: LogDirectory,
    clock_ns: Callable[[], int],
    new_uuid: Callable[[], uuid.UUID],
) -> None:
    """The checkpoint file comes last: a crash before it leaves something that is not a log yet."""
    for slot in found.slots:
        storage.remove(slot.name)
    pool = SegmentPool(storage, config, threaded=False)
    pool.reserve(1)
    name = pool.take(1)
    kind = KINDS[config.checksum]
    log_uuid = new_uuid()
    header = SegmentHeader(
        checksum_kind=kind,
        log_uuid=log_uuid,
        sequence=1,
        base=0,
        previous_end=0,
        previous_chain=0,
        epoch=0,
        segment_bytes=config.segment_bytes,
        created_ns=clock_ns(),
        next_id=1,
        version_info=config.version_info,
    )
    file = storage.open(name)
    try:
        write_all(file, header.pack_area(), 0)
        file.sync()
    finally:
        file.close()
    create_checkpoint_file(storage, CheckpointSlot(kind, log_uuid, 1, 0, FRAMES_OFFSET, 1))


class _Opener:
    """Recovers one log. Used once."""

    def __init__(
        self,
        storage: Storage,
        config: LogConfig,
        checkpointer: Checkpointer | None,
        clock_ns: Callable[[], int],
        found: LogDirectory,
        checkpoint: CheckpointSlot,
    ) -> None:
        self._storage = storage
        self._config = config
        self._checkpointer = checkpointer
        self._clock_ns = clock_ns
        self._found = found
        self._checkpoint = checkpoint
        self._walk = LogWalk(storage, found, checkpoint)
        self._segments: list[Segment] = []
        self._free: list[str] = []
        self._next_number = 1 + max((slot_number(slot.name) or 0 for slot in found.slots), default=0)

    def open(self) -> OpenedLog:
        walk = self._walk
        for _ in walk.batches():
            pass
        position, chain, epoch = walk.cut
        next_id = walk.scanner.next_id
        if next_id <= self._checkpoint.checkpointed_id:
            raise DamagedLogError(
                f"the log in {self._storage.describe('')} ends with entry {next_id - 1}, and its checkpoint says that "
                f"entry {self._checkpoint.checkpointed_id} was released: segments are missing or damaged, the last of "
                f"them {walk.segments[-1].name}. Restore the directory from a copy"
            )
        self._keep_until(position, next_id)
        torn_bytes = max(0, walk.stop_position - position)
        self._settle_checkpoint()
        self._abandon()
        self._rewrite_tail(position)
        self._free_slots()
        return self._start(position, chain, epoch, next_id, torn_bytes)

    def _keep_until(self, position: int, next_id: int) -> None:
        """The segments up to the one that the cut lies in; a torn entry may have reached into later ones."""
        segments = [segment for segment in self._walk.segments if segment.base < position or segment.start == position]
        last = segments[-1]
        last.end = position
        for segment in segments:
            segment.last_id = min(segment.last_id, next_id - 1)
        self._segments = segments

    def _settle_checkpoint(self) -> None:
        """The same bytes at the same place: whatever a power cut leaves of this write is what was there."""
        file = self._storage.open(CHECKPOINT_FILE)
        try:
            write_all(file, self._checkpoint.pack(), self._checkpoint.offset)
            file.sync()
        finally:
            file.close()

    # -------------------------------------------------------------------------------------------- abandoning

    def _abandon(self) -> None:
        if self._checkpointer is None:
            return
        released = self._checkpoint.checkpointed_id
        for index, segment in enumerate(self._segments):
            if segment.abandoned or segment.committed_id <= released or segment.committed_id < segment.first_id:
                continue
            info = segment.info()
            if info.first_id is not None and info.first_id <= released:
                info = info._replace(first_id=type(info.first_id)(released + 1))
            if self._checkpointer.should_recover_segment(info) is Recovery.ABANDON:
                self._segments[index] = self._tombstone(segment, index)

    def _tombstone(self, segment: Segment, index: int) -> Segment:
        """Put a segment without frames in the place of one that is moved aside: it bridges the gap in the log.

        The bridge is durable before the file moves; a crash between leaves both, and the bridge counts.
        """
        if index + 1 < len(self._segments):
            following = self._segments[index + 1].header
            end, chain, epoch = following.previous_end, following.previous_chain, following.epoch
            next_id = following.next_id
        else:
            end, chain, epoch = self._walk.cut
            next_id = self._walk.scanner.next_id
        # An entry that goes on in the next segment loses its beginning, and is skipped with this one.
        header = segment.header._replace(
            abandoned=True, end=end, end_chain=chain, end_epoch=epoch, end_next_id=next_id, created_ns=self._clock_ns()
        )
        name = slot_name(self._next_number)
        self._next_number += 1
        file = self._storage.create(name)
        try:
            write_all(file, header.pack_area(), 0)
            file.sync()
        finally:
            file.close()
        self._storage.sync_directory()
        self._move_aside(segment.name, segment.sequence)
        bridge = Segment(name, header)
        bridge.end, bridge.last_id, bridge.committed_id = end, next_id - 1, segment.first_id - 1
        return bridge

    def _move_aside(self, name: str, sequence: int) -> None:
        self._storage.make_directory(ABANDONED_DIRECTORY)
        stamp = self._clock_ns()
        self._storage.rename(name, f"{ABANDONED_DIRECTORY}/{name}-sequence-{sequence}-{stamp}")
        self._storage.sync_directory(ABANDONED_DIRECTORY)
        self._storage.sync_directory()

    # -------------------------------------------------------------------------------------------- free slots

    def _free_slots(self) -> None:
        used = {segment.name for segment in self._segments}
        bridges = {segment.sequence for segment in self._segments if segment.abandoned}
        head = self._checkpoint.head_sequence
        present = set(self._storage.list())
        for slot in self._found.slots:
            if slot.name in used or slot.name not in present:
                continue
            header = slot.header
            if header is not None and header.log_uuid != self._checkpoint.log_uuid:
                # Another log's: not ours to overwrite.
                continue
            if header is not None and header.sequence in bridges and not header.abandoned:
                self._move_aside(slot.name, header.sequence)
                continue
            if header is not None and header.sequence >= head:
                self._wipe(slot.name)
            if slot.size == self._config.segment_bytes:
                self._free.append(slot.name)
            else:
                with contextlib.suppress(OSError):
                    self._storage.remove(slot.name)

    def _wipe(self, name: str) -> None:
        file = self._storage.open(name)
        try:
            write_all(file, bytes(min(FRAMES_OFFSET, file.size())), 0)
            file.sync()
        finally:
            file.close()

    # ------------------------------------------------------------------------------------------ the kept tail

    def _rewrite_tail(self, position: int) -> None:
        promise = self._walk.scanner.promise
        for segment in self._segments:
            if segment.end <= promise and not segment.abandoned:
                continue
            file = self._storage.open(segment.name)
            try:
                if segment.abandoned:
                    # A bridge that a killed process made and did not sync: what it bridges is moved away after this.
                    write_all(file, segment.header.pack_area(), 0)
                    file.sync()
                    continue
                offset = max(FRAMES_OFFSET, promise - segment.base)
                end = segment.end - segment.base
                if promise <= segment.start:
                    write_all(file, segment.header.pack_area(), 0)
                offset -= offset % _PAGE_BYTES
                while offset < end:
                    data = read_exactly(file, min(_COPY_BYTES, end - offset), offset)
                    if not data:
                        raise DamagedLogError(
                            f"{self._storage.describe(segment.name)} became shorter than {end} bytes while it was "
                            "opened"
                        )
                    write_all(file, data, offset)
                    offset += len(data)
                file.sync()
            finally:
                file.close()
        # Names that a crash may have left unsynced: a slot file that was made just before.
        self._storage.sync_directory()

    # ------------------------------------------------------------------------------------------------- start

    def _start(self, position: int, chain: int, epoch: int, next_id: int, torn_bytes: int) -> OpenedLog:
        storage, config = self._storage, self._config
        pool = SegmentPool(storage, config, threaded=False)
        pool.adopt(self._free, len(self._segments), self._next_number)
        files = OpenFiles(storage)
        segments = self._segments
        checkpoint_file = CheckpointFile(storage, self._checkpoint)
        try:
            if self._found.whole_slots < 2 and self._checkpoint.generation > 1:
                slot = self._checkpoint
                durable = (slot.promise, slot.promised_id)
                checkpoint_file.write(slot.checkpointed_id, slot.position, slot.head_sequence, durable)
            last = segments[-1]
            appender = Appender(
                Tail(last, position, chain, epoch, next_id),
                config=config,
                pool=pool,
                open_file=files.get,
                checksum=self._walk.checksum,
                seed=self._walk.seed,
                clock_ns=self._clock_ns,
                on_segment=segments.append,
            )
            appender.durable = (position, next_id - 1)
            sealed = last.abandoned or (last.end > last.start and self._ends_with_seal(last, position))
            if sealed:
                pool.reserve(1)
                appender.start_segment()
            elif not appender.has_room_for(2):
                pool.reserve(1)
                appender.next_segment(next_id - 1)
            appender.write_boundary(RECOVERY)
            if appender.segment.header.version_info != config.version_info:
                pool.reserve(1)
                appender.next_segment(next_id - 1)
            appender.mark_written()
            appender.durable = appender.sync()
        except BaseException:
            files.close()
            checkpoint_file.close()
            raise
        return OpenedLog(checkpoint_file, appender, pool, files, segments, torn_bytes)

    def _ends_with_seal(self, last: Segment, position: int) -> bool:
        return self._walk.scanner.stop is Stop.SEALED and self._walk.stop_position == position

"""What an invalid frame means: the decision table, and the walk through a directory that asks it.

Owns the line between a torn tail (normal after a crash: cut there, quietly) and damage (an error naming file and
offset). Never writes: what recovery changes on the disk is in `opening`.

The table, at the first position B where no valid frame lies:

    the segment after this one   a later frame promises past B   what it means
    -------------------------    -----------------------------   ---------------------------------------------
    continues at B               (not asked)                     the log goes on there
    does not, or is not there    yes                             damage: bytes that were durable are not there
    does not, or is not there    no                              the end; what lies behind the last boundary is torn

A promise is found in any COMMIT, RECOVERY, SEAL or HINT header whose CRC matches and that lies behind B. No stale frame
can promise too much: promises only grow, and a frame of an earlier lap promises a position of that lap.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from walsync.exceptions import DamagedLogError
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, CheckpointSlot
from walsync.wal.checksum import ChecksumFunction, checksum_function
from walsync.wal.directory import LogDirectory, SlotFile
from walsync.wal.format import (
    ALIGNMENT,
    BOUNDARY_HEADER,
    BOUNDARY_HEADER_BYTES,
    FRAMES_OFFSET,
    SegmentHeader,
    header_seed,
)
from walsync.wal.scanner import RawEntry, Scanner, Stop
from walsync.wal.segment import Segment
from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = ["Decision", "Link", "LogWalk", "Opening", "decide", "decide_opening", "link_of"]


class Opening(enum.Enum):
    """What a directory holds, as far as its checkpoint file and its segments tell."""

    CREATE = "there is no log, or one whose creation a crash cut short"
    OPEN = "there is a log"
    DAMAGED = "there was a log, and its checkpoint is lost"


def decide_opening(*, checkpoint_exists: bool, checkpoint_whole: bool, segments_with_frames: bool) -> Opening:
    """The checkpoint file is the last thing that creating a log makes, and is never removed."""
    if checkpoint_whole:
        return Opening.OPEN
    if checkpoint_exists or segments_with_frames:
        return Opening.DAMAGED
    return Opening.CREATE


class Link(enum.Enum):
    """How the segment with the next sequence goes with the place where reading stopped."""

    CONTINUES = "its header names this end, chain value and epoch"
    MISMATCH = "it names another place"
    MISSING = "there is none"


class Decision(enum.Enum):
    """What an invalid frame means."""

    GO_ON = "the next segment continues here"
    DAMAGE = "bytes that were durable are not there"
    END = "the log ends here"


def decide(link: Link, *, promised_past: bool) -> Decision:
    """The decision table of the module's docstring."""
    if link is Link.CONTINUES:
        return Decision.GO_ON
    if promised_past:
        return Decision.DAMAGE
    return Decision.END


def link_of(header: SegmentHeader, position: int, chain: int, epoch: int) -> Link:
    """Whether a segment continues at this place."""
    if (header.previous_end, header.previous_chain, header.epoch) == (position, chain, epoch):
        return Link.CONTINUES
    return Link.MISMATCH


class Promise(NamedTuple):
    """More is promised than could be read: by a frame header at a position, or by the checkpoint file (None)."""

    position: int | None
    promise: int


_SEARCH_BYTES = 256 * 1024
# Types COMMIT to HINT, any flags that a boundary frame may have, and a header of 72 bytes.
_BOUNDARY_PATTERN = re.compile(rb"[\x02-\x05][\x00-\x07]\x09\x00", re.DOTALL)
_ZEROS = bytes(_SEARCH_BYTES + BOUNDARY_HEADER_BYTES)


def find_promise(
    file: StorageFile, start: int, size: int, past: int, checksum: ChecksumFunction, seed: int
) -> Promise | None:
    """The first frame header from offset `start` on that promises, and lies, past the position `past`."""
    offset = start + (-start % ALIGNMENT)
    while offset + BOUNDARY_HEADER_BYTES <= size:
        # Blocks overlap by a header, so that none is cut in two.
        block = file.pread(min(len(_ZEROS), size - offset), offset)
        if len(block) < BOUNDARY_HEADER_BYTES:
            return None
        if block != _ZEROS[: len(block)]:
            for match in _BOUNDARY_PATTERN.finditer(block):
                at = match.start() - 4
                if at < 0 or at % ALIGNMENT or at + BOUNDARY_HEADER_BYTES > len(block):
                    continue
                fields = BOUNDARY_HEADER.unpack_from(block, at)
                position, promise = fields[4], fields[10]
                if (
                    promise > past
                    and position >= past
                    and checksum(block[at + 4 : at + BOUNDARY_HEADER_BYTES], seed) == fields[0]
                ):
                    return Promise(position, promise)
        step = len(block) - BOUNDARY_HEADER_BYTES
        offset += max(ALIGNMENT, step - step % ALIGNMENT)
    return None


class LogWalk:
    """Reads a log from its first needed segment to its end, and knows afterwards where and how it ends.

    `batches()` yields the entries that are not checkpointed, in lists. After it: `segments` are the log's segments in
    order, `scanner` stands at the end, `cut` is the place to go on appending, `torn_bytes` what was read or lies
    unreadable behind it, `stale` the slots whose segments do not belong to the log and whose sequence is not past.
    """

    def __init__(self, storage: Storage, found: LogDirectory, checkpoint: CheckpointSlot) -> None:
        self._storage = storage
        self._found = found
        self.checkpoint = checkpoint
        self.checksum = checksum_function(checkpoint.checksum_kind)
        self.seed = header_seed(checkpoint.log_uuid, self.checksum)
        self.scanner = Scanner(self.checksum, self.seed)
        self.segments: list[Segment] = []
        self.slots: list[SlotFile] = []
        self.cut = (0, 0, 0)
        self.stop_position = 0
        self.bytes_read = 0

    def batches(
        self, *, released: bool = False, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Segment, list[RawEntry]]]:
        """The entries in order, in lists of one segment each; with `released`, those that are checkpointed as well.

        Raises `DamagedLogError` where the log is damaged.
        """
        by_sequence = self._found.sequences()
        slot = self._first_slot(by_sequence)
        resume = False
        scanner = self.scanner
        skip = 0 if released else self.checkpoint.checkpointed_id
        while True:
            header = slot.header
            assert header is not None
            segment = Segment(slot.name, header)
            segment.first_id = scanner.next_id if resume else header.next_id
            self.segments.append(segment)
            self.slots.append(slot)
            if header.abandoned:
                scanner.skip_abandoned(header)
                segment.end, segment.last_id = header.end, header.end_next_id - 1
            else:
                self._require_size(slot, header)
                file = self._storage.open(slot.name, read_only=True)
                try:
                    scanner.enter(header, file, resume=resume)
                    limit = header.base + header.segment_bytes
                    while scanner.stop is None:
                        before = scanner.position
                        entries = scanner.read(limit)
                        segment.committed_id = scanner.next_id - 1
                        segment.last_id = scanner.next_id - (not scanner.entry_is_open)
                        segment.end = scanner.position
                        self.bytes_read += scanner.position - before
                        if progress is not None:
                            progress(scanner.position - before)
                        if entries and entries[0][0] <= skip:
                            entries = [entry for entry in entries if entry[0] > skip]
                        if entries:
                            yield segment, entries
                finally:
                    file.close()
            following = self._following(by_sequence, header.sequence)
            if following is None:
                return
            slot = following
            resume = True

    def _first_slot(self, by_sequence: dict[int, list[SlotFile]]) -> SlotFile:
        head = self.checkpoint.head_sequence
        candidates = by_sequence.get(head, [])
        if not candidates:
            unreadable = [self._storage.describe(slot.name) for slot in self._found.slots if slot.header is None]
            raise DamagedLogError(
                f"segment {head} of the log in {self._storage.describe('')} is missing or its header is damaged; "
                f"entries after {self.checkpoint.checkpointed_id} may lie in it. Files without a readable header at "
                f"offset 0 or 4096: {', '.join(unreadable) or 'none'}. Put the segment's file back from a copy of the "
                "directory"
            )
        return max(candidates, key=lambda slot: (bool(slot.header and slot.header.abandoned), slot.name))

    def _require_size(self, slot: SlotFile, header: SegmentHeader) -> None:
        # The whole file was synced, at its full length, before it was first used: no crash makes it shorter.
        if slot.size < header.segment_bytes:
            raise DamagedLogError(
                f"{self._storage.describe(slot.name)} was cut off at offset {slot.size}; it had {header.segment_bytes} "
                "bytes. Nothing was changed. Put the file back from a copy of the directory, "
                "or copy what can be read into a new one with `walsync salvage`"
            )

    def _following(self, by_sequence: dict[int, list[SlotFile]], sequence: int) -> SlotFile | None:
        """The slot that continues the log behind the place where the scanner stopped; None at the log's end."""
        scanner = self.scanner
        link = Link.MISSING
        chosen: SlotFile | None = None
        for slot in by_sequence.get(sequence + 1, []):
            assert slot.header is not None
            if link_of(slot.header, scanner.position, scanner.chain, scanner.epoch) is Link.CONTINUES:
                link = Link.CONTINUES
                if chosen is None or slot.header.abandoned:
                    chosen = slot
            elif chosen is None:
                link = Link.MISMATCH
        decision = decide(link, promised_past=link is not Link.CONTINUES and self._promise_past_stop() is not None)
        if decision is Decision.GO_ON:
            return chosen
        if decision is Decision.DAMAGE:
            raise self._damage()
        self.cut = scanner.boundary
        self.stop_position = scanner.position
        return None

    def _promise_past_stop(self) -> Promise | None:
        stop = self.scanner.position
        if self.checkpoint.promise > stop:
            return Promise(None, self.checkpoint.promise)
        if self.scanner.promise > stop:
            return Promise(stop, self.scanner.promise)
        last = self.segments[-1]
        for slot in self._found.slots:
            header = slot.header
            if slot.name == last.name:
                start = stop - last.base
            elif header is not None and self._found.belongs(header.log_uuid) and header.sequence <= last.sequence:
                continue
            else:
                start = FRAMES_OFFSET
            file = self._storage.open(slot.name, read_only=True)
            try:
                found = find_promise(file, start, slot.size, stop, self.checksum, self.seed)
            finally:
                file.close()
            if found is not None:
                return found
        return None

    def _damage(self) -> DamagedLogError:
        scanner = self.scanner
        last = self.segments[-1]
        promise = self._promise_past_stop()
        if scanner.stop is Stop.SEALED:
            what = f"segment {last.sequence + 1}, which follows it, is missing or its header is damaged"
        else:
            what = scanner.reason
        if promise is None or promise.position is not None:
            who = f"a later frame (position {promise.position if promise else '?'})"
        else:
            who = f"{self._storage.describe(CHECKPOINT_FILE)} (up to entry {self.checkpoint.promised_id})"
        return DamagedLogError(
            f"{self._storage.describe(last.name)} is damaged at offset {scanner.position - last.base} (position "
            f"{scanner.position}, after entry {scanner.next_id - 1}): {what}, and {who} "
            "says that this was durable. Nothing was changed. Restore the "
            "directory from a copy, or copy what can be read into a new one with `walsync salvage` (entries up to "
            f"{scanner.next_id - 1}, and what is whole behind the damage)"
        )

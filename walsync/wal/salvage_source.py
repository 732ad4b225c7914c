"""What a damaged directory still tells of its log: identity, checkpoint, segment headers.

Owns the reading of everything but frames. Never raises for what is damaged: a copy that is not whole is as good as
none, and is named in `notes`. Never writes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import NamedTuple

from walsync.exceptions import DamagedLogError, LogError, LogVersionError
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, SLOT_BYTES, CheckpointSlot, unpack_slot
from walsync.wal.checksum import KINDS, ChecksumFunction, checksum_function
from walsync.wal.directory import read_exactly
from walsync.wal.format import (
    FRAMES_OFFSET,
    SECOND_HEADER_OFFSET,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    SegmentHeader,
    header_seed,
    unpack_segment_header,
)
from walsync.wal.salvage_frames import FrameFinder
from walsync.wal.segment import slot_number
from walsync.wal.storage.protocol import Storage

__all__ = ["LogSource", "SourceFile", "read_source"]

MAX_POSITION = 1 << 62
"""Headers with a place past this cannot be right; no log is that long."""

_UUID_OFFSET = 32
_SLOT_UUID_OFFSET = 16


class SourceFile(NamedTuple):
    """A segment file. `headers` are the whole copies of its header that are this log's: none, one or two."""

    name: str
    size: int
    headers: tuple[SegmentHeader, ...]

    @property
    def bases(self) -> frozenset[int] | None:
        """The bases that it may hold frames of; None: any."""
        return frozenset(header.base for header in self.headers) or None


class LogSource(NamedTuple):
    """A damaged log, before its frames are looked at."""

    storage: Storage
    log_uuid: uuid.UUID
    checksum_kind: int
    checksum: ChecksumFunction
    seed: int
    checkpoint: CheckpointSlot | None
    checkpoint_is_newest: bool
    """Whether a newer slot cannot have been lost."""
    files: list[SourceFile]
    notes: list[str]

    def headers(self) -> Iterator[SegmentHeader]:
        """The whole headers of all files."""
        for file in self.files:
            yield from file.headers


def read_source(storage: Storage, log_uuid: uuid.UUID | None) -> LogSource:
    """Look at the directory. `log_uuid` is only needed where nothing in it says which log it is.

    Raises `LogError` if there is no log, `DamagedLogError` if it cannot be told which one it is, and `LogVersionError`
    if all that is whole is of another version.
    """
    try:
        names = storage.list()
    except OSError as error:
        raise LogError(f"{storage.describe('')} cannot be looked into: {error}") from error
    slot_names = sorted(name for name in names if slot_number(name) is not None)
    if CHECKPOINT_FILE not in names and not slot_names:
        raise LogError(f"there is no log in {storage.describe('')}; give the directory of one")
    notes: list[str] = []
    versions: list[LogVersionError] = []
    slots, slots_lost = _read_slots(storage, CHECKPOINT_FILE in names, notes, versions)
    areas = {name: _read_area(storage, name, notes) for name in slot_names}
    headers = {name: _headers(storage, name, area, notes, versions) for name, (_, area) in areas.items()}
    whole = [header for copies in headers.values() for header in copies]
    if versions and not slots and not whole:
        raise versions[0]
    notes.extend(str(error) for error in versions)
    identity = _identify(storage, log_uuid, slots, whole, areas)
    found_uuid, kind = identity
    checksum = checksum_function(kind)
    own = [slot for slot in slots if slot.log_uuid == found_uuid]
    checkpoint = max(own, key=lambda slot: slot.generation, default=None)
    files = []
    for name, (size, _) in areas.items():
        copies = tuple(dict.fromkeys(header for header in headers[name] if header.log_uuid == found_uuid))
        if headers[name] and not copies:
            notes.append(
                f"{storage.describe(name)} is a segment of log {headers[name][0].log_uuid}; it was passed over"
            )
            continue
        files.append(SourceFile(name, size, copies))
    if checkpoint is None:
        notes.append(
            f"{storage.describe(CHECKPOINT_FILE)} has no whole slot: how far the log was released is not known"
        )
    return LogSource(
        storage,
        found_uuid,
        kind,
        checksum,
        header_seed(found_uuid, checksum),
        checkpoint,
        checkpoint is not None and not slots_lost,
        files,
        notes,
    )


def _read_slots(
    storage: Storage, exists: bool, notes: list[str], versions: list[LogVersionError]
) -> tuple[list[CheckpointSlot], bool]:
    """The whole slots, and whether one that is not whole may have been newer than they are."""
    where = storage.describe(CHECKPOINT_FILE)
    if not exists:
        return [], True
    slots = []
    empty = []
    lost = False
    for index in range(2):
        offset = index * SLOT_BYTES
        data = _read(storage, CHECKPOINT_FILE, SLOT_BYTES, offset)
        try:
            slot = unpack_slot(data, where)
        except LogVersionError as error:
            versions.append(error)
            slot = None
        if slot is not None and slot.generation % 2 == index:
            slots.append(slot)
        else:
            empty.append((offset, data == bytes(SLOT_BYTES)))
    for offset, zeros in empty:
        # Zeros are a slot that was never written, if the other one is the first that a log writes.
        if not zeros or any(slot.generation > 1 for slot in slots):
            lost = True
            notes.append(f"{where} has no whole slot at offset {offset}")
    return slots, lost


def _read(storage: Storage, name: str, length: int, offset: int) -> bytes:
    try:
        file = storage.open(name, read_only=True)
    except OSError:
        return b""
    try:
        return read_exactly(file, length, offset)
    except OSError:
        return b""
    finally:
        file.close()


def _read_area(storage: Storage, name: str, notes: list[str]) -> tuple[int, bytes]:
    """The file's size, and the bytes before its first frame."""
    try:
        file = storage.open(name, read_only=True)
    except OSError as error:
        notes.append(f"{storage.describe(name)} cannot be opened: {error}")
        return 0, b""
    try:
        size = file.size()
    finally:
        file.close()
    # Each copy by itself: one of them may lie on a sector that cannot be read.
    copies = (_read(storage, name, SEGMENT_HEADER_BYTES, offset) for offset in (0, SECOND_HEADER_OFFSET))
    return size, b"".join(copy.ljust(SECOND_HEADER_OFFSET, b"\0") for copy in copies)


def _headers(
    storage: Storage, name: str, area: bytes, notes: list[str], versions: list[LogVersionError]
) -> list[SegmentHeader]:
    found = []
    where = storage.describe(name)
    damaged = []
    for offset in (0, SECOND_HEADER_OFFSET):
        copy = area[offset : offset + SEGMENT_HEADER_BYTES]
        try:
            header = unpack_segment_header(copy, where)
        except LogVersionError as error:
            versions.append(error)
            continue
        if header is None or header.base % 4096 or header.base + header.segment_bytes > MAX_POSITION:
            if any(copy):
                damaged.append(offset)
            continue
        found.append(header)
    if damaged:
        places = " and ".join(map(str, damaged))
        notes.append(f"{where} has no whole header at offset {places}")
    return found


def _identify(
    storage: Storage,
    wanted: uuid.UUID | None,
    slots: list[CheckpointSlot],
    headers: list[SegmentHeader],
    areas: dict[str, tuple[int, bytes]],
) -> tuple[uuid.UUID, int]:
    """The log's uuid and kind of checksum: from the checkpoint, the headers, or what a damaged copy still shows."""
    whole = [(slot.log_uuid, slot.checksum_kind) for slot in slots]
    whole = whole or [(header.log_uuid, header.checksum_kind) for header in headers]
    candidates = [pair for pair in dict.fromkeys(whole) if wanted in (None, pair[0])]
    if len(candidates) == 1:
        return candidates[0]
    if len(candidates) > 1:
        raise DamagedLogError(
            f"{storage.describe('')} has segments of several logs ({', '.join(str(pair[0]) for pair in candidates)}), "
            "and no checkpoint that says which is its own. Say which one, by its uuid (column log_uuid of "
            "walsync_checkpoint in the target)"
        )
    # A uuid is told right or wrong by the frames: their checksums go on from it.
    guesses = [wanted] if wanted is not None else list(_guesses(storage, areas))
    for guess in guesses:
        for kind in KINDS.values():
            checksum = checksum_function(kind)
            seed = header_seed(guess, checksum)
            for name, (size, _) in areas.items():
                if _has_frame(storage, name, size, checksum, seed):
                    return guess, kind
    raise DamagedLogError(
        f"nothing in {storage.describe('')} says which log it is: no segment header and no checkpoint slot is whole"
        + (f", and no frame is one of log {wanted}" if wanted is not None else "")
        + ". If you know the log's uuid (column log_uuid of walsync_checkpoint in the target), say it"
    )


def _guesses(storage: Storage, areas: dict[str, tuple[int, bytes]]) -> Iterator[uuid.UUID]:
    """What lies where the uuid is in copies that are not whole."""
    seen = set()
    places = [
        area[offset + _UUID_OFFSET : offset + _UUID_OFFSET + 16]
        for _, area in areas.values()
        for offset in (0, SECOND_HEADER_OFFSET)
        if len(area) >= FRAMES_OFFSET and (area[offset : offset + 8] == SEGMENT_MAGIC or any(area[offset:][:512]))
    ]
    places += [_read(storage, CHECKPOINT_FILE, 16, offset + _SLOT_UUID_OFFSET) for offset in (0, SLOT_BYTES)]
    for place in places:
        if len(place) == 16 and any(place) and place not in seen:
            seen.add(place)
            yield uuid.UUID(bytes=place)


def _has_frame(storage: Storage, name: str, size: int, checksum: ChecksumFunction, seed: int) -> bool:
    try:
        file = storage.open(name, read_only=True)
    except OSError:
        return False
    try:
        return FrameFinder(file, size, None, checksum, seed).search(FRAMES_OFFSET) is not None
    finally:
        file.close()

"""Damage: bytes that were durable are not what was written. What must be an error, told by a reader of its own.

Owns a reader of frames that shares only the field layout with the engine, and the rule: a log with damage either
raises, or gives back a beginning of what was acknowledged; and where any frame that is whole promises a place behind
the damage, it must raise.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.simulation.model import InvariantViolation, Model, Payload
from walsync.exceptions import DamagedLogError
from walsync.testing import SimulatedStorage
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, newest_slot
from walsync.wal.format import (
    BOUNDARY_HEADER,
    BOUNDARY_HEADER_BYTES,
    COMMIT,
    DATA,
    DATA_HEADER_BYTES,
    FRAMES_OFFSET,
    SEAL,
    aligned,
    unpack_segment_header,
)

__all__ = ["Damage", "Expectation", "Frame", "check_damaged", "damage_somewhere", "frames_of", "judge"]

_SECTOR_BYTES = 512


class Frame(NamedTuple):
    """A frame of the log at rest. `promise` is 0 where the frame makes none."""

    name: str
    start: int
    end: int
    kind: int
    position: int
    entry_id: int
    promise: int


class Damage(NamedTuple):
    """What was changed: the file, and the offsets of the bytes that are others now."""

    name: str
    changed: set[int]
    is_header: bool = False
    """A whole header of another segment lies there now, which looks as good as the right one."""

    def __str__(self) -> str:
        return f"{self.name}, damaged from {min(self.changed, default=0)} to {max(self.changed, default=0)}"


class Expectation(NamedTuple):
    """What opening the damaged log must do: raise, may do (`may_raise`), or recover up to `last_id`."""

    must_raise: bool
    may_raise: bool
    last_id: int


def _contents(storage: SimulatedStorage, name: str) -> bytes:
    file = storage.open(name, read_only=True)
    return file.pread(file.size(), 0)


def frames_of(storage: SimulatedStorage) -> list[Frame]:
    """The frames of an undamaged log in order, from its first segment in use to its end."""
    slot = None
    if CHECKPOINT_FILE in storage.list():
        slot, _ = newest_slot(_contents(storage, CHECKPOINT_FILE), CHECKPOINT_FILE)
    if slot is None:
        raise InvariantViolation("the log was opened and closed, and its checkpoint is not there")
    segments: dict[tuple[int, int], tuple[str, int, bytes]] = {}
    for name in storage.list():
        if name.startswith("segment-"):
            data = _contents(storage, name)
            header = unpack_segment_header(data, name) or unpack_segment_header(data[4096:], name)
            if header is not None and header.log_uuid == slot.log_uuid:
                segments[header.sequence, header.previous_end] = (name, header.base, data)
    frames: list[Frame] = []
    sequence = slot.head_sequence
    found = next((value for key, value in segments.items() if key[0] == sequence), None)
    while found is not None:
        name, base, data = found
        sealed = False
        at = FRAMES_OFFSET
        while at + DATA_HEADER_BYTES <= len(data) and not sealed:
            fields = BOUNDARY_HEADER.unpack_from(data.ljust(at + BOUNDARY_HEADER_BYTES, b"\0"), at)
            kind, words, position, length, entry_id = fields[1], fields[3], fields[4], fields[5], fields[9]
            if position != base + at:
                break
            end = at + words * 8 + aligned(length)
            frames.append(Frame(name, at, end, kind, position, entry_id, 0 if kind == DATA else fields[10]))
            sealed = kind == SEAL
            at = end
        sequence += 1
        found = segments.get((sequence, base + at)) if sealed else None
    return frames


def damage_somewhere(storage: SimulatedStorage, source: random.Random) -> Damage:
    """Change something in one file."""
    names = sorted(storage.list())
    name = source.choice([name for name in names if name.startswith("segment-")])
    if source.random() < 0.05:
        name = CHECKPOINT_FILE
    before = _contents(storage, name)
    used = max(1, len(before.rstrip(b"\0")))
    if not before:
        return Damage(name, set())
    # Headers are most of a small log.
    first = FRAMES_OFFSET if used > FRAMES_OFFSET and source.random() < 0.85 else 0
    offset = source.randrange(first, used)
    draw = source.random()
    if draw < 0.5:
        # A flipped bit.
        storage.damage(name, offset, bytes([before[offset] ^ 1 << source.randrange(8)]))
        return Damage(name, {offset})
    start = offset - offset % _SECTOR_BYTES
    if draw < 0.75:
        data = bytes(_SECTOR_BYTES)
    else:
        # A write that belonged elsewhere.
        other = _contents(storage, source.choice([name for name in names if name.startswith("segment-")]))
        place = source.randrange(max(1, len(other.rstrip(b"\0")) // _SECTOR_BYTES)) * _SECTOR_BYTES
        data = other[place : place + _SECTOR_BYTES]
    data = data[: len(before) - start]
    storage.damage(name, start, data)
    changed = {start + index for index in range(len(data)) if data[index] != before[start + index]}
    return Damage(name, changed, unpack_segment_header(data, name) is not None)


def promise_of(storage: SimulatedStorage) -> int:
    """The position up to which the checkpoint file says that the log is durable."""
    slot, _ = newest_slot(_contents(storage, CHECKPOINT_FILE), CHECKPOINT_FILE)
    return 0 if slot is None else slot.promise


def judge(frames: list[Frame], promise: int, damage: Damage, released: int, last_id: int) -> Expectation:
    """What must become of a log that had these `frames`, and whose checkpoint file made this promise."""
    name, changed, _ = damage
    if not changed:
        return Expectation(must_raise=False, may_raise=False, last_id=last_id)
    hit = [
        frame.name == name
        and frame.end > min(changed)
        and frame.start <= max(changed)
        and any(frame.start <= offset < frame.end for offset in changed)
        for frame in frames
    ]
    if True not in hit:
        # A copy of a header, what lies behind the end, a slot that is not used.
        return Expectation(must_raise=False, may_raise=name == CHECKPOINT_FILE or damage.is_header, last_id=last_id)
    first = hit.index(True)
    place = frames[first].position
    promised = any(
        frame.promise > place for frame, is_hit in zip(frames[first:], hit[first:], strict=True) if not is_hit
    )
    # The last promise that was read before may cover the place as well, and so may the checkpoint file's.
    promised = promised or promise > place or any(frame.promise > place for frame in frames[:first])
    kept = max((frame.entry_id for frame in frames[:first] if frame.kind == COMMIT), default=0)
    ends_released = frames[first].entry_id <= released
    # Where no frame of the log promises, a leftover of a torn tail may: it is right, and raising is never wrong here.
    return Expectation(must_raise=promised and not ends_released, may_raise=True, last_id=kept)


def check_damaged(
    recovered: list[tuple[int, Payload]] | DamagedLogError, expectation: Expectation, model: Model, where: str
) -> None:
    """Compare what opening did with what it must do."""
    if isinstance(recovered, DamagedLogError):
        if not (expectation.must_raise or expectation.may_raise):
            raise InvariantViolation(f"{where}: nothing that was promised is missing, and opening raised {recovered}")
        return
    if expectation.must_raise:
        raise InvariantViolation(f"{where}: durable bytes are gone, a promise says so, and opening found nothing wrong")
    for entry_id, payload in recovered:
        if entry_id > len(model.entries) or payload != model.entries[entry_id - 1]:
            raise InvariantViolation(
                f"{where}: entry {entry_id} was recovered with other bytes than it was written with"
            )
    ids = [entry_id for entry_id, _ in recovered]
    if ids and (ids != list(range(ids[0], ids[-1] + 1)) or ids[0] > model.released + 1):
        raise InvariantViolation(f"{where}: entries {ids} were recovered, and {model.released} are released")
    last = ids[-1] if ids else model.released
    if last < min(expectation.last_id, model.last_id):
        raise InvariantViolation(f"{where}: entries up to {expectation.last_id} are whole, and {ids} were recovered")

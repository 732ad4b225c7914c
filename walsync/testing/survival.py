"""What a crash leaves of what was not synced: the choices, made with a random source that is passed in.

Owns the choice among the versions of sectors, sizes and names. Never touches what a sync covers, with one exception
that is asked for by name: `Survival.MISDIRECTED` puts sectors where they do not belong, but only over sectors of
which every byte was unsynced as well. A disk that writes over other data breaks every log of a single copy; what a
log owes then is an error.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence

from walsync.testing.contents import SECTOR_BYTES, Contents, Write, apply_write, build, changed_range, replaced_sectors

__all__ = ["Survival", "surviving_data"]

_CHANCES = (0.05, 0.3, 0.5, 0.7, 0.95)


class Survival(enum.Enum):
    """What survives of the writes and names that no sync has covered."""

    NOTHING = "nothing"
    """Only what was synced."""

    EVERYTHING = "everything"
    """All of it, except what a failed sync gave up."""

    PREFIX = "prefix"
    """What was done before some moment; the write of that moment by its first sectors."""

    SUBSET = "subset"
    """Of every sector, size and name one of its versions since the last sync, each chosen by itself."""

    MISDIRECTED = "misdirected"
    """A subset, in which some sectors or writes landed in the place of others."""


class Choice:
    """One crash: the same chances for all files of it."""

    def __init__(self, survival: Survival, source: random.Random, last_sequence: int) -> None:
        self.survival = survival
        self.source = source
        self.chance = source.choice(_CHANCES)
        self.until = source.randint(0, last_sequence)

    def keeps(self, sequence: int) -> bool:
        """Whether the change of a name with this number survives."""
        if self.survival is Survival.NOTHING:
            return False
        if self.survival is Survival.EVERYTHING:
            return True
        if self.survival is Survival.PREFIX:
            return sequence <= self.until
        return self.source.random() < self.chance


def surviving_data(contents: Contents, choice: Choice) -> bytearray:
    """The bytes of a file after a crash."""
    if not contents.writes and not contents.given_up:
        return contents.data
    survival = choice.survival
    if survival is Survival.NOTHING:
        return contents.durable()
    if survival is Survival.EVERYTHING and not contents.given_up:
        return contents.data
    if survival in (Survival.PREFIX, Survival.EVERYTHING):
        return _prefix(contents, choice)
    writes = contents.writes
    if survival is Survival.MISDIRECTED:
        writes = _swap_writes(writes, choice.source)
    return _subset(contents, writes, choice)


def _prefix(contents: Contents, choice: Choice) -> bytearray:
    data = contents.durable()
    for write in contents.writes:
        if choice.survival is Survival.EVERYTHING or write.sequence < choice.until:
            apply_write(data, write)
        elif write.sequence == choice.until and write.after:
            # Sectors are whole: the write is cut at a sector's end, not at a byte.
            sectors = choice.source.randint(0, -(-len(write.after) // SECTOR_BYTES))
            end = (write.offset // SECTOR_BYTES + sectors) * SECTOR_BYTES
            kept = write.after[: max(0, end - write.offset)]
            if kept:
                apply_write(data, write._replace(after=kept))
    return data


def _subset(contents: Contents, writes: Sequence[Write], choice: Choice) -> bytearray:
    source, chance = choice.source, choice.chance
    versions, sizes = contents.versions(writes)
    chosen: dict[int, bytes] = {}
    for sector, contents_then in versions.items():
        if source.random() < chance:
            chosen[sector] = contents_then[-1]
        else:
            chosen[sector] = contents_then[source.randrange(len(contents_then))]
    if choice.survival is Survival.MISDIRECTED:
        _misdirect(chosen, versions, sorted(replaced_sectors(writes)), source)
    size = sizes[-1] if source.random() < chance else source.choice(sizes)
    return build(contents.durable(), chosen, size)


def _misdirect(
    chosen: dict[int, bytes], versions: dict[int, list[bytes]], places: list[int], source: random.Random
) -> None:
    """Some sectors land in the place of others."""
    if not places:
        return
    sectors = list(versions)
    for _ in range(source.randint(0, 3)):
        place, sector = source.choice(places), source.choice(sectors)
        chosen[place] = versions[sector][-1]
        if sector in places and source.random() < 0.5:
            # They change places.
            chosen[sector] = versions[place][-1]


def _swap_writes(writes: list[Write], source: random.Random) -> list[Write]:
    """Perhaps two writes of one length land in each other's place: no byte changes that they did not cover."""
    # One that only rewrites what is there would put another's bytes over durable ones.
    movable = [index for index, write in enumerate(writes) if write.after and changed_range(write)[0] == write.offset]
    if len(movable) < 2 or source.random() < 0.5:
        return writes
    first = source.choice(movable)
    length = len(writes[first].after)
    partners = [index for index in movable if index != first and len(writes[index].after) == length]
    if not partners:
        return writes
    second = source.choice(partners)
    swapped = list(writes)
    swapped[first] = writes[first]._replace(after=writes[second].after)
    swapped[second] = writes[second]._replace(after=writes[first].after)
    return swapped

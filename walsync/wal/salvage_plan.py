"""Which of the runs found in a damaged directory are the log's, and in which order. Pure; reads no file.

A directory also holds whole frames that are not the log's: what an earlier crash left behind the end, files taken out
of the log, earlier laps. The rules that tell them from the log's own:

1. A position is written once in an epoch. So frames at or behind the place of one with a higher epoch than theirs are
   leftovers.
2. A segment's header names the end of the segment before. Frames behind that end are leftovers.
3. A segment that was moved aside has no frames here.
4. Ids grow with the position. A run's entries from the id on at which a later run begins are leftovers.

What remains may still end in leftovers or a torn tail. Where reading breaks off, the rule is that of `recovery`: if a
later run promises past the break, bytes that were durable are missing there, and the runs behind it are the log's;
else the log ends at the break.
"""

from __future__ import annotations

from collections.abc import Iterable

from walsync.wal.format import SegmentHeader
from walsync.wal.salvage_frames import Run

__all__ = ["best_headers", "choose_runs", "id_limits", "promises_from"]


def best_headers(headers: Iterable[SegmentHeader]) -> dict[int, SegmentHeader]:
    """The header that counts for each sequence: a tombstone, else the one with the highest epoch."""
    best: dict[int, SegmentHeader] = {}
    for header in headers:
        other = best.get(header.sequence)
        if other is None or _rank(header) > _rank(other):
            best[header.sequence] = header
    return best


def _rank(header: SegmentHeader) -> tuple[bool, int, int]:
    return header.abandoned, header.epoch, header.created_ns


def choose_runs(runs: list[Run], headers: dict[int, SegmentHeader]) -> list[Run]:
    """The runs that may be the log's, by position; those that overlap one of a higher epoch are given a `limit`."""
    gaps = sorted(
        (header.base, header.base + header.segment_bytes) if header.abandoned else (header.previous_end, header.base)
        for header in headers.values()
        if header.abandoned or 0 < header.previous_end < header.base
    )
    inside = [run for run in runs if not _cut_by(run, gaps)]
    # Of two copies of one file the one that reads further comes first.
    inside.sort(key=lambda run: (run.start, -run.epoch_at(run.start), -run.end))
    chosen: list[Run] = []
    overlapping: list[Run] = []
    epoch = 0
    for run in inside:
        epoch = max([epoch, *(other.epochs[-1][1] for other in overlapping if other.end <= run.start)])
        overlapping = [other for other in overlapping if other.end > run.start]
        own = run.epoch_at(run.start)
        if own < max([epoch, *(other.epoch_at(run.start) for other in overlapping)]):
            continue
        same = [other for other in overlapping if other.epoch_at(run.start) == own and other.limit is None]
        for other in overlapping:
            if other not in same:
                other.limit = run.start if other.limit is None else min(other.limit, run.start)
        if any(run.end <= other.end for other in same):
            continue
        chosen.append(run)
        overlapping.append(run)
    return chosen


def _cut_by(run: Run, gaps: list[tuple[int, int]]) -> bool:
    for begin, end in gaps:
        if begin <= run.start < end:
            return True
        if run.start < begin < run.end:
            run.limit = begin
    return False


def id_limits(runs: list[Run]) -> list[int | None]:
    """For each run the id from which on its entries would be a later run's."""
    limits: list[int | None] = []
    lowest: int | None = None
    for run in reversed(runs):
        limits.append(lowest)
        lowest = run.next_id if lowest is None else min(lowest, run.next_id)
    limits.reverse()
    return limits


def promises_from(runs: list[Run]) -> list[int]:
    """For each run the highest promise in it or behind it."""
    promises: list[int] = []
    highest = 0
    for run in reversed(runs):
        highest = max(highest, run.promise)
        promises.append(highest)
    promises.reverse()
    return promises

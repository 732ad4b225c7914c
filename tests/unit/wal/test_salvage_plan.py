"""Which of the runs found in a damaged directory are the log's: each rule by itself, without the others' help."""

from __future__ import annotations

import uuid

from walsync.wal.format import COMMIT, FRAMES_OFFSET, RECOVERY, SegmentHeader
from walsync.wal.salvage_frames import FoundFrame, Run
from walsync.wal.salvage_plan import best_headers, choose_runs, id_limits, promises_from

SEGMENT_BYTES = 32 * 1024
LENGTH = 72


def run(name: str, start: int, *frames: tuple[int, int], base: int = 0, promise: int = 0) -> Run:
    """A run of frames of 72 bytes from the position `start` on, each `(epoch, entry id)`; a new epoch is a RECOVERY."""
    found: Run | None = None
    epoch_before = None
    for index, (epoch, entry_id) in enumerate(frames):
        kind = COMMIT if epoch_before in (None, epoch) else RECOVERY
        epoch_before = epoch
        offset = start - base + index * LENGTH
        frame = FoundFrame(
            offset, offset + LENGTH, base, kind, 0, epoch, index, index + 1, entry_id, promise, 0, 0, 0, b""
        )
        if found is None:
            found = Run(name, frame)
        else:
            assert found.extend(frame)
    assert found is not None
    return found


def header(sequence: int, *, epoch: int = 1, previous_end: int = 0, abandoned: bool = False) -> SegmentHeader:
    return SegmentHeader(
        checksum_kind=1,
        log_uuid=uuid.UUID(int=1),
        sequence=sequence,
        base=(sequence - 1) * SEGMENT_BYTES,
        previous_end=previous_end,
        previous_chain=0,
        epoch=epoch,
        segment_bytes=SEGMENT_BYTES,
        created_ns=sequence,
        next_id=1,
        abandoned=abandoned,
    )


def test_runs_are_in_the_order_of_their_positions() -> None:
    first, second = run("a", 8_192, (1, 1)), run("b", SEGMENT_BYTES + FRAMES_OFFSET, (1, 5), base=SEGMENT_BYTES)
    assert choose_runs([second, first], {}) == [first, second]


def test_frames_behind_those_of_a_higher_epoch_are_leftovers() -> None:
    own = run("a", 8_192, (1, 1), (2, 1))
    leftover = run("a", 9_000, (1, 3))
    assert choose_runs([own, leftover], {}) == [own]


def test_a_later_epoch_goes_on() -> None:
    own, later = run("a", 8_192, (1, 1)), run("a", 9_000, (2, 3))
    assert choose_runs([own, later], {}) == [own, later]


def test_frames_where_a_higher_epoch_wrote_are_leftovers() -> None:
    """A file that was taken out of the log, and the one that took its place."""
    leftover = run("a", 8_192, (1, 1), (1, 2), (1, 3))
    own = run("b", 8_192 + LENGTH, (2, 2))
    assert choose_runs([leftover, own], {}) == [leftover, own]
    assert leftover.limit == own.start


def test_of_copies_that_agree_the_longer_is_read_and_the_other_goes_on_behind_it() -> None:
    whole = run("a", 8_192, *[(1, number) for number in range(1, 6)])
    part = run("b", 8_192 + LENGTH, (1, 2), (1, 3))
    assert choose_runs([part, whole], {}) == [whole]
    longer = run("b", 8_192 + 2 * LENGTH, *[(1, number) for number in range(3, 9)])
    assert choose_runs([longer, whole], {}) == [whole, longer]
    assert whole.limit is None


def test_a_copy_that_was_cut_in_an_older_epoch_does_not_hide_what_comes_before_the_new_one() -> None:
    copy = run("b", 8_192, (1, 1), (1, 2), (2, 2))
    rest = run("a", 8_192 + LENGTH, (1, 2), (2, 2), (2, 3))
    assert choose_runs([copy, rest], {}) == [copy, rest]
    assert copy.limit is None


def test_frames_behind_the_end_that_the_next_header_names_are_leftovers() -> None:
    own, leftover = run("a", 8_192, (1, 1)), run("a", 9_000, (1, 2))
    assert choose_runs([own, leftover], best_headers([header(2, previous_end=8_600)])) == [own]
    over_the_end = run("a", 8_192, (1, 1), (1, 2))
    assert choose_runs([over_the_end], best_headers([header(2, previous_end=8_192 + LENGTH)])) == [over_the_end]
    assert over_the_end.limit == 8_192 + LENGTH


def test_a_segment_that_was_moved_aside_has_no_frames_here() -> None:
    leftover = run("a", SEGMENT_BYTES + FRAMES_OFFSET, (1, 1), base=SEGMENT_BYTES)
    assert choose_runs([leftover], best_headers([header(2, abandoned=True)])) == []


def test_of_two_headers_the_tombstone_counts_and_else_the_later_epoch() -> None:
    old, new, tombstone = header(2), header(2, epoch=3), header(2, abandoned=True)
    assert best_headers([new, old]) == {2: new}
    assert best_headers([tombstone, new]) == {2: tombstone}


def test_ids_at_which_a_later_run_begins_are_not_an_earlier_runs() -> None:
    runs = [run("a", 8_192, (1, 1), (1, 2)), run("a", 9_000, (1, 9), (1, 10)), run("b", 20_000, (1, 4))]
    assert id_limits(runs) == [4, 4, None]


def test_a_run_is_vouched_for_by_itself_and_those_behind_it() -> None:
    runs = [
        run("a", 8_192, (1, 1), promise=5),
        run("a", 9_000, (1, 2), promise=900),
        run("a", 9_500, (1, 3), promise=7),
    ]
    assert promises_from(runs) == [900, 900, 7]

"""Who is about to sync waits for those who are likely to come, and soon learns when they do not."""

from __future__ import annotations

import time
from array import array

import pytest

from walsync.wal.control_block import COMMITTING, SLOTS, SYNC_NS
from walsync.wal.sharing import gathering as gathering_module
from walsync.wal.sharing.gathering import Gathering

LONG_NS = 10_000_000_000


class Arrivals:
    """Posts of which one more is there at each look, up to a number."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.looks = 0

    def count(self) -> int:
        self.looks += 1
        return min(self.looks, self.most)


def gathering_of(most: int, committing: int, *, longest_s: float = 10.0) -> tuple[Gathering, Arrivals, array[int]]:
    words = array("Q", bytes(8 * SLOTS))
    words[COMMITTING] = committing
    words[SYNC_NS] = LONG_NS
    arrivals = Arrivals(most)
    return Gathering(words, arrivals, longest_s), arrivals, words  # type: ignore[arg-type]


@pytest.mark.parametrize(("others", "enough"), [(1, 1), (2, 2), (3, 3), (4, 3), (7, 6), (15, 12)])
def test_it_waits_for_all_but_the_last_of_those_that_had_an_entry(others: int, enough: int) -> None:
    gathering, arrivals, _ = gathering_of(100, others + 1)
    gathering.wait()
    assert arrivals.looks == enough


@pytest.mark.parametrize(("committing", "longest_s"), [(0, 10.0), (1, 10.0), (16, 0.0)])
def test_it_does_not_even_look(committing: int, longest_s: float) -> None:
    gathering, arrivals, _ = gathering_of(100, committing, longest_s=longest_s)
    gathering.wait()
    assert arrivals.looks == 0


@pytest.mark.parametrize(("longest_s", "sync_ns"), [(0.02, LONG_NS), (10.0, 20_000_000)])
def test_it_waits_no_longer_than_the_limit_nor_than_a_sync(longest_s: float, sync_ns: int) -> None:
    gathering, _, words = gathering_of(1, 16, longest_s=longest_s)
    words[SYNC_NS] = sync_ns
    began = time.monotonic_ns()
    gathering.wait()
    took = time.monotonic_ns() - began
    assert 20_000_000 <= took < LONG_NS / 2


def test_in_vain_it_waits_more_and_more_rarely_and_again_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_module, "_MOST_HASTE", 8)
    gathering, arrivals, words = gathering_of(1, 16)
    words[SYNC_NS] = 100_000

    def syncs_until_it_looks() -> int:
        for number in range(1000):
            arrivals.looks = 0
            gathering.wait()
            if arrivals.looks:
                return number
        raise AssertionError("it never looks again")

    assert [syncs_until_it_looks() for _ in range(6)] == [0, 1, 2, 4, 8, 8]
    arrivals.most = 100
    words[SYNC_NS] = LONG_NS
    assert syncs_until_it_looks() == 8
    assert [syncs_until_it_looks() for _ in range(3)] == [0, 0, 0]
    arrivals.most = 1
    words[SYNC_NS] = 100_000
    assert [syncs_until_it_looks() for _ in range(3)] == [0, 1, 2]

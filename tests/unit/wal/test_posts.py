"""The boxes in which processes leave entries for whoever syncs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from walsync.wal.checksum import CRC32C, checksum_function
from walsync.wal.control_block import (
    BELLS,
    BOX_WORDS,
    BOXES,
    COMMITTING,
    MARKS,
    MAX_BOXES,
    POST_NUMBER_MASK,
    POSTED,
    TAKEN,
    TOTAL_WORDS,
)
from walsync.wal.sharing import posts as posts_module
from walsync.wal.sharing.posts import Outcome, Posts
from walsync.wal.storage.shared import FileShare

ONE = [(b"data", (MARKS, MARKS + 7))]
LARGEST = 8 * BOX_WORDS - 16 - 8


class RecordingBells:
    """Knows who was woken."""

    wakes = True

    def __init__(self) -> None:
        self.rung: list[int] = []

    def wait(self, index: int, seen: int, timeout_s: float) -> None:
        raise AssertionError("nobody waits here")

    def ring(self, index: int) -> None:
        self.rung.append(index - BELLS)


class Machine:
    """Processes with one control block, each with locks of its own."""

    def __init__(self, directory: Path) -> None:
        self.share = FileShare(str(directory))
        self.words = self.share.make_words("control", TOTAL_WORDS)
        self.bells = RecordingBells()
        self.all: list[Posts] = []

    def process(self) -> Posts:
        posts = Posts(self.words, self.bells, lambda box: self.share.lock(f"box-{box}"), checksum_function(CRC32C))
        posts.claim()
        self.all.append(posts)
        return posts


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for posts in machine.all:
        posts.close()


def put(posts: Posts, entries: list[tuple[bytes, tuple[int, ...]]]) -> int:
    body, count = posts.pack(entries)
    assert count == len(entries)
    number = posts.next_number
    posts.put(number, body)
    return number


def test_a_post_is_collected_until_somebody_says_how_far_its_ids_reach(machine: Machine) -> None:
    one, other = machine.process(), machine.process()
    assert (one.collect(), other.collect()) == ([], [])
    number = put(one, [*ONE, (b"", ()), (b"\0" * 99, ())])
    assert one.outcome(number) is None
    for _ in range(2):
        [post] = other.collect()
        assert [(data, tuple(places)) for data, places in post.entries] == [*ONE, (b"", ()), (b"\0" * 99, ())]
    assert one.pack(ONE) == (b"", 0)
    assert one.put_one(b"x", ()) == 0
    other.took(post, 12, 0)
    assert one.outcome(number) == Outcome(12, 0)
    assert other.collect() == one.collect() == []
    assert put(one, ONE) == number + 1
    assert one.outcome(number + 1) is None


def test_what_was_not_published_is_taken_again(machine: Machine) -> None:
    one, other, third = machine.process(), machine.process(), machine.process()
    numbers = {one: put(one, ONE), other: put(other, ONE)}
    first, second = third.collect()
    third.took(first, 7, 0)
    third.took(second, 8, 0)
    third.give_back(8)
    assert one.outcome(numbers[one]) == Outcome(7, 0)
    assert other.outcome(numbers[other]) is None
    assert third.collect() == [second]


def test_a_part_that_was_refused_comes_back(machine: Machine) -> None:
    one, other = machine.process(), machine.process()
    number = put(one, [(b"a", ()), (b"b", ()), (b"c", ())])
    [post] = other.collect()
    other.took(post, 5, 2)
    assert one.outcome(number) == Outcome(5, 2)
    assert one.collect() == []
    number = one.put_one(b"a", ())
    [post] = other.collect()
    other.took(post, 0, 1)
    assert one.outcome(number) == Outcome(0, 1)


def test_the_owner_may_withdraw_what_nobody_has_taken(machine: Machine) -> None:
    one, other = machine.process(), machine.process()
    number = put(one, ONE)
    one.withdraw(number + 1)
    assert other.collect()
    one.withdraw(number)
    assert other.collect() == []
    assert one.put_one(b"x", ()) == number + 1


def test_what_a_dead_process_left_is_dropped_unless_it_is_fresh(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machine.process(), machine.process()
    put(one, ONE)
    one.close()
    assert len(other.collect()) == 1
    monkeypatch.setattr(posts_module, "_FRESH_NS", 0)
    assert other.collect() == []
    monkeypatch.undo()
    assert other.collect() == []


def test_what_lies_long_in_the_box_of_a_living_process_is_taken(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machine.process(), machine.process()
    put(one, ONE)
    monkeypatch.setattr(posts_module, "_FRESH_NS", 0)
    assert len(other.collect()) == 1


def test_who_gets_the_box_of_a_dead_process_gets_nothing_of_what_it_left(machine: Machine) -> None:
    """Not even of what was taken and never published, which is given back afterwards."""
    for published in (False, True, None):
        one, other = machine.process(), machine.process()
        put(one, ONE)
        if published is not None:
            [post] = other.collect()
            other.took(post, 9, 0)
        one.close()
        third = machine.process()
        assert third.own_box == 0
        if published is False:
            other.give_back(9)
        assert other.collect() == []
        number = third.put_one(b"x", ())
        assert third.outcome(number) is None
        assert [post.entries for post in other.collect()] == [[(b"x", ())]]
        for posts in (other, third):
            posts.close()


@pytest.mark.parametrize("word", [0, 2, 3])
def test_a_post_that_is_not_all_there_yet_is_left_for_the_next(machine: Machine, word: int) -> None:
    """Its length or its checksum (word 0) or its entries; the time at which it was posted is not checked (word 1)."""
    one, other = machine.process(), machine.process()
    put(one, ONE)
    for bit in (0, 20, 33, 63):
        machine.words[BOXES + word] ^= 1 << bit
        assert other.collect() == []
        machine.words[BOXES + word] ^= 1 << bit
        assert len(other.collect()) == 1


def test_numbers_begin_again(machine: Machine) -> None:
    one, other = machine.process(), machine.process()
    machine.words[POSTED] = machine.words[TAKEN] = POST_NUMBER_MASK
    assert one.put_one(b"x", ()) == 1
    [post] = other.collect()
    other.took(post, (1 << 48) - 1, 0)
    assert one.outcome(1) == Outcome((1 << 48) - 1, 0)
    machine.words[POSTED + 2] = POST_NUMBER_MASK
    assert machine.process().put_one(b"x", ()) == 2


def test_what_does_not_fit_is_not_posted(machine: Machine) -> None:
    one = machine.process()
    assert one.put_one(bytes(LARGEST + 1), ()) == 0
    assert one.pack([(bytes(LARGEST + 1), ())]) == (b"", 0)
    assert one.pack([(bytes(3000), ()), (bytes(3000), ())])[1] == 1
    assert one.put_one(bytes(LARGEST), ())
    [post] = one.collect()
    assert post.entries == [(bytes(LARGEST), ())]


def test_who_finds_no_box_posts_nothing_and_takes_the_posts_of_others(machine: Machine) -> None:
    processes = [machine.process() for _ in range(MAX_BOXES + 1)]
    without = processes.pop()
    assert without.put_one(b"x", ()) == 0
    assert without.pack(ONE) == (b"", 0)
    for posts in processes:
        assert posts.put_one(b"x", ())
    assert len(without.collect()) == MAX_BOXES
    processes[5].close()
    assert machine.process().own_box == 5
    assert len(without.collect()) == MAX_BOXES - 1


def test_those_whose_posts_were_collected_are_woken_and_one_who_came_later(machine: Machine) -> None:
    leader, *others = (machine.process() for _ in range(6))
    for posts in others[:2]:
        put(posts, ONE)
    collected = leader.collect()
    for post in collected:
        leader.took(post, 5, 0)
    for posts in others[3:]:
        put(posts, ONE)
    before = machine.words[BELLS : BELLS + 7].tolist()
    leader.ring()
    assert machine.bells.rung == [1, 2, 4]
    after = machine.words[BELLS : BELLS + 7].tolist()
    assert [box for box in range(7) if before[box] != after[box]] == [1, 2, 4]
    # Two were served, two came since, and the leader itself.
    assert machine.words[COMMITTING] == 5
    # Nobody is woken twice for one sync.
    machine.bells.rung.clear()
    leader.ring()
    assert machine.bells.rung == [4]
    assert leader.count() == 2


def test_nobody_is_woken_when_nobody_posts(machine: Machine) -> None:
    leader, _ = machine.process(), machine.process()
    leader.collect()
    leader.ring()
    assert machine.bells.rung == []
    assert machine.words[COMMITTING] == 1

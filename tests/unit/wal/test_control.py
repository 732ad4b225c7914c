"""What the users of a log tell each other: marks, how far entries are applied, who waits, who applies."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wal.logs import all_of, open_log
from walsync.exceptions import EntryTooLargeError, LogClosedError
from walsync.wal import MemoryStorage


def test_the_last_entry_that_bears_a_mark() -> None:
    with open_log(MemoryStorage()) as log:
        control = log.control
        assert control.last_marked(["a", "b"]) == 0
        first = log.append(b"1", marks=["a"])
        second = log.append(b"2", b"3", marks=("a", "b"))
        log.append(b"4")
        third = log.append(b"5", marks=["c"], durability="interval")
        assert (first, second) == (1, 2)
        assert control.last_marked(["a"]) == control.last_marked(["b"]) == second
        assert control.last_marked(["a", "c"]) == third
        assert control.last_marked(["d"]) == control.last_marked([]) == 0
        with log.begin_entry(marks=["d"]) as entry:
            entry.write_chunk(b"6")
        assert control.last_marked(["d"]) == entry.entry_id


def test_a_chunk_bears_the_marks_of_its_places_and_is_refused_where_it_is_too_large() -> None:
    with open_log(MemoryStorage(), max_entry_bytes=1000) as log:
        places = log.control.places(["a", "b"])
        first = log.append_chunk(b"first", places)
        second = log.append_chunk(b"second")
        assert log.control.last_marked(["a"]) == log.control.last_marked(["b"]) == first
        with pytest.raises(EntryTooLargeError, match="max_entry_bytes"):
            log.append_chunk(bytes(1001), places)
        assert all_of(log) == {first: [b"first"], second: [b"second"]}
        assert log.control.last_marked(["a"]) == first
    with pytest.raises(LogClosedError):
        log.append_chunk(b"third")


def test_marks_of_queued_entries() -> None:
    with open_log(MemoryStorage()) as log:
        found: dict[str, int] = {}

        def commit(name: str) -> None:
            for _ in range(50):
                found[name] = log.append(b"x", marks=[name])
                assert log.control.last_marked([name]) >= found[name]

        threads = [threading.Thread(target=commit, args=(f"table {number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {name: log.control.last_marked([name]) for name in found} == found


@given(st.lists(st.sets(st.text(max_size=3), max_size=3), min_size=1, max_size=30))
def test_an_answer_is_never_too_low(entries: list[set[str]]) -> None:
    with open_log(MemoryStorage()) as log:
        last: dict[str, int] = {}
        for names in entries:
            entry_id = log.append(b"", marks=sorted(names))
            last |= dict.fromkeys(names, entry_id)
        assert all(log.last_id >= log.control.last_marked([name]) >= entry_id for name, entry_id in last.items())


def test_entries_found_at_recovery_may_bear_any_mark_until_they_were_looked_through() -> None:
    storage = MemoryStorage()
    with open_log(storage) as log:
        last = [log.append(b"x", marks=["a"]) for _ in range(3)][-1]
        assert log.control.unmarked_through == 0
    with open_log(storage) as log:
        control = log.control
        assert control.recovered_id == control.unmarked_through == control.last_marked(["b"]) == last
        new = log.append(b"y", marks=["b"])
        control.note_marks({"a": 2, "b": 1})
        assert control.unmarked_through == 0
        assert (control.last_marked(["a"]), control.last_marked(["b"]), control.last_marked(["c"])) == (2, new, 0)


def test_waiting_for_what_is_applied() -> None:
    with open_log(MemoryStorage()) as log:
        control = log.control
        through = log.append(b"x")
        assert not control.wait_applied(through, 0.01)
        assert control.urgent_id == through
        asked: list[int] = []

        def check() -> None:
            asked.append(1)
            raise RuntimeError("nobody applies")

        with pytest.raises(RuntimeError, match="nobody applies"):
            control.wait_applied(through, 20, check)
        assert len(asked) == 1
        timer = threading.Timer(0.05, control.note_applied, (through,))
        timer.start()
        assert control.wait_applied(through, 20)
        timer.join()
        control.note_applied(0)
        assert control.applied_id == through
        log.checkpoint(log.append(b"y"))
        assert control.applied_id == log.checkpointed_id == 2


def test_the_lease() -> None:
    with open_log(MemoryStorage()) as log:
        assert not log.control.holds_lease
        assert log.control.try_lease()
        assert log.control.try_lease()
        assert log.control.holds_lease
        log.control.release_lease()
        assert not log.control.holds_lease

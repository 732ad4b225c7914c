"""Who waits for syncs hears of each, and whoever syncs is bothered only where somebody wants to hear of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.waiting import wait_until
from walsync.wal.sync_watch import SyncWatch


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def ended(thread: threading.Thread) -> bool:
    thread.join(20.0)
    return not thread.is_alive()


def test_what_is_there_already_is_not_waited_for() -> None:
    watch = SyncWatch()
    assert watch.wait(lambda: True) is True
    assert watch.wait(lambda: False) is False
    assert watch.waiting == 0


def test_each_sync_makes_who_waits_look_again() -> None:
    watch, durable, looks = SyncWatch(), [0], [0]

    def look() -> bool | float | None:
        looks[0] += 1
        return True if durable[0] >= 2 else None

    thread, answers = in_thread(lambda: watch.wait(look))
    for number in (1, 2):
        wait_until(lambda: looks[0] == durable[0] + 1, message="it looks")
        assert watch.is_wanted
        durable[0] = number
        watch.tell()
    assert ended(thread)
    assert answers == [True]
    assert not watch.is_wanted


def test_a_call_that_is_due_is_not_forgotten_when_nobody_waits_any_more() -> None:
    watch, calls = SyncWatch(), []
    watch.call_after_next(lambda: calls.append("called"))
    assert watch.wait(lambda: False) is False
    assert watch.is_wanted
    watch.tell()
    assert calls == ["called"]


def test_a_number_bounds_the_wait_for_the_next_look() -> None:
    watch, answers = SyncWatch(), iter([0.001, 0.001, False])
    assert watch.wait(lambda: next(answers)) is False


def test_waking_ends_every_wait() -> None:
    watch = SyncWatch()
    waits = [in_thread(lambda: watch.wait(lambda: None)) for _ in range(3)]
    wait_until(lambda: watch.waiting == 3, message="all wait")
    watch.wake()
    for thread, answers in waits:
        assert ended(thread)
        assert answers == [False]
    assert watch.waiting == 0


def test_what_the_look_raises_is_raised_to_who_waits() -> None:
    watch = SyncWatch()

    def look() -> None:
        raise LookupError("it is gone")

    with pytest.raises(LookupError, match="gone"):
        watch.wait(look)
    assert watch.waiting == 0


def test_a_call_is_due_after_the_next_sync_and_no_other() -> None:
    watch, calls = SyncWatch(), []
    assert not watch.is_wanted
    watch.call_after_next(lambda: calls.append("called"))
    assert watch.is_wanted
    assert watch.has_callback
    watch.tell()
    watch.tell()
    assert calls == ["called"]
    assert not watch.is_wanted
    assert not watch.has_callback

"""Rates of the last seconds, by a clock that the test turns."""

from __future__ import annotations

import pytest

from walsync.checkpoint.rates import RateMeter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_counter_that_does_not_move_has_the_rate_0(clock: Clock) -> None:
    meter = RateMeter(7, window_s=10, clock=clock)
    assert meter.per_second() == 0
    clock.now += 100
    assert meter.per_second() == 0


def test_steady_growth_is_its_rate_whatever_the_window(clock: Clock) -> None:
    meter = RateMeter(100, window_s=10, clock=clock)
    total = 100
    for step in range(1, 1000):
        clock.now += 0.1
        total += 5
        meter.note(total)
        if step > 10:
            assert meter.per_second() == pytest.approx(50, rel=0.1)


def test_what_is_older_than_the_window_does_not_count(clock: Clock) -> None:
    meter = RateMeter(0, window_s=10, clock=clock)
    clock.now += 1
    meter.note(1_000_000)
    clock.now += 8
    assert meter.per_second() == pytest.approx(1_000_000 / 9)
    clock.now += 1.99
    assert meter.per_second() > 0
    clock.now += 0.1
    assert meter.per_second() == 0
    clock.now += 3
    meter.note(1_000_030)
    assert meter.per_second() == pytest.approx(3, rel=0.06)


def test_it_forgets_slots_that_were_long_ago_and_keeps_few(clock: Clock) -> None:
    meter = RateMeter(0, window_s=10, clock=clock)
    for number in range(10_000):
        clock.now += 0.7
        meter.note(number)
    assert len(meter._noted) < 30
    assert meter.per_second() == pytest.approx(1 / 0.7, rel=0.1)


def test_values_that_come_late_do_not_take_anything_back(clock: Clock) -> None:
    meter = RateMeter(0, window_s=10, clock=clock)
    clock.now += 4
    meter.note(40)
    meter.note(38)
    assert meter.per_second() == pytest.approx(10)


def test_noting_the_last_value_of_each_slot_late_is_as_good_as_noting_every_value(clock: Clock) -> None:
    every, late = RateMeter(0, window_s=10, clock=clock), RateMeter(0, window_s=10, clock=clock)
    slot_end, last, total = 0.0, (0, clock.now), 0
    for step in range(1, 3000):
        # Bursts, and pauses longer than the window.
        clock.now += 30.0 if step % 700 == 0 else 0.01 + step % 7 / 50
        total += step % 11
        every.note(total)
        if clock.now >= slot_end:
            late.note(*last)
            slot_end = late.slot_end(clock.now)
        last = (total, clock.now)
        if step % 13 == 0:
            clock.now += 12.0 if step % 650 == 0 else 0.0
            late.note(*last)
            assert late.per_second() == every.per_second()

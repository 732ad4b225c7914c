"""Waiting for a condition with a deadline: the only place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

T = TypeVar("T")

POLL_INTERVAL_S = 0.005


def wait_until(condition: Callable[[], T], deadline_s: float = 20.0, message: str = "") -> T:
    """Call `condition` until it answers something true, and return that; after `deadline_s` raise `AssertionError`.

    The deadline only bounds a failing test; a passing one returns as soon as the condition holds. What `condition`
    raises is not caught.
    """
    until = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= until:
            described = message or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not within {deadline_s} s: {described} (the last answer was {answer!r})")
        time.sleep(POLL_INTERVAL_S)

"""A deadline for a call that must not hang: it runs in a thread, and a test fails that waits for it in vain."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["within"]

T = TypeVar("T")

DEADLINE_S = 60.0
"""Far longer than any of these calls takes, even on a busy machine."""


def within(call: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """What `call` returns or raises; `AssertionError` with the place where it stands if it does neither in time."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        place = "".join(traceback.format_stack(frame)) if frame else "?"
        raise AssertionError(f"{what} hangs for {deadline_s} s:\n{place}")
    if errors:
        raise errors[0]
    return answers[0]

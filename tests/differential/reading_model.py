"""What may be read: a model that holds for one thread and for several.

A row has a history: what each committed transaction made of it. A transaction's contents are put there before its
commit is called (it may be seen from then on), and when the commit has returned they are the *floor*: a read that
begins later must not see anything older. A transaction that is rolled back never comes near the history, so that what
it wrote cannot be taken for right. Where one thread alone writes a row, floor and end of the history are the same for
it, and its reads of that row are exact.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

from tests.differential.reading_schema import Row

__all__ = ["Content", "Contents", "Floor", "Registry", "WrongReadError"]

Content: TypeAlias = "int | None"
"""A row's value; None while it is not there."""

Contents: TypeAlias = dict[Row, Content]

Floor: TypeAlias = dict[Row, int]
"""How far in its history each row had come, at least, at some moment."""


class WrongReadError(AssertionError):
    """A read that shows something older than it must, or something that was never committed."""


class Registry:
    """The histories of all rows, of all threads. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both; held for moments
        self._histories: dict[Row, list[Content]] = {}
        self._floor: Floor = {}

    def committing(self, contents: Contents) -> Floor:
        """These may be seen from now on. Returns what `committed` is to be told."""
        with self._lock:
            places: Floor = {}
            for row, content in contents.items():
                history = self._histories.setdefault(row, [None])
                history.append(content)
                places[row] = len(history) - 1
            return places

    def committed(self, places: Floor) -> None:
        """The commit has returned: these, or newer ones, must be seen from now on."""
        with self._lock:
            for row, place in places.items():
                self._floor[row] = max(self._floor.get(row, 0), place)

    def floor(self) -> Floor:
        """Where each row is now, at least."""
        with self._lock:
            return dict(self._floor)

    def last(self, row: Row) -> Content:
        """For the one thread that writes this row."""
        with self._lock:
            return self._histories.get(row, [None])[-1]

    def check(self, row: Row, found: Content, floor: Floor) -> str | None:
        """What is wrong with a read of this row that began when `floor` was taken; None if nothing is."""
        with self._lock:
            history = self._histories.get(row, [None])
            least = floor.get(row, 0)
            if found in history[least:]:
                return None
            allowed = history[least:]
        kind = "stale" if found in history else "never committed"
        return f"{row} is {found}, which is {kind}; allowed are {allowed}"

"""What killed processes have said, and whether what comes back fits to it. Knows no database and starts nothing.

A process says what `tests.crash.child` lists: words, one line each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["Acknowledged", "Lines", "numbers_of", "raise_if_failed", "words_of"]

Lines: TypeAlias = list[list[str]]
"""What one process said: the words of each line."""


def words_of(line: bytes) -> list[str]:
    return line.decode().split(" ", 2)


def numbers_of(word: str, lines: Lines) -> list[tuple[str, int]]:
    """The writers and numbers of the lines that begin with this word, as they came."""
    return [(line[1], int(line[2])) for line in lines if line[0] == word]


def raise_if_failed(lines: Lines) -> None:
    for line in lines:
        if line[0] == "failed":
            # The traceback comes as a repr, so that it is one line.
            raise AssertionError(" ".join(line).replace("\\n", "\n"))


class Acknowledged:
    """`numbers`: the last number that each writer was told is durable, over all lives of its process."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.numbers.values())

    def note(self, lines: Lines, life: str) -> None:
        """Compare what a process recovered with what was acknowledged, and take down what it acknowledged since."""
        for name, counter in numbers_of("recovered", lines):
            known = self.numbers.get(name, 0)
            assert counter >= known, f"{life}: {name} recovered {counter}, but {known} was acknowledged"
            # The one transaction that was under way at the kill may be in or out.
            assert counter <= known + 1, f"{life}: {name} recovered {counter}, more than was committed"
            self.numbers[name] = counter
        for name, counter in numbers_of("acknowledged", lines):
            assert counter == self.numbers[name] + 1, f"{life}: {name} acknowledged {counter} out of turn"
            self.numbers[name] = counter

    def check_nothing_more(self, counters: Mapping[str, int], when: str) -> None:
        """Of the counters in the database, none is past the transaction that may be under way."""
        for name, counter in counters.items():
            under_way = self.numbers.get(name, 0) + 1
            assert counter <= under_way, f"{when}: {name} has {counter}, more than was committed"

    def check_all_there(self, counters: Mapping[str, int]) -> None:
        """Everything is in the database, when a last process has recovered, applied all, and written nothing."""
        for name, number in self.numbers.items():
            assert counters.get(name, 0) == number, f"{name} has {counters.get(name)} in the end, and not {number}"

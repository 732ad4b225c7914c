"""From the foreign keys of a whole database to the tables that the target itself changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

__all__ = ["acted_on"]


def acted_on(table: Hashable, acting: Iterable[tuple[Hashable, Hashable]]) -> tuple[Hashable, ...]:
    """The tables in which rows change when one of `table` goes. `acting`: (child, parent) of each key that acts."""
    children: dict[Hashable, list[Hashable]] = {}
    for child, parent in acting:
        children.setdefault(parent, []).append(child)
    found: dict[Hashable, None] = {}
    waiting = [table]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found[child] = None
                waiting.append(child)
    return tuple(found)

"""The relations of a target at one moment. Pure.

Names are folded and have no schema: two relations of one name, in two schemas or in capitals, are taken for one, which
is as little as any of them is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from walsync.changes import TableName
from walsync.journal.marks import ANY_TABLE, folded

__all__ = ["Facts", "Relations"]

_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What a catalogue says.

    `plain`: names of tables whose rows are in them and nowhere else. `other`: names of everything else that can be read
    like a table. `active`: tables, and others, a change of which may change anything (triggers, rules, views that can
    be written). `acting`: (child, parent) of each foreign key by which a change of the parent changes the child.
    `parts`: (part, whole) of partitions, and of tables that inherit.
    """

    plain: Iterable[str] = ()
    other: Iterable[str] = ()
    active: Iterable[str] = ()
    acting: Iterable[tuple[str, str]] = ()
    parts: Iterable[tuple[str, str]] = ()


class Relations:
    """Which entries a read must wait for. Immutable but for what it remembers; thread-safe."""

    def __init__(self, facts: Facts) -> None:
        other = {folded(name) for name in facts.other}
        self._plain = {folded(name) for name in facts.plain} - other
        self.names: Final = frozenset(self._plain | other)
        """Every name that the catalogue knows."""
        changed_by: dict[str, set[str]] = {}
        for child, parent in facts.acting:
            changed_by.setdefault(folded(child), set()).add(folded(parent))
        for part, whole in facts.parts:
            changed_by.setdefault(folded(part), set()).add(folded(whole))
            changed_by.setdefault(folded(whole), set()).add(folded(part))
            if folded(part) in other:
                # What is read of the whole is read there as well.
                self._plain.discard(folded(whole))
        self._changed_by = changed_by
        active = {folded(name) for name in facts.active}
        # A cascade may set off the triggers of the tables that it comes to.
        self._active = frozenset(_reached(active, changed_by))
        self._sources: dict[frozenset[TableName], frozenset[TableName] | None] = {}

    def knows(self, tables: Iterable[TableName]) -> bool:
        """Whether the catalogue has something of each of these names."""
        return all(folded(table.name) in self.names or table == ANY_TABLE for table in tables)

    def sources(self, reads: frozenset[TableName]) -> frozenset[TableName] | None:
        """The tables whose changes may change what a read of these tables shows; None: any table's may."""
        try:
            return self._sources[reads]
        except KeyError:
            pass
        found = self._find(reads)
        if len(self._sources) >= _KEPT:
            self._sources.clear()
        self._sources[reads] = found
        return found

    def _find(self, reads: frozenset[TableName]) -> frozenset[TableName] | None:
        names = {folded(table.name) for table in reads}
        if not names <= self._plain:
            return None
        others = _reached(names, self._changed_by) - names
        return reads | {TableName(None, name) for name in others | self._active}


def _reached(start: set[str], edges: dict[str, set[str]]) -> set[str]:
    found = set(start)
    waiting = list(start)
    while waiting:
        for name in edges.get(waiting.pop(), ()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found

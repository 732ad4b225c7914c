"""Which rows and values a change touches, as far as it can be told from the change and from what the target says.

A row is known by the values of its table's primary key, folded so that two that may be the same row to the target are
equal here (`walsync.checkpoint.catalog.facts`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

from walsync.changes import RowChanges
from walsync.checkpoint.catalog.facts import UNKNOWN, TableFacts, fold_unknown

__all__ = ["RowId", "Values", "folded_at", "identities", "key_places", "rows_touched", "value_places", "values_at"]

RowId: TypeAlias = Hashable
"""The folded primary key: a value, or a tuple of them."""

Values: TypeAlias = Callable[[Sequence[Any]], Hashable]
"""From a recorded row to the folded values of some columns: one value or a tuple. None if one of them is NULL, and
`UNKNOWN` if one may equal anything."""


def value_places(change: RowChanges, facts: TableFacts) -> dict[str, int]:
    """Where in a recorded row the values stand that the row has afterwards, by column as `facts` has it.

    What an update does not write keeps the value by which the row is found.
    """
    places = {} if change.kind == "insert" else key_places(change, facts)
    places.update((facts.column(name), place) for place, name in enumerate(change.columns))
    for name in change.commit_times:
        places.pop(facts.column(name), None)
    return places


def key_places(change: RowChanges, facts: TableFacts) -> dict[str, int]:
    """Where in a recorded row the values stand that the row had before, by column as `facts` has it."""
    split = len(change.columns)
    return {facts.column(name): split + place for place, name in enumerate(change.keys)}


def values_at(facts: TableFacts, columns: Sequence[str], places: Mapping[str, int]) -> Values | None:
    """How to get the folded values of `columns` of the table of `facts` from a row; None if one has no place."""
    return folded_at(facts, columns, [places.get(column) for column in columns])


def folded_at(facts: TableFacts, columns: Sequence[str], places: Sequence[int | None]) -> Values | None:
    """The same for values of another table, which are compared as those of `columns` are."""
    folds = dict(facts.folds)
    steps = []
    for column, place in zip(columns, places, strict=True):
        if place is None:
            return None
        steps.append((place, folds.get(column, fold_unknown)))
    if len(steps) == 1:
        ((only, fold_only),) = steps

        def single(row: Sequence[Any]) -> Hashable:
            value = row[only]
            return None if value is None else fold_only(value)

        return single

    def several(row: Sequence[Any]) -> Hashable:
        found = []
        for place, fold in steps:
            value = row[place]
            if value is None:
                return None
            found.append(fold(value))
        return UNKNOWN if UNKNOWN in found else tuple(found)

    return several if steps else None


def rows_touched(change: RowChanges, facts: TableFacts | None) -> list[tuple[RowId, ...]] | None:
    """For each row of the change, the identities that it touches: one, or two where the primary key itself changes.

    None if that cannot be told: then the change may touch any row of its table. `facts` are those of the change's
    table; None if there are none.
    """
    readers = None if facts is None else identities(change, facts)
    if readers is None:
        return None
    found: list[tuple[RowId, ...]] = []
    for row in change.rows:
        touched = tuple(dict.fromkeys(reader(row) for reader in readers))
        if UNKNOWN in touched or None in touched:
            return None
        found.append(touched)
    return found


def identities(change: RowChanges, facts: TableFacts) -> list[Values] | None:
    """How to get the identities that a row of the change touches; None if that cannot be told."""
    if facts.opaque is not None or not facts.primary_key:
        return None
    after = value_places(change, facts)
    if change.kind == "insert":
        readers = [values_at(facts, facts.primary_key, after)]
    else:
        before = key_places(change, facts)
        readers = [values_at(facts, facts.primary_key, before)]
        written = {facts.column(name) for name in (*change.columns, *change.commit_times)}
        if written.intersection(facts.primary_key):
            readers.append(values_at(facts, facts.primary_key, after))
    known = [reader for reader in readers if reader is not None]
    return known if len(known) == len(readers) else None

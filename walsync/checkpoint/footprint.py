"""Which rows a change touches, as far as it can be told from the change and from what the target says of the table.

A row is known by the values of its table's primary key, folded so that two that may be the same row to the target are
equal here (`walsync.checkpoint.catalog.facts`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

from walsync.changes import RowChanges
from walsync.checkpoint.catalog.facts import UNKNOWN, Fold, TableFacts, fold_unknown

__all__ = ["RowId", "Values", "rows_touched", "values_of"]

RowId: TypeAlias = Hashable
"""The folded primary key: a value, or a tuple of them."""

Values: TypeAlias = Callable[[Sequence[Any]], Hashable]
"""From a recorded row to the folded values of some columns: one value or a tuple. None if one of them is NULL, and
`UNKNOWN` if one may equal anything."""


def values_of(facts: TableFacts, columns: Sequence[str], names: Sequence[str], offset: int = 0) -> Values | None:
    """How to get the folded values of `columns` from rows that hold `names` from `offset` on; None if one is missing.

    `names` as they are recorded, `columns` as they stand in `facts`.
    """
    places = {facts.column(name): offset + place for place, name in enumerate(names)}
    if not columns or any(column not in places for column in columns):
        return None
    folds = dict(facts.folds)
    steps: list[tuple[int, Fold]] = [(places[column], folds.get(column, fold_unknown)) for column in columns]
    if len(steps) == 1:
        ((place, fold),) = steps

        def single(row: Sequence[Any]) -> Hashable:
            value = row[place]
            return None if value is None else fold(value)

        return single

    def several(row: Sequence[Any]) -> Hashable:
        found = []
        for place, fold in steps:
            value = row[place]
            if value is None:
                return None
            folded = fold(value)
            if folded is UNKNOWN:
                return UNKNOWN
            found.append(folded)
        return tuple(found)

    return several


def rows_touched(change: RowChanges, facts: TableFacts | None) -> list[tuple[RowId, ...]] | None:
    """For each row of the change, the identities that it touches: one, or two where the primary key itself changes.

    None if that cannot be told: then the change may touch any row of its table. `facts` are those of the change's
    table; None if there are none.
    """
    if facts is None or facts.opaque is not None or not facts.primary_key:
        return None
    split = len(change.columns)
    if change.kind == "insert":
        readers = [values_of(facts, facts.primary_key, change.columns)]
    else:
        readers = [values_of(facts, facts.primary_key, change.keys, split)]
        if change.kind == "update" and any(facts.column(name) in facts.primary_key for name in change.columns):
            # Columns that are not written keep the value by which the row is found.
            names = [*change.keys, *change.columns]
            rotated = values_of(facts, facts.primary_key, names)
            readers.append(None if rotated is None else lambda row: rotated([*row[split:], *row[:split]]))
    if any(reader is None for reader in readers):
        return None
    found: list[tuple[RowId, ...]] = []
    for row in change.rows:
        touched = []
        for reader in readers:
            assert reader is not None
            value = reader(row)
            if value is UNKNOWN or value is None:
                return None
            if value not in touched:
                touched.append(value)
        found.append(tuple(touched))
    return found

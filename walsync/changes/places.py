"""Where the identity and the version of a row lie in what is recorded of it. Pure; made once for each shape.

The *version* is the column of SQLAlchemy's `version_id_col`: the unit of work puts the version that it read into the
WHERE, beside the primary key, and the next one into the SET. That is how it is told here: a column that finds the row
and is no part of its primary key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from walsync.changes.types import TypeSpec

__all__ = ["RowPlaces", "RowVersion", "row_places"]


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Indices into a row of a `RowChanges`.

    `key`: of the primary key; None where it is not known. `moved_key`: of the primary key that the row has afterwards,
    None if it stays the same. `version`: the version's column, with `expected`, the index of what it is to be, and
    `new`, of what it becomes; None where there is no version, or it becomes what is not known.
    """

    key: tuple[int, ...] | None
    moved_key: tuple[int, ...] | None = None
    version: str | None = None
    expected: int | None = None
    new: int | None = None


@dataclass(frozen=True, slots=True)
class RowVersion:
    """The one row that a recorded statement changes: what a `RowChanges` would tell of it.

    `keys`, `key_types`, `key_values`: the columns that find it; the last one is the version, the others the primary
    key. `new`: a tuple with the version that the row gets, empty if that is not known.
    """

    keys: tuple[str, ...]
    key_types: tuple[TypeSpec, ...]
    key_values: tuple[object, ...]
    new: tuple[object, ...]


def row_places(columns: Sequence[str], keys: Sequence[str], primary_key: Sequence[str]) -> RowPlaces:
    """For rows with the values of `columns`, then of `keys`; an INSERT has no keys. `primary_key` is the table's."""
    width = len(columns)
    if not keys:
        known = bool(primary_key) and set(primary_key).issubset(columns)
        return RowPlaces(tuple([columns.index(name) for name in primary_key]) if known else None)
    key = tuple([width + keys.index(name) for name in primary_key])
    moved = None
    if not set(primary_key).isdisjoint(columns):
        moved = tuple([columns.index(name) if name in columns else width + keys.index(name) for name in primary_key])
    versions = [name for name in keys if name not in primary_key]
    if len(versions) != 1:
        return RowPlaces(key, moved)
    (version,) = versions
    return RowPlaces(
        key, moved, version, width + keys.index(version), columns.index(version) if version in columns else None
    )

"""What must be known of a table to move changes past each other: keys, foreign keys, and what else listens.

Pure data, and the *folds*: functions that turn a value into one that can be compared here in place of in the target.
The one thing that a fold promises: two values that the target may find equal have equal folds, or one of them folds to
`UNKNOWN`, which is to be taken as equal to anything. The other direction does not matter: values that are different
to the target and equal here only cost speed.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

__all__ = [
    "UNKNOWN",
    "Fold",
    "Reference",
    "TableFacts",
    "UniqueSet",
    "Unknown",
    "fold_ascii_text",
    "fold_bytes",
    "fold_date",
    "fold_integer",
    "fold_naive_datetime",
    "fold_text",
    "fold_text_or_hex",
    "fold_unknown",
    "fold_uuid",
    "fold_zoned_datetime",
]


class Unknown(enum.Enum):
    """The type of `UNKNOWN`."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""A value that may equal any other."""

Fold: TypeAlias = Callable[[Any], Hashable]
"""From a recorded value that is not None to a hashable one, or `UNKNOWN`. Never raises."""


@dataclass(frozen=True, slots=True)
class UniqueSet:
    """Columns whose values, taken together, a table has once. NULL in one of them makes a row unlike all others."""

    columns: tuple[str, ...]
    known: bool = True
    """False: what is unique cannot be told from the columns' values (an expression, a condition, a prefix, a generated
    column); then every change of the table may touch every value of it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key of a table: its `columns` point to `parent_columns` of the table whose identity is `parent`."""

    columns: tuple[str, ...]
    parent: Hashable
    parent_columns: tuple[str, ...]
    acts: bool
    """The target changes rows of this table when the parent's row goes or its key changes (CASCADE, SET NULL)."""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One table of the target."""

    identity: Hashable
    """What tells this table from others, however it is named in an entry."""

    opaque: str | None
    """Why nothing may be moved past a change of this table (it has a trigger, it is a view); None if nothing forbids
    it. The other fields may be empty then."""

    primary_key: tuple[str, ...] = ()
    """Its columns; empty where there is none."""

    unique: tuple[UniqueSet, ...] = ()
    """All unique sets, that of the primary key among them."""

    references: tuple[Reference, ...] = ()

    drawn: tuple[tuple[str, str], ...] = ()
    """Columns that the target fills in the order of the inserts, when an insert leaves them out, and the sequence or
    counter that they draw from."""

    acted_on: tuple[Hashable, ...] = ()
    """Identities of the tables in which the target itself changes rows when one of this table goes, or its key changes,
    near and far."""

    folds: tuple[tuple[str, Fold], ...] = ()
    """For the columns of `unique` and `references`; one that is missing folds to `UNKNOWN`."""

    folds_case: bool = False
    """Names of columns are the same in capitals and small letters."""

    def column(self, name: str) -> str:
        """A column's name as it stands in these facts."""
        return name.lower() if self.folds_case else name

    @classmethod
    def known(
        cls,
        identity: Hashable,
        primary_key: tuple[str, ...],
        unique: Sequence[UniqueSet],
        references: tuple[Reference, ...],
        drawn: Sequence[tuple[str, str]],
        acted_on: tuple[Hashable, ...],
        folds: Mapping[str, Fold],
        *,
        folds_case: bool,
    ) -> TableFacts:
        """The facts of a plain table. Of `folds`, those are kept of columns that matter."""
        wanted = {name for found in unique for name in found.columns}
        wanted.update(name for reference in references for name in reference.columns)
        return cls(
            identity=identity,
            opaque=None,
            primary_key=primary_key,
            unique=tuple(unique),
            references=references,
            drawn=tuple(drawn),
            acted_on=acted_on,
            folds=tuple((name, folds[name]) for name in sorted(wanted) if name in folds),
            folds_case=folds_case,
        )


# ------------------------------------------------------------------------------------------------------ folds


def fold_unknown(_: Any) -> Hashable:
    """For types of which nothing is known."""
    return UNKNOWN


def fold_integer(value: Any) -> Hashable:
    """For integer columns, which keep an int as it is."""
    return int(value) if type(value) is int or type(value) is bool else UNKNOWN


def fold_text(value: Any) -> Hashable:
    """For text that is compared by its characters. Blanks at the end are left off: some types do not see them."""
    return value.rstrip(" ") if type(value) is str else UNKNOWN


def fold_text_or_hex(value: Any) -> Hashable:
    """As `fold_text`, where a UUID is kept as its 32 hexadecimal digits."""
    return value.hex if type(value) is uuid.UUID else fold_text(value)


# Small letters of which a language's collation makes one ("v" and "w" in Swedish, "i" and "y" in Lithuanian).
_LETTERS: Final = str.maketrans("wy", "vi")


def fold_ascii_text(value: Any) -> Hashable:
    """For text that is compared without regard to capitals or accents. What is not plain ASCII may equal anything.

    A UUID is kept as its 32 hexadecimal digits.
    """
    if type(value) is uuid.UUID:
        return value.hex
    if type(value) is not str or not (value.isascii() and value.isprintable()):
        return UNKNOWN
    return value.lower().translate(_LETTERS).rstrip(" ")


def fold_bytes(value: Any) -> Hashable:
    """For binary columns; zeros at the end are left off, as columns of a fixed length add them."""
    return value.rstrip(b"\0") if type(value) is bytes else UNKNOWN


def fold_uuid(value: Any) -> Hashable:
    """For columns that hold UUIDs, in whatever of the usual forms."""
    if type(value) is uuid.UUID:
        return value.hex
    if type(value) is str:
        try:
            return uuid.UUID(value).hex
        except ValueError:
            return UNKNOWN
    return UNKNOWN


def fold_date(value: Any) -> Hashable:
    return value if type(value) is datetime.date else UNKNOWN


def fold_naive_datetime(value: Any) -> Hashable:
    """For columns that keep a time without a zone to the microsecond."""
    return value.replace(fold=0) if type(value) is datetime.datetime and value.tzinfo is None else UNKNOWN


def fold_zoned_datetime(value: Any) -> Hashable:
    """For columns that keep a moment to the microsecond."""
    if type(value) is not datetime.datetime or value.tzinfo is None:
        return UNKNOWN
    try:
        return value.astimezone(datetime.timezone.utc)
    except (OverflowError, ValueError):
        return UNKNOWN

"""The row and the version of an UPDATE that is recorded as a statement, as ``obj.n = Model.n + 1`` makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column
from sqlalchemy.engine import Dialect

from walsync.changes import describe_type
from walsync.changes.places import RowVersion

__all__ = ["VersionParameters"]


class VersionParameters:
    """Which parameters of an UPDATE are the primary key and the version that find its row, and which the new version.

    `keys` are (column name, type, parameter), the version's last; `new` is None where the version becomes what is not
    known.
    """

    __slots__ = ("keys", "new", "recorders")

    def __init__(self, keys: Sequence[tuple[Column[Any], str]], new: str | None, dialect: Dialect) -> None:
        described = [describe_type(column.type, dialect) for column, _ in keys]
        self.keys = [
            (str.__str__(column.name), spec, name) for (column, name), (spec, _) in zip(keys, described, strict=True)
        ]
        self.recorders = [record for _, record in described]
        self.new = new

    def row(self, parameters: Mapping[str, Any]) -> RowVersion:
        """The row of one execution. Raises what recording a value raises."""
        return RowVersion(
            tuple([name for name, _, _ in self.keys]),
            tuple([spec for _, spec, _ in self.keys]),
            tuple([record(parameters[name]) for record, (_, _, name) in zip(self.recorders, self.keys, strict=True)]),
            () if self.new is None else (self.recorders[-1](parameters[self.new]),),
        )

"""Which tables are journaled: `include` and `exclude` of `attach()`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from walsync.changes import RowChanges, TableName
from walsync.changes.model import Change
from walsync.exceptions import AttachError
from walsync.journal import table_name

__all__ = ["Scope"]


class Scope:
    """Answers for tables and mappers. A mapper is journaled if all tables that its rows lie in are."""

    def __init__(self, include: Iterable[Any] | None, exclude: Iterable[Any] | None) -> None:
        self._include = None if include is None else _tables(include, "include")
        self._exclude = frozenset() if exclude is None else _tables(exclude, "exclude")
        self.is_everything = self._include is None and not self._exclude
        """Whether every table is journaled."""
        self._mappers: dict[Any, bool] = {}

    def has_table(self, name: TableName) -> bool:
        return (self._include is None or name in self._include) and name not in self._exclude

    def has_tables(self, names: Iterable[TableName]) -> bool:
        return self.is_everything or all(self.has_table(name) for name in names)

    def has_change(self, change: Change) -> bool:
        """Whether the table is journaled that this change was made for."""
        return self.has_table(change.table if isinstance(change, RowChanges) else change.tables[0])

    def has_hierarchy(self, mapper: Any) -> bool:
        """Whether all classes are journaled that a flush may write with this one: it names the base of them only."""
        base: Mapper[Any] = inspect(mapper).base_mapper
        return all(self.has_mapper(each) for each in base.self_and_descendants)

    def has_mapper(self, mapper: Any) -> bool:
        """`mapper` is a Mapper or a mapped class."""
        if self.is_everything:
            return True
        known = self._mappers.get(mapper)
        if known is None:
            inspected: Mapper[Any] = inspect(mapper)
            known = all(self.has_table(name) for name in _mapper_tables(inspected, secondaries=False))
            self._mappers[mapper] = known
        return known


def _mapper_tables(mapper: Mapper[Any], *, secondaries: bool) -> set[TableName]:
    found = {table_name(table) for table in mapper.tables if isinstance(table, Table)}
    if secondaries:
        for relationship in mapper.relationships:
            if isinstance(relationship.secondary, Table):
                found.add(table_name(relationship.secondary))
    return found


def _tables(items: Iterable[Any], argument: str) -> frozenset[TableName]:
    """The tables of mapped classes (with the association tables of their relationships) and of Table objects."""
    found: set[TableName] = set()
    for item in items:
        if isinstance(item, Table):
            found.add(table_name(item))
            continue
        try:
            mapper = inspect(item)
        except NoInspectionAvailable:
            mapper = None
        if not isinstance(mapper, Mapper):
            raise AttachError(f"{argument} takes mapped classes and Table objects, not {item!r:.200}")
        found |= _mapper_tables(mapper, secondaries=argument == "include")
    return frozenset(found)

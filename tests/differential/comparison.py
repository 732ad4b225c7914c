"""Compares two databases of the schema table by table, row by row, column by column.

Generated integer keys may differ between the two: another block of keys, a rolled back sequence. So a generated key and
every foreign key that leads to it, through however many tables, is replaced by the label of the row that it means; rows
are matched as multisets of what is left. A child that hangs on the wrong parent is therefore a difference, and a parent
that merely has another number is not.

Where a table's `info` has ``"ranked"``, the name of a column that the database numbers by itself, its values are
replaced by their rank: the order in which the rows were made is compared, and not the gaps.

All other values are compared as the database itself gives them, not as SQLAlchemy's types would read them: on
PostgreSQL each column as text, on SQLite with the storage class of each value, elsewhere as the driver's objects.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table

from tests.differential.schema import Base

__all__ = ["CLOCK", "contents", "differences", "differences_between", "generated_key"]

CLOCK = frozenset({("document", "created_at"), ("tally", "made_at")})
"""Columns whose value is the time of the transaction: only their presence is compared. So it is with a column whose
`info` has ``"clock"``."""


def generated_key(column: Column[Any]) -> Column[Any] | None:
    """The generated key that a column means, itself or through foreign keys; None for every other column."""
    seen = column
    for _ in range(10):
        keys = [key for key in seen.table.foreign_keys if key.parent is seen and key.column is not seen]
        if not keys:
            break
        # A self-reference leads to the key, whose own foreign keys lead on.
        seen = keys[0].column
    table = seen.table
    if not isinstance(table, Table):
        return None
    alone = [key.name for key in table.primary_key.columns] == [seen.name]
    generated = alone and seen.name == "id" and isinstance(seen.type, Integer) and "label" in table.columns
    return seen if generated else None


def _rows(connection: Connection, table: Table) -> list[tuple[Any, ...]]:
    names = [connection.dialect.identifier_preparer.quote(column.name) for column in table.columns]
    if connection.dialect.name == "postgresql":
        names = [f"{name}::text" for name in names]
    quoted = connection.dialect.identifier_preparer.quote(table.name)
    found = connection.exec_driver_sql(f"SELECT {', '.join(names)} FROM {quoted}").all()
    if connection.dialect.name == "postgresql":
        return [tuple(row) for row in found]
    return [tuple(None if value is None else f"{type(value).__name__}:{value!r}" for value in row) for row in found]


def _ranked(table: Table, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    column = table.info.get("ranked")
    if column is None:
        return rows
    place = list(table.columns.keys()).index(column)
    in_order = sorted(rows, key=lambda row: int(str(row[place]).rpartition(":")[2]))
    return [(*row[:place], rank, *row[place + 1 :]) for rank, row in enumerate(in_order, 1)]


def contents(connection: Connection, metadata: MetaData = Base.metadata) -> dict[str, Counter[tuple[Any, ...]]]:
    """Each table's rows, generated keys replaced by labels."""
    raw = {table.name: _ranked(table, _rows(connection, table)) for table in metadata.sorted_tables}
    labels: dict[str, dict[Any, Any]] = {}
    for table in metadata.sorted_tables:
        names = list(table.columns.keys())
        if "id" in names and "label" in names:
            key, label = names.index("id"), names.index("label")
            labels[table.name] = {row[key]: f"the row {row[label]}" for row in raw[table.name]}
    result: dict[str, Counter[tuple[Any, ...]]] = {}
    for table in metadata.sorted_tables:
        origins = [generated_key(column) for column in table.columns]
        clocks = [(table.name, column.name) in CLOCK or "clock" in column.info for column in table.columns]
        result[table.name] = Counter(
            tuple(
                value
                if value is None
                else "a time"
                if clock
                else labels[origin.table.name].get(value, f"no such row: {value}")
                if origin is not None
                else value
                for value, origin, clock in zip(row, origins, clocks, strict=True)
            )
            for row in raw[table.name]
        )
    return result


def differences(direct: Engine, buffered: Engine, limit: int = 10, metadata: MetaData = Base.metadata) -> list[str]:
    """What differs between the two databases, each in one line; empty when they are equal."""
    with direct.connect() as one, buffered.connect() as other:
        return differences_between(one, other, limit, metadata)


def differences_between(
    direct: Connection, buffered: Connection, limit: int = 10, metadata: MetaData = Base.metadata
) -> list[str]:
    """The same, as two open transactions see their databases."""
    left, right = contents(direct, metadata), contents(buffered, metadata)
    found: list[str] = []
    for table in metadata.sorted_tables:
        names = list(table.columns.keys())
        missing = list((left[table.name] - right[table.name]).elements())
        surplus = list((right[table.name] - left[table.name]).elements())
        label = names.index("label") if "label" in names else None
        for row in list(missing):
            twin = next((other for other in surplus if label is not None and other[label] == row[label]), None)
            if twin is None:
                found.append(f"{table.name}: missing through walsync: {dict(zip(names, row, strict=True))}")
                continue
            surplus.remove(twin)
            for name, one, two in zip(names, row, twin, strict=True):
                if one != two:
                    found.append(f"{table.name}.{name} of {row[label or 0]}: {one!r} directly, {two!r} through walsync")
        found += [f"{table.name}: only through walsync: {dict(zip(names, row, strict=True))}" for row in surplus]
    return found[:limit]

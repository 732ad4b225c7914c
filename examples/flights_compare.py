"""Compares the source of `flights.py` with the database that it was imported into: every row, every column, both ways.

Both sides are streams; nothing is loaded whole. The target is read with a plain engine, past walsync: what it sees is
what any other program would see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from flights_schema import Base, source_rows, table_of
from rich.table import Table
from sqlalchemy import Engine, select

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

__all__ = ["Comparison", "compare_table", "print_comparison"]

ROWS_PER_FETCH = 2_000
DIFFERENCES_SHOWN = 5

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass
class Comparison:
    table: str
    rows_compared: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)

    def differs(self, text: str) -> None:
        self.differences += 1
        if len(self.examples) < DIFFERENCES_SHOWN:
            self.examples.append(f"{self.table}: {text}")


def target_rows(target: Engine, model: type[Base]) -> Iterator[Row]:
    """The target's rows of a table, ordered by primary key, through a server-side cursor where there is one."""
    table = table_of(model)
    statement = select(table).order_by(*table.primary_key.columns)
    with target.connect().execution_options(yield_per=ROWS_PER_FETCH) as connection:
        for row in connection.execute(statement):
            yield dict(row._mapping)


def same_value(expected: Any, found: Any) -> bool:
    # The type counts as well: to Python, 1 and 1.0 and True are equal.
    return bool(expected == found) and type(expected) is type(found)


def compare_table(target: Engine, model: type[Base], limit: int | None = None) -> Comparison:
    """Reads both sides in step. A row whose partner has not come yet waits for it: were the orders different (another
    collation, say), or rows missing or doubled, the result would still be right; as a rule nothing waits."""
    result = Comparison(model.__tablename__)
    key_columns = [column.name for column in table_of(model).primary_key.columns]
    waiting: tuple[dict[Key, Row], dict[Key, Row]] = ({}, {})

    for pair in zip_longest(source_rows(model, limit), target_rows(target, model)):
        for side, row in enumerate(pair):
            if row is None:
                continue
            key = tuple(row[name] for name in key_columns)
            partner = waiting[1 - side].pop(key, None)
            if partner is None:
                waiting[side][key] = row
                continue
            result.rows_compared += 1
            expected, found = (row, partner) if side == 0 else (partner, row)
            if different := [name for name in expected if not same_value(expected[name], found[name])]:
                details = (f"{name} is {found[name]!r}, not {expected[name]!r}" for name in different)
                result.differs(f"{key}: {', '.join(details)}")

    for key in waiting[0]:
        result.differs(f"{key} is missing in the target")
    for key in waiting[1]:
        result.differs(f"{key} is in the target and not in the source")
    return result


def print_comparison(console: Console, comparisons: list[Comparison]) -> bool:
    """Prints what was found, and returns whether source and database are equal."""
    table = Table("table", "rows compared", "differences", "")
    for comparison in comparisons:
        verdict = "equal" if comparison.differences == 0 else "DIFFERENT"
        table.add_row(comparison.table, f"{comparison.rows_compared:,}", f"{comparison.differences:,}", verdict)
    console.print(table)
    for comparison in comparisons:
        for example in comparison.examples:
            console.print(f"  {example}", markup=False)
    equal = all(comparison.differences == 0 for comparison in comparisons)
    if equal:
        console.print("Source and database are equal.", style="green")
    else:
        console.print("Source and database are DIFFERENT.", style="bold red")
    return equal

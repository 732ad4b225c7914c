"""Several rows in one statement, for drivers that would send an executemany row by row.

The drivers of MySQL and MariaDB turn an executemany of an INSERT into one statement with many rows, but only when its
VALUES are parameters and nothing else. An expression among them (the time of the commit) costs a round trip per row. So
here the statement is written out: the one row of the compiled INSERT as often as there are rows.

An executemany of an UPDATE or DELETE is a round trip per row in any case. MariaDB executes a compound statement outside
of stored programs too (https://mariadb.com/kb/en/begin-end/): so the one statement is written out as often as there are
rows, and what is sent is one statement to the server, which does its parts in order, ends at the first that fails, and
says how many rows all of them found.

Both keep within a bound of rows and one of bytes, which stays far below every server's `max_allowed_packet`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["CompoundStatement", "MultiRowInsert", "compound_statement", "multi_row_insert"]

_ROWS_MAX: Final = 500
_PARTS_MAX: Final = 200
"""Parts of a compound statement. Measured: more of them are slower, for the server prepares all before the first."""
_BYTES_MAX: Final = 1024 * 1024
"""Bytes of text and binary values in one statement. A single row that is larger is a statement of its own."""

_NAMED: Final = re.compile(r"%\((\w+)\)s")


_COUNT: Final = "walsync__count"
"""A variable of a compound statement hides a column of its name, so this is one that no column has."""


@dataclass(frozen=True)
class MultiRowInsert:
    """An INSERT up to and with VALUES, the text of one row, and where its parameters come from."""

    head: str
    row: str
    order: tuple[str, ...] | None
    """Names in the order of the row's placeholders; None where bound rows are sequences in that order already."""

    def statements(self, bound: Sequence[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """SQL and parameters for these rows, as the shape's `bind` has made them."""
        for count, values in _portions(bound, self.order, _ROWS_MAX):
            yield self.head + ", ".join([self.row] * count), values


@dataclass(frozen=True)
class CompoundStatement:
    """An UPDATE or DELETE of one row, to be written out for many."""

    part: str
    order: tuple[str, ...] | None
    """As for `MultiRowInsert`."""

    def statements(self, bound: Sequence[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """SQL and parameters for these rows. Each statement answers with one number: how many rows were found."""
        for count, values in _portions(bound, self.order, _PARTS_MAX):
            parts = f"{self.part}; SET {_COUNT} = {_COUNT} + ROW_COUNT(); " * count
            yield f"BEGIN NOT ATOMIC DECLARE {_COUNT} BIGINT DEFAULT 0; {parts}SELECT {_COUNT}; END", values


def _portions(
    bound: Sequence[Any], order: tuple[str, ...] | None, rows_max: int
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """How many rows go into the next statement, and their values, one after the other."""
    values: list[Any] = []
    count = size = 0
    for row in bound:
        ordered = row if order is None else [row[name] for name in order]
        row_size = sum([len(value) for value in ordered if isinstance(value, (str, bytes))])
        if count and (count >= rows_max or size + row_size > _BYTES_MAX):
            yield count, tuple(values)
            values, count, size = [], 0, 0
        values.extend(ordered)
        count += 1
        size += row_size
    if count:
        yield count, tuple(values)


def multi_row_insert(sql: str, paramstyle: str) -> MultiRowInsert | None:
    """From the driver's INSERT of one row; None in a style in which a row cannot be repeated."""
    head, found, row = sql.rpartition(" VALUES ")
    if not found:
        return None
    repeatable = _repeatable(row, paramstyle)
    return None if repeatable is None else MultiRowInsert(head + found, *repeatable)


def compound_statement(sql: str, paramstyle: str) -> CompoundStatement | None:
    """From the driver's UPDATE or DELETE of one row; None in a style in which it cannot be repeated."""
    repeatable = _repeatable(sql, paramstyle)
    return None if repeatable is None else CompoundStatement(*repeatable)


def _repeatable(sql: str, paramstyle: str) -> tuple[str, tuple[str, ...] | None] | None:
    if paramstyle in ("qmark", "format"):
        return sql, None
    if paramstyle == "pyformat":
        # The drivers in question take sequences as well as mappings.
        return _NAMED.sub("%s", sql), tuple(_NAMED.findall(sql))
    return None

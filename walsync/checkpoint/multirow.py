"""Several rows in one INSERT, for drivers that would send an executemany row by row.

The drivers of MySQL and MariaDB turn an executemany of an INSERT into one statement with many rows, but only when its
VALUES are parameters and nothing else. An expression among them (the time of the commit) costs a round trip per row. So
here the statement is written out: the one row of the compiled INSERT as often as there are rows, within a bound of rows
and one of bytes, which stays far below every server's `max_allowed_packet`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["MultiRowInsert", "multi_row_insert"]

_ROWS_MAX: Final = 500
_BYTES_MAX: Final = 1024 * 1024
"""Bytes of text and binary values in one statement. A single row that is larger is a statement of its own."""

_NAMED: Final = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True)
class MultiRowInsert:
    """An INSERT up to and with VALUES, the text of one row, and where its parameters come from."""

    head: str
    row: str
    order: tuple[str, ...] | None
    """Names in the order of the row's placeholders; None where bound rows are sequences in that order already."""

    def statements(self, bound: Sequence[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """SQL and parameters for these rows, as the shape's `bind` has made them."""
        order = self.order
        values: list[Any] = []
        count = size = 0
        for row in bound:
            ordered = row if order is None else [row[name] for name in order]
            row_size = sum([len(value) for value in ordered if isinstance(value, (str, bytes))])
            if count and (count >= _ROWS_MAX or size + row_size > _BYTES_MAX):
                yield self._sql(count), tuple(values)
                values, count, size = [], 0, 0
            values.extend(ordered)
            count += 1
            size += row_size
        if count:
            yield self._sql(count), tuple(values)

    def _sql(self, count: int) -> str:
        return self.head + ", ".join([self.row] * count)


def multi_row_insert(sql: str, paramstyle: str) -> MultiRowInsert | None:
    """From the driver's INSERT of one row; None in a style in which a row cannot be repeated."""
    head, found, row = sql.rpartition(" VALUES ")
    if not found:
        return None
    if paramstyle in ("qmark", "format"):
        return MultiRowInsert(head + found, row, None)
    if paramstyle == "pyformat":
        # The drivers in question take sequences as well as mappings.
        return MultiRowInsert(head + found, _NAMED.sub("%s", row), tuple(_NAMED.findall(row)))
    return None

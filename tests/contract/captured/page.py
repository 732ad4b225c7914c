"""The rows of `docs/reference/captured.md` that say which way a construct goes.

A row is named by its first cell, as it stands there. Rows of tables without a column "way" are not meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.processes import REPOSITORY

__all__ = ["PAGE", "WAYS", "Row", "rows"]

PAGE = REPOSITORY / "docs" / "reference" / "captured.md"

WAYS = ("buffered", "direct", "error", "waits", "waits for all", "does not wait", "untouched")

CELLS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Row:
    """`name` is the first cell, `way` what stands under "way", `why` the rest."""

    name: str
    way: str
    why: str


def rows(text: str | None = None) -> list[Row]:
    """All of them, in their order. Raises `ValueError` for a way that there is not."""
    found: list[Row] = []
    header: list[str] | None = None
    for line in (PAGE.read_text(encoding="utf-8") if text is None else text).splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in CELLS.split(line.strip().strip("|"))]
        if header is None:
            header = cells
        elif len(header) > 1 and header[1] == "way" and not set(cells[0]) <= set("-: "):
            if cells[1] not in WAYS:
                raise ValueError(f"{PAGE.name}: {cells[0]!r} goes {cells[1]!r}, which is none of {', '.join(WAYS)}")
            found.append(Row(cells[0], cells[1], " | ".join(cells[2:])))
    return found

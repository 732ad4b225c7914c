"""Shows how many rows of `flights.py` are committed and how many are applied.

Two bars on a terminal; elsewhere (a file, a CI log) a plain line every two seconds.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    import walsync

__all__ = ["ProgressDisplay", "progress_display"]

LINE_EVERY_S = 2.0


class ProgressDisplay:
    """Told of each commit; finds out by itself what is applied."""

    def __init__(self, console: Console, journal: walsync.Journal, total_rows: int, rows_in_target: int) -> None:
        self._console = console
        self._journal = journal
        self._total_rows = total_rows
        self._committed_rows = self._applied_rows = rows_in_target
        self._waiting: deque[tuple[int, int]] = deque()  # Entries not seen applied yet: id and rows.
        self._next_line_at = time.monotonic() + LINE_EVERY_S
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._committed_bar = self._bars.add_task("committed", total=total_rows, completed=rows_in_target)
        self._applied_bar = self._bars.add_task("applied  ", total=total_rows, completed=rows_in_target)

    @property
    def bars(self) -> Progress:
        return self._bars

    @property
    def entries_waiting(self) -> int:
        return len(self._waiting)

    def committed(self, entry_id: int, rows: int) -> None:
        self._committed_rows += rows
        self._waiting.append((entry_id, rows))
        self.refresh()

    def refresh(self) -> None:
        applied_id = self._journal.stats().applied_entry_id
        while self._waiting and self._waiting[0][0] <= applied_id:
            self._applied_rows += self._waiting.popleft()[1]
        self._bars.update(self._committed_bar, completed=self._committed_rows)
        self._bars.update(self._applied_bar, completed=self._applied_rows)
        if self._bars.disable and time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + LINE_EVERY_S
            done = f"committed {self._committed_rows:>7,}  applied {self._applied_rows:>7,}"
            self._console.print(f"  {done}  of {self._total_rows:,} rows")


@contextmanager
def progress_display(
    console: Console, journal: walsync.Journal, total_rows: int, rows_in_target: int
) -> Iterator[ProgressDisplay]:
    display = ProgressDisplay(console, journal, total_rows, rows_in_target)
    with display.bars:
        yield display

"""What the commands share: the consoles, the exit codes, and errors as a sentence instead of a traceback.

Results go to standard output, errors and progress to standard error, so that `--json` can be piped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from walsync.exceptions import DamagedLogError, TargetError, WalsyncError, WatermarkGapError

__all__ = [
    "EXIT_DAMAGED",
    "EXIT_FAILED",
    "EXIT_HELD",
    "EXIT_KEPT",
    "EXIT_LOCKED",
    "EXIT_OK",
    "EXIT_TARGET",
    "EXIT_USAGE",
    "console",
    "count_of",
    "error_console",
    "print_error",
    "print_facts",
    "print_json",
    "reported_errors",
]

EXIT_OK = 0
"""The command did its work and found nothing wrong."""
EXIT_DAMAGED = 1
"""The log is damaged, or log and target do not fit together."""
EXIT_USAGE = 2
"""The command could not begin: wrong arguments, or there is no log where it was told to look."""
EXIT_TARGET = 3
"""The target could not be asked."""
EXIT_KEPT = 4
"""The command did its work, and entries are still in the quarantine."""
EXIT_LOCKED = 5
"""`apply` alone: the log is open in a process that does not share it."""
EXIT_HELD = 6
"""The target refuses a transaction, or lacks something, and somebody must decide or provide it."""
EXIT_FAILED = 7
"""A fault that is neither the log's nor the target's."""

console = Console(highlight=False, soft_wrap=True)
error_console = Console(highlight=False, soft_wrap=True, stderr=True)


def count_of(number: int, one: str, many: str | None = None) -> str:
    """ "1 segment", "2 segments"."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {many or one + 's'}"


def print_json(value: Any) -> None:
    """One JSON document, indented, and nothing else on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_facts(**facts: object) -> None:
    """One line each, name and value in two columns; None is left out."""
    for name, value in facts.items():
        if value is not None:
            console.print(Text(f"{name.replace('_', ' '):<10} ", style="bold").append(str(value), style="default"))


def print_error(message: str) -> None:
    # As Text, not as markup: a message may name a path with brackets.
    error_console.print(Text("Error: ", style="bold red").append(message, style="default"))


@contextmanager
def reported_errors(*expected: type[Exception]) -> Iterator[None]:
    """Turns every error of walsync, and those named, into one line and an exit code.

    Any other exception is a fault of this program and keeps its traceback.
    """
    kinds: tuple[type[Exception], ...] = (WalsyncError, OSError, *expected)
    try:
        yield
    except kinds as error:
        print_error(f"{error} ({type(error).__name__})")
        raise typer.Exit(_exit_code(error)) from error


def _exit_code(error: Exception) -> int:
    if isinstance(error, (DamagedLogError, WatermarkGapError)):
        return EXIT_DAMAGED
    if isinstance(error, TargetError):
        return EXIT_TARGET
    return EXIT_USAGE

"""Imports all flights that left New York in 2013 through walsync, survives being killed, and proves it.

    python examples/flights.py --crash-after 1500      # kills itself with SIGKILL after 1,500 commits
    python examples/flights.py                         # recovers, goes on, compares source and database

Five tables, 367,687 rows, about 3,700 transactions of 100 rows each. Every transaction is a plain SQLAlchemy session;
one call, `walsync.attach()`, is what makes its commit an entry of a write-ahead log on the local disk, which walsync
applies to the target in the background. At the end every row and column of the target is compared with the source.

The target is a SQLite file unless told otherwise (drivers: `pip install ".[examples,postgresql,mariadb]"`):

    python examples/flights.py --target postgresql+psycopg://user:password@host/database
    python examples/flights.py --target mariadb+pymysql://user:password@host/database

Beside this file: `flights_schema.py` (tables and source), `flights_compare.py`, `flights_progress.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flights_compare import compare_table, print_comparison
from flights_progress import ProgressDisplay, progress_display
from flights_schema import TABLES, Base, Flight, Weather, count_rows, source_rows
from rich.console import Console
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

import walsync

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS_PER_COMMIT = 100
APPLIED_WITHIN_S = 600.0

console = Console(highlight=False, soft_wrap=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Import the flights of 2013 through a write-ahead log.")
    parser.add_argument("--target", metavar="URL", help="database URL (default: the file flights-data/flights.db)")
    parser.add_argument("--log", metavar="DIR", type=Path, default=Path("flights-data/log"), help="log directory")
    parser.add_argument("--crash-after", metavar="N", type=int, help="kill this process with SIGKILL after N commits")
    parser.add_argument("--limit", metavar="N", type=int, help="at most N rows of weather and of flights")
    parser.add_argument("--reset", action="store_true", help="drop the five tables and the log first")
    return parser.parse_args()


def open_target(url: str | None) -> Engine:
    if url is None:
        Path("flights-data").mkdir(exist_ok=True)
        url = "sqlite:///flights-data/flights.db"
    target = create_engine(url)
    if target.dialect.name == "sqlite":
        event.listen(target, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    return target


def reset(target: Engine, log: Path) -> None:
    if log.exists() and any(log.iterdir()):
        walsync.verify_log(log)  # Raises for a directory that is not a log: nothing else must be deleted.
        shutil.rmtree(log)
    Base.metadata.drop_all(target)
    console.print("Dropped the log and the five tables.")


def rows_of(model: type[Base], limit: int | None) -> int | None:
    """How many of a table's rows are imported: None is all of them."""
    return limit if model in (Weather, Flight) else None


# -------------------------------------------------------------------------------------------------------------- import


def recover(journal: walsync.Journal) -> None:
    """Waits until everything that an earlier run committed is in the target, and says how much that was."""
    replayed: set[int] = set()

    # Called for each entry that was in the log when it was opened and that the target lacks; again if one is retried.
    @event.listens_for(journal, "after_replay")
    def count(_session: Session, change_set: walsync.ChangeSet) -> None:
        assert change_set.entry_id is not None
        replayed.add(change_set.entry_id)

    # The journal was attached paused, so that nothing is replayed before somebody listens.
    journal.resume()
    journal.wait_applied(timeout=APPLIED_WITHIN_S)
    if replayed:
        console.print(f"Recovered the log: {len(replayed):,} entries were committed and not applied, and are replayed.")


def rows_already_in(target: Engine) -> dict[type[Base], int]:
    # Counting is exact because of three things. The rows go in in the source's order, so that the number of rows says
    # which ones they are. A transaction reaches the target whole or not at all, in the order of the commits, and only
    # once, so there are no gaps and no duplicates. And recover() has waited until no entry is left in the log: nothing
    # that was committed is still on its way. A commit that the crash cut short is in neither place; its rows are next.
    with target.connect() as connection:
        return {model: connection.scalar(select(func.count()).select_from(model)) or 0 for model in TABLES}


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, ROWS_PER_COMMIT)):
        yield batch


def import_rows(
    factory: sessionmaker[Session],
    journal: walsync.Journal,
    done: dict[type[Base], int],
    display: ProgressDisplay,
    limit: int | None,
    crash_after: int | None,
) -> int:
    commits = 0
    for model in TABLES:
        missing = islice(source_rows(model, rows_of(model, limit)), done[model], None)
        for batch in batches(missing):
            with factory() as session:
                session.add_all([model(**row) for row in batch])
                session.commit()  # Durable when it returns.
                entry_id = journal.last_entry(session)
            assert entry_id is not None
            commits += 1
            display.committed(entry_id, len(batch))
            if commits == crash_after:
                display.bars.stop()  # Or the terminal would be left without its cursor.
                crash(commits, display.entries_waiting)
    return commits


def crash(commits: int, entries_waiting: int) -> None:
    # What the out-of-memory killer does as well: no handler runs, no buffer is flushed, nothing is closed.
    console.print(
        f"\nKilling this process (SIGKILL) after {commits:,} commits, of which about {entries_waiting:,} have not"
        "\nreached the target yet. Run it again without --crash-after to recover and go on."
    )
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------------- main


def run(arguments: argparse.Namespace) -> int:
    target = open_target(arguments.target)
    console.print(f"Target: {target.url.render_as_string(hide_password=True)}    Log: {arguments.log}")
    if arguments.reset:
        reset(target, arguments.log)
    Base.metadata.create_all(target)
    total_rows = sum(count_rows(model, rows_of(model, arguments.limit)) for model in TABLES)

    factory = sessionmaker(target)
    with walsync.attach(factory, arguments.log, checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        recover(journal)
        done = rows_already_in(target)
        rows_in_target = sum(done.values())
        if rows_in_target:
            console.print(f"{rows_in_target:,} of {total_rows:,} rows are in the target; going on after them.")

        with progress_display(console, journal, total_rows, rows_in_target) as display:
            began = time.monotonic()
            commits = import_rows(factory, journal, done, display, arguments.limit, arguments.crash_after)
            committing_s = time.monotonic() - began
            wait_until_applied(journal, display)
            applying_s = time.monotonic() - began
        if commits:
            console.print(
                f"{commits:,} commits of up to {ROWS_PER_COMMIT} rows in {committing_s:.1f} s: "
                f"{commits / committing_s:,.0f} commits/s; all applied after {applying_s:.1f} s."
            )

    console.print("Comparing source and database, row by row and column by column ...")
    comparisons = [compare_table(target, model, rows_of(model, arguments.limit)) for model in TABLES]
    return 0 if print_comparison(console, comparisons) else 1


def wait_until_applied(journal: walsync.Journal, display: ProgressDisplay) -> None:
    deadline = time.monotonic() + APPLIED_WITHIN_S
    while not applied_within(journal, timeout_s=0.2):  # In small steps, for the progress bar's sake.
        display.refresh()
        if time.monotonic() > deadline:
            raise walsync.ApplyTimeoutError(f"The target has not taken everything within {APPLIED_WITHIN_S:.0f} s.")
    display.refresh()


def applied_within(journal: walsync.Journal, timeout_s: float) -> bool:
    try:
        journal.wait_applied(timeout=timeout_s)
    except walsync.ApplyTimeoutError:
        return False
    return True


def main() -> int:
    try:
        return run(parse_arguments())
    except walsync.WatermarkGapError as error:
        console.print(f"{error}\nThis example can start over with: --reset", style="red")
    except walsync.WalsyncError as error:
        console.print(f"{type(error).__name__}: {error}", style="red")
    except OperationalError as error:
        console.print(f"The target does not answer: {error.orig}", style="red")
    return 2


if __name__ == "__main__":
    sys.exit(main())

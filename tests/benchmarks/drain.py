"""How fast a backlog reaches the database, against hand-written bulk inserts of the same rows.

    python -m tests.benchmarks.drain [--rounds N] [--entries N] [--rows N] [--target sqlite|postgresql|mariadb]

A round first inserts all rows by hand, with SQLAlchemy Core, 1,000 rows in a transaction; then as many rows that wait
in a log, `rows` in each of its entries, are applied by the checkpointer, from `resume()` until all of them are in. Both
go to the same database, into tables that are alike, in turn. A figure is the median over the rounds; the ratio is that
of the rows per second. Nothing is asserted. What it should be: at least 0.9.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, Float, Integer, MetaData, String, Table, delete, insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.benchmarks.targets import engine_for
from tests.support.servers import ServerMissingError

BULK_ROWS = 1000
WAIT_TIMEOUT_S = 600.0
TARGETS = ("sqlite", "postgresql", "mariadb")


def table_named(name: str) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("station", String(40), nullable=False),
        Column("number", Integer, nullable=False),
        Column("value", Float, nullable=False),
        Column("remark", String(200)),
    )


BY_HAND, BY_LOG = table_named("by_hand"), table_named("by_log")


def rows_of(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"id": number, "station": f"station {number % 97}", "number": number, "value": number / 7, "remark": None}
        for number in range(first, first + count)
    ]


def clear(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in (BY_HAND, BY_LOG):
            connection.execute(delete(table))


def insert_by_hand(engine: Engine, rows: int) -> float:
    made = [rows_of(first, min(BULK_ROWS, rows - first)) for first in range(0, rows, BULK_ROWS)]
    begin = time.perf_counter()
    for part in made:
        with engine.begin() as connection:
            connection.execute(insert(BY_HAND), part)
    return time.perf_counter() - begin


def drain(engine: Engine, directory: Path, entries: int, rows: int) -> float:
    factory: sessionmaker[Session] = sessionmaker(engine)
    log = walsync.LogConfig(durability="interval")
    with walsync.attach(factory, directory, log=log, checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        for number in range(entries):
            with journal.engine.begin() as connection:
                connection.execute(insert(BY_LOG), rows_of(number * rows, rows))
        journal.log.sync()
        begin = time.perf_counter()
        journal.resume()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        return time.perf_counter() - begin


def measure(target: str, directory: Path, rounds: int, entries: int, rows: int) -> str:
    by_hand, by_log = [], []
    with ExitStack() as stack:
        engine = engine_for(target, directory / "target.sqlite", stack)
        for table in (BY_HAND, BY_LOG):
            table.create(engine)
        for number in range(rounds + 1):
            clear(engine)
            hand_s = insert_by_hand(engine, entries * rows)
            log_s = drain(engine, directory / f"log-{number}", entries, rows)
            if number:  # The first one warms up.
                by_hand.append(entries * rows / hand_s)
                by_log.append(entries * rows / log_s)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(by_log, by_hand, strict=True))
    return f"{target:<12}{statistics.median(by_hand):>16,.0f}{statistics.median(by_log):>16,.0f}{ratio:>8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=10, help="of each entry")
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    print(f"{options.entries:,} entries of {options.rows} rows, {options.rounds} rounds")
    print(f"{'':<12}{'by hand rows/s':>16}{'drained rows/s':>16}{'ratio':>8}")
    for target in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="drain-") as directory:
            try:
                print(measure(target, Path(directory), options.rounds, options.entries, options.rows), flush=True)
            except (ServerMissingError, SQLAlchemyError) as error:
                print(f"{target:<12}left out: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()

"""`walsync demo`: a process is killed in the middle of its commits, and nothing is lost.

Owns a directory for as long as it runs (a temporary one, or a new one that the user names and keeps), with a SQLite
database and a log. Needs no server, no network and no data. The story is real: the writer is another process
(`walsync.cli.demo_airport`), the outage is a lock on the database, the kill is SIGKILL, and the comparison reads every
column of every row with a plain engine, past walsync.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from sqlalchemy import Engine, Select, create_engine, func, select
from sqlalchemy.orm import sessionmaker

import walsync
from walsync.cli.demo_airport import AIRLINES, FLIGHTS_PER_TRANSACTION, Airline, Base, Flight, flights_of_transaction
from walsync.cli.demo_writer import DemonstrationError, Writer
from walsync.cli.output import EXIT_DAMAGED, EXIT_OK, console, reported_errors

__all__ = ["demo"]

LOCKED_FROM_TRANSACTION = 150
KILLED_FROM_TRANSACTION = 350
TRANSACTIONS = 600
APPLIED_WITHIN_S = 30.0
LOCK_TIMEOUT_S = 10.0


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(help="Keep everything in this directory, which must be new or empty.", show_default=False),
    ] = None,
) -> None:
    """Shows in a few seconds that a commit survives kill -9: commit, kill, recover, compare."""
    with reported_errors(DemonstrationError), _workplace(directory) as workplace:
        equal = _tell(workplace)
    raise typer.Exit(EXIT_OK if equal else EXIT_DAMAGED)


@contextlib.contextmanager
def _workplace(directory: Path | None) -> Iterator[Path]:
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="walsync-demo-") as temporary:
            yield Path(temporary)
        return
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise DemonstrationError(f"{directory} is not empty. Name a new or an empty directory.")
    yield directory
    console.print(f"\nEverything is kept in {directory}. Look at the log with: walsync status {directory / 'log'}")


def _step(number: int, text: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/bold]")


def _tell(workplace: Path) -> bool:
    database, log_directory = workplace / "airport.db", workplace / "log"
    engine = create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    began = time.monotonic()
    try:
        acknowledged = _commit_and_kill(engine, database, log_directory)
        recovered, last = _recover_and_go_on(engine, log_directory, acknowledged)
        _step(6, "What was committed, and what is in the database: row by row and column by column")
        equal = _compare(engine, last) and recovered >= acknowledged
    finally:
        engine.dispose()
    if equal:
        console.print(
            "\n[bold green]Equal.[/bold green] Every transaction whose commit returned is there, whole, exactly once. "
            f"({time.monotonic() - began:.1f} s)"
        )
    else:
        console.print("\n[bold red]DIFFERENT.[/bold red] That is a bug in walsync: please report it.")
    return equal


def _commit_and_kill(engine: Engine, database: Path, log_directory: Path) -> int:
    """Returns the last transaction whose commit returned before the kill."""
    _step(1, "An application commits to its database through walsync")
    console.print(
        "   Session = sessionmaker(engine)\n"
        '   walsync.attach(Session, "log")      [dim]# the one line that is new[/dim]\n\n'
        "   A second process does just that now, and reports each transaction once its commit has returned.\n"
        f"   A transaction inserts {FLIGHTS_PER_TRANSACTION} flights."
    )
    with contextlib.closing(Writer(str(engine.url), str(log_directory))) as writer:
        committed = writer.wait_for(LOCKED_FROM_TRANSACTION)
        console.print(f"   {committed} transactions are committed.")

        _step(2, "The database stops answering")
        with _locked(database):
            console.print("   Another program locks it; it could as well be restarted, or be cut off.")
            committed = writer.wait_for(committed + KILLED_FROM_TRANSACTION - LOCKED_FROM_TRANSACTION)
            console.print(f"   The application does not notice: {committed} transactions are committed.")

            _step(3, "The application is killed (SIGKILL) in the middle of its work")
            acknowledged = writer.kill()
            console.print(
                f"   Process {writer.process_id} is gone. It could not flush, close or clean up anything.\n"
                f"   The last transaction whose commit returned: {acknowledged}."
            )
    in_database = _transactions_in(engine)
    console.print(
        f"   In the database: transactions 1 to {in_database}.\n"
        f"   The other {acknowledged - in_database} are in the log only."
    )
    return acknowledged


def _recover_and_go_on(engine: Engine, log_directory: Path, acknowledged: int) -> tuple[int, int]:
    """Returns the last transaction that was recovered, and the last one that was committed after that."""
    _step(4, "It starts again: walsync.attach() recovers the log")
    factory = sessionmaker(engine)
    in_database = _transactions_in(engine)
    with walsync.attach(factory, log_directory) as journal:
        journal.wait_applied(timeout=APPLIED_WITHIN_S)
        recovered = _transactions_in(engine)
        console.print(
            f"   {recovered - in_database} transactions are replayed, in the order of their commits.\n"
            f"   In the database: transactions 1 to {recovered}."
        )
        if recovered == acknowledged + 1:
            console.print(
                f"   ({recovered} was durable as well: the kill came between its commit and the report of it.)"
            )

        last = max(TRANSACTIONS, recovered)
        _step(5, f"It goes on where it was, up to transaction {last}")
        for number in range(recovered + 1, last + 1):
            with factory() as session:
                session.add_all(flights_of_transaction(number))
                session.commit()
        with factory() as session:
            counted = session.scalar(_count_flights())
        console.print(
            f"   A SELECT right after the last commit counts {counted:,} flights: a read through walsync waits\n"
            "   until the commits that touch its tables are in the database."
        )
    return recovered, last


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=LOCK_TIMEOUT_S)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def _count_flights() -> Select[Any]:
    return select(func.count()).select_from(Flight)


def _transactions_in(engine: Engine) -> int:
    with engine.connect() as connection:
        flights = connection.scalar(_count_flights()) or 0
    return flights // FLIGHTS_PER_TRANSACTION


def _compare(engine: Engine, transactions: int) -> bool:
    table = Table("table", "committed", "in the database", "rows that differ")
    equal = True
    committed_rows: dict[type[Base], list[tuple[object, ...]]] = {
        Airline: [(code, name) for code, name in AIRLINES.items()],
        Flight: [_values(flight) for n in range(1, transactions + 1) for flight in flights_of_transaction(n)],
    }
    with engine.connect() as connection:
        for model, committed in committed_rows.items():
            found: list[tuple[object, ...]] = [tuple(row) for row in connection.execute(select(model.__table__))]
            differing = len(set(committed) ^ set(found)) + len(found) - len(set(found))
            table.add_row(model.__tablename__, f"{len(committed):,}", f"{len(found):,}", f"{differing:,}")
            equal = equal and differing == 0
    console.print(table)
    return equal


def _values(flight: Flight) -> tuple[object, ...]:
    return tuple(getattr(flight, column.name) for column in Flight.__table__.columns)

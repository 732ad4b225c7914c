"""One-row ORM commits, durable: through walsync, and the same commits to SQLite, PostgreSQL and MariaDB.

    python -m tests.benchmarks.commit_latency [--rounds N] [--commits N] [--directory DIR]

All rows of the table are measured in turn, in small rounds, in one run, so that a slow minute of the machine is
everybody's. A figure is the median over the rounds of each round's median commit. The floor is a bare pwrite and
fdatasync of as many bytes as walsync writes for such a commit, into a prezeroed file of the same directory.

`walsync` runs as in production: its checkpointer applies to a SQLite file meanwhile, in this process. `walsync, paused`
leaves the applying to after the round: the difference is what the checkpointer takes from the committing thread.

Nothing is asserted: ratios are for reading. What they should be: walsync at most 0.70 of SQLite and 0.45 of PostgreSQL.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, String, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from tests.benchmarks.targets import sqlite_engine
from tests.support.databases import fresh_database
from tests.support.servers import ServerMissingError, find_server

FLOOR_FILE_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 128 * 1024
"""As the log's own files are filled: on Linux small writes are slower where the zeros came in larger pieces."""
WAIT_TIMEOUT_S = 120.0
TARGETS = {"SQLite (WAL, FULL)": 0.70, "PostgreSQL": 0.45}


class Base(DeclarativeBase):
    pass


class Reading(Base):
    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    station: Mapped[str] = mapped_column(String(40))
    number: Mapped[int]
    value: Mapped[float]
    remark: Mapped[str | None] = mapped_column(String(200))


@dataclass
class Contestant:
    """A row of the table. `commit` does one durable commit; `settle` what is left to do after a round, not timed."""

    name: str
    commit: Callable[[int], None]
    settle: Callable[[], None] = lambda: None
    remark: str = ""
    medians: list[float] = field(default_factory=list)

    def round(self, first: int, commits: int) -> None:
        times = []
        for number in range(first, first + commits):
            start = time.perf_counter()
            self.commit(number)
            times.append(time.perf_counter() - start)
        self.medians.append(statistics.median(times))
        self.settle()

    @property
    def microseconds(self) -> float:
        return statistics.median(self.medians) * 1e6


def commits_of(factory: sessionmaker[Session]) -> Callable[[int], None]:
    """The commit that every contestant does, by a session that lives on."""
    session = factory()

    def commit(number: int) -> None:
        session.add(Reading(station="roof", number=number, value=number / 7, remark="as it comes"))
        session.commit()

    return commit


def through_walsync(
    stack: ExitStack, directory: Path, name: str, *, paused: bool
) -> tuple[Contestant, walsync.Journal]:
    engine = sqlite_engine(directory / f"{name}.sqlite")
    stack.callback(engine.dispose)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine, expire_on_commit=False)
    journal = walsync.attach(factory, directory / f"{name}-log", checkpoint=walsync.CheckpointConfig(paused=paused))
    stack.callback(journal.close)

    def settle() -> None:
        journal.resume()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        if paused:
            journal.pause()

    return Contestant("walsync, paused" if paused else "walsync", commits_of(factory), settle), journal


def on_engine(stack: ExitStack, name: str, engine: Engine, remark: str = "") -> Contestant:
    stack.callback(engine.dispose)
    Base.metadata.create_all(engine)
    return Contestant(name, commits_of(sessionmaker(engine, expire_on_commit=False)), remark=remark)


def on_servers(stack: ExitStack) -> Iterator[Contestant]:
    """PostgreSQL and MariaDB on loopback, where there are any; how they sync is said beside their figures."""
    questions = {
        "postgresql": ("PostgreSQL", "SHOW fsync", "fsync = {}"),
        "mariadb": ("MariaDB", "SELECT @@innodb_flush_log_at_trx_commit", "innodb_flush_log_at_trx_commit = {}"),
    }
    for kind, (name, question, answer) in questions.items():
        try:
            server = stack.enter_context(find_server(kind))
            engine = create_engine(stack.enter_context(fresh_database(server)))
            with engine.connect() as connection:
                remark = answer.format(connection.exec_driver_sql(question).scalar())
            yield on_engine(stack, name, engine, remark)
        except (ServerMissingError, SQLAlchemyError) as error:
            print(f"{name}: left out, {str(error).splitlines()[0]}")


def floor(stack: ExitStack, directory: Path, size: int) -> Contestant:
    descriptor = os.open(directory / "floor", os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, descriptor)
    for offset in range(0, FLOOR_FILE_BYTES, PIECE_BYTES):
        os.pwrite(descriptor, bytes(PIECE_BYTES), offset)
    os.fsync(descriptor)
    data, slots = os.urandom(size), FLOOR_FILE_BYTES // size

    def commit(number: int) -> None:
        os.pwrite(descriptor, data, (number % slots) * size)
        os.fdatasync(descriptor)

    return Contestant("floor: pwrite + fdatasync", commit, remark=f"{size} bytes")


@contextmanager
def contestants(directory: Path) -> Iterator[list[Contestant]]:
    with ExitStack() as stack:
        running, _ = through_walsync(stack, directory, "running", paused=False)
        paused, journal = through_walsync(stack, directory, "paused", paused=True)
        # How many bytes a commit is in the log, for the floor.
        for number in range(100):
            paused.commit(-number)
        size = max(1, journal.stats().backlog_bytes // 100)
        paused.settle()
        sqlite = on_engine(stack, "SQLite (WAL, FULL)", sqlite_engine(directory / "direct.sqlite"))
        yield [floor(stack, directory, size), running, paused, sqlite, *on_servers(stack)]


def show(found: list[Contestant]) -> None:
    running = next(one for one in found if one.name == "walsync")
    paused = next(one for one in found if one.name == "walsync, paused")
    print(f"\n{'one-row ORM commit':28} {'µs':>8} {'walsync is':>11} {'paused is':>10} {'target':>7}  remark")
    for one in found:
        ratio = running.microseconds / one.microseconds
        other = paused.microseconds / one.microseconds
        target = f"{TARGETS[one.name]:.2f}" if one.name in TARGETS else ""
        print(f"{one.name:28} {one.microseconds:8.1f} {ratio:11.2f} {other:10.2f} {target:>7}  {one.remark}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="One-row ORM commits, durable, side by side.")
    parser.add_argument("--rounds", type=int, default=21, help="rounds; a figure is the median over them")
    parser.add_argument("--commits", type=int, default=60, help="commits in one round of one row of the table")
    parser.add_argument("--directory", default=None, help="where the files go: on the disk that is to be measured")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="commit-latency-") as directory:
        print(f"{options.rounds} rounds of {options.commits} commits, in {directory}")
        with contestants(Path(directory)) as found:
            for one in found:
                one.round(1_000_000, options.commits)  # not counted: connections, compiled statements, first pages
                one.medians.clear()
            for number in range(options.rounds):
                # Each round begins with another one, so that nobody always follows the same neighbour.
                turn = number % len(found)
                for one in found[turn:] + found[:turn]:
                    one.round(number * options.commits, options.commits)
            show(found)
            load, cores = os.getloadavg()[0], os.cpu_count() or 1
            if load > cores:
                print(f"the load is {load:.1f} on {cores} processors: the figures wait for others, and say little")


if __name__ == "__main__":
    main(sys.argv[1:])

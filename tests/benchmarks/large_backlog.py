"""What it takes to open a log in which a million entries wait: memory, and the time until the first one is applied.

    python -m tests.benchmarks.large_backlog [--entries 1000000] [--target sqlite|postgresql|mariadb]

The log is made first, with one row in each entry. Then a fresh process attaches to it and applies everything. Its
resident memory is looked at before it opens the log and, in a thread, every few milliseconds until all is applied (of
/proc/self/status: what getrusage tells is the highest ever, and would hide what was given back before). What it should
be: less than 100 MB more, and the first entry applied within 2 seconds of opening. Nothing is asserted but that all the
rows are there.

`first_opening` is the same for other tests: see `tests/integration/session/test_large_backlog.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Float, Integer, String, create_engine, func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from tests.benchmarks.targets import engine_for
from tests.support.databases import rendered
from tests.support.processes import run_python
from tests.support.servers import ServerMissingError
from walsync.changes import ChangeSet, decode_change_set, encode_change_set

TARGETS = ("sqlite", "postgresql", "mariadb")
APPLY_TIMEOUT_S = 3600.0
SAMPLE_S = 0.005
SEGMENT_BYTES = 64 * 1024 * 1024


class Base(DeclarativeBase):
    pass


class Reading(Base):
    __tablename__ = "reading"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    station: Mapped[str] = mapped_column(String(40))
    number: Mapped[int] = mapped_column(Integer)
    value: Mapped[float] = mapped_column(Float)


class Other(Base):
    """Never written: a read of it has nothing to wait for."""

    __tablename__ = "other"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


@dataclass(frozen=True)
class Opening:
    """What a fresh process measured. Times count from the call of `attach`."""

    attached_s: float
    first_applied_s: float
    all_applied_s: float
    rss_before_mb: float
    rss_most_mb: float
    rows: int

    @property
    def growth_mb(self) -> float:
        return self.rss_most_mb - self.rss_before_mb


def fill(engine: Engine, directory: Path, entries: int) -> None:
    """A log with this many entries waiting, each with the insert of one row."""
    factory: sessionmaker[Session] = sessionmaker(engine)
    log = walsync.LogConfig(durability="interval", segment_bytes=SEGMENT_BYTES)
    with walsync.attach(factory, directory, log=log, checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        with journal.engine.begin() as connection:
            connection.execute(insert(Reading), [{"id": 0, "station": "roof", "number": 0, "value": 0.0}])
        journal.log.sync()
        (first,) = journal.log.entries()
        change_set = decode_change_set(first.id, first.chunks())
        (change,) = change_set.changes
        assert not isinstance(change, walsync.StatementChange)
        # Written as the session writes them, without the sessions, which would take minutes.
        for number in range(1, entries):
            row = [[number, f"station {number % 97}", number, number / 7]]
            made = ChangeSet(time.time_ns(), journal.origin, {}, [change.with_rows(row, change.must_match)])
            journal.log.append(*encode_change_set(made))
        journal.close(drain=False)


def rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("/proc/self/status has no VmRSS")


class Watcher(threading.Thread):
    """Keeps the most resident memory seen, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_mb = rss_mb()
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(SAMPLE_S):
            self.most_mb = max(self.most_mb, rss_mb())

    def end(self) -> float:
        self._stop_now.set()
        self.join()
        return max(self.most_mb, rss_mb())


def open_and_apply(url: str, directory: str) -> Opening:
    """In the fresh process."""
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(select(func.count()).select_from(Reading))
    factory: sessionmaker[Session] = sessionmaker(engine)
    before = rss_mb()
    watcher = Watcher()
    watcher.start()
    begin = time.perf_counter()
    journal = walsync.attach(factory, directory)
    attached_s = time.perf_counter() - begin
    journal.wait_applied(walsync.EntryId(1), timeout=APPLY_TIMEOUT_S)
    first_s = time.perf_counter() - begin
    journal.wait_applied(timeout=APPLY_TIMEOUT_S)
    all_s = time.perf_counter() - begin
    most = watcher.end()
    journal.close()
    with engine.connect() as connection:
        rows = connection.execute(select(func.count()).select_from(Reading)).scalar_one()
    engine.dispose()
    return Opening(attached_s, first_s, all_s, before, most, rows)


def first_opening(engine: Engine, directory: Path) -> Opening:
    """Opens the log in a fresh process, and returns what that one measured."""
    url = rendered(engine.url)
    done = run_python("-m", "tests.benchmarks.large_backlog", "--apply", url, directory, timeout_s=APPLY_TIMEOUT_S)
    return Opening(**json.loads(done.stdout.splitlines()[-1]))


def measure(target: str, directory: Path, entries: int) -> str:
    with ExitStack() as stack:
        engine = engine_for(target, directory / "target.sqlite", stack)
        Base.metadata.create_all(engine)
        fill(engine, directory / "log", entries)
        found = first_opening(engine, directory / "log")
    if found.rows != entries:
        raise AssertionError(f"{target}: {found.rows} rows of {entries} are in the target")
    return (
        f"{target:<12}{found.attached_s:>12.2f}{found.first_applied_s:>16.2f}{found.all_applied_s:>14.1f}"
        f"{found.rss_before_mb:>16.0f}{found.rss_most_mb:>10.0f}{found.growth_mb:>10.1f}"
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--apply", nargs=2, help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.apply:
        print(json.dumps(asdict(open_and_apply(*options.apply))))
        return
    print(
        f"{options.entries:,} entries of one row; the first applied within 2 s and less than 100 MB more, it should be"
    )
    print(
        f"{'':<12}{'attached s':>12}{'first applied s':>16}{'all applied s':>14}"
        f"{'MB before':>16}{'most':>10}{'growth':>10}"
    )
    for target in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="large-backlog-") as directory:
            try:
                print(measure(target, Path(directory), options.entries), flush=True)
            except (ServerMissingError, SQLAlchemyError) as error:
                print(f"{target:<12}left out: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What a slow line to the database costs: directly, and through walsync.

    python -m tests.benchmarks.slow_line [--rtt-ms 20] [--target postgresql|mariadb] [--transactions 10000]
        [--mixed 20000] [--direct 300] [--batch-changes N] [--batch-delay-s S]

The server is on this machine; a proxy, in a process of its own, holds back everything on the way for half of the round
trip in each direction. Three things, in one run:

- one-row ORM commits, one after the other: the median of `--direct` direct ones, and of ten times as many through
  walsync, whose checkpointer applies meanwhile over the same line;
- `--transactions` of them, committed and applied: from the first commit to the last one's being in the target;
- the `--mixed` transactions of `mixed_load`, in the same way.

Running all of it directly would take an hour. So a part of it runs directly, and its time is multiplied: the table says
"of N" there. What is in the target afterwards is compared with what must be, row by row; for the mixed load with a
database to which the same transactions went without the line. Nothing else is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, String, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from tests.benchmarks import mixed_load
from tests.support.databases import assert_databases_equal, fresh_database
from tests.support.line import slow_line
from tests.support.servers import ServerMissingError, find_server

WAIT_TIMEOUT_S = 1800.0
TARGETS = ("postgresql", "mariadb")
AT_LEAST = {"one commit": 150.0, "committed and applied": 80.0, "mixed, committed and applied": 30.0}


class Base(DeclarativeBase):
    pass


class Reading(Base):
    __tablename__ = "reading"
    id: Mapped[int] = mapped_column(primary_key=True)
    station: Mapped[str] = mapped_column(String(40))
    number: Mapped[int]
    value: Mapped[float]


def commit_readings(factory: sessionmaker[Session], first: int, count: int) -> list[float]:
    """The seconds of each of `count` one-row commits."""
    times = []
    with factory() as session:
        for number in range(first, first + count):
            begin = time.perf_counter()
            session.add(Reading(station="roof", number=number, value=number / 7))
            session.commit()
            times.append(time.perf_counter() - begin)
            session.expunge_all()
    return times


def check_readings(engine: Engine, numbers: range) -> None:
    with engine.connect() as connection:
        rows = connection.execute(select(Reading.number, Reading.station, Reading.value).order_by(Reading.number)).all()
    expected = [(number, "roof", number / 7) for number in numbers]
    if [tuple(row) for row in rows] != expected:
        raise AssertionError(f"{len(rows)} rows in the target are not the {len(expected)} that were committed")


class Slow:
    """One server behind one line."""

    def __init__(self, target: str, options: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self.target = target
        self.options = options
        self.directory = directory
        self.stack = stack
        self.server = stack.enter_context(find_server(target))
        given = {"batch_changes": options.batch_changes, "batch_delay_s": options.batch_delay_s}
        self.config = walsync.CheckpointConfig(**{name: value for name, value in given.items() if value is not None})
        self.lines: list[str] = []

    def database(self, metadata: Any) -> tuple[Engine, Engine]:
        """An empty database, near and behind the line."""
        url = self.stack.enter_context(fresh_database(self.server))
        near = create_engine(url)
        far = create_engine(self.stack.enter_context(slow_line(url, rtt_s=self.options.rtt_ms / 1000)))
        self.stack.callback(near.dispose)
        self.stack.callback(far.dispose)
        metadata.create_all(near)
        return near, far

    def row(self, what: str, direct_s: float, ours_s: float, remark: str = "") -> None:
        ratio, least = direct_s / ours_s, AT_LEAST[what]
        verdict = "" if ratio >= least else "  below it"
        print(
            f"{self.target:<12}{what:<30}{direct_s:>12.4f}{ours_s:>12.4f}{ratio:>9.1f}{least:>9.0f}{verdict}  {remark}",
            flush=True,
        )

    def readings(self) -> None:
        _, direct_far = self.database(Base.metadata)
        near, far = self.database(Base.metadata)
        direct: sessionmaker[Session] = sessionmaker(direct_far, expire_on_commit=False)
        commit_readings(direct, 0, 3)
        direct_times = commit_readings(direct, 3, self.options.direct)

        factory: sessionmaker[Session] = sessionmaker(far, expire_on_commit=False)
        with walsync.attach(factory, self.directory / "readings", checkpoint=self.config) as journal:
            commit_readings(factory, 0, 50)
            journal.wait_applied(timeout=WAIT_TIMEOUT_S)
            few = 10 * self.options.direct
            our_times = commit_readings(factory, 50, few)
            journal.wait_applied(timeout=WAIT_TIMEOUT_S)
            self.row("one commit", statistics.median(direct_times), statistics.median(our_times))

            count = self.options.transactions
            begin = time.perf_counter()
            commit_readings(factory, 50 + few, count)
            committed_s = time.perf_counter() - begin
            journal.wait_applied(timeout=WAIT_TIMEOUT_S)
            ours_s = time.perf_counter() - begin
            direct_s = sum(direct_times) / len(direct_times) * count
            remark = f"{count:,}, direct from {len(direct_times)} of {count}; {committed_s:.2f} s to commit them"
            self.row("committed and applied", direct_s, ours_s, remark)
            assert not journal.stats().direct_transactions
        check_readings(near, range(50 + few + count))

    def mixed(self) -> None:
        count = self.options.mixed
        plan = mixed_load.Plan(count, 1)
        compared, _ = self.database(mixed_load.Base.metadata)
        _, direct_far = self.database(mixed_load.Base.metadata)
        near, far = self.database(mixed_load.Base.metadata)
        direct: sessionmaker[Session] = sessionmaker(direct_far, expire_on_commit=False)
        everything, some = plan.transactions, min(len(plan.transactions), self.options.direct)
        plan.transactions = everything[:some]
        direct_s = plan.run(direct) / some * len(everything)
        plan.transactions = everything
        plan.run(sessionmaker(compared, expire_on_commit=False))

        factory: sessionmaker[Session] = sessionmaker(far, expire_on_commit=False)
        with walsync.attach(factory, self.directory / "mixed", checkpoint=self.config) as journal:
            begin = time.perf_counter()
            committed_s = plan.run(factory)
            journal.wait_applied(timeout=WAIT_TIMEOUT_S)
            ours_s = time.perf_counter() - begin
            assert not journal.stats().direct_transactions
        remark = f"{count:,}, direct from {some} of {count}; {committed_s:.2f} s to commit them"
        self.row("mixed, committed and applied", direct_s, ours_s, remark)
        assert_databases_equal(compared, near, mixed_load.Base.metadata.sorted_tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-ms", type=float, default=20.0)
    parser.add_argument("--transactions", type=int, default=10_000)
    parser.add_argument("--mixed", type=int, default=20_000, help="transactions of the mixed load")
    parser.add_argument("--direct", type=int, default=300, help="transactions that really run directly")
    parser.add_argument("--batch-changes", type=int, default=None)
    parser.add_argument("--batch-delay-s", type=float, default=None)
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    print(f"a round trip of {options.rtt_ms:g} ms; seconds; CheckpointConfig as it is unless options say otherwise")
    print(f"{'':<12}{'':<30}{'direct':>12}{'walsync':>12}{'times':>9}{'target':>9}")
    for target in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="slow-line-") as directory, ExitStack() as stack:
            try:
                slow = Slow(target, options, Path(directory), stack)
                slow.readings()
                slow.mixed()
            except (ServerMissingError, SQLAlchemyError) as error:
                print(f"{target:<12}left out: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()

"""What it costs to be attached.

    python -m tests.benchmarks.attached [--rounds N] [--operations N] [--directory DIR] [--awake]

Pairs of the same work, each pair's sides done in turn in small rounds; a ratio is the median over the rounds of the two
medians'. What they should be at most stands beside them. A round takes a few milliseconds: which processor a thread is
on, and whether that one sleeps between two operations, changes after some ten of them, and is to be the same for both.
With `--awake` none sleeps (`tests.benchmarks.awake`), and two runs differ by less than 0.01 in most ratios.

*A buffered commit of one row* against the same commit into a journal that throws the change away, and then writes and
syncs as many bytes as walsync writes for it, by `os.pwrite` and `os.fdatasync`. What is between the two is encoding,
the log and its control block. (The floor is one loop, for a processor that has slept through a sync does the next lines
more slowly: the sum of two loops would be less.) Nothing is applied meanwhile.

*A direct commit of one row*, and *reads while nothing waits to be applied*, against a session that is not attached, on
an equal database: a row by its key, one by a SELECT, a hundred by a join. SQLite, and PostgreSQL where there is one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, ForeignKey, event, select
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import walsync
from tests.benchmarks.awake import processors_awake
from tests.benchmarks.commit_latency import WAIT_TIMEOUT_S, Base, Contestant, Reading, commits_of, floor
from tests.benchmarks.targets import engine_for
from tests.support.servers import ServerMissingError

STATIONS = 5
READINGS = 2_000
JOINED_ROWS = 100
WARM_UP_ROUNDS = 3


class Station(Base):
    __tablename__ = "station"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Sample(Base):
    __tablename__ = "sample"

    id: Mapped[int] = mapped_column(primary_key=True)
    station_id: Mapped[int] = mapped_column(ForeignKey("station.id"))
    value: Mapped[float]


@dataclass
class Pair:
    """`ours` should take at most `limit` times what `theirs` takes."""

    name: str
    limit: float
    ours: Contestant
    theirs: Contestant
    ratios: list[float] = field(default_factory=list)

    def round(self, number: int, operations: int) -> None:
        first = number * operations
        pair = (self.ours, self.theirs) if number % 2 else (self.theirs, self.ours)
        for one in pair:
            one.round(first, operations)
        self.ratios.append(self.ours.medians[-1] / self.theirs.medians[-1])

    def forget(self) -> None:
        self.ratios.clear()
        self.ours.medians.clear()
        self.theirs.medians.clear()


def buffered_commits(stack: ExitStack, directory: Path) -> Pair:
    """The two journals have a database and a log each, and are paused."""

    def attached(name: str) -> tuple[walsync.Journal, Callable[[int], None]]:
        engine = engine_for("sqlite", directory / f"{name}.sqlite", stack)
        Base.metadata.create_all(engine)
        factory = sessionmaker(engine)
        config = walsync.CheckpointConfig(paused=True)
        journal = walsync.attach(factory, directory / f"{name}-log", checkpoint=config)
        stack.callback(journal.close, drain=False)
        return journal, commits_of(factory)

    journal, commit = attached("buffered")
    for number in range(100):
        commit(-1 - number)
    size = max(1, journal.stats().backlog_bytes // 100)

    def settle() -> None:
        journal.resume()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        journal.pause()

    settle()
    thrower, throw_away = attached("thrown-away")
    write = floor(stack, directory, size)
    count = iter(range(sys.maxsize))
    # What a commit has to do once its changes are captured; the session does not see the difference.
    event.listen(
        thrower.engine,
        "connect",
        lambda connection, record: setattr(connection.buffer, "on_commit", lambda buffer: write.commit(next(count))),
    )
    return Pair(
        f"buffered commit ({size} bytes)",
        1.08,
        Contestant("walsync", commit, settle),
        Contestant("thrown away, and a bare write and sync", throw_away),
    )


def fill(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Station(id=number + 1, name=f"station {number}") for number in range(STATIONS))
        session.flush()
        session.add_all(
            Sample(id=number + 1, station_id=number % STATIONS + 1, value=number / 7) for number in range(READINGS)
        )


def operations_of(factory: sessionmaker[Session]) -> dict[str, tuple[float, Callable[[int], None]]]:
    """What is compared, with its limit."""
    session, writer = factory(), factory()
    writer.info["walsync.mode"] = "direct"

    def direct_commit(number: int) -> None:
        writer.add(Reading(id=number + 1_000_000, station="roof", number=number, value=number / 7, remark="so"))
        writer.commit()

    def read(one: Callable[[int], object]) -> Callable[[int], None]:
        def transaction(number: int) -> None:
            one(number)
            session.rollback()
            session.expunge_all()

        return transaction

    joined = select(Sample, Station).join(Station, Sample.station_id == Station.id).limit(JOINED_ROWS)
    by_key = select(Sample)
    return {
        "direct commit": (1.05, direct_commit),
        "get": (1.05, read(lambda number: session.get(Sample, number % READINGS + 1))),
        "select of a row": (
            1.05,
            read(lambda number: session.scalars(by_key.where(Sample.id == number % READINGS + 1)).one()),
        ),
        f"select of {JOINED_ROWS} joined rows": (1.05, read(lambda number: session.execute(joined).all())),
    }


def against_unattached(stack: ExitStack, directory: Path, target: str) -> Iterator[Pair]:
    sides = []
    for name in ("attached", "plain"):
        engine = engine_for(target, directory / f"{name}.sqlite", stack)
        fill(engine)
        factory = sessionmaker(engine, expire_on_commit=False)
        if name == "attached":
            journal = walsync.attach(factory, directory / f"{target}-log")
            stack.callback(journal.close)
        sides.append(operations_of(factory))
    ours, theirs = sides
    for name, (limit, operation) in ours.items():
        yield Pair(
            f"{target}: {name}", limit, Contestant("attached", operation), Contestant("not attached", theirs[name][1])
        )


def pairs(stack: ExitStack, directory: Path) -> list[Pair]:
    found = [buffered_commits(stack, directory), *against_unattached(stack, directory, "sqlite")]
    try:
        found += against_unattached(stack, directory, "postgresql")
    except ServerMissingError as error:
        print(f"PostgreSQL is left out: {error}")
    return found


def show(found: list[Pair]) -> None:
    print(f"\n{'':44} {'µs':>8} {'against':>8} {'ratio':>6} {'at most':>8}  of the rounds")
    for pair in found:
        quarter = statistics.quantiles(pair.ratios, n=4) if len(pair.ratios) > 1 else pair.ratios * 3
        print(
            f"{pair.name:44} {pair.ours.microseconds:8.1f} {pair.theirs.microseconds:8.1f} "
            f"{statistics.median(pair.ratios):6.3f} {pair.limit:8.2f}  {quarter[0]:.2f} to {quarter[2]:.2f}"
        )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=123, help="a figure is the median over them")
    parser.add_argument("--operations", type=int, default=20, help="in one round of one side of a pair")
    parser.add_argument("--directory", default=None, help="where the files go: on the disk that is to be measured")
    parser.add_argument("--awake", action="store_true", help="keep the processors from sleeping")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="attached-") as made, ExitStack() as stack:
        print(f"{options.rounds} rounds of {options.operations} operations of each side, in {made}")
        if options.awake:
            stack.enter_context(processors_awake())
        found = pairs(stack, Path(made))
        for pair in found:
            # One pair after the other: a round that follows others' work would measure how that left the processor.
            for number in range(-WARM_UP_ROUNDS, options.rounds):
                if number == 0:
                    pair.forget()  # connections, compiled statements, first pages
                pair.round(number + WARM_UP_ROUNDS, options.operations)
        show(found)
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores:
            print(f"the load is {load:.1f} on {cores} processors: the figures wait for others, and say little")


if __name__ == "__main__":
    main(sys.argv[1:])

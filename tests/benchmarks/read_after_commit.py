"""A read right after a commit: `python -m tests.benchmarks.read_after_commit [--rounds N] [--directory DIR]`.

It sees the commit, so it waits until that is applied: the time of the round trip through log and target (SQLite in WAL
mode). Once in the process that applies, and once in one of two processes of which the other one applies; in turn, after
pauses in which nothing happens, for who waits for something looks for it the more rarely the longer nothing comes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import sessionmaker

import walsync
from tests.benchmarks.commit_latency import Base, Reading
from tests.benchmarks.targets import sqlite_engine
from tests.support.processes import python_environment

PAUSES_S = (0.0, 0.02, 0.2, 1.5)
WARM_UP = 5

APPLIER = """
import sys
from pathlib import Path
from tests.benchmarks.read_after_commit import attached
with attached(Path(sys.argv[1])):
    print("applies", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def attached(directory: Path) -> Iterator[sessionmaker]:
    """Sessions of the database and the log in this directory."""
    engine = sqlite_engine(directory / "target.sqlite")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    try:
        with walsync.attach(factory, directory / "log"):
            yield factory
    finally:
        engine.dispose()


@contextmanager
def another_process_applies(directory: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", APPLIER, str(directory)],
        env=python_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "applies\n":
                raise SystemExit("the process that was to apply ended")
            yield
        finally:
            process.terminate()


def read_s(factory: sessionmaker) -> Callable[[int], float]:
    """Commits a row, and returns how long the read after it takes."""

    def read(number: int) -> float:
        with factory() as session:
            session.add(Reading(station="roof", number=number, value=number / 7))
            session.commit()
            began = time.perf_counter()
            session.scalars(select(func.max(Reading.id))).one()
            return time.perf_counter() - began

    return read


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="reads of each kind after each pause")
    parser.add_argument("--directory", default=None, help="where the files go: on the disk that is to be measured")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="read-after-commit-") as made, ExitStack() as stack:
        alone, together = Path(made) / "alone", Path(made) / "together"
        alone.mkdir()
        together.mkdir()
        stack.enter_context(another_process_applies(together))
        readers = [read_s(stack.enter_context(attached(directory))) for directory in (alone, together)]
        for number in range(WARM_UP):
            for read in readers:
                read(number)
        print(f"{'':>8} {'applied by this process':>32} {'by another one':>32}")
        print(f"{'pause s':>8} " + f"{'median ms':>16} {'most ms':>15} " * 2)
        for pause_s in PAUSES_S:
            times: list[list[float]] = [[], []]
            for number in range(options.rounds):
                for read, found in zip(readers, times, strict=True):
                    time.sleep(pause_s)
                    found.append(read(number) * 1e3)
            print(
                f"{pause_s:8.2f} " + " ".join(f"{statistics.median(found):16.2f} {max(found):15.2f}" for found in times)
            )


if __name__ == "__main__":
    main(sys.argv[1:])

"""Commits of several processes to one log: `python -m tests.benchmarks.processes [directory]`.

So many processes open one log, begin together, and append entries of 256 B for a fixed time, one thread each. The table
shows how many commits a second all of them make, the median and the 99th percentile of a commit's time, and the floor:
`os.pwrite` and `os.fdatasync` of the same bytes into a file of real zeros, in one process. Floor and log alternate,
round by round; every figure is the median of the rounds. What it should be: with 16 processes at least 4 times the
commits of one, and a 99th percentile of at most 20 times the floor's median.

It is measured with processes that are forked from one that has the code loaded already, as a web server's workers are
that preloads the application (`forkserver`), and with such as each begin for themselves (`spawn`). The latter share no
memory for the code that they execute, and with more of them than processors that is felt.

The processes of a round are started once, and open the log for each measurement; what that takes is not measured, nor
is the first `--warm-up` of each. Now and then the first process releases what is durable, as a checkpointer would, so
that segments are recycled. Give a directory on the disk that is to be measured; without one a temporary directory is
used.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks.log_engine import Floor, median_s
from walsync.wal import LogConfig, WriteAheadLog

COUNTS = (1, 2, 4, 8, 16)
METHODS = ("forkserver", "spawn")
ENTRY_BYTES = 256
FLOOR_COMMITS = 200
RELEASE_EVERY = 500
"""Appends of the first process between two releases."""

ANSWER_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
START_DELAY_S = 0.1
"""Long enough for every process to have heard when to begin."""


@dataclass(frozen=True)
class Span:
    """When to append, on the system's monotonic clock, which all processes share; in seconds."""

    warm_up: float
    begin: float
    end: float


def work(orders: Connection, directory: str, first: bool) -> None:
    """A process: opens the log, says so, appends during the span that it is told, answers the times of its commits."""
    try:
        while True:
            size = orders.recv()
            log = WriteAheadLog.recover(directory, config=LogConfig(idle_hint_s=None))
            orders.send("open")
            orders.send(append_during(log, orders.recv(), os.urandom(size), release=first).tobytes())
            # Nobody closes the log while others are still measured.
            orders.recv()
            if first:
                log.checkpoint(log.durable_id)
            log.close()
            orders.send("closed")
    except EOFError:
        # The round is over.
        return
    except BaseException as error:
        orders.send(error)
        raise


def append_during(log: WriteAheadLog, span: Span, data: bytes, *, release: bool) -> array[float]:
    """The times, in seconds, of the commits that began and ended within the span."""
    times = array("d")
    clock = time.monotonic
    append = log.append
    time.sleep(max(0.0, span.warm_up - clock()))
    count = 0
    while True:
        begin = clock()
        if begin >= span.end:
            return times
        append(data)
        end = clock()
        if span.begin <= begin and end <= span.end:
            times.append(end - begin)
        count += 1
        if release and count % RELEASE_EVERY == 0:
            log.checkpoint(log.durable_id)


class Workers:
    """The processes of a round."""

    def __init__(self, directory: Path, count: int, method: str) -> None:
        # Not forked from this one: they would begin with what it has open.
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["walsync.wal", "tests.benchmarks.log_engine"])
        self._processes: list[Any] = []
        self._lines: list[Connection] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, str(directory), number == 0), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)

    def measure(self, count: int, size: int, warm_up_s: float, seconds: float) -> list[array[float]]:
        """Every process's times, of the first `count` of them."""
        lines = self._lines[:count]
        tell(lines, size)
        answers(lines)
        warm_up = time.monotonic() + START_DELAY_S
        begin = warm_up + warm_up_s
        tell(lines, Span(warm_up, begin, begin + seconds))
        measured = []
        for answer in answers(lines):
            measured.append(array("d"))
            measured[-1].frombytes(answer)
        # The first releases and closes first, when nobody appends.
        for line in lines:
            tell([line], "close")
            answers([line])
        return measured

    def end(self) -> None:
        for line in self._lines:
            line.close()
        deadline = time.monotonic() + END_TIMEOUT_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def tell(lines: list[Connection], order: object) -> None:
    for line in lines:
        line.send(order)


def answers(lines: list[Connection]) -> list[Any]:
    found = []
    for line in lines:
        if not line.poll(ANSWER_TIMEOUT_S):
            raise SystemExit(f"a process did not answer within {ANSWER_TIMEOUT_S} s")
        answer = line.recv()
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    return found


@contextmanager
def workers(directory: Path, count: int, method: str) -> Iterator[Workers]:
    started = Workers(directory, count, method)
    try:
        yield started
    finally:
        started.end()


@dataclass(frozen=True)
class Measured:
    """One measurement of one number of processes; times in seconds."""

    floor_s: float
    commits_per_s: float
    p50_s: float
    p99_s: float
    least_share: float
    """The commits of the process that made fewest, as a share of an equal part."""


def percentile(ordered: list[float], share: float) -> float:
    """The least of the values, in order, that so large a share of them does not exceed."""
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


def summary(floor_s: float, times: list[array[float]], seconds: float) -> Measured:
    ordered = sorted(time for one in times for time in one)
    if not ordered:
        raise SystemExit("not one commit within the time measured")
    least = min(map(len, times)) * len(times) / len(ordered)
    return Measured(floor_s, len(ordered) / seconds, percentile(ordered, 0.5), percentile(ordered, 0.99), least)


Key = tuple[str, int]
"""How the processes are started, and how many."""


def measure(directory: Path, counts: list[int], options: argparse.Namespace) -> dict[Key, list[Measured]]:
    found: dict[Key, list[Measured]] = {(method, count): [] for method in options.start for count in counts}
    floor = Floor(directory / "floor")
    data = os.urandom(options.bytes)
    for number in range(options.rounds):
        # Every second round the other way round: the disk's mood may drift within a round.
        step = 1 if number % 2 == 0 else -1
        for method in options.start[::step]:
            with workers(directory / "log", max(counts), method) as started:
                for count in counts[::step]:
                    floor_s = median_s(floor.commit, data, FLOOR_COMMITS)
                    times = started.measure(count, options.bytes, options.warm_up, options.seconds)
                    found[method, count].append(summary(floor_s, times, options.seconds))
    floor.close()
    return found


def print_table(found: dict[Key, list[Measured]]) -> None:
    one = min(count for _, count in found)
    print(
        f"{'started by':<12}{'processes':>9}{'floor µs':>10}{'commits/s':>11}{f'of {one}':>7}{'p50 µs':>9}{'p99 µs':>9}"
        f"{'p99/floor':>11}{'least share':>13}"
    )
    for (method, count), rounds in found.items():
        ratio = statistics.median(
            ours.commits_per_s / theirs.commits_per_s for ours, theirs in zip(rounds, found[method, one], strict=True)
        )
        floors = statistics.median(each.floor_s for each in rounds)
        print(
            f"{method:<12}{count:>9}{floors * 1e6:>10.1f}"
            f"{statistics.median(each.commits_per_s for each in rounds):>11,.0f}"
            f"{ratio:>7.2f}{statistics.median(each.p50_s for each in rounds) * 1e6:>9.0f}"
            f"{statistics.median(each.p99_s for each in rounds) * 1e6:>9.0f}"
            f"{statistics.median(each.p99_s / each.floor_s for each in rounds):>11.1f}"
            f"{statistics.median(each.least_share for each in rounds):>13.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="measured each time")
    parser.add_argument("--warm-up", type=float, default=0.3, help="seconds before, not measured")
    parser.add_argument("--bytes", type=int, default=ENTRY_BYTES, help="of an entry")
    parser.add_argument("--processes", type=int, nargs="+", default=list(COUNTS), help="how many, one after the other")
    parser.add_argument("--start", nargs="+", default=list(METHODS), choices=METHODS, help="how processes are started")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as made:
        print_table(measure(Path(made), sorted(set(options.processes)), options))
    print("\nfloor: pwrite and fdatasync of the same bytes, one process; medians of the rounds")
    print("least share: the commits of the process that made fewest, of an equal part")


if __name__ == "__main__":
    main()

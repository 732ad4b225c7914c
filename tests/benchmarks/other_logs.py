"""Threads that commit to walsync's log, to LevelDB, and to no log: `python -m tests.benchmarks.other_logs [directory]`.

All are called from Python, and wait for the interpreter's lock, and for each other's waking up, alike. LevelDB, whose
group commit is compiled, comes through `plyvel` (``pip install plyvel``), which gives up the interpreter's lock during
a write; each of its writes is synced. *No log* is a bare `pwrite` and `fdatasync` of the same bytes, each thread's into
a prezeroed file of its own. In turn, round by round; medians, and the rate of each as a multiple of its own with one
thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.log_engine import Floor, rate, release
from walsync.wal import LogConfig, WriteAheadLog

THREADS = (1, 2, 4, 16)
BYTES = 256
SECONDS = 0.4

Appends = Sequence[Callable[[bytes], object]]


def leveldb(directory: Path, stack: ExitStack) -> Appends | None:
    try:
        import plyvel
    except ImportError:
        print("LevelDB is left out: pip install plyvel")
        return None
    database: Any = stack.enter_context(plyvel.DB(str(directory / "leveldb"), create_if_missing=True))
    numbers = itertools.count()

    def append(data: bytes) -> None:
        database.put(next(numbers).to_bytes(8, "big"), data, sync=True)

    return [append] * max(THREADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as made, ExitStack() as stack:
        directory = Path(made)
        floors = [Floor(directory / f"floor-{number}") for number in range(max(THREADS))]
        for one in floors:
            stack.callback(one.close)
        log = stack.enter_context(WriteAheadLog.recover(directory / "log", config=LogConfig(idle_hint_s=None)))
        contestants: dict[str, Appends] = {
            "walsync": [log.append] * max(THREADS),
            "no log": [one.commit for one in floors],
        }
        rival = leveldb(directory, stack)
        if rival is not None:
            contestants["LevelDB"] = rival
        data = os.urandom(BYTES)
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for threads in THREADS:
                for name, appends in contestants.items():
                    rates.setdefault((name, threads), []).append(rate(appends[:threads], data, SECONDS))
                    release(log)
        print(f"{'threads':<10}" + "".join(f"{name + ' /s':>14}{'of one':>8}" for name in contestants))
        for threads in THREADS:
            line = f"{threads:<10}"
            for name in contestants:
                of_one = [ours / one for ours, one in zip(rates[name, threads], rates[name, 1], strict=True)]
                line += f"{statistics.median(rates[name, threads]):>14,.0f}{statistics.median(of_one):>8.2f}"
            print(line)


if __name__ == "__main__":
    main()

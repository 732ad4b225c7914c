"""Run scenarios by the million: `python -m tests.simulation --scenarios 1000000 --seed 1`.

The exit status is 1 if a scenario failed; its seed is printed, and `--scenarios 1 --seed N` runs that one alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.campaign import Summary, run_campaign

PROGRESS_S = 2.0


class _Progress:
    """A line on standard error that is written over on a terminal, and now and then elsewhere."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, summary: Summary) -> None:
        now = time.monotonic()
        if now - self._shown < (PROGRESS_S if self._terminal else 30 * PROGRESS_S):
            return
        self._shown = now
        rate = summary.scenarios / max(summary.seconds, 0.001)
        left_s = (self._wanted - summary.scenarios) / max(rate, 0.001)
        line = (
            f"{summary.scenarios:,} of {self._wanted:,} scenarios, {rate:.0f}/s, {left_s:.0f} s left, "
            f"{summary.failed} violations"
        )
        print(
            f"\r{line}   " if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Crash scenarios of the log.")
    parser.add_argument("--scenarios", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="the first scenario's; each has the next (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core (%(default)s)")
    arguments = parser.parse_args()
    processes = min(arguments.processes, max(1, arguments.scenarios // 1000))
    summary = run_campaign(arguments.seed, arguments.scenarios, processes, _Progress(arguments.scenarios))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"seeds {arguments.seed} to {arguments.seed + arguments.scenarios - 1}, {processes} processes")
    print(summary)
    if arguments.scenarios == 1:
        for failure in summary.failures:
            print(failure.details)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())

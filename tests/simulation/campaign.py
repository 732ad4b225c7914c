"""Many scenarios, over several processes, and what came of them.

Owns the split over processes and the summary. A scenario is known by its seed alone: run that one, and the same
happens.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from tests.simulation.scenario import run_scenario

__all__ = ["Failure", "Summary", "run_campaign", "run_seeds"]

CHUNK_SCENARIOS = 250
MAX_FAILURES = 10


@dataclass(frozen=True)
class Failure:
    """A scenario that broke a promise, or the engine."""

    seed: int
    error: str
    details: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.error}\n  again: python -m tests.simulation --scenarios 1 --seed {self.seed}"


@dataclass
class Summary:
    """What came of some scenarios."""

    scenarios: int = 0
    lives: int = 0
    acknowledged: int = 0
    recovered: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    def add(self, other: Summary) -> None:
        """Count `other` in."""
        self.scenarios += other.scenarios
        self.lives += other.lives
        self.acknowledged += other.acknowledged
        self.recovered += other.recovered
        self.ends += other.ends
        self.failed += other.failed
        self.failures += other.failures[: MAX_FAILURES - len(self.failures)]

    def __str__(self) -> str:
        rate = self.scenarios / max(self.seconds, 0.001)
        ends = ", ".join(f"{name} {count:,}" for name, count in self.ends.most_common())
        lines = [
            f"{self.scenarios:,} scenarios in {self.seconds:.0f} s ({rate:.0f}/s): {self.failed} violations",
            f"{self.lives:,} lives, {self.acknowledged:,} entries acknowledged, {self.recovered:,} recovered last",
            f"what happened: {ends}",
        ]
        return "\n".join(lines + [str(failure) for failure in self.failures])


def run_seeds(first: int, count: int) -> Summary:
    """Run the scenarios of these seeds here."""
    summary = Summary()
    begin = time.monotonic()
    for seed in range(first, first + count):
        summary.scenarios += 1
        try:
            outcome = run_scenario(seed)
        except Exception as error:  # noqa: BLE001 - whatever comes out of a scenario is a failure of it
            summary.failed += 1
            if len(summary.failures) < MAX_FAILURES:
                details = "".join(traceback.format_exception(error))
                summary.failures.append(Failure(seed, f"{type(error).__name__}: {error}", details))
            continue
        summary.lives += outcome.lives
        summary.acknowledged += outcome.acknowledged
        summary.recovered += outcome.recovered
        summary.ends += outcome.ends
    summary.seconds = time.monotonic() - begin
    return summary


def _chunks(first: int, count: int) -> Iterator[tuple[int, int]]:
    for start in range(first, first + count, CHUNK_SCENARIOS):
        yield start, min(CHUNK_SCENARIOS, first + count - start)


def run_campaign(
    first: int, count: int, processes: int, progress: Callable[[Summary], None] = lambda _: None
) -> Summary:
    """Run them over `processes`; `progress` is called after each chunk. Ends early after `MAX_FAILURES` failures."""
    total = Summary()
    begin = time.monotonic()

    def take(summary: Summary) -> None:
        total.add(summary)
        total.seconds = time.monotonic() - begin
        progress(total)

    if processes == 1:
        for chunk in _chunks(first, count):
            take(run_seeds(*chunk))
            if total.failed >= MAX_FAILURES:
                break
        return total
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        chunks = _chunks(first, count)
        running: set[Future[Summary]] = set()
        while True:
            # A few chunks ahead of each process, not all of them: a million scenarios are thousands of chunks.
            while len(running) < 2 * processes and total.failed < MAX_FAILURES:
                following = next(chunks, None)
                if following is None:
                    break
                running.add(pool.submit(run_seeds, *following))
            if not running:
                return total
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                take(future.result())

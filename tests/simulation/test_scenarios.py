"""Random lives and deaths of the log. `WALSYNC_SCENARIOS` says how many, `WALSYNC_SEED` where to begin.

A failure prints the seed of its scenario; `python -m tests.simulation --scenarios 1 --seed N` runs that one again.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.campaign import Summary, run_seeds
from tests.simulation.scenario import run_scenario

SCENARIOS = int(os.environ.get("WALSYNC_SCENARIOS", "2000"))
SLOW_SCENARIOS = int(os.environ.get("WALSYNC_SCENARIOS", "60000"))
FIRST_SEED = int(os.environ.get("WALSYNC_SEED", "1"))
SLOW_PARTS = 12


def check(summary: Summary) -> None:
    print(summary)
    assert not summary.failures, f"{summary}\n{summary.failures[0].details}"
    # A run in which nothing was at stake would prove nothing.
    for happening in ("power cut", "killed", "crashed", "poisoned", "misdirected", "damage reported"):
        assert summary.ends[happening], f"no scenario was about: {happening}"


@pytest.mark.timeout(1800)
def test_nothing_acknowledged_is_lost_and_nothing_else_appears() -> None:
    check(run_seeds(FIRST_SEED, SCENARIOS))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(SLOW_PARTS))
def test_nothing_acknowledged_is_lost_in_a_long_run(part: int) -> None:
    count = -(-SLOW_SCENARIOS // SLOW_PARTS)
    check(run_seeds(FIRST_SEED + part * count, count))


def test_a_seed_has_one_outcome() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + 20):
        assert run_scenario(seed) == run_scenario(seed)

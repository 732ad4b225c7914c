"""The gate: without any of the parts that recovery rests on, the scenarios find a violation."""

from __future__ import annotations

import pytest

from tests.simulation.campaign import Failure, run_seeds
from tests.simulation.mutations import MUTATIONS, Mutation, mutated

SEEDS = 12_000
CHUNK = 250


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_scenarios_fail_without(mutation: Mutation) -> None:
    failures: list[Failure] = []
    with mutated(mutation):
        for first in range(1, SEEDS, CHUNK):
            failures = run_seeds(first, CHUNK).failures
            if failures:
                break
    assert failures, f"{SEEDS} scenarios pass without: {mutation.name}"
    # A mutation that only breaks the program would be found as well, and prove nothing.
    assert failures[0].error.startswith(("InvariantViolation", "DamagedLogError")), failures[0].details
    print(f"without {mutation.name}: {failures[0]}")
    # It is the mutation that these seeds find.
    assert not [failure for failure in failures if run_seeds(failure.seed, 1).failed]

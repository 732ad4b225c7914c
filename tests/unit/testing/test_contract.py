"""The storages for tests keep the contract of every storage: its suite, run against them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract import test_storage as contract
from walsync.testing import FaultyStorage, SimulatedStorage
from walsync.wal import MemoryStorage, Storage

MAKERS: dict[str, Callable[[], Storage]] = {
    "simulated": SimulatedStorage,
    "simulated, copied": lambda: SimulatedStorage().copy(),
    "simulated, killed": lambda: SimulatedStorage().kill(),
    "faulty": lambda: FaultyStorage(MemoryStorage()),
    "faulty and simulated": lambda: FaultyStorage(SimulatedStorage(), tracing=True),
}


@pytest.fixture(params=sorted(MAKERS))
def storage(request: pytest.FixtureRequest) -> Storage:
    made = MAKERS[request.param]()
    made.prepare()
    return made


# The suite's own fixture has the storages of the log; these functions find the one above.
TESTS = {name: test for name, test in vars(contract).items() if name.startswith("test_")}
globals().update(TESTS)


def test_the_suite_is_there() -> None:
    assert len(TESTS) > 10

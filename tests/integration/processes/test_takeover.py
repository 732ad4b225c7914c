"""Whoever applies is killed, or leaves: another process goes on at once.

`WALSYNC_TAKEOVERS=N` sets how often it is killed. The times are printed (`-s`); what they should be is below a second.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from tests.integration.session.models import Audit
from tests.support.file_locks import lease_holder
from tests.support.waiting import wait_until
from tests.support.worker import Worker

QUICK_TAKEOVERS = 3
LARGE_TAKEOVERS = 20

Join = Callable[[], Worker]

pytestmark = pytest.mark.crash


def applied(target: Engine, what: str) -> bool:
    """Whether this is in the database: read directly, so that nothing hurries because of it."""
    with target.connect() as connection:
        return connection.scalar(select(Audit.id).where(Audit.what == what)) is not None


def applier_of(log: Path, workers: list[Worker]) -> Worker:
    holder = wait_until(lambda: lease_holder(log), message="somebody to apply")
    return next(worker for worker in workers if worker.pid == holder)


def take_over(target: Engine, log: Path, join: Join, takeovers: int) -> list[float]:
    """Kills the applier again and again; each time, the seconds until an entry committed since is applied."""
    takeovers = int(os.environ.get("WALSYNC_TAKEOVERS", takeovers))
    workers = [join() for _ in range(3)]
    times = []
    for number in range(takeovers):
        victim = applier_of(log, workers)
        workers.remove(victim)
        # Something waits when it dies, and something comes after.
        victim.ask("note", f"before {number}")
        begin = time.monotonic()
        victim.kill()
        workers[0].ask("note", f"after {number}")
        wait_until(lambda number=number: applied(target, f"after {number}"), message="an entry to be applied")
        times.append(time.monotonic() - begin)
        assert applied(target, f"before {number}")
        assert applier_of(log, workers) in workers
        workers.append(join())
    middle, longest = f"{statistics.median(times) * 1e3:.0f} ms", f"{max(times) * 1e3:.0f} ms"
    print(f"{target.dialect.name}: {takeovers} takeovers, median {middle}, longest {longest}")
    return times


def test_the_applier_killed_another_goes_on(target: Engine, join: Join, tmp_path: Path) -> None:
    assert len(take_over(target, tmp_path / "log", join, QUICK_TAKEOVERS)) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_applier_killed_many_times(target: Engine, join: Join, tmp_path: Path) -> None:
    assert len(take_over(target, tmp_path / "log", join, LARGE_TAKEOVERS)) > 0


@pytest.mark.slow
def test_the_applier_closed_another_goes_on(target: Engine, join: Join, tmp_path: Path) -> None:
    workers = [join() for _ in range(3)]
    for number in range(2):
        leaver = applier_of(tmp_path / "log", workers)
        workers.remove(leaver)
        assert leaver.ask("close")
        workers[0].ask("note", f"after {number}")
        wait_until(lambda number=number: applied(target, f"after {number}"), message="an entry to be applied")
        assert applier_of(tmp_path / "log", workers) in workers

"""What one process has committed, another one reads, at once and without any other contact.

`WALSYNC_RELAYED=N` sets how many commits and reads are made in the tests that are slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from tests.integration.session.models import Audit
from tests.support.file_locks import lease_holder
from tests.support.processes import REPOSITORY, python_environment
from tests.support.waiting import wait_until
from tests.support.worker import Worker

QUICK_COUNT = 300
LARGE_COUNT = 10_000
TIMEOUT_S = 1000.0

Join = Callable[[], Worker]


@contextmanager
def relay(url: str, log: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The two processes, each of whose output is the other's input."""
    first_reads, second_writes = os.pipe()
    second_reads, first_writes = os.pipe()
    ends = {"first": (first_reads, first_writes), "second": (second_reads, second_writes)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.processes.relay", url, str(log), str(count), role],
            cwd=REPOSITORY,
            env=python_environment(),
            stdin=reads,
            stdout=writes,
        )
        for role, (reads, writes) in ends.items()
    ]
    for end in (first_reads, first_writes, second_reads, second_writes):
        os.close(end)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_relay(target: Engine, log: Path, count: int) -> None:
    with relay(target.url.render_as_string(hide_password=False), log, count) as processes:
        assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0]
    with target.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Audit)) == count


def test_two_processes_see_each_others_commits_at_once(target: Engine, tmp_path: Path) -> None:
    """One of the two applies."""
    run_relay(target, tmp_path / "log", QUICK_COUNT)


@pytest.mark.slow
def test_two_processes_see_commits_that_a_third_applies(target: Engine, join: Join, tmp_path: Path) -> None:
    third = join()
    assert wait_until(lambda: lease_holder(tmp_path / "log")) == third.pid
    run_relay(target, tmp_path / "log", QUICK_COUNT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_commits_are_seen_at_once(target: Engine, tmp_path: Path) -> None:
    run_relay(target, tmp_path / "log", int(os.environ.get("WALSYNC_RELAYED", LARGE_COUNT)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_commits_that_a_third_applies_are_seen_at_once(target: Engine, join: Join, tmp_path: Path) -> None:
    third = join()
    assert wait_until(lambda: lease_holder(tmp_path / "log")) == third.pid
    run_relay(target, tmp_path / "log", int(os.environ.get("WALSYNC_RELAYED", LARGE_COUNT)))

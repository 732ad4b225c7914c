"""kill -9 of processes that share a log, again and again, while the others go on.

A slice runs by default; `-m slow` makes 500 kills on SQLite and 500 on PostgreSQL. `WALSYNC_KILLS=N` sets their number,
`WALSYNC_SEED=N` repeats the choices of a run (not the moments: those are the machine's).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.crash.processes.herd import WAYS, Herd

PROCESSES = 8
THREADS = 4
APPLIERS = 2
"""Of `walsync apply`, where the others only write: one applies, one stands by."""

QUICK_KILLS = 5
LARGE_KILLS = 500
AUDIT_EVERY = 20

pytestmark = pytest.mark.crash


def run_kills(url: str, directory: Path, kills: int, appliers: int = 0) -> None:
    kills = int(os.environ.get("WALSYNC_KILLS", kills))
    seed = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{kills} kills; WALSYNC_SEED={seed}")
    begin = time.monotonic()
    herd = Herd(url, directory, seed, processes=PROCESSES, threads=THREADS, appliers=appliers)
    try:
        herd.start()
        herd.graze(PROCESSES * THREADS)
        for number in range(1, kills + 1):
            herd.graze(herd.source.randint(1, 40))
            description = herd.kill_one()
            print(f"kill {number}: {description}; acknowledged {herd.acknowledged.total}")
            if number % AUDIT_EVERY == 0:
                herd.audit(f"after kill {number}, seed {seed}")
        herd.graze(PROCESSES * THREADS)
        counters = herd.finish()
    finally:
        herd.close()
    print(f"{kills} kills in {time.monotonic() - begin:.0f} s, of {dict(herd.kills.most_common())}")
    print(f"the killed held {dict(herd.held.most_common())}")
    print(f"the longest silence after a kill: {herd.longest_silence_s * 1e3:.0f} ms")
    print(f"in the end {sum(counters.values())} transactions, all of them as acknowledged")
    # A run in which hardly anything was committed, or nobody was killed who held something, would prove nothing.
    assert sum(counters.values()) > 10 * kills
    if kills >= 40:
        missing = [way for way in WAYS if not any(kind.startswith(way) for kind in herd.kills)]
        assert missing == [], herd.kills


def test_killed_processes_lose_and_double_nothing_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    run_kills(sqlite_url, tmp_path, QUICK_KILLS)


@pytest.mark.slow
@pytest.mark.postgresql
def test_killed_processes_lose_and_double_nothing_on_postgresql(empty_postgres_url: str, tmp_path: Path) -> None:
    run_kills(empty_postgres_url, tmp_path, QUICK_KILLS)


@pytest.mark.slow
def test_killed_writers_and_appliers_lose_and_double_nothing_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    run_kills(sqlite_url, tmp_path, QUICK_KILLS, APPLIERS)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(3600)
def test_kills_of_writers_and_appliers_on_postgresql(empty_postgres_url: str, tmp_path: Path) -> None:
    run_kills(empty_postgres_url, tmp_path, LARGE_KILLS, APPLIERS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_kills_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    run_kills(sqlite_url, tmp_path, LARGE_KILLS)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(3600)
def test_five_hundred_kills_on_postgresql(empty_postgres_url: str, tmp_path: Path) -> None:
    run_kills(empty_postgres_url, tmp_path, LARGE_KILLS)

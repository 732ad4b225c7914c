"""kill -9 at random moments, again and again on the same log and database, so that recoveries pile up.

A slice runs by default; `WALSYNC_KILLS=N` sets the number of kills, `-m slow` makes 200 on SQLite and 200 on
PostgreSQL. `WALSYNC_SEED=N` repeats the choices of a run (not the moments: those are the machine's).
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash.acknowledged import Acknowledged, Lines, numbers_of, raise_if_failed, words_of
from tests.crash.ledger import Ledger, audit, engine_of
from tests.support.processes import REPOSITORY, python_environment
from walsync.wal import verify_log

WRITERS = ("writer-0", "writer-1", "writer-2")
TRANSACTIONS = 150
"""Of each writer in one life. It bounds the backlog; most lives end before."""

QUICK_KILLS = 5
LARGE_KILLS = 200
START_TIMEOUT_S = 60.0

pytestmark = pytest.mark.crash


@dataclass
class Life:
    """One process, from its start to its kill."""

    process: subprocess.Popen[bytes]
    unread: bytes = b""
    lines: Lines = field(default_factory=list)
    ended: bool = False

    def read(self, timeout_s: float) -> bool:
        """Reads what there is within this time; False when nothing came, or the output has ended."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        if self.ended or not select.select([descriptor], [], [], max(0.0, timeout_s))[0]:
            return False
        data = os.read(descriptor, 1 << 16)
        self.ended = not data
        *whole, self.unread = (self.unread + data).split(b"\n")
        self.lines += map(words_of, whole)
        return bool(data)

    def read_until(self, word: str, deadline: float) -> bool:
        """Reads until a line begins with this word; False at the deadline, or at the end of the output."""
        return self.read_while(lambda: not any(line[0] == word for line in self.lines), deadline)

    def read_while(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Reads for as long as the condition holds; False at the deadline, or at the end of the output."""
        while condition():
            if not self.read(deadline - time.monotonic()) and (self.ended or time.monotonic() >= deadline):
                return False
        return True


class Killer:
    """Starts, kills and audits."""

    def __init__(self, url: str, directory: Path, seed: int) -> None:
        self.url = url
        self.directory = directory
        self.seed = seed
        self.source = random.Random(seed)
        self.acknowledged = Acknowledged()
        self.engine = engine_of(url)
        Ledger.metadata.create_all(self.engine)

    def start(self, transactions: int, number: int) -> Life:
        arguments = [self.url, str(self.directory), ",".join(WRITERS), str(transactions), f"{self.seed}-{number}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.child", *arguments],
            cwd=REPOSITORY,
            env=python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        return Life(process)

    def live_and_die(self, number: int) -> str:
        """One life; the answer says when it was ended."""
        life = self.start(TRANSACTIONS, number)
        try:
            draw = self.source.random()
            if draw < 0.15:
                # While it starts: imports, recovery, replay.
                pause_s = self.source.uniform(0.05, 1.2)
                when = f"{pause_s:.3f} s after its start"
                deadline = time.monotonic() + pause_s
            else:
                if not life.read_until("ready", time.monotonic() + START_TIMEOUT_S):
                    raise_if_failed(life.lines)
                    raise AssertionError(f"life {number} did not get ready within {START_TIMEOUT_S} s: {life.lines}")
                pause_s = self.source.uniform(0.0, self.source.choice((0.05, 0.4, 0.9)))
                when = f"{pause_s:.3f} s after it was ready"
                if draw < 0.5:
                    # So many commits later: on a busy machine little happens in a short time.
                    commits = self.source.randint(1, 40)
                    life.read_while(
                        lambda: len(numbers_of("acknowledged", life.lines)) < commits,
                        time.monotonic() + START_TIMEOUT_S,
                    )
                    pause_s = self.source.uniform(0.0, 0.01)
                    when = f"{pause_s:.3f} s after commit {commits}"
                deadline = time.monotonic() + pause_s
            while (left := deadline - time.monotonic()) > 0 and not life.ended:
                life.read(left)
        finally:
            life.process.kill()
            life.process.wait()
        while life.read(START_TIMEOUT_S):
            pass
        assert life.process.stdout is not None
        life.process.stdout.close()
        raise_if_failed(life.lines)
        self.acknowledged.note(life.lines, f"life {number}")
        return when

    def check(self, number: int, *, every_row: bool = False) -> None:
        """What is in the database right after a kill, before any recovery: whole transactions, in order."""
        found = audit(self.engine, every_row=every_row)
        assert not found.faults, f"after life {number}: {found.faults}"
        self.acknowledged.check_nothing_more(found.counters, f"after life {number}")

    def finish(self, number: int) -> dict[str, int]:
        """A last life that recovers and ends in order; then everything acknowledged must be there."""
        life = self.start(0, number)
        try:
            while life.read(START_TIMEOUT_S):
                pass
            assert life.process.wait(START_TIMEOUT_S) == 0, life.lines
        finally:
            life.process.kill()
            life.process.wait()
            assert life.process.stdout is not None
            life.process.stdout.close()
        raise_if_failed(life.lines)
        self.acknowledged.note(life.lines, f"life {number}")
        found = audit(self.engine, every_row=True)
        assert not found.faults, found.faults
        self.acknowledged.check_all_there(found.counters)
        verified = verify_log(str(self.directory))
        assert not verified.damage
        return found.counters


def run_kills(url: str, directory: Path, kills: int) -> None:
    kills = int(os.environ.get("WALSYNC_KILLS", kills))
    seed = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{kills} kills; WALSYNC_SEED={seed}")
    killer = Killer(url, directory, seed)
    try:
        for number in range(kills):
            when = killer.live_and_die(number)
            print(f"life {number}: killed {when}; acknowledged {killer.acknowledged.total}")
            killer.check(number, every_row=number % 20 == 19)
        counters = killer.finish(kills)
        print(f"in the end: {counters}")
        # A run in which hardly anything was committed would prove nothing.
        assert sum(counters.values()) > 3 * kills
    finally:
        killer.engine.dispose()


@pytest.mark.slow
def test_killed_writers_lose_and_double_nothing_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    run_kills(sqlite_url, tmp_path / "log", QUICK_KILLS)


@pytest.mark.slow
@pytest.mark.postgresql
def test_killed_writers_lose_and_double_nothing_on_postgresql(empty_postgres_url: str, tmp_path: Path) -> None:
    run_kills(empty_postgres_url, tmp_path / "log", QUICK_KILLS)


@pytest.mark.slow
@pytest.mark.mariadb
def test_killed_writers_lose_and_double_nothing_on_mariadb(empty_mariadb_url: str, tmp_path: Path) -> None:
    run_kills(empty_mariadb_url, tmp_path / "log", QUICK_KILLS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    run_kills(sqlite_url, tmp_path / "log", LARGE_KILLS)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(1800)
def test_two_hundred_kills_on_postgresql(empty_postgres_url: str, tmp_path: Path) -> None:
    run_kills(empty_postgres_url, tmp_path / "log", LARGE_KILLS)

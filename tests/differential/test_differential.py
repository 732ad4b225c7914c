"""The same random ORM programs directly and through walsync: equal databases, equal reads, equal errors.

A quick slice runs by default. `WALSYNC_DIFFERENTIAL_WORKLOADS=N` sets the number of programs of each test, and
`-m slow` runs the large counts (2,000 on SQLite, 200 on each server). `WALSYNC_SEED=N` repeats a run: the seed is
printed with every failure, and Hypothesis shrinks the failing program.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from sqlalchemy import Engine

import walsync
from tests.differential.comparison import differences
from tests.differential.interpreter import Interpreter, ProgramError
from tests.differential.planner import Program, plan
from tests.differential.programs import program_bytes
from tests.differential.sides import BufferedSide, DirectSide, empty, pair_of_databases

pytestmark = pytest.mark.filterwarnings("ignore:Dialect sqlite.* does .not. support Decimal:sqlalchemy.exc.SAWarning")

QUICK = {"sqlite": 150, "postgresql": 25, "mariadb": 25}
LARGE = {"sqlite": 2000, "postgresql": 200, "mariadb": 200}


class Comparison:
    """A pair of long-lived databases and a long-lived log; `check` runs one program on both sides."""

    def __init__(self, direct: Engine, buffered: Engine, directory: Path) -> None:
        self.engines = (direct, buffered)
        self.directory = directory
        self.logs = 0
        self.failed = False
        self.refused_directly = 0
        self.side = self._attach()

    def _attach(self) -> BufferedSide:
        # After a program that failed the log may hold what the target refuses, so the next one gets a new log.
        self.logs += 1
        return BufferedSide(self.engines[1], self.directory / f"log-{self.logs}")

    def check(self, program: Program) -> None:
        for engine in self.engines:
            empty(engine)
        try:
            try:
                direct = Interpreter(DirectSide(self.engines[0]), program).run()
            except ProgramError as error:
                # Without walsync in sight: the planner, or SQLAlchemy itself, and there is nothing to compare with.
                self.refused_directly += 1
                print(f"refused without walsync: {error}")
                return
            self.side.use(program.batch_changes)
            buffered = Interpreter(self.side, program).run()
            self.side.settle()
            found = [f"{one!r} directly, {two!r} through walsync" for one, two in _unequal(direct, buffered)]
            found += differences(*self.engines)
            if found:
                raise AssertionError("\n".join([*found[:12], str(program)]))
        except BaseException as error:
            if not self.failed:
                # Hypothesis goes on to shrink it, which may take longer than the test is given.
                print(f"the first program that failed:\n{program}\n{error}")
            self.failed = True
            self.side.abandon()
            for engine in self.engines:
                engine.dispose()
            self.side = self._attach()
            raise


def _unequal(direct: list[object], buffered: list[object]) -> Iterator[tuple[object, object]]:
    for index in range(max(len(direct), len(buffered))):
        one = direct[index] if index < len(direct) else "nothing"
        two = buffered[index] if index < len(buffered) else "nothing"
        if one != two:
            yield one, two


@contextmanager
def comparison(server: str | Path, directory: Path) -> Iterator[Comparison]:
    with pair_of_databases(server) as (direct, buffered):
        found = Comparison(direct, buffered, directory)
        try:
            yield found
        finally:
            found.side.close()


def run_workloads(server: str | Path, directory: Path, count: int) -> None:
    count = int(os.environ.get("WALSYNC_DIFFERENTIAL_WORKLOADS", count))
    number = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{count} programs; to repeat them: WALSYNC_SEED={number} WALSYNC_DIFFERENTIAL_WORKLOADS={count}")
    with comparison(server, directory) as pair:
        dialect = pair.engines[0].dialect.name

        @seed(number)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(program_bytes())
        def workload(data: bytes) -> None:
            pair.check(plan(data, dialect))

        workload()
        counts = pair.side.counts
        print(f"{counts.entries} entries, {counts.replayed} of them replayed, log opened {counts.opened} times")
        print(f"direct transactions: {dict(counts.direct)}")
        # The planner promises programs that run; more than a few that do not would be a fault of the tests.
        assert pair.refused_directly <= 1 + count // 200
        # A run in which everything went the direct way, or nothing was replayed, would prove nothing.
        assert counts.entries > count
        assert counts.replayed > count / 20


@pytest.mark.timeout(600)
def test_random_programs_leave_equal_databases_on_sqlite(tmp_path: Path) -> None:
    run_workloads(tmp_path, tmp_path, QUICK["sqlite"])


@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_random_programs_leave_equal_databases_on_postgresql(postgres_server_url: str, tmp_path: Path) -> None:
    run_workloads(postgres_server_url, tmp_path, QUICK["postgresql"])


@pytest.mark.mariadb
@pytest.mark.timeout(600)
def test_random_programs_leave_equal_databases_on_mariadb(mariadb_server_url: str, tmp_path: Path) -> None:
    run_workloads(mariadb_server_url, tmp_path, QUICK["mariadb"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_random_programs_leave_equal_databases_on_sqlite(tmp_path: Path) -> None:
    run_workloads(tmp_path, tmp_path, LARGE["sqlite"])


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(1800)
def test_two_hundred_random_programs_leave_equal_databases_on_postgresql(
    postgres_server_url: str, tmp_path: Path
) -> None:
    run_workloads(postgres_server_url, tmp_path, LARGE["postgresql"])


@pytest.mark.slow
@pytest.mark.mariadb
@pytest.mark.timeout(1800)
def test_two_hundred_random_programs_leave_equal_databases_on_mariadb(mariadb_server_url: str, tmp_path: Path) -> None:
    run_workloads(mariadb_server_url, tmp_path, LARGE["mariadb"])


def test_an_entry_that_is_not_applied_is_seen(tmp_path: Path) -> None:
    """The mutation: replay leaves one of several entries out, and the comparison must not pass."""
    operations = (
        ("add", "Setting", "setting-1", {"section": "a", "name": 1, "value": "kept"}, {}),
        ("commit",),
        ("pause",),
        ("add", "Setting", "setting-2", {"section": "a", "name": 2, "value": "left out"}, {}),
        ("commit",),
        ("add", "Setting", "setting-3", {"section": "a", "name": 3, "value": "kept"}, {}),
        ("commit",),
        ("reopen",),
    )
    program = Program(operations, expire_on_commit=False, batch_changes=1000, dialect="sqlite")
    with comparison(tmp_path, tmp_path) as pair:
        pair.check(program)

        def leave_out(session: object, changes: walsync.ChangeSet) -> object:
            values = [value for change in changes.changes for row in getattr(change, "rows", []) for value in row]
            return walsync.SKIP if "left out" in values else None

        pair.side.listeners.append(("before_replay", leave_out))
        with pytest.raises(AssertionError, match="setting: missing through walsync"):
            pair.check(program)

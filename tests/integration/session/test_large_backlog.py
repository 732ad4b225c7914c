"""A log in which very many entries wait is opened in little memory, and applying begins before all of it was decoded.

`WALSYNC_BACKLOG_ENTRIES=N` sets how many wait. Figures, with a million: `python -m tests.benchmarks.large_backlog`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.benchmarks.large_backlog import Base, Other, Reading, fill, first_opening
from tests.benchmarks.targets import engine_for
from tests.support.waiting import wait_until

ENTRIES = int(os.environ.get("WALSYNC_BACKLOG_ENTRIES", "100000"))
GROWTH_MB = 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel for a process's memory: Linux")
@pytest.mark.parametrize(
    "target", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql),
               pytest.param("mariadb", marks=pytest.mark.mariadb)]
)  # fmt: skip
def test_opening_and_applying_a_large_backlog_takes_little_memory(target: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        engine = engine_for(target, tmp_path / "target.sqlite", stack)
        Base.metadata.create_all(engine)
        fill(engine, tmp_path / "log", ENTRIES)
        found = first_opening(engine, tmp_path / "log")
    print(found)
    assert found.rows == ENTRIES
    assert found.growth_mb < GROWTH_MB
    # The first batch is in long before the last one.
    assert found.first_applied_s < found.all_applied_s / 2


def test_reads_after_opening_a_backlog_see_all_of_it_and_wait_for_no_more_than_they_must(tmp_path: Path) -> None:
    """More entries than are looked through at once, nothing of which is applied."""
    engine = create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}")
    Base.metadata.create_all(engine)
    fill(engine, tmp_path / "log", 30_000)
    factory: sessionmaker[Session] = sessionmaker(engine)
    paused = walsync.CheckpointConfig(paused=True)
    with walsync.attach(factory, tmp_path / "log", checkpoint=paused) as journal:
        touched = frozenset({walsync.TableName(None, "reading")})
        untouched = frozenset({walsync.TableName(None, "other")})
        assert journal.must_wait(touched)
        wait_until(lambda: not journal.must_wait(untouched), message="the tables of the backlog are known")
        assert journal.must_wait(touched)
        with factory() as session:
            assert session.scalars(select(Other)).all() == []
        journal.resume()
        with factory() as session:
            assert len(session.scalars(select(Reading.id)).all()) == 30_000
    engine.dispose()

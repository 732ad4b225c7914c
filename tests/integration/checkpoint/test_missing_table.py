"""A table that the target does not have yet: seen from another process, and gone on with by itself when it is there.

The application runs in a process of its own; `walsync status` in others.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, func, select

from tests.support.processes import run_python, start_python
from tests.support.waiting import wait_until

WAIT_S = 40.0

late = Table("late", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))

APPLICATION = """
import sys
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert
from sqlalchemy.orm import sessionmaker
import walsync

late = Table("late", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))
engine = create_engine(sys.argv[1])
factory = sessionmaker(engine)
config = walsync.CheckpointConfig(blocked_retry_s=0.1, batch_delay_s=0)
journal = walsync.attach(factory, sys.argv[2], checkpoint=config)
for number in range(3):
    with journal.engine.begin() as connection:
        connection.execute(insert(late), {"id": number})
print("committed", flush=True)
sys.stdin.read()
journal.close()
engine.dispose()
"""


@pytest.fixture
def engine(target_url: str) -> Iterator[Engine]:
    engine = create_engine(target_url)
    yield engine
    engine.dispose()


@contextmanager
def application(engine: Engine, log: Path) -> Iterator[Any]:
    url = engine.url.render_as_string(hide_password=False)
    with start_python("-c", APPLICATION, url, log) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "committed\n", process.communicate()[1]
            yield process
        finally:
            process.kill()


def status_of(log: Path) -> dict[str, Any]:
    done = run_python("-m", "walsync.cli", "status", log, "--json", expect=None)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def report_of(log: Path) -> dict[str, Any]:
    found: dict[str, Any] = status_of(log)["checkpointer"] or {}
    return found


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(late)).scalar_one())


@pytest.mark.slow
def test_a_missing_table_shows_in_the_status_of_another_process_until_it_is_created(
    engine: Engine, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with application(engine, log) as process:
        report = wait_until(lambda: (found := report_of(log)).get("state") == "blocked" and found, WAIT_S)
        assert "late" in report["last_error"]
        assert report["last_error_kind"] == "blocked"
        assert report["entry_id"] == 1
        assert report["applied_id"] == 0
        assert report["process_id"] == process.pid
        assert report["process"] == "alive"
        assert report["failures"] >= 1
        text = run_python("-m", "walsync.cli", "status", log, expect=None).stdout
        assert "blocked since" in text
        assert "late" in text

        late.create(engine)
        wait_until(lambda: rows(engine) == 3, WAIT_S, "the entries are applied by themselves")
        report = wait_until(lambda: (found := report_of(log)).get("applied_id") == 3 and found, WAIT_S)
        assert report["state"] == "running"
        assert report["last_error"] is None

        assert process.stdin is not None
        process.stdin.close()
        process.wait(WAIT_S)
    report = report_of(log)
    assert report["state"] == "stopped"
    assert report["process"] in ("gone", "closed")


@pytest.mark.slow
def test_what_held_it_up_is_still_known_after_the_process_died(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with application(engine, log) as process:
        wait_until(lambda: report_of(log).get("state") == "blocked", WAIT_S)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
        report = report_of(log)
        assert report["state"] == "blocked"
        assert report["process"] == "gone"
        assert "late" in report["last_error"]
        assert "which is gone" in run_python("-m", "walsync.cli", "status", log, expect=None).stdout

"""What the checkpointer says of itself for other processes: written whole, read with care, never in the way."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select
from sqlalchemy.orm import sessionmaker

import walsync
from tests.support.waiting import wait_until
from walsync.checkpoint import CheckpointStatus
from walsync.checkpoint.failures import FailureKind
from walsync.checkpoint.status_file import FILE_NAME, CheckpointReport, StatusReporter, read_report

RUNNING = CheckpointStatus("running", 100.0, 5)
BLOCKED = CheckpointStatus(
    "blocked",
    200.0,
    7,
    "no such table",
    FailureKind.BLOCKED,
    3.0,
    8,
    2,
    True,
    last_error_type="OperationalError",
)


class Source:
    """A checkpointer's status, as the test sets it."""

    def __init__(self) -> None:
        self.status = RUNNING
        self.changed = threading.Event()

    def become(self, status: CheckpointStatus) -> None:
        self.status = status
        self.changed.set()

    @contextmanager
    def reported(self, directory: Path, **options: Any) -> Iterator[StatusReporter]:
        reporter = StatusReporter(directory, lambda: self.status, self.changed, clock=lambda: 1000.0, **options)
        reporter.start()
        try:
            yield reporter
        finally:
            reporter.stop()


@pytest.fixture
def source() -> Source:
    return Source()


def state_of(directory: Path) -> str | None:
    report = read_report(directory)
    return None if report is None else report.state


def test_a_change_of_state_is_written_at_once(source: Source, tmp_path: Path) -> None:
    with source.reported(tmp_path, every_s=600):
        wait_until(lambda: state_of(tmp_path) == "running")
        source.become(BLOCKED)
        wait_until(lambda: state_of(tmp_path) == "blocked")
    report = read_report(tmp_path)
    assert report is not None
    assert report == CheckpointReport(
        state="blocked",
        since=200.0,
        applied_id=7,
        last_error="no such table",
        last_error_kind="blocked",
        error_type="OperationalError",
        entry_id=8,
        failures=2,
        replay_pending=True,
        applies_since=1000.0,
        process_id=os.getpid(),
        host=report.host,
        written_at=1000.0,
    )
    assert list(tmp_path.iterdir()) == [tmp_path / FILE_NAME]


def test_progress_is_written_now_and_then_and_nothing_when_nothing_is_new(source: Source, tmp_path: Path) -> None:
    with source.reported(tmp_path, every_s=0.01):
        wait_until(lambda: state_of(tmp_path) == "running")
        source.status = CheckpointStatus("running", 100.0, 6)
        wait_until(lambda: (read_report(tmp_path) or BLOCKED).applied_id == 6)
        (tmp_path / FILE_NAME).unlink()
        looks = []
        source.changed.set()
        wait_until(lambda: looks.append(0) or len(looks) > 20)  # type: ignore[func-returns-value]
        assert not (tmp_path / FILE_NAME).exists()


def test_the_last_word_is_written_when_it_ends(source: Source, tmp_path: Path) -> None:
    with source.reported(tmp_path, every_s=600):
        wait_until(lambda: state_of(tmp_path) == "running")
        source.status = CheckpointStatus("stopped", 300.0, 9)
    assert state_of(tmp_path) == "stopped"


def test_a_long_error_is_cut(source: Source, tmp_path: Path) -> None:
    source.status = CheckpointStatus("halted", 1.0, 0, "é" * 10**6)
    with source.reported(tmp_path):
        pass
    report = read_report(tmp_path)
    assert report is not None
    assert len(report.last_error or "") == 2000
    assert (tmp_path / FILE_NAME).stat().st_size < 64 * 1024


def test_a_file_that_cannot_be_written_is_told_once(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "gone"
    with caplog.at_level(logging.WARNING, "walsync.checkpoint"):
        with source.reported(directory, every_s=0.01):
            wait_until(lambda: "cannot be written" in caplog.text)
            source.become(BLOCKED)
            wait_until(lambda: not source.changed.is_set())
            directory.mkdir()
            # And it is tried again.
            wait_until(lambda: state_of(directory) == "blocked")
    assert caplog.text.count("cannot be written") == 1


def _with(**changes: Any) -> bytes:
    good = {
        "format": 2,
        "state": "running",
        "since": 1.5,
        "applied_id": 1,
        "last_error": None,
        "last_error_kind": None,
        "error_type": None,
        "entry_id": None,
        "failures": 0,
        "replay_pending": False,
        "applies_since": 1.5,
        "process_id": 4711,
        "host": "here",
        "written_at": 2,
    }
    return json.dumps({**good, **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b" " * 70_000 + _with(),
        _with(format=1),
        _with(state="\x1b[2J"),
        _with(state=["running"]),
        _with(since=float("nan")),
        _with(since=1e300),
        _with(since="1"),
        _with(applied_id=-1),
        _with(applied_id=True),
        _with(applied_id=10**40),
        _with(process_id="4711"),
        _with(host=None),
        _with(last_error=5),
        _with(last_error_kind="mine"),
        _with(written_at=None),
    ],
)
def test_what_is_not_a_report_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    assert read_report(tmp_path) is None


def test_nothing_that_a_terminal_would_act_upon_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(_with(last_error="a\x1b[31m\r\nb", host="\x07h"))
    report = read_report(tmp_path)
    assert report is not None
    assert report.last_error == "a [31m  b"
    assert report.host == " h"


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None


def test_entries_are_applied_where_the_file_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    # In the way of the file that is written beside.
    (log / f"{FILE_NAME}.new").mkdir(parents=True)
    table = Table("item", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))
    engine = create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}")
    table.create(engine)
    with caplog.at_level(logging.WARNING, "walsync.checkpoint"):
        with walsync.attach(sessionmaker(engine), log) as journal:
            for number in range(10):
                with journal.engine.begin() as connection:
                    connection.execute(insert(table), {"id": number})
            journal.wait_applied(timeout=20)
    with engine.connect() as connection:
        assert len(connection.execute(select(table)).all()) == 10
    engine.dispose()
    assert caplog.text.count("cannot be written") == 1
    assert read_report(log) is None

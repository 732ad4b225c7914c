"""`walsync apply`: what it applies, what it says, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import walsync
from tests.support.processes import start_python
from tests.support.waiting import wait_until
from tests.unit.cli.logs import commit, invoke, make_log, sessions
from walsync.cli.output import (
    EXIT_DAMAGED,
    EXIT_HELD,
    EXIT_KEPT,
    EXIT_LOCKED,
    EXIT_OK,
    EXIT_TARGET,
    EXIT_USAGE,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "target.sqlite"


def numbers(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM notes ORDER BY number")]


def execute(database: Path, sql: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(sql)


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_once_applies_what_waits_and_ends(log: Path, sqlite_url: str, database: Path) -> None:
    make_log(log, sqlite_url, applied=2, waiting=50)
    result = invoke("apply", log, "--target", sqlite_url, "--once")
    assert result.exit_code == EXIT_OK, result.output
    assert numbers(database) == list(range(1, 53))
    assert "entries to 52 of 52 are applied" in result.stdout
    assert invoke("apply", log, "--target", sqlite_url, "--drain").exit_code == EXIT_OK


def test_json_lines_are_for_machines(log: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, waiting=5)
    result = invoke("apply", log, "--target", sqlite_url, "--once", "--json")
    documents = lines(result.stdout)
    assert [documents[0]["event"], documents[-1]["event"]] == ["state", "ended"]
    assert documents[-1]["exit_code"] == EXIT_OK
    assert documents[-1]["applied_id"] == documents[-1]["durable_id"] == 5
    assert documents[-1]["backlog_entries"] == 0
    assert f"({os.getpid()} on" in documents[0]["applier"]


def test_the_target_may_come_from_the_environment(log: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_log(log, sqlite_url, waiting=1)
    monkeypatch.setenv("WALSYNC_TARGET", sqlite_url)
    assert invoke("apply", log, "--once").exit_code == EXIT_OK


def test_a_refused_transaction_ends_it(log: Path, sqlite_url: str, database: Path) -> None:
    make_log(log, sqlite_url, waiting=3)
    execute(database, "INSERT INTO notes VALUES (2, 'taken')")
    for once in (["--once"], []):
        result = invoke("apply", log, "--target", sqlite_url, *once)
        assert result.exit_code == EXIT_HELD, result.output
        assert "entry 2" in result.stderr
    assert numbers(database) == [1, 2]
    execute(database, "DELETE FROM notes WHERE number = 2")
    assert invoke("apply", log, "--target", sqlite_url, "--once").exit_code == EXIT_OK
    assert numbers(database) == [1, 2, 3]


def test_a_refused_transaction_is_put_aside_where_that_is_wanted(log: Path, sqlite_url: str, database: Path) -> None:
    make_log(log, sqlite_url, waiting=3)
    execute(database, "INSERT INTO notes VALUES (2, 'taken')")
    result = invoke("apply", log, "--target", sqlite_url, "--once", "--on-reject", "quarantine")
    assert result.exit_code == EXIT_KEPT, result.output
    assert numbers(database) == [1, 2, 3]


def test_a_missing_table_ends_it_with_once(log: Path, sqlite_url: str, database: Path) -> None:
    make_log(log, sqlite_url, waiting=1)
    execute(database, "DROP TABLE notes")
    result = invoke("apply", log, "--target", sqlite_url, "--once")
    assert result.exit_code == EXIT_HELD
    assert "no such table" in result.stderr


def test_a_target_of_another_log_ends_it(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, applied=3, waiting=1)
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    sessions(other).kw["bind"].dispose()
    result = invoke("apply", log, "--target", other)
    assert result.exit_code == EXIT_DAMAGED
    assert "no watermark" in result.stderr


def test_a_target_that_is_away_ends_it_with_once_after_its_time(log: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, waiting=1)
    arguments = ["--target", "postgresql+psycopg://nobody@127.0.0.1:1/none", "--once", "--timeout", "0.3"]
    result = invoke("apply", log, *arguments)
    assert result.exit_code == EXIT_TARGET
    assert "--timeout" in result.stderr


def test_a_directory_without_a_log_is_an_error_and_stays_as_it_is(tmp_path: Path, sqlite_url: str) -> None:
    sessions(sqlite_url).kw["bind"].dispose()
    empty = tmp_path / "empty"
    empty.mkdir()
    for directory in (empty, tmp_path / "missing"):
        assert invoke("apply", directory, "--target", sqlite_url).exit_code == EXIT_USAGE
    assert list(empty.iterdir()) == []
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "arguments", [["--batch-changes", "0"], ["--on-reject", "sometimes"], ["--target", "not a url"], ["--timeout", "x"]]
)
def test_arguments_that_make_no_sense_are_refused(log: Path, sqlite_url: str, arguments: list[str]) -> None:
    make_log(log, sqlite_url)
    assert invoke("apply", log, "--target", sqlite_url, *arguments).exit_code == EXIT_USAGE


# ------------------------------------------------------------------------------------- processes of its own


def start(log: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
    return start_python("-m", "walsync.cli", "apply", str(log), "--target", url, "--json", *arguments)


def read_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended: {process.communicate()}"
    document: dict[str, Any] = json.loads(line)
    return document


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(log: Path, sqlite_url: str, database: Path, number: signal.Signals) -> None:
    make_log(log, sqlite_url, waiting=20)
    with start(log, sqlite_url) as process:
        assert read_event(process)["state"] == "running"
        wait_until(lambda: len(numbers(database)) == 20)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (EXIT_OK, "")
    assert lines(output)[-1]["event"] == "ended"
    # It has given everything back.
    with walsync.WriteAheadLog.recover(log) as opened:
        assert opened.checkpointed_id == 20


@pytest.mark.slow
def test_a_signal_before_all_is_done_is_no_success_of_once(log: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, waiting=1)
    with start(log, "postgresql+psycopg://nobody@127.0.0.1:1/none", "--once") as process:
        while read_event(process)["state"] != "retrying":
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_it_waits_for_a_log_that_is_not_there_yet(log: Path, sqlite_url: str, database: Path) -> None:
    sessions(sqlite_url).kw["bind"].dispose()
    with start(log, sqlite_url, "--wait", "--once") as process:
        wait_until(lambda: catches(process.pid, signal.SIGTERM))
        assert process.poll() is None
        make_log(log, sqlite_url, waiting=3)
        process.communicate(timeout=60)
    assert process.returncode == EXIT_OK


def test_a_signal_while_waiting_for_a_log_ends_it(log: Path, sqlite_url: str) -> None:
    sessions(sqlite_url).kw["bind"].dispose()
    with start(log, sqlite_url, "--wait") as process:
        wait_until(lambda: catches(process.pid, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == EXIT_OK
    assert not log.exists()


def catches(process_id: int, number: int) -> bool:
    """Whether the process has a handler for this signal by now."""
    status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) & (1 << (number - 1)))


def test_a_log_that_is_not_shared_is_left_alone(log: Path, sqlite_url: str) -> None:
    factory = sessions(sqlite_url)
    with walsync.attach(factory, log, log=walsync.LogConfig(shared=False)):
        commit(factory, range(1, 2))
        assert invoke("apply", log, "--target", sqlite_url, "--once").exit_code == EXIT_LOCKED
    factory.kw["bind"].dispose()

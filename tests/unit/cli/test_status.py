"""`walsync status`: backlog, ids, health, the holder of the log, and what the target says."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import walsync
from tests.support.processes import start_python
from tests.support.waiting import wait_until
from tests.unit.cli.logs import commit, invoke, invoke_json, make_log, segment_files, sessions
from walsync.cli.examine import holders_of
from walsync.cli.output import EXIT_DAMAGED, EXIT_OK, EXIT_TARGET, EXIT_USAGE


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_log_whose_entries_are_all_applied_has_no_backlog(log: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, applied=3)
    result = invoke("status", log)
    assert result.exit_code == EXIT_OK
    assert re.search(r"backlog +none\n", result.output)
    assert re.search(r"open in +no process\n", result.output)
    assert re.search(r"health +healthy\n", result.output)


def test_entries_that_wait_are_counted_with_bytes_and_age(log: Path, sqlite_url: str) -> None:
    began = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    make_log(log, sqlite_url, applied=3, waiting=4)
    document = invoke_json("status", log)
    assert document["healthy"] is True
    assert document["backlog_entries"] == 4
    assert document["backlog_bytes"] > 0
    assert document["backlog_is_exact"] is False
    assert began <= datetime.fromisoformat(document["oldest_commit"]) <= datetime.now(timezone.utc)
    assert re.search(
        r"backlog +at most 4 entries, [\d,]+ bytes, the oldest committed \d+ seconds ago", invoke("status", log).output
    )


def test_the_target_says_exactly_what_is_applied(log: Path, sqlite_url: str) -> None:
    factory = sessions(sqlite_url)
    with walsync.attach(factory, log) as journal:
        commit(factory, range(1, 6))
        journal.wait_applied(timeout=20)
        # On the disk the log has not released them yet: it writes that down when a segment is recycled, or at the end.
        assert invoke_json("status", log)["backlog_entries"] == 5
        exact = invoke_json("status", log, "--target", sqlite_url)
        assert exact["backlog_entries"] == 0
        assert exact["backlog_is_exact"] is True
        assert exact["target"] == {"applied_id": 5, "error": None, "gap": False}

        journal.pause()
        commit(factory, range(6, 8))
        assert invoke_json("status", log, "--target", sqlite_url)["backlog_entries"] == 2
        assert "2 entries" in invoke("status", log, "--target", sqlite_url).output
        journal.resume()
    factory.kw["bind"].dispose()


def test_a_target_that_never_saw_the_log_has_everything_to_come(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, waiting=3)
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    sessions(other).kw["bind"].dispose()
    assert invoke_json("status", log, "--target", other)["backlog_entries"] == 3


def test_a_target_that_does_not_fit_the_log_is_an_error(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, applied=3)
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    sessions(other).kw["bind"].dispose()
    document = invoke_json("status", log, "--target", other, expect=EXIT_DAMAGED)
    assert document["target"]["gap"] is True
    assert "no watermark" in document["target"]["error"]
    result = invoke("status", log, "--target", other)
    assert result.exit_code == EXIT_DAMAGED
    assert "no watermark" in result.stderr


@pytest.mark.parametrize(
    "url, code, message",
    [
        ("postgresql+psycopg://127.0.0.1:1/nobody", EXIT_TARGET, "does not answer"),
        ("sqlite:///nowhere/to/be/found.sqlite", EXIT_TARGET, "no SQLite database"),
        ("not a url", EXIT_USAGE, "is not a database URL"),
        ("nosuchdatabase://host/x", EXIT_USAGE, "does not know"),
    ],
)
def test_a_target_that_cannot_be_asked_has_an_exit_code_of_its_own(
    log: Path, sqlite_url: str, url: str, code: int, message: str
) -> None:
    make_log(log, sqlite_url, waiting=1)
    result = invoke("status", log, "--target", url)
    assert result.exit_code == code
    assert message in result.stderr
    assert not Path("nowhere").exists()


def test_a_password_is_not_shown(log: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, waiting=1)
    result = invoke("status", log, "--target", "postgresql+psycopg://user:sesame@127.0.0.1:1/nobody")
    assert "sesame" not in result.output


def test_a_locked_target_is_waited_for_within_a_bound(
    log: Path, tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(log, sqlite_url, waiting=1)
    monkeypatch.setattr("walsync.cli.target.CONNECT_TIMEOUT_S", 0.05)
    with closing(sqlite3.connect(tmp_path / "target.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        result = invoke("status", log, "--target", sqlite_url)
    assert result.exit_code == EXIT_TARGET
    assert "locked" in result.stderr


def test_a_damaged_log_says_so_and_still_shows_what_it_can(log: Path, sqlite_url: str) -> None:
    make_log(log, sqlite_url, waiting=3)
    (path,) = [file for file in segment_files(log) if b"note 2" in file.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(b"note 2")] ^= 0x01
    path.write_bytes(data)
    result = invoke("status", log)
    assert result.exit_code == EXIT_DAMAGED
    assert "DAMAGED" in result.output
    assert str(path) in result.output
    assert invoke_json("status", log, expect=EXIT_DAMAGED)["backlog_entries"] == 1


def test_an_entry_of_another_program_is_counted_and_has_no_age(log: Path) -> None:
    with walsync.WriteAheadLog.recover(log) as opened:
        opened.append(b"not a change set")
    document = invoke_json("status", log)
    assert document["backlog_entries"] == 1
    assert document["oldest_commit"] is None
    assert "ago" not in invoke("status", log).output


def test_the_process_that_has_the_log_open_is_named(log: Path) -> None:
    assert holders_of(log) == []
    with walsync.WriteAheadLog.recover(log):
        assert holders_of(log) == [os.getpid()]
        assert invoke_json("status", log)["open_in_process"] == os.getpid()
    assert holders_of(log) == []


def test_another_process_is_seen_and_its_death_too(log: Path) -> None:
    program = (
        "import sys, walsync\n"
        "with walsync.WriteAheadLog.recover(sys.argv[1]):\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with start_python("-c", program, str(log)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert invoke_json("status", log)["open_in_process"] == process.pid
        process.kill()
        wait_until(lambda: holders_of(log) == [])


def test_an_application_opens_the_log_whatever_looks_at_it(log: Path) -> None:
    """`lock_timeout_s` is 0: an application that met a lock of ours, however short, would not start."""
    walsync.WriteAheadLog.recover(log).close()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            holders_of(log)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(20):
            walsync.WriteAheadLog.recover(log).close()
    finally:
        stop.set()
        watcher.join()


@pytest.mark.parametrize("command", ["status", "verify"])
def test_looking_changes_no_file(log: Path, sqlite_url: str, command: str) -> None:
    make_log(log, sqlite_url, applied=2, waiting=2)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in log.iterdir()}
    assert invoke(command, log).exit_code == EXIT_OK
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in log.iterdir()} == before

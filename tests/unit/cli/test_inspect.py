"""`walsync inspect`: entries and changes, filtered, for people and as JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import walsync
from tests.support.processes import run_python
from tests.unit.cli.logs import invoke, make_log, segment_files
from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName, encode_change_set
from walsync.changes.codec import CHUNK_ROWS
from walsync.cli.output import EXIT_DAMAGED, EXIT_OK, EXIT_USAGE

NOTES = TableName(None, "notes")
NUMBER, TEXT = ("integer",), ("string",)


def inserts(*numbers: int, text: str = "note %d") -> RowChanges:
    rows: list[list[Any]] = [[number, text % number if "%" in text else text] for number in numbers]
    return RowChanges("insert", NOTES, ("number", "text"), (NUMBER, TEXT), (), (), rows)


def change_set(*changes: Any, **metadata: Any) -> list[bytes]:
    return encode_change_set(ChangeSet(1_700_000_000_123_456_789, "here/1", metadata, list(changes)))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Entries 1 to 3 inserts; 4 an update, 5 a delete, 6 a statement, 7 many rows, 8 raw."""
    with walsync.WriteAheadLog.recover(tmp_path / "log") as opened:
        for number in (1, 2, 3):
            opened.append(*change_set(inserts(number)))
        row = ["changed\n\x1b[31m", 1]
        update = RowChanges("update", NOTES, ("text",), (TEXT,), ("number",), (NUMBER,), [row])
        opened.append(*change_set(update, user="Ann"))
        opened.append(*change_set(RowChanges("delete", NOTES, (), (), ("number",), (NUMBER,), [[2]])))
        sql = "UPDATE notes SET text=%(text)s"
        opened.append(*change_set(StatementChange(sql, {"text": "!"}, {"text": TEXT}, [NOTES], [], "sqlite")))
        opened.append(*change_set(inserts(*range(100, 130))))
        opened.append(b"not a", b"change set")
    return tmp_path / "log"


def lines(*arguments: str | Path, expect: int = EXIT_OK) -> list[dict[str, Any]]:
    result = invoke("inspect", *arguments, "--json")
    assert result.exit_code == expect, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def ids(*arguments: str | Path) -> list[int]:
    return [line["entry_id"] for line in lines(*arguments)]


def test_every_entry_is_a_line(log: Path) -> None:
    found = lines(log)
    assert [line["entry_id"] for line in found] == list(range(1, 9))
    assert [line["kind"] for line in found] == ["change_set"] * 7 + ["raw"]
    assert [line["changes"][0]["kind"] for line in found[:-1]] == [
        "insert", "insert", "insert", "update", "delete", "statement", "insert",
    ]  # fmt: skip
    assert found[0]["changes"][0]["rows"] == [{"values": {"number": 1, "text": "note 1"}, "keys": {}}]
    assert found[3]["metadata"] == {"user": "Ann"}
    assert found[4]["changes"][0]["rows"] == [{"values": {}, "keys": {"number": 2}}]
    assert len(found[6]["changes"][0]["rows"]) == 30
    assert found[7]["chunk_lengths"] == [5, 10]
    assert all(line["segment"].startswith("segment-") for line in found)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--entry", "4"], [4]),
        (["--after", "6"], [7, 8]),
        (["--through", "2"], [1, 2]),
        (["--after", "2", "--through", "5"], [3, 4, 5]),
        (["--limit", "3"], [1, 2, 3]),
        (["--after", "3", "--limit", "1"], [4]),
        (["--kind", "delete"], [5]),
        (["--kind", "insert", "--limit", "2", "--after", "2"], [3, 7]),
        (["--table", "notes"], [1, 2, 3, 4, 5, 6, 7]),
        (["--table", "others"], []),
        (["--table", "notes", "--kind", "statement"], [6]),
    ],
)
def test_filters(log: Path, arguments: list[str], expected: list[int]) -> None:
    assert ids(log, *arguments) == expected


def test_only_the_changes_that_are_asked_for_are_shown(tmp_path: Path) -> None:
    with walsync.WriteAheadLog.recover(tmp_path / "log") as log:
        other = inserts(2)
        other.table = TableName("main", "others")
        log.append(*change_set(inserts(1), other))
    for name in ("others", "main.others"):
        [line] = lines(tmp_path / "log", "--table", name)
        assert [(change["schema"], change["table"]) for change in line["changes"]] == [("main", "others")]


def test_what_a_session_commits_can_be_looked_at(tmp_path: Path, sqlite_url: str) -> None:
    make_log(tmp_path / "log", sqlite_url, applied=1, waiting=2)
    assert [line["changes"][0]["rows"] for line in lines(tmp_path / "log", "--table", "notes")] == [
        [{"values": {"number": number, "text": f"note {number}"}, "keys": {}}] for number in (1, 2, 3)
    ]


def test_a_later_chunk_that_is_no_change_set_ends_the_line_with_an_error(tmp_path: Path) -> None:
    with walsync.WriteAheadLog.recover(tmp_path / "log") as log:
        log.append(*change_set(inserts(1)), b"not a change set")
        log.append(*change_set(inserts(2)))
    first, second = lines(tmp_path / "log")
    assert "entry 1" in first["error"]
    assert "error" not in second
    assert "entry 1" in invoke("inspect", tmp_path / "log").stderr


def test_for_people(log: Path) -> None:
    result = invoke("inspect", log)
    assert result.exit_code == EXIT_OK
    for words in [
        "Entry 1, ", "insert notes, 1 row", "number=1, text='note 1'", "text='changed\\n\\x1b[31m' where number=1",
        "delete notes", "where number=2", "UPDATE notes SET", "and 10 more rows", "user", "Ann",
        "Entry 8, no change set, 2 chunks, 15 bytes", "chunk 2: 10 bytes",
    ]:  # fmt: skip
        assert words in result.output
    assert "\x1b" not in result.output, "a value must not reach the terminal as a command"


def test_an_entry_that_is_not_there_is_an_error(log: Path) -> None:
    result = invoke("inspect", log, "--entry", "99")
    assert result.exit_code == EXIT_USAGE
    assert "entry 99" in result.stderr
    assert invoke("inspect", log, "--entry", "8", "--kind", "insert").exit_code == EXIT_USAGE


@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
def test_what_is_no_log_is_named_and_left_alone(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("Dear reader,")
    elif kind == "empty":
        place.mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = invoke("inspect", place)
    assert result.exit_code == EXIT_USAGE
    assert result.stdout == ""
    assert str(place) in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_looking_changes_no_file(log: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in log.iterdir()}
    invoke("inspect", log)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in log.iterdir()} == before


def test_entries_before_damage_are_shown_and_the_exit_code_says_that_there_is_more(log: Path) -> None:
    (path,) = [file for file in segment_files(log) if b"note 3" in file.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(b"note 3")] ^= 1
    path.write_bytes(data)
    result = invoke("inspect", log, "--json")
    assert result.exit_code == EXIT_DAMAGED
    assert [json.loads(line)["entry_id"] for line in result.stdout.splitlines()] == [1, 2]
    assert str(path) in result.stderr


def test_a_log_in_use_is_shown_and_goes_on(tmp_path: Path) -> None:
    with walsync.WriteAheadLog.recover(tmp_path / "log") as log:
        for number in range(1, 41):
            log.append(b"entry %d" % number)
            if number % 10 == 0:
                assert ids(tmp_path / "log") == list(range(1, number + 1))


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    with walsync.WriteAheadLog.recover(tmp_path / "log") as log, log.begin_entry() as entry:
        for _ in range(30_000):
            entry.write_chunk(b"")
    program = [sys.executable, "-m", "walsync.cli", "inspect", str(tmp_path / "log")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (0, 1)


@pytest.mark.slow
def test_a_large_transaction_is_shown_in_bounded_memory(tmp_path: Path) -> None:
    program = (
        "import os, sys, tracemalloc\n"
        "from walsync.cli.app import app\n"
        "sys.stdout = open(os.devnull, 'w')\n"
        "tracemalloc.start()\n"
        "app(['inspect', sys.argv[1], '--json'], standalone_mode=False)\n"
        "sys.stderr.write(str(tracemalloc.get_traced_memory()[1]))\n"
    )
    peaks = []
    for rows in (2 * CHUNK_ROWS, 6 * CHUNK_ROWS):
        directory = tmp_path / str(rows)
        with walsync.WriteAheadLog.recover(directory) as log:
            log.append(*change_set(inserts(*range(rows), text="x" * 100)))
        peaks.append(int(run_python("-c", program, directory).stderr))
    assert peaks[1] < 1.5 * peaks[0], "memory grew with the transaction"

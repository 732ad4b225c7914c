"""The example `examples/flights.py`: killed in the middle, it recovers, and ends with source and database equal.

Small runs on every database belong to the default suite; the whole data set, on the three of them, is slow.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, text

from tests.support.examples import EXAMPLES, example_modules
from tests.support.processes import run_python

FLIGHTS = EXAMPLES / "flights.py"
SQLITE_DEFAULT = "flights-data/flights.db"
ROWS = {"airlines": 16, "airports": 1_458, "planes": 3_322, "weather": 26_115, "flights": 336_776}
COMMITS_BEFORE_WEATHER = 1 + 15 + 34


def flights(cwd: Path, *arguments: str, expect: int = 0, timeout_s: float = 100.0) -> str:
    return run_python(FLIGHTS, *arguments, cwd=cwd, expect=expect, timeout_s=timeout_s).stdout


def compared_rows(output: str) -> dict[str, tuple[int, int]]:
    """Table name to rows compared and differences, from the table that the example prints."""
    rows = re.findall(r"(\w+)\W+([\d,]+)\W+([\d,]+)\W+(?:equal|DIFFERENT)", output)
    return {name: (int(rows.replace(",", "")), int(different.replace(",", ""))) for name, rows, different in rows}


def entries_waiting(output: str) -> int:
    """How many entries had not reached the target when the process killed itself."""
    found = re.search(r"of which about (\d+) have not", output)
    assert found, output
    return int(found[1])


def assert_all_equal(output: str, limit: int | None = None) -> None:
    expected = {name: (rows, 0) for name, rows in ROWS.items()}
    if limit is not None:
        expected["weather"] = expected["flights"] = (limit, 0)
    assert compared_rows(output) == expected
    assert "Source and database are equal." in output


@pytest.mark.crash
def test_a_killed_import_recovers_and_ends_equal(tmp_path: Path, target_url: str) -> None:
    arguments = ("--target", target_url, "--log", "log", "--limit", "500")
    crash_after = COMMITS_BEFORE_WEATHER + 5 + 2
    killed = flights(tmp_path, *arguments, "--crash-after", str(crash_after), expect=-signal.SIGKILL)
    assert f"Killing this process (SIGKILL) after {crash_after} commits" in killed

    waiting = entries_waiting(killed)
    output = flights(tmp_path, *arguments)
    assert_all_equal(output, 500)
    replayed = re.search(r"Recovered the log: (\d+) entries", output)
    assert (int(replayed[1]) if replayed else 0) <= waiting, "what the target has is not replayed"
    assert "3 commits of up to 100 rows" in output, "no row twice, none left out"


@pytest.mark.slow
@pytest.mark.crash
def test_an_import_killed_again_and_again_ends_equal(tmp_path: Path) -> None:
    arguments = ("--limit", "500")
    for _ in range(5):
        flights(tmp_path, *arguments, "--crash-after", "11", expect=-signal.SIGKILL)
    output = flights(tmp_path, *arguments)
    assert_all_equal(output, 500)
    assert "5 commits of up to 100 rows" in output


def test_a_finished_import_imports_nothing_again(tmp_path: Path) -> None:
    assert_all_equal(flights(tmp_path, "--limit", "50"), 50)
    again = flights(tmp_path, "--limit", "50")
    assert_all_equal(again, 50)
    assert "4,896 of 4,896 rows are in the target" in again
    assert "commits of up to" not in again


@pytest.mark.parametrize(
    "change, rows, differences, message",
    [
        ("UPDATE flights SET dep_delay = 3 WHERE number = 7", 20, 1, "flights: (7,): dep_delay is 3, not -5"),
        ("DELETE FROM flights WHERE number = 7", 19, 1, "flights: (7,) is missing in the target"),
        (
            "UPDATE flights SET number = 70 WHERE number = 7",
            19,
            2,
            "flights: (70,) is in the target and not in the source",
        ),
        ("UPDATE flights SET tailnum = NULL WHERE number = 7", 20, 1, "tailnum is None, not 'N516JB'"),
        ("UPDATE flights SET distance = 1065.5 WHERE number = 7", 20, 1, "distance is 1065.5, not 1065"),
    ],
)
def test_the_comparison_finds_every_difference(
    tmp_path: Path, change: str, rows: int, differences: int, message: str
) -> None:
    schema, compare = example_modules("flights_schema", "flights_compare")
    engine = create_engine(f"sqlite:///{tmp_path / 'flights.sqlite'}")
    schema.Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(schema.Flight), list(schema.source_rows(schema.Flight, 20)))
    assert compare.compare_table(engine, schema.Flight, 20).differences == 0
    with engine.begin() as connection:
        connection.execute(text(change))
    found = compare.compare_table(engine, schema.Flight, 20)
    engine.dispose()
    assert (found.rows_compared, found.differences) == (rows, differences)
    assert message in "\n".join(found.examples)


@pytest.mark.slow
def test_a_difference_fails_the_run(tmp_path: Path) -> None:
    flights(tmp_path, "--limit", "50")
    engine = create_engine(f"sqlite:///{tmp_path / SQLITE_DEFAULT}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE planes SET seats = 1 WHERE tailnum = 'N10156'"))
    engine.dispose()
    output = flights(tmp_path, "--limit", "50", expect=1)
    assert "planes: ('N10156',): seats is 1, not 55" in output
    assert "Source and database are DIFFERENT." in output


@pytest.mark.slow
def test_a_target_replaced_behind_the_log_is_refused_and_reset_starts_over(tmp_path: Path) -> None:
    flights(tmp_path, "--limit", "50")
    (tmp_path / SQLITE_DEFAULT).unlink()
    assert "--reset" in flights(tmp_path, "--limit", "50", expect=2)
    assert_all_equal(flights(tmp_path, "--limit", "50", "--reset"), 50)


def test_reset_deletes_nothing_but_a_log(tmp_path: Path) -> None:
    precious = tmp_path / "documents" / "letter.txt"
    precious.parent.mkdir()
    precious.write_text("Dear reader,")
    flights(tmp_path, "--log", "documents", "--limit", "50", "--reset", expect=2)
    assert precious.read_text() == "Dear reader,"


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(1200)
def test_the_whole_data_set_killed_in_the_middle_ends_equal(tmp_path: Path, target_url: str) -> None:
    arguments = ("--target", target_url, "--log", "log")
    flights(tmp_path, *arguments, "--crash-after", "1500", expect=-signal.SIGKILL, timeout_s=500)
    assert_all_equal(flights(tmp_path, *arguments, timeout_s=600))

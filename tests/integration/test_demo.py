"""`walsync demo`: the whole story in a process of its own, with the data and the kill that it speaks of."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select

from tests.support.processes import run_python
from walsync.cli.demo import TRANSACTIONS
from walsync.cli.demo_airport import FLIGHTS_PER_TRANSACTION, Flight

pytestmark = pytest.mark.crash

# What the demonstration promises its reader. A loaded machine may take longer; this only catches one that hangs.
DEADLINE_S = 60.0


def demo(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "walsync.cli", "demo", *arguments, timeout_s=DEADLINE_S, expect=expect)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a demonstration that was told to keep it, and what it printed."""
    directory = tmp_path_factory.mktemp("demo") / "kept"
    return directory, demo("--directory", str(directory)).stdout


def number_in(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in:\n{text}"
    return int(found[1])


def test_the_story_ends_equal_and_its_numbers_fit_together(kept: tuple[Path, str]) -> None:
    text = kept[1]
    assert "Equal." in text
    assert "DIFFERENT" not in text

    acknowledged = number_in(r"The last transaction whose commit returned: (\d+)", text)
    before, after = map(int, re.findall(r"In the database: transactions 1 to (\d+)", text))
    assert number_in(r"The other (\d+) are in the log only", text) == acknowledged - before > 0
    assert after in (acknowledged, acknowledged + 1)
    assert number_in(r"(\d+) transactions are replayed", text) == after - before


def test_the_steps_come_in_order(kept: tuple[Path, str]) -> None:
    assert re.findall(r"^(\d)\. .+$", kept[1], re.MULTILINE) == ["1", "2", "3", "4", "5", "6"]


def test_a_directory_is_kept_and_can_be_looked_at(kept: tuple[Path, str]) -> None:
    directory, output = kept
    assert f"walsync status {directory / 'log'}" in output
    engine = create_engine(f"sqlite:///{directory / 'airport.db'}")
    with engine.connect() as connection:
        count = connection.scalar(select(func.count()).select_from(Flight))
    engine.dispose()
    assert count is not None
    assert count >= TRANSACTIONS * FLIGHTS_PER_TRANSACTION

    run_python("-m", "walsync.cli", "verify", directory / "log")
    status = run_python("-m", "walsync.cli", "status", directory / "log", "--target", str(engine.url)).stdout
    assert re.search(r"backlog\s+none", status)


def test_a_directory_in_use_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader,")
    done = demo("--directory", str(tmp_path), expect=2)
    assert "is not empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_the_temporary_directory_is_removed(tmp_path: Path) -> None:
    run_python("-m", "walsync.cli", "demo", timeout_s=DEADLINE_S, env={"TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []

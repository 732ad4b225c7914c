"""The test suite of examples/library passes on attached sessions as it does without walsync, unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import REPOSITORY

LIBRARY = REPOSITORY / "examples" / "library"
PLUGIN = "tests.integration.applications.attached_library"
ALL_PASSED = re.compile(r"^(\d+) passed in", re.MULTILINE)
TIMEOUT_S = 110
TESTS_MIN = 50


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(REPOSITORY / "examples"), str(REPOSITORY)])
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", LIBRARY / "pytest.ini", *options, LIBRARY],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=LIBRARY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return output


def start_attached(directory: Path, **environment: str) -> subprocess.Popen[str]:
    files = {"LIBRARY_LOG": str(directory / "log"), "LIBRARY_STATS": str(directory / "stats.json")}
    return start("-p", PLUGIN, **files, **environment)


def passed(output: str) -> int:
    """How many tests passed, if all did."""
    match = ALL_PASSED.search(output)
    assert match, output
    return int(match[1])


def figures(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "stats.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_the_suite_passes_unchanged_on_attached_sessions(tmp_path: Path) -> None:
    assert passed(ended(start_attached(tmp_path))) >= TESTS_MIN
    stats = figures(tmp_path)["stats"]
    assert stats["buffered_transactions"] >= 45
    assert stats["rejected_entry_id"] is None
    assert stats["applied_entry_id"] == stats["durable_entry_id"]


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_as_many_pass_without_the_log(tmp_path: Path) -> None:
    plain, attached = start(), start_attached(tmp_path)
    assert passed(ended(plain)) == passed(ended(attached)) >= TESTS_MIN


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_with_everything_buffered_only_what_asserts_on_refusals_fails(tmp_path: Path) -> None:
    """And nearly every transaction is buffered: those are direct that read what they wrote, and SQL as text."""
    ended(start_attached(tmp_path, LIBRARY_BUFFER_ALL="yes"))
    marked = {
        name
        for file in sorted(LIBRARY.glob("tests/test_*.py"))
        for name in re.findall(r"@pytest\.mark\.refused_by_the_database\ndef (\w+)", file.read_text(encoding="utf-8"))
    }
    assert len(marked) == 5
    assert set(figures(tmp_path)["failed"]) == marked
    stats = figures(tmp_path)["stats"]
    assert stats["buffered_transactions"] > 10 * stats["direct_transactions"]

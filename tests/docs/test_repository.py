"""The files around the package: the commands of the README, the changelog, the examples, the check script."""

from __future__ import annotations

import py_compile
import re
import subprocess
from pathlib import Path

import pytest

import walsync
from tests.docs.pages import blocks
from tests.support.processes import REPOSITORY, run_python

README = REPOSITORY / "README.md"
CHANGELOG = REPOSITORY / "CHANGELOG.md"
EXAMPLES = sorted(REPOSITORY.glob("examples/*.py"))

MAIN_JOB = (
    "python3 -m venv .venv && .venv/bin/pip install -q '.[examples]' && "
    ".venv/bin/python examples/flights.py --crash-after 1500; .venv/bin/python examples/flights.py"
)
TEST_RUN = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python -m pytest -q"


def test_readme_has_the_two_commands_each_on_a_line_of_its_own() -> None:
    lines = [line for block in blocks(README, "sh") for line in block.lines]
    assert lines.count(MAIN_JOB) == 1
    assert lines.count(TEST_RUN) == 1
    assert lines.index(MAIN_JOB) < lines.index(TEST_RUN)


def test_the_check_script_takes_the_commands_from_the_readme() -> None:
    script = REPOSITORY / ".ci" / "run"
    for option, command in [("--print-main-job", MAIN_JOB), ("--print-test-run", TEST_RUN)]:
        done = subprocess.run(["bash", script, option], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == command


def test_changelog_has_a_section_for_what_is_not_released() -> None:
    text = CHANGELOG.read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_there_are_examples() -> None:
    assert "flights.py" in {example.name for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_compiles(example: Path, tmp_path: Path) -> None:
    py_compile.compile(str(example), cfile=str(tmp_path / "compiled"), doraise=True)


def test_flights_example_explains_itself() -> None:
    done = run_python(REPOSITORY / "examples" / "flights.py", "--help", env={"COLUMNS": "120", "NO_COLOR": "1"})
    for option in ("--target", "--log", "--crash-after"):
        assert option in done.stdout


def test_package_is_marked_as_typed() -> None:
    assert walsync.__file__ is not None
    assert (Path(walsync.__file__).parent / "py.typed").is_file()


def test_the_lowest_versions_checked_are_those_that_the_project_allows() -> None:
    """Of what users install; the tools of `dev` and the data of the examples may be as new as they like."""
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    named = r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)[^"]*"'
    allowed: set[tuple[str, str]] = set()
    for name in ("dependencies", "postgresql", "asyncpg", "asyncmy", "aiosqlite", "mysql", "mariadb", "cli"):
        (listed,) = re.findall(rf"^{name} = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
        assert listed
        allowed |= set(re.findall(named, listed))
    checked = (REPOSITORY / ".ci" / "lowest.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w-]+)==([\d.]+)$", checked, re.MULTILINE))

    def padded(versions: set[tuple[str, str]]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(int(part) for part in (version + ".0.0").split(".")[:3]) for name, version in versions}

    assert padded(pinned) == padded(allowed)

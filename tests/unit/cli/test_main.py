"""The command line as a whole: its commands, its errors, and the extra that it needs."""

from __future__ import annotations

from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from tests.support.processes import REPOSITORY, run_python
from walsync.cli.app import app
from walsync.cli.output import EXIT_DAMAGED, EXIT_TARGET, EXIT_USAGE, reported_errors
from walsync.exceptions import DamagedLogError, LogLockedError, TargetUnavailableError, WatermarkGapError

COMMANDS = ["demo", "status", "verify", "inspect", "salvage"]


def without(package: str) -> str:
    """A program that is the command `walsync` on a machine where `package` is not installed."""
    return f"import sys; sys.modules[{package!r}] = None; from walsync.cli import main; main()"


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(package: str) -> None:
    done = run_python("-c", without(package), expect=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'sqlalchemy-walsync[cli]'" in done.stderr


def test_another_missing_module_is_not_mistaken_for_the_extra() -> None:
    done = run_python("-c", without("walsync.cli.demo"), expect=1)
    assert "Traceback" in done.stderr
    assert "sqlalchemy-walsync[cli]" not in done.stderr


def test_importing_the_package_needs_no_extra() -> None:
    done = run_python("-c", "import sys, walsync.cli; print('typer' in sys.modules, 'rich' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("module", ["walsync", "walsync.cli"])
def test_the_package_is_the_command(module: str) -> None:
    assert "inspect" in run_python("-m", module, "--help").stdout


def test_the_installed_command_is_this_one() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert 'walsync = "walsync.cli:main"' in pyproject
    assert callable(import_module("walsync.cli").main)


def test_help_lists_every_command_with_a_sentence() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_a_page(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    page = (REPOSITORY / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert f"## `walsync {command}" in page


def test_no_command_shows_the_help() -> None:
    assert "Usage" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize(
    "error, code",
    [
        (DamagedLogError("segment 3, offset 8192: bytes changed"), EXIT_DAMAGED),
        (WatermarkGapError("entries 4 to 9 are missing"), EXIT_DAMAGED),
        (TargetUnavailableError("connection refused"), EXIT_TARGET),
        (LogLockedError("process 17 has it"), EXIT_USAGE),
        (PermissionError(13, "Permission denied", "/root/log"), EXIT_USAGE),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as raised, reported_errors():
        raise error
    assert raised.value.exit_code == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"Error: {error} ({type(error).__name__})\n"


def test_brackets_in_an_error_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), reported_errors():
        raise DamagedLogError("/var/[bold]log[/bold]/[/]: damaged")
    assert "/var/[bold]log[/bold]/[/]: damaged" in capsys.readouterr().err


def test_a_fault_of_walsync_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported_errors():
        _ = 1 / 0

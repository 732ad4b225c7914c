"""The story that docs/tutorial/first-steps.md tells happens: a reader types it in, and sees what the page says."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.pages import blocks, saved_files
from tests.support.processes import REPOSITORY, run_python, start_python

PAGE = REPOSITORY / "docs" / "tutorial" / "first-steps.md"
CONFIRMED = re.compile(r"order (\d+) confirmed\n")
STARTED = re.compile(r"process \d+: (\d+) orders so far\n")

# Ctrl-C reaches a program at a terminal; one started by a shell in the background would ignore the signal.
LISTENS_TO_CTRL_C = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_path('orders.py', run_name='__main__')"
)


def commands(page: Path) -> list[str]:
    """What the page tells the reader to type."""
    lines = [line for block in blocks(page, "console") for line in block.lines]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def read_number(process: subprocess.Popen[str], pattern: re.Pattern[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = pattern.fullmatch(line)
    assert match, f"unexpected output: {line!r}"
    return int(match[1])


def read_until(process: subprocess.Popen[str], number: int) -> None:
    while read_number(process, CONFIRMED) < number:
        pass


@pytest.mark.crash
def test_every_confirmed_order_survives_the_lock_and_the_kill(tmp_path: Path) -> None:
    for name, text in saved_files(PAGE).items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def walsync(command: str) -> str:
        assert f"walsync {command}" in commands(PAGE)
        return run_python("-m", "walsync.cli", *command.split(), cwd=tmp_path).stdout

    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = stack.enter_context(start_python(*arguments, cwd=tmp_path))
            stack.callback(process.kill)
            return process

        orders = start("orders.py")
        assert read_number(orders, STARTED) == 0
        read_until(orders, 5)

        lock = start("lock.py")
        assert lock.stdout is not None
        prompt = "The database is locked."
        assert lock.stdout.read(len(prompt)) == prompt
        for _ in range(10):
            read_number(orders, CONFIRMED)
        assert "backlog" in walsync("status orders-log").lower()

        orders.kill()
        assert orders.stdout is not None
        rest = orders.stdout.read()
        last_confirmed = int(CONFIRMED.findall(rest)[-1]) if CONFIRMED.search(rest) else None
        walsync("status orders-log")
        walsync("verify orders-log")

        lock.communicate("\n", timeout=60)
        assert lock.returncode == 0

        orders = start("-c", LISTENS_TO_CTRL_C)
        found = read_number(orders, STARTED)
        if last_confirmed is not None:
            assert found in (last_confirmed, last_confirmed + 1)
        else:
            assert found >= 15
        read_until(orders, found + 3)
        orders.send_signal(signal.SIGINT)
        orders.communicate(timeout=60)

    (question,) = [command for command in commands(PAGE) if command.startswith("python -c ")]
    answer = subprocess.run(
        [sys.executable, *shlex.split(question)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    count, highest = ast.literal_eval(answer.stdout)
    assert count == highest >= found + 3

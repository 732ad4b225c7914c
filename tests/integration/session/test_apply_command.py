"""`walsync apply` beside processes that only write: it applies, stands by, takes over, and stops when it is told."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.integration.session.test_processes import names, report
from tests.support.processes import start_python
from tests.support.waiting import wait_until
from tests.support.worker import Worker

StartApply = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def writer(engine: Engine, target_url: str, tmp_path: Path) -> Iterator[Worker]:
    with Worker(target_url, tmp_path / "log", checkpoint="external") as writer:
        yield writer


@pytest.fixture
def start_apply(target_url: str, tmp_path: Path) -> Iterator[StartApply]:
    """Starts the command and waits until it says in which state it is."""
    with ExitStack() as stack:

        def start_apply(*arguments: str, state: str) -> subprocess.Popen[str]:
            command = ["-m", "walsync.cli", "apply", str(tmp_path / "log"), "--target", target_url, "--json"]
            process = start_python(*command, *arguments)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert read_event(process)["state"] == state
            return process

        yield start_apply


def read_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended: {process.communicate()}"
    event: dict[str, Any] = json.loads(line)
    return event


def test_it_applies_what_others_write_and_another_takes_over(
    writer: Worker, start_apply: StartApply, engine: Engine
) -> None:
    first = start_apply(state="running")
    second = start_apply(state="standby")
    for number in range(20):
        writer.ask("commit", f"a{number}")
        assert writer.ask("has", f"a{number}")
    assert f"process {first.pid}" in writer.ask("stats")["applier"]
    first.kill()
    report("walsync apply was killed; a commit was applied after", writer.ask("commit_and_time", "b"))
    wait_until(lambda: f"process {second.pid}" in writer.ask("stats")["applier"])
    third = start_apply(state="standby")
    second.send_signal(signal.SIGTERM)
    report("walsync apply was stopped; a commit was applied after", writer.ask("commit_and_time", "c"))
    output, errors = second.communicate(timeout=60)
    assert (second.returncode, errors) == (0, "")
    assert json.loads(output.splitlines()[-1])["event"] == "ended"
    assert writer.ask("close") is True
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=60)
    assert third.returncode == 0
    assert names(engine) == [*[f"a{number}" for number in range(20)], "b", "c"]


@pytest.mark.slow
def test_once_beside_an_applier_waits_for_what_that_applies(
    writer: Worker, start_apply: StartApply, engine: Engine
) -> None:
    start_apply("--batch-delay", "0.5", state="running")
    writer.ask("commit", *[f"a{number}" for number in range(50)])
    once = start_apply("--once", state="standby")
    once.communicate(timeout=60)
    assert once.returncode == 0
    assert len(names(engine)) == 50


@pytest.mark.slow
def test_once_empties_the_log_of_writers_that_go_on(writer: Worker, start_apply: StartApply, engine: Engine) -> None:
    writer.ask("load", "a", 2)
    wait_until(lambda: writer.ask("loaded_count") > 20)
    once = start_apply("--once", state="running")
    once.communicate(timeout=60)
    assert once.returncode == 0
    assert len(names(engine)) > 20
    acknowledged = writer.ask("end_load")
    start_apply(state="running")
    writer.ask("wait")
    assert sorted(names(engine)) == sorted(acknowledged)

"""Python processes of their own, which import walsync from this checkout whatever directory they run in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["REPOSITORY", "python_environment", "run_python", "start_python"]

REPOSITORY = Path(__file__).resolve().parents[2]


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process, with the checkout first on PYTHONPATH, and `extra` on top."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


def run_python(
    *arguments: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 90.0,
    expect: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter of this process with `arguments` and return its output.

    `expect` is the exit status that must come out (negative: the signal that ended it), None for any.
    """
    words = [os.fspath(argument) for argument in arguments]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=python_environment(env),
        timeout=timeout_s,
        capture_output=True,
        text=True,
        check=False,
    )
    if expect is not None and done.returncode != expect:
        raise AssertionError(
            f"python {' '.join(words)} ended with {done.returncode}, not {expect}\n"
            f"--- its output:\n{done.stdout}\n--- its errors:\n{done.stderr}"
        )
    return done


def start_python(
    *arguments: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start the interpreter with `arguments` and return it running, its three streams as pipes.

    Use it as a context manager, and end it in the block (`kill()`), for leaving the block waits for its end.
    """
    return subprocess.Popen(
        [sys.executable, *(os.fspath(argument) for argument in arguments)],
        cwd=cwd,
        env=python_environment(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

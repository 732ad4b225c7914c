"""strace: which system calls a process makes on the log's files, and one of them killed or failed.

Owns the command lines. The count of `when=` is by thread; the first thread's calls are counted here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.support.processes import python_environment

__all__ = ["SYSTEM_CALLS", "Ended", "calls_on", "count_calls", "run", "run_command", "why_not"]

SYSTEM_CALLS = ("pwrite64", "fadvise64", "fdatasync", "fsync", "openat", "pread64", "rename", "unlink", "flock")
CHILD = Path(__file__).with_name("child.py")
TIMEOUT_S = 60.0
"""Of one process: it takes a fraction of a second, unless it hangs."""

_LINE = re.compile(r"^(?P<thread>\d+) +(?P<call>\w+)\(")


def why_not() -> str | None:
    """Why strace cannot be used here, or None."""
    if not sys.platform.startswith("linux"):
        return "strace is for Linux"
    path = shutil.which("strace")
    if path is None:
        return "strace is not installed: apt-get install strace"
    done = subprocess.run(
        [path, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=9", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"strace may not trace here (a container without ptrace?): {done.stderr.strip()}"
    return None


class Ended:
    """What a traced process said, and how it ended."""

    def __init__(self, lines: list[str], status: int) -> None:
        self.lines = [line.split() for line in lines]
        self.status = status

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        # strace ends itself with the signal of the process that it has traced.
        return self.status in (-9, 137)

    def ids(self, word: str) -> list[int]:
        """The numbers after this word, in order."""
        return [int(line[-1]) for line in self.lines if line[0] == word]


def _child(directory: Path, appends: int, *, threads: bool) -> list[str]:
    return [sys.executable, str(CHILD), str(directory), str(appends), "threads" if threads else "alone"]


def calls_on(directory: Path, appends: int, output: Path) -> dict[str, list[int]]:
    """The numbers of the calls of each kind that concern files of the log, in a process that makes a new one."""
    return count_calls(directory, _child(directory, appends, threads=False), SYSTEM_CALLS, output)


def count_calls(directory: Path, command: list[str], calls: tuple[str, ...], output: Path) -> dict[str, list[int]]:
    """The numbers of the calls of each of these kinds in which `command` uses files below `directory`."""
    subprocess.run(
        ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(output), "-e", f"trace={','.join(calls)}", *command],
        check=True,
        capture_output=True,
        env=python_environment(),
        timeout=TIMEOUT_S,
    )
    counts: dict[str, int] = defaultdict(int)
    found: dict[str, list[int]] = defaultdict(list)
    for line in output.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        counts[match["call"]] += 1
        if str(directory) in line:
            found[match["call"]].append(counts[match["call"]])
    return dict(found)


def run(directory: Path, appends: int, injection: str, call: str, *, threads: bool = False) -> Ended:
    """Run the child with one injection. `subprocess.TimeoutExpired` if it hangs."""
    return run_command(_child(directory, appends, threads=threads), injection, call)


def run_command(command: list[str], injection: str, call: str) -> Ended:
    """Run a command with one injection. `subprocess.TimeoutExpired` if it hangs."""
    process = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:{injection}"),
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=python_environment(),
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # strace's child too, which a kill of strace alone would let go on.
        os.killpg(process.pid, 9)
        process.communicate()
        raise
    ended = Ended(output.splitlines(), process.returncode)
    if not ended.killed and process.returncode:
        raise AssertionError(f"the process ended with {process.returncode}: {output}\n{errors}")
    return ended

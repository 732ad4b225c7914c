"""kill -9 in a chosen system call of a real process, and chosen system calls that fail; every entry acknowledged is
there after.

`WALSYNC_KILL_POINTS=1000 pytest tests/crash/log` makes as many; `WALSYNC_SEED` repeats the choices. A kill keeps what
is in the system's memory: it says nothing about a power cut, which `tests/simulation` is about.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.log.ledger import Ledger
from tests.crash.log.strace import calls_on, run, why_not

KILL_POINTS = int(os.environ.get("WALSYNC_KILL_POINTS", "10"))
SEED = int(os.environ.get("WALSYNC_SEED", "1"))
APPENDS = 16
LIVES = 8
"""Of one directory, before a new one is taken."""

WEIGHTS = {
    "pwrite64": 8,
    "fadvise64": 2,
    "fdatasync": 8,
    "openat": 3,
    "fsync": 2,
    "unlink": 1,
    "rename": 1,
    "pread64": 1,
    "flock": 1,
}

FAILURES = {
    "fdatasync": ("EIO", "ENOSPC"),
    "fsync": ("EIO",),
    "pwrite64": ("EIO", "ENOSPC"),
    "fadvise64": ("EINVAL", "EIO"),
    "openat": ("EMFILE", "ENOSPC"),
    "pread64": ("EIO",),
    "rename": ("EIO",),
    "unlink": ("EIO",),
    "flock": ("EIO",),
}

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Which calls of each kind touch the log, by their numbers."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("calls")
    found = calls_on(directory / "log", APPENDS, directory / "trace")
    assert {"pwrite64", "fadvise64", "fdatasync", "fsync", "openat"} <= found.keys()
    return found


def choose(source: random.Random, calls: dict[str, list[int]]) -> tuple[str, int]:
    kinds = sorted(calls.keys() & WEIGHTS.keys())
    kind = source.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
    return kind, source.choice(calls[kind])


def test_a_kill_in_any_system_call_loses_nothing_acknowledged(calls: dict[str, list[int]], tmp_path: Path) -> None:
    source = random.Random(SEED)
    killed, lives = 0, 0
    ledger = Ledger(tmp_path / "log-0")
    while killed < KILL_POINTS:
        assert lives < 3 * KILL_POINTS + 20, f"only {killed} of {lives} processes reached their kill"
        if lives % LIVES == 0:
            ledger = Ledger(tmp_path / f"log-{lives}")
        kind, number = choose(source, calls)
        ended = run(ledger.directory, APPENDS, f"signal=SIGKILL:when={number}", kind, threads=source.random() < 0.3)
        lives += 1
        killed += ended.killed
        try:
            ledger.note(ended)
            ledger.look()
        except AssertionError as error:
            raise AssertionError(f"life {lives}, killed in {kind} {number}, seed {SEED}: {error}") from error
    print(f"{killed} kills in {lives} lives, no violation")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_system_call_loses_nothing_acknowledged(
    calls: dict[str, list[int]], kind: str, tmp_path: Path
) -> None:
    source = random.Random(f"{SEED} {kind}")
    places = calls.get(kind, [])
    if not places:
        pytest.skip(f"the log makes no call of {kind} here")
    count = min(len(places), max(2, KILL_POINTS // 20))
    for number in sorted(source.sample(places, count)):
        error = source.choice(FAILURES[kind])
        for_ever = source.choice(("", "+"))
        ledger = Ledger(tmp_path / f"{kind}-{number}")
        ended = run(ledger.directory, APPENDS, f"error={error}:when={number}{for_ever}", kind)
        where = f"{kind} {number}{for_ever} {error}: {ended.lines}"
        assert not ended.killed, where
        # The process got to its end by itself: nothing hung.
        assert ended.lines[-1][0] in ("closed", "not"), where
        ledger.note(ended)
        ledger.note_refusals(ended)
        # The next process, on a disk that is well.
        ended = run(ledger.directory, APPENDS, "error=EIO:when=60000", kind)
        assert ended.lines[-1] == ["closed"], f"{where}; then {ended.lines}"
        ledger.note(ended)
        assert len(ended.ids("acknowledged")) == APPENDS, f"{where}; then {ended.lines}"
        ledger.look()

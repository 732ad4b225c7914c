"""The processes that share a log: started, killed in states that are chosen, and started again, each with its writers.

Each process writes what it has to say, above all what is acknowledged, to the end of a file, one `write` a line: what
it wrote before a kill stays. All that is known of the log from outside is its directory, and who holds locks there.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.crash.acknowledged import Acknowledged, Lines, numbers_of, raise_if_failed, words_of
from tests.crash.ledger import Ledger, audit, engine_of
from tests.support.file_locks import APPEND_LOCK, LEASE_LOCK, SYNC_LOCK, lock_holders
from tests.support.processes import REPOSITORY, python_environment
from tests.support.waiting import wait_until
from walsync.wal import verify_log

__all__ = ["WAYS", "Herd", "Place"]

TRANSACTIONS = 1_000_000
"""Of each writer in one life: it never comes so far. Reads, which wait for the backlog, bound it."""

PROGRESS_TIMEOUT_S = 60.0
"""So long nobody may go without an acknowledgement."""

END_TIMEOUT_S = 120.0
HOLDER_TRIES = 200
"""How many processes are looked at to find one that holds a lock."""


WAYS = {
    "whoever": None,
    "the applier": LEASE_LOCK,
    "in the middle of an append": APPEND_LOCK,
    "in the middle of a sync": SYNC_LOCK,
}
"""Whom a kill is for, and the file that he holds locked at that moment."""


@dataclass
class Place:
    """A place in the herd: one process after the other, with the same writers, whose files it keeps."""

    name: str
    writers: list[str]
    files: Path
    external: bool = False
    """Whether others apply what it writes."""
    lives: int = 0
    process: subprocess.Popen[bytes] | None = None
    said: Lines = field(default_factory=list)
    _stream: BinaryIO | None = None
    _unread: bytes = b""

    @property
    def life(self) -> str:
        return f"{self.name}, life {self.lives}"

    def start(self, url: str, directory: Path, transactions: int, seed: int) -> None:
        self.lives += 1
        path = self.files / f"{self.name}-{self.lives}"
        with open(path, "ab") as output, open(f"{path}.errors", "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command(url, str(directory), transactions, f"{seed}-{path.name}")],
                cwd=REPOSITORY,
                env=python_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        self.said = []
        self._stream = open(path, "rb")  # noqa: SIM115 - closed by `end`
        self._unread = b""

    def command(self, url: str, directory: str, transactions: int, seed: str) -> list[str]:
        arguments = [url, directory, ",".join(self.writers), str(transactions), seed]
        return ["tests.crash.child", *arguments, *(["external"] if self.external else [])]

    def read(self) -> int:
        """Takes in what was said since; the number of acknowledgements among it."""
        assert self._stream is not None
        *whole, self._unread = (self._unread + self._stream.read()).split(b"\n")
        lines = [words_of(line) for line in whole]
        self.said += lines
        return sum(line[0] == "acknowledged" for line in lines)

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def check(self) -> None:
        """Fails if the process has ended by itself, or says that something went wrong."""
        status = self.running.poll()
        self.read()
        raise_if_failed(self.said)
        if status is not None:
            errors = (self.files / f"{self.name}-{self.lives}.errors").read_text(errors="replace")
            raise AssertionError(f"{self.life} ended by itself with status {status}:\n{errors}")

    def end(self) -> None:
        """Kills the process, if it runs, and takes in the rest of what it said."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        if self._stream is not None:
            self.read()
            self._stream.close()
            self._stream = None


class Applier(Place):
    """A place for `walsync apply`, which writes nothing."""

    def command(self, url: str, directory: str, transactions: int, seed: str) -> list[str]:
        return ["walsync.cli", "apply", directory, "--target", url, "--wait", "--json"]


class Herd:
    """Keeps so many processes of so many writers each on one log, and kills them.

    With `appliers`, so many more processes apply, one at a time, and the others only write; else all of them do both.
    `kills`: how many in each way. `held`: what the killed held locked at that moment. `longest_silence_s`: the longest
    time between a kill and the next acknowledgement of another process.
    """

    def __init__(
        self, url: str, directory: Path, seed: int, *, processes: int, threads: int, appliers: int = 0
    ) -> None:
        self.url, self.seed = url, seed
        self.log = directory / "log"
        self.source = random.Random(seed)
        self.acknowledged = Acknowledged()
        self.kills: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.longest_silence_s = 0.0
        self.engine = engine_of(url)
        Ledger.metadata.create_all(self.engine)
        files = directory / "said"
        files.mkdir()
        self.places = [
            Place(f"p{number}", [f"p{number}-{thread}" for thread in range(threads)], files, appliers > 0)
            for number in range(processes)
        ]
        self._last = Place("last", [name for place in self.places for name in place.writers], files)
        self.places += [Applier(f"applier{number}", [], files) for number in range(appliers)]

    def start(self) -> None:
        for place in self.places:
            place.start(self.url, self.log, TRANSACTIONS, self.seed)

    def graze(self, acknowledgements: int) -> float:
        """Waits until there are so many more acknowledgements; the seconds until the first of them."""
        begin = time.monotonic()
        count, first_s = 0, None

        def enough() -> bool:
            nonlocal count, first_s
            count += sum(place.read() for place in self.places)
            if count and first_s is None:
                first_s = time.monotonic() - begin
            return count >= acknowledgements

        try:
            wait_until(enough, PROGRESS_TIMEOUT_S, f"{acknowledgements} acknowledgements")
        finally:
            for place in self.places:
                place.check()
        return first_s or 0.0

    def kill_one(self) -> str:
        """Kills a process that is chosen at random, or for what it holds; starts another in its place."""
        wanted = self.source.choice([*WAYS])
        place, held = self._find(WAYS[wanted])
        place.check()
        way = wanted if WAYS[wanted] in held else "whoever"
        state = "ready" if any(line[0] == "ready" for line in place.said) else "starting"
        for each in self.places:
            each.read()
        place.end()
        self.kills[f"{way}, {state}"] += 1
        self.held[" and ".join(sorted(held)) or "nothing"] += 1
        raise_if_failed(place.said)
        self.acknowledged.note(place.said, place.life)
        description = f"{place.life}: {way}, {state}, holding {sorted(held)}"
        place.start(self.url, self.log, TRANSACTIONS, self.seed)
        self.longest_silence_s = max(self.longest_silence_s, self.graze(1))
        return description

    def _find(self, lock: str | None) -> tuple[Place, set[str]]:
        """A stopped process that holds this lock, or, where none is found, any; and what it holds locked."""
        for _ in range(HOLDER_TRIES if lock else 0):
            holders = {process for process, names in lock_holders(self.log).items() if lock in names}
            # Whoever has it at this moment is the likeliest one to have it, or to have it again, when he is stopped.
            place = self.source.choice([place for place in self.places if place.running.pid in holders] or self.places)
            held = stop(place.running, self.log)
            if lock in held:
                return place, held
            place.running.send_signal(signal.SIGCONT)
        place = self.source.choice(self.places)
        return place, stop(place.running, self.log)

    def audit(self, when: str, *, every_row: bool = False) -> None:
        """What is in the database at this moment, with everybody at work: whole transactions, in order."""
        found = audit(self.engine, every_row=every_row)
        assert not found.faults, f"{when}: {found.faults}"
        # Read afterwards: what is in the database now may be acknowledged since.
        now = Acknowledged()
        now.numbers.update(self.acknowledged.numbers)
        for place in self.places:
            place.read()
            now.note(place.said, place.life)
        now.check_nothing_more(found.counters, when)

    def finish(self) -> dict[str, int]:
        """Kills all; a last process recovers, applies everything and ends in order; then it must all be there."""
        for place in self.places:
            place.end()
            raise_if_failed(place.said)
            self.acknowledged.note(place.said, place.life)
        self._last.start(self.url, self.log, 0, self.seed)
        status = self._last.running.wait(END_TIMEOUT_S)
        self._last.end()
        raise_if_failed(self._last.said)
        assert status == 0, self._last.said
        assert len(numbers_of("recovered", self._last.said)) == len(self._last.writers)
        self.acknowledged.note(self._last.said, "the last life")
        found = audit(self.engine, every_row=True)
        assert not found.faults, found.faults
        self.acknowledged.check_all_there(found.counters)
        assert not verify_log(str(self.log)).damage
        return found.counters

    def close(self) -> None:
        for place in (*self.places, self._last):
            place.end()
        self.engine.dispose()


def stop(process: subprocess.Popen[bytes], log: Path) -> set[str]:
    """Holds a process in its tracks, and says what files of the log it has locked there."""
    process.send_signal(signal.SIGSTOP)
    # A process that has ended by itself, which is a fault, may have been waited for already.
    with suppress(ChildProcessError):
        # Waits until it has stopped, or ended; leaves it to be waited for again.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return lock_holders(log).get(process.pid, set())

"""What the processes of one log directory were told, and what must be in it after each of them ended.

Owns the comparison. Entry `n` holds what `child.chunks_of(n)` says, whoever wrote it, and one process has one entry
under way.
"""

from __future__ import annotations

from pathlib import Path

from tests.crash.log.child import chunks_of
from tests.crash.log.strace import Ended
from walsync.exceptions import LogError
from walsync.wal import read_log, verify_log

__all__ = ["Ledger"]


class Ledger:
    """One directory over many lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.acknowledged = 0
        self.released = 0

    def note(self, ended: Ended) -> None:
        """Compare what a process recovered with what was known, and take down what it was told."""
        failed = [line for line in ended.lines if line[0] == "failed"]
        assert not failed, failed
        for line in ended.lines:
            if line[0] == "recovered":
                first, last = int(line[1]), int(line[2])
                self._check(first, last)
                # What was recovered is owed from now on.
                self.acknowledged = last
            elif line[0] == "releasing":
                self.released = max(self.released, int(line[1]))
            elif line[0] == "acknowledged":
                assert int(line[1]) == self.acknowledged + 1, f"{line} after {self.acknowledged}"
                self.acknowledged += 1

    def note_refusals(self, ended: Ended) -> None:
        """After a poisoned log has refused one entry it refuses every later one."""
        words = [line[0] for line in ended.lines if line[0] in ("acknowledged", "refused")]
        names = [line[1] for line in ended.lines if line[0] == "refused"]
        if "LogPoisonedError" in names:
            first = [line[-1] for line in ended.lines if line[0] in ("acknowledged", "refused")].index(
                "LogPoisonedError"
            )
            assert "acknowledged" not in words[first:], ended.lines

    def _check(self, first: int, last: int) -> None:
        assert last >= self.acknowledged, f"{self.acknowledged} was acknowledged, and the log ends with {last}"
        assert last <= self.acknowledged + 1, f"{self.acknowledged} was acknowledged, and the log ends with {last}"
        assert first <= self.released + 1, (
            f"entries up to {self.released} are released, and the first recovered is {first}"
        )

    def look(self) -> None:
        """Read the directory, which nobody has open now, without changing it."""
        try:
            verification = verify_log(self.directory)
        except LogError:
            # The process ended before there was a log.
            assert self.acknowledged == 0
            return
        assert verification.ok, verification.damage
        ids = []
        for entry in read_log(self.directory):
            assert list(entry.chunks()) == chunks_of(entry.id), f"entry {entry.id} holds other bytes"
            ids.append(int(entry.id))
        if ids:
            assert ids == list(range(ids[0], ids[-1] + 1))
            self._check(ids[0], ids[-1])
        else:
            assert self.released >= self.acknowledged

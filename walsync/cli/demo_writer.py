"""Starts the writer that `walsync demo` kills, listens to its acknowledgements, and kills it.

Invariant: however the demonstration ends, the writer does not outlive it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time

__all__ = ["DemonstrationError", "Writer"]

ACKNOWLEDGED_WITHIN_S = 30.0


class DemonstrationError(Exception):
    """The writer did not do what the demonstration needs; the message has what it wrote to its standard error."""


class Writer:
    """A child process that commits, and the number of the last transaction that it acknowledged."""

    def __init__(self, database_url: str, log_directory: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "walsync.cli.demo_airport", database_url, log_directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        # Guards _acknowledged and _ended; the listener notifies it, wait_for() waits on it.
        self._changed = threading.Condition()
        self._acknowledged = 0
        self._ended = False
        self._listener = threading.Thread(target=self._listen, name="walsync-demo-listener", daemon=True)
        self._listener.start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def wait_for(self, number: int) -> int:
        """Waits until transaction `number` is acknowledged, and returns the last one that is."""
        deadline = time.monotonic() + ACKNOWLEDGED_WITHIN_S
        with self._changed:
            while self._acknowledged < number and not self._ended:
                if not self._changed.wait(deadline - time.monotonic()):
                    break
            if self._acknowledged >= number:
                return self._acknowledged
        raise DemonstrationError(f"The writer stopped at transaction {self._acknowledged}. {self._what_it_said()}")

    def kill(self) -> int:
        """Kills the process with SIGKILL and returns the last transaction that it acknowledged before."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        return self._acknowledged

    def close(self) -> None:
        self.kill()
        self._errors.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # The kill may cut the last line short: it was not acknowledged.
            if line.endswith(b"\n"):
                with self._changed:
                    self._acknowledged = int(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _what_it_said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip() or "It wrote no error."

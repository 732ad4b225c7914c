"""kill -9 of a process between any two of its system calls, while another process commits to the same log.

The one that goes on must not wait for the dead one, and what either was told is durable is there, whole and in its
place. `WALSYNC_KILL_POINTS=0 pytest tests/crash/log/test_sharing_calls.py` kills at every call; by default at some of
them, spread evenly.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.crash.log.sharing_child import SEGMENT_BYTES, payload
from tests.crash.log.strace import count_calls, run_command, why_not
from walsync.exceptions import EntryNotFoundError
from walsync.wal import LogConfig, WriteAheadLog

KILL_POINTS = int(os.environ.get("WALSYNC_KILL_POINTS", "10"))
APPENDS = 24
CALLS = (
    "flock",
    "pwrite64",
    "fadvise64",
    "fdatasync",
    "openat",
    "unlink",
    "rename",
    "close",
    "pread64",
    "fsync",
    "mmap",
)
LONGEST_WAIT_S = float(os.environ.get("WALSYNC_LONGEST_WAIT_S", "10"))
"""Of the process that goes on; 1 on a machine that does nothing else."""

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]


def command(directory: Path, name: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("sharing_child.py")), str(directory), name, str(APPENDS)]


class Bystander:
    """The process that goes on: it commits all the time, and keeps what it was told."""

    def __init__(self, directory: Path) -> None:
        config = LogConfig(segment_bytes=SEGMENT_BYTES, preallocated_segments=0, idle_hint_s=None)
        self.log = WriteAheadLog.recover(directory, config=config)
        self.acknowledged: dict[int, tuple[str, int]] = {}
        self.longest_s = 0.0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                chunks = payload("bystander", number)
                began = time.monotonic()
                entry_id = self.log.append(*chunks)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.acknowledged[entry_id] = ("bystander", number)
                number += 1
                self._stop.wait(0.002)
        except BaseException as error:  # noqa: BLE001 - told in the test's thread
            self.error = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the process that goes on hangs"
        if self.error is not None:
            raise self.error

    def look(self, log: WriteAheadLog, acknowledged: dict[int, tuple[str, int]], where: str) -> None:
        """Every entry that is kept is whole; every one acknowledged that is kept is what was acknowledged."""
        # The other one goes on: what comes after this is not looked at.
        last = log.durable_id
        while True:
            try:
                found = {entry.id: list(entry.chunks()) for entry in log.entries(through=last)}
                break
            except EntryNotFoundError:
                continue
        first = log.checkpointed_id + 1
        assert sorted(found)[-1:] in ([], [last]), where
        for entry_id, chunks in found.items():
            name, number = chunks[0].split(b" ")[:2]
            assert chunks == payload(name.decode(), int(number)), f"{where}: entry {entry_id} is not whole"
        for entry_id, (name, number) in acknowledged.items():
            assert entry_id <= last, f"{where}: entry {entry_id} was acknowledged and is beyond the end"
            if entry_id >= first:
                assert found[entry_id] == payload(name, number), f"{where}: entry {entry_id} is another"


def test_a_process_killed_in_any_system_call_stops_nobody_and_loses_nothing(tmp_path: Path) -> None:
    reason = why_not()
    if reason is not None:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    directory = tmp_path / "log"
    bystander = Bystander(directory)
    acknowledged: dict[int, tuple[str, int]] = {}
    killed: dict[str, int] = {}
    try:
        # How many calls there are depends on how much the other one has written: what is in both is in most.
        first, counts = (
            count_calls(directory, command(directory, f"counted{time_}"), CALLS, tmp_path / "trace") for time_ in (1, 2)
        )
        points = [(kind, number) for kind in sorted(counts) for number in counts[kind] if number in first.get(kind, ())]
        if KILL_POINTS:
            points = points[:: max(1, len(points) // KILL_POINTS)]
        for life, (kind, number) in enumerate(points):
            name = f"life{life}"
            ended = run_command(command(directory, name), f"signal=SIGKILL:when={number}", kind)
            killed[kind] = killed.get(kind, 0) + ended.killed
            for line in ended.lines:
                if line[0] == "acknowledged":
                    acknowledged[int(line[1])] = (name, int(line[2]))
            where = f"killed in {kind} {number}"
            bystander.look(bystander.log, acknowledged | dict(bystander.acknowledged), where)
            assert bystander.longest_s < LONGEST_WAIT_S, where
    finally:
        bystander.stop()
    assert sum(killed.values()) > 0.5 * len(points), killed
    bystander.log.close()
    with WriteAheadLog.recover(directory, config=bystander.log.config) as log:
        bystander.look(log, acknowledged | bystander.acknowledged, "recovered")
    print(
        f"{sum(killed.values())} kills in {len(points)} lives {killed}; {len(acknowledged)} entries acknowledged by "
        f"the killed, {len(bystander.acknowledged)} by the other, whose longest commit took "
        f"{bystander.longest_s * 1e3:.0f} ms"
    )

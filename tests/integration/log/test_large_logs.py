"""Large logs on a real disk: bounded memory, bounded room.

CI writes a slice. The same tests, whole:

    WALSYNC_BACKLOG_GB=10 WALSYNC_LAPS_GB=20 python -m pytest -q -s -n 0 -m slow tests/integration/log
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import run_python
from tests.support.waiting import wait_until
from walsync.wal import Checkpointer, Entry, EntryId, LogConfig, WriteAheadLog

GIGABYTE = 10**9
MEMORY_BYTES = 100 * 10**6
ENTRY_BYTES = 64 * 1024

_RECOVER = """
import sys, time
from walsync.wal import Checkpointer, WriteAheadLog

def most_memory_bytes():
    # Not getrusage: what it says begins with the memory of the process that started this one.
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024

class Reading(Checkpointer):
    entries = read = 0
    def recover(self, entry):
        self.entries += 1
        for chunk in entry.chunks():
            self.read += len(chunk)
    def checkpoint_to(self, last_id, entries, log):
        pass

begin = time.perf_counter()
checkpointer = Reading()
log = WriteAheadLog.recover(sys.argv[1], checkpointer)
print(checkpointer.entries, checkpointer.read, time.perf_counter() - begin, most_memory_bytes())
log.close()
"""


def gigabytes(variable: str, default: float) -> int:
    return int(float(os.environ.get(variable, default)) * GIGABYTE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel for a process's memory: Linux")
def test_a_large_backlog_is_recovered_in_little_memory(tmp_path: Path) -> None:
    total = gigabytes("WALSYNC_BACKLOG_GB", 0.5)
    count = total // ENTRY_BYTES + 1
    data = os.urandom(ENTRY_BYTES)
    with WriteAheadLog.recover(tmp_path / "log", config=LogConfig(durability="interval")) as log:
        for _ in range(count):
            log.append(data)
    answer = run_python("-c", _RECOVER, tmp_path / "log", timeout_s=1500).stdout.split()
    entries, read, seconds, memory = int(answer[0]), int(answer[1]), float(answer[2]), int(answer[3])
    print(
        f"\n{read / GIGABYTE:.1f} GB in {entries} entries: recovered at {read / seconds / GIGABYTE:.2f} GB/s, every",
        end=" ",
    )
    print(f"chunk read and checked; resident memory at most {memory / 10**6:.0f} MB")
    assert (entries, read) == (count, count * ENTRY_BYTES)
    assert memory < MEMORY_BYTES


class Keeping(Checkpointer):
    """Reads everything, as one that applies it does."""

    def __init__(self) -> None:
        self.read = 0

    def checkpoint_to(self, last_id: EntryId, entries: Iterator[Entry], log: WriteAheadLog) -> None:
        for entry in entries:
            for chunk in entry.chunks():
                self.read += len(chunk)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_log_whose_checkpointer_keeps_up_stays_small_and_makes_no_file_after_the_first_lap(tmp_path: Path) -> None:
    total = gigabytes("WALSYNC_LAPS_GB", 1.0)
    config = LogConfig()
    directory = tmp_path / "log"
    checkpointer = Keeping()
    data = os.urandom(ENTRY_BYTES)
    largest = 0
    first_lap = 8 * config.segment_bytes
    # Making, renaming and removing a file changes its directory's time.
    changed_ns: int | None = None
    begin = time.perf_counter()
    with WriteAheadLog.recover(directory, checkpointer, config=config) as log:
        for number in range(total // ENTRY_BYTES + 1):
            log.append(data)
            if number % 64 == 0:
                # Keeping up: what the reader has not taken stays below three quarters of a segment.
                wait_until(lambda log=log: log.backlog_bytes <= config.segment_bytes * 3 // 4)
                largest = max(largest, sum(path.stat().st_size for path in directory.iterdir()))
                if changed_ns is None and log.durable_id * ENTRY_BYTES > first_lap:
                    changed_ns = directory.stat().st_mtime_ns
        assert directory.stat().st_mtime_ns == changed_ns
        sequence = log._segments.readable_segments[-1].sequence
        log.checkpoint_active()
    seconds = time.perf_counter() - begin
    print(
        f"\n{total / GIGABYTE:.1f} GB through {sequence} segments, {total / seconds / 10**6:.0f} MB/s; the directory",
        end=" ",
    )
    print(
        f"had at most {largest / config.segment_bytes:.2f} times the size of a segment, and no file was made after",
        end=" ",
    )
    print(f"the first {first_lap / 10**6:.0f} MB")
    assert checkpointer.read == (total // ENTRY_BYTES + 1) * ENTRY_BYTES
    assert largest < 4 * config.segment_bytes

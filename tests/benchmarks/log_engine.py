"""The log engine against the floor: `python tests/benchmarks/log_engine.py [directory]`.

The floor is `os.pwrite` and `os.fdatasync` of the same bytes into a file of real zeros, made as the log's are. Log and
floor alternate in one run, round by round, so that both meet the same disk in the same mood; the table shows medians of
the rounds. Ratios matter, absolute figures belong to the machine.

Give a directory on the disk that is to be measured; without one a temporary directory is used.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from walsync.wal import EntryId, LogConfig, WriteAheadLog, verify_log

SIZES = {"256 B": 256, "1 KiB": 1024, "4 KiB": 4096, "64 KiB": 65536, "1 MiB": 1 << 20}
FLOOR_FILE_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 128 * 1024
"""As the log's own files are filled: on Linux small writes are slower where the zeros came in larger pieces."""


class Floor:
    """Writes the same bytes one behind the other into a prezeroed file, syncing each."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        zeros = bytes(PIECE_BYTES)
        for offset in range(0, FLOOR_FILE_BYTES, len(zeros)):
            os.pwrite(self._descriptor, zeros, offset)
        os.fsync(self._descriptor)
        self._offset = 0

    def commit(self, data: bytes) -> None:
        if self._offset + len(data) > FLOOR_FILE_BYTES:
            self._offset = 0
        os.pwrite(self._descriptor, data, self._offset)
        os.fdatasync(self._descriptor)
        self._offset += len(data)

    def close(self) -> None:
        os.close(self._descriptor)


def median_s(commit: Callable[[bytes], object], data: bytes, count: int) -> float:
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        commit(data)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def release(log: WriteAheadLog) -> None:
    log.checkpoint(log.durable_id)


def single_thread(directory: Path, rounds: int) -> None:
    floor = Floor(directory / "floor")
    log = WriteAheadLog.recover(directory / "single", config=LogConfig(idle_hint_s=None))
    print(f"{'one thread':<12}{'floor µs':>10}{'log µs':>10}{'ratio':>8}{'best ratio':>12}")
    for name, size in SIZES.items():
        data = os.urandom(size)
        count = 200 if size <= 4096 else 40 if size < 1 << 20 else 12
        floors, logs = [], []
        for _ in range(rounds):
            floors.append(median_s(floor.commit, data, count))
            logs.append(median_s(log.append, data, count))
            release(log)
        ratios = [ours / theirs for ours, theirs in zip(logs, floors, strict=True)]
        print(
            f"{name:<12}{statistics.median(floors) * 1e6:>10.1f}{statistics.median(logs) * 1e6:>10.1f}"
            f"{statistics.median(ratios):>8.2f}{min(ratios):>12.2f}"
        )
    log.close()
    floor.close()


def rate(appends: Sequence[Callable[[bytes], object]], data: bytes, seconds: float) -> float:
    """Commits a second, of a thread for each of `appends`."""
    threads = len(appends)
    counts = [0] * threads
    stop = threading.Event()
    ready = threading.Barrier(threads + 1)

    def run(index: int) -> None:
        append = appends[index]
        ready.wait()
        done = 0
        while not stop.is_set():
            append(data)
            done += 1
        counts[index] = done

    workers = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)


def many_threads(directory: Path, rounds: int) -> None:
    log = WriteAheadLog.recover(directory / "threads", config=LogConfig(idle_hint_s=None))
    print(f"\n{'threads':<12}{'256 B/s':>12}{'of one':>8}{'4 KiB/s':>12}{'of one':>8}")
    rates: dict[tuple[int, int], list[float]] = {}
    for _ in range(rounds):
        for size in (256, 4096):
            for threads in (1, 2, 4, 16):
                rates.setdefault((size, threads), []).append(rate([log.append] * threads, os.urandom(size), 0.4))
                release(log)
    for threads in (1, 2, 4, 16):
        line = f"{threads:<12}"
        for size in (256, 4096):
            ratio = statistics.median(
                ours / one for ours, one in zip(rates[size, threads], rates[size, 1], strict=True)
            )
            line += f"{statistics.median(rates[size, threads]):>12,.0f}{ratio:>8.2f}"
        print(line)
    log.close()


def recovery(directory: Path, rounds: int) -> None:
    print(f"\n{'recovery':<12}{'open MB/s':>12}{'entries MB/s':>14}{'verify MB/s':>13}")
    for name, size in SIZES.items():
        path = directory / f"recovery-{size}"
        count = min(150_000, 192 * 1024 * 1024 // size)
        with WriteAheadLog.recover(path, config=LogConfig(idle_hint_s=None)) as log:
            data = os.urandom(size)
            threads = [threading.Thread(target=fill, args=(log, data, count // 32)) for _ in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            total = log.backlog_entries * size
        opens, reads, checks = [], [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            log = WriteAheadLog.recover(path, config=LogConfig(idle_hint_s=None))
            opens.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            read = sum(len(chunk) for entry in log.entries(EntryId(0)) for chunk in entry.chunks())
            reads.append(time.perf_counter() - begin)
            assert read == total, (read, total)
            log.close()
            begin = time.perf_counter()
            assert verify_log(path).ok
            checks.append(time.perf_counter() - begin)
        line = f"{name:<12}"
        for times, width in ((opens, 12), (reads, 14), (checks, 13)):
            line += f"{total / statistics.median(times) / 1e6:>{width},.0f}"
        print(line)
    print(f"\nresident memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def fill(log: WriteAheadLog, data: bytes, count: int) -> None:
    for _ in range(count):
        log.append(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=["single", "threads", "recovery"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as made:
        directory = Path(made)
        if options.only in (None, "single"):
            single_thread(directory, options.rounds)
        if options.only in (None, "threads"):
            many_threads(directory, options.rounds)
        if options.only in (None, "recovery"):
            recovery(directory, options.rounds)


if __name__ == "__main__":
    main()

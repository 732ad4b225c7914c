"""The process that strace kills or fails: it opens a log, appends entries one after the other, and says what it was
told.

    python tests/crash/log/child.py DIRECTORY APPENDS THREADS

Lines on its standard output, each in one write:
- `recovered FIRST LAST`: what the log gave back when it was opened (`0 0`: nothing), every byte of it checked;
- `releasing ID`: it is about to release the entries up to this one;
- `acknowledged ID`: an append has returned;
- `refused ERROR`: an append has raised a `LogError`; it tries three more times and then closes the log;
- `not opened ERROR`, `not closed ERROR`, `closed`: how it went with the rest;
- `failed …`: something that must not happen.

With THREADS the log prepares segments in its own thread; without, every system call is made in the same order.
"""

from __future__ import annotations

import os
import random
import sys
import types
from pathlib import Path

__all__ = ["SEGMENT_BYTES", "chunks_of"]

SEGMENT_BYTES = 64 * 1024
ATTEMPTS_AFTER_A_FAILURE = 3


def chunks_of(entry_id: int) -> list[bytes]:
    """What entry `entry_id` holds: its number alone decides."""
    source = random.Random(f"entry {entry_id}")
    draw = source.random()
    if draw < 0.6:
        return [source.randbytes(source.choice((0, 40, 440, 1500, 4096)))]
    if draw < 0.85:
        return [source.randbytes(source.choice((1, 472, 3000))) for _ in range(source.randint(2, 5))]
    return [source.randbytes(source.choice((20_000, 70_000))), source.randbytes(10)]


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def import_the_log_alone() -> None:
    """The package imports SQLAlchemy, which takes longer than all that is tested here; the log does not need it."""
    package = types.ModuleType("walsync")
    root = Path(__file__).resolve().parents[3]
    package.__path__ = [str(root / "walsync")]
    sys.modules["walsync"] = package


def main() -> None:
    directory, appends, threads = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "threads"
    import_the_log_alone()
    from walsync.exceptions import LogError
    from walsync.wal import Checkpointer, Entry, EntryId, LogConfig, WriteAheadLog

    class Checked(Checkpointer):
        self_driven = True
        ids: list[int] = []

        def recover(self, entry: Entry) -> None:
            if list(entry.chunks()) != chunks_of(entry.id):
                raise AssertionError(f"entry {entry.id} was recovered with other bytes")
            self.ids.append(entry.id)

    config = LogConfig(
        segment_bytes=SEGMENT_BYTES,
        preallocated_segments=1 if threads else 0,
        idle_hint_s=0.001 if threads else None,
        max_free_segments=1,
        segment_timeout_s=10.0,
    )
    checked = Checked()
    try:
        log = WriteAheadLog.recover(directory, checked, config=config)
    except LogError as error:
        say(f"not opened {type(error).__name__}")
        return
    ids = checked.ids or [0]
    if len(ids) != ids[-1] - ids[0] + 1 or ids[-1] not in (0, log.last_id):
        raise AssertionError(f"entries {ids} were recovered from a log that ends with {log.last_id}")
    say(f"recovered {ids[0]} {log.last_id}")
    failures = 0
    for number in range(appends):
        try:
            if number % 4 == 3:
                through = EntryId(log.durable_id - (number % 3))
                say(f"releasing {through}")
                log.checkpoint(through)
            entry_id = log.append(*chunks_of(log.durable_id + 1))
        except LogError as error:
            say(f"refused {type(error).__name__}")
            failures += 1
            if failures > ATTEMPTS_AFTER_A_FAILURE:
                break
            continue
        say(f"acknowledged {entry_id}")
    try:
        log.close()
    except LogError as error:
        say(f"not closed {type(error).__name__}")
    say("closed")


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        say(f"failed {error!r}")
        raise

"""The process that strace kills beside another one: it joins a log that is open, appends, releases, and says so.

    python tests/crash/log/sharing_child.py DIRECTORY NAME APPENDS

Lines on its standard output, each in one write: `acknowledged ID NUMBER`, `releasing ID`, and `closed` at the end. What
an entry holds, `payload` tells.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

__all__ = ["SEGMENT_BYTES", "payload"]

SEGMENT_BYTES = 64 * 1024


def payload(name: str, number: int) -> list[bytes]:
    """The chunks of the entry with this number of this writer."""
    source = random.Random(f"{name} {number}")
    head = f"{name} {number}".encode()
    draw = source.random()
    if draw < 0.6:
        return [head + b" " + source.randbytes(source.choice((0, 40, 440, 1500, 4096)))]
    if draw < 0.85:
        return [head, *(source.randbytes(source.choice((1, 472, 3000))) for _ in range(source.randint(1, 4)))]
    return [head, source.randbytes(source.choice((20_000, 70_000)))]


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from tests.crash.log.child import import_the_log_alone, say

    import_the_log_alone()
    from walsync.wal import EntryId, LogConfig, WriteAheadLog

    directory, name, appends = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = LogConfig(segment_bytes=SEGMENT_BYTES, preallocated_segments=0, idle_hint_s=None, max_free_segments=1)
    log = WriteAheadLog.recover(directory, config=config)
    for number in range(appends):
        if number % 4 == 3:
            # Some of what this process has acknowledged is kept for the other one to look at.
            through = EntryId(max(0, log.durable_id - 40))
            say(f"releasing {through}")
            log.checkpoint(through)
        say(f"acknowledged {log.append(*payload(name, number))} {number}")
    log.close()
    say("closed")


if __name__ == "__main__":
    main()

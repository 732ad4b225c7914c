"""Who holds a lock (`flock`) on the files of a log's directory, as Linux says in /proc/locks."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["APPEND_LOCK", "LEASE_LOCK", "SYNC_LOCK", "lease_holder", "lock_holders"]

APPEND_LOCK = "append.lock"
SYNC_LOCK = "sync.lock"
LEASE_LOCK = "applier.lock"
"""Held by the process that applies, for as long as it does."""

PROC_LOCKS = Path("/proc/locks")


def lock_holders(directory: Path) -> dict[int, set[str]]:
    """Process id to the names of the files below `directory` that it holds locked, of this moment.

    Files that appear or vanish meanwhile may be missing. Whoever waits for a lock is not its holder.
    """
    names: dict[tuple[int, int], str] = {}
    for root, _, files in os.walk(directory):
        for name in files:
            path = Path(root, name)
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            names[status.st_dev, status.st_ino] = path.relative_to(directory).as_posix()
    found: dict[int, set[str]] = {}
    for line in PROC_LOCKS.read_text(encoding="ascii").splitlines():
        # `1: FLOCK  ADVISORY  WRITE 3793 fe:00:1474578 0 EOF`; one that waits has `->` after its number.
        words = line.split()
        if words[1] != "FLOCK":
            continue
        major, minor, inode = words[5].split(":")
        locked = names.get((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
        if locked is not None:
            found.setdefault(int(words[4]), set()).add(locked)
    return found


def lease_holder(directory: Path) -> int | None:
    """The process that applies the log in this directory; None while there is none."""
    return next((process for process, names in lock_holders(directory).items() if LEASE_LOCK in names), None)

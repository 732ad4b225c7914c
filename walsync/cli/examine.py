"""Looking at a log from outside, as `status` and `verify` do: without its lock, and whether or not it is in use.

Never writes, never takes a lock, never makes a file.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from walsync.cli.output import error_console
from walsync.exceptions import LogError
from walsync.wal import FileStorage, LogVerification, verify_log
from walsync.wal.directory import read_directory, require_checkpoint
from walsync.wal.log import LOCK_FILE
from walsync.wal.sharing.membership import LEASE_LOCK

__all__ = ["LEASE_LOCK", "examine", "holders_of", "log_uuid_of", "reading_progress", "require_directory"]

_LOOKS_AT_A_LOG_IN_USE = 3


def examine(directory: Path) -> LogVerification:
    """Checks the whole log, with a progress bar where somebody can see it. Raises `LogError` if there is none."""
    require_directory(directory)
    with reading_progress() as show:
        return _examine_until_it_holds_still(directory, show)


def require_directory(directory: Path) -> None:
    """Raises `LogError` if this is no directory at all."""
    if not directory.is_dir():
        raise LogError(f"{directory} is not a directory; give the directory of a log")


def log_uuid_of(directory: Path) -> uuid.UUID:
    """The identity of the log in a directory. Raises `LogError` if there is none."""
    require_directory(directory)
    storage = FileStorage(directory, network_file_systems=True)
    found = read_directory(storage)
    if not found.checkpoint_exists and not found.slots:
        raise LogError(f"there is no log in {directory}; give the directory of a log")
    return require_checkpoint(storage, found).log_uuid


@contextmanager
def reading_progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar where somebody can see it; what it gives is called with the bytes done, and those to do."""
    with Progress(
        TextColumn("reading the log"),
        BarColumn(),
        DownloadColumn(),
        console=error_console,
        transient=True,
        disable=not error_console.is_terminal,
    ) as bars:
        task = bars.add_task("", total=None)

        def show(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield show


def _examine_until_it_holds_still(directory: Path, show: Callable[[int, int], None]) -> LogVerification:
    # A segment that is recycled while it is read looks like damage; looked at again, it does not. Damage stays.
    found = verify_log(directory, show)
    for _ in range(_LOOKS_AT_A_LOG_IN_USE - 1):
        if found.ok or not holders_of(directory):
            break
        found = verify_log(directory, show)
    return found


def holders_of(directory: Path, lock_file: str = LOCK_FILE) -> list[int]:
    """The processes that have the log open, in order; or, with `LEASE_LOCK`, the one that applies. Those that
    can be seen from here.

    The kernel's list of locks is read, instead of trying to take the lock: that would make an application that starts
    at this moment believe that the log is in use. Locks of other containers are not in the list.
    """
    if sys.platform != "linux":
        return []
    try:
        lock = (directory / lock_file).stat()
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return []
    found = set()
    for line in table.splitlines():
        # "1: FLOCK  ADVISORY  WRITE 4711 08:01:1311 0 EOF"; lines of waiting processes have an arrow before the kind.
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(lock.st_ino):
            process_id = int(fields[4])
            if _has_open(process_id, lock):
                found.add(process_id)
    return sorted(found)


def _has_open(process_id: int, wanted: os.stat_result) -> bool:
    # The list names files by device and inode, and the device is not the one that stat() shows on every file system.
    descriptors = Path(f"/proc/{process_id}/fd")
    try:
        for descriptor in descriptors.iterdir():
            try:
                if os.path.samestat(descriptor.stat(), wanted):
                    return True
            except FileNotFoundError:
                continue
    except PermissionError:
        # Another user's process, and the inode fits.
        return True
    except OSError:
        return False
    return False

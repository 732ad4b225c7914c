"""The parts of an open log, as `WriteAheadLog` is put together from them; and those of one that nobody shares.

`walsync.wal.sharing.membership` makes the parts of a shared one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from walsync.exceptions import LogLockedError
from walsync.wal.appender import Appender
from walsync.wal.checkpointer import Checkpointer
from walsync.wal.config import LogConfig
from walsync.wal.control import Lease, LocalLease
from walsync.wal.control_block import CONTROL_FILE, RECOVERED, UNMARKED, Words, local_words
from walsync.wal.group_commit import GroupCommit
from walsync.wal.open_files import OpenFiles
from walsync.wal.opening import OpenedLog, open_log
from walsync.wal.releases import Releases
from walsync.wal.segments import SlotFiles
from walsync.wal.storage.protocol import Storage, StorageLock

__all__ = ["LogParts", "local_parts", "note_recovered", "open_alone"]


@dataclass(frozen=True, kw_only=True)
class LogParts:
    """`durable` and `written` tell position and entry up to which the log is that, whoever wrote it. `written_stamp` is
    another number after each write; every read of a session asks for it, and where it is C that answers, no frame is
    made.
    """

    membership: StorageLock
    uuid: uuid.UUID
    appender: Appender
    pool: SlotFiles
    files: OpenFiles
    commits: GroupCommit
    releases: Releases
    words: Words
    lease: Lease
    durable: Callable[[], tuple[int, int]]
    written: Callable[[], tuple[int, int]]
    written_stamp: Callable[[], int]
    is_before: Callable[[float, float], bool]
    ring: Callable[[], None]
    torn_bytes: int
    recovered_here: bool
    shared: bool


def note_recovered(words: Words, opened: OpenedLog) -> None:
    """Which entries were found."""
    last_id = opened.appender.next_id - 1
    words[RECOVERED] = last_id
    words[UNMARKED] = last_id if last_id > opened.checkpoint_file.slot.checkpointed_id else 0


def local_parts(storage: Storage, lock: StorageLock, opened: OpenedLog, config: LogConfig) -> LogParts:
    """The parts of a log that `lock` keeps for this process."""
    words, appender = local_words(), opened.appender
    note_recovered(words, opened)
    commits = GroupCommit(appender, words, config.gather_s)

    def durable() -> tuple[int, int]:
        return appender.durable

    def is_before(position: float, entry_id: float) -> bool:
        written = appender.written
        return written[0] < position and written[1] < entry_id

    releases = Releases(
        storage,
        opened.segments,
        opened.checkpoint_file,
        segment_bytes=config.segment_bytes,
        durable=durable,
        commits=commits,
        pool=opened.pool,
        files=opened.files,
    )
    appender.take_from(opened.pool, releases.add_segment)
    return LogParts(
        membership=lock,
        uuid=opened.checkpoint_file.slot.log_uuid,
        appender=appender,
        pool=opened.pool,
        files=opened.files,
        commits=commits,
        releases=releases,
        words=words,
        lease=LocalLease(),
        durable=durable,
        written=lambda: appender.written,
        is_before=is_before,
        written_stamp=lambda: appender.written[1],
        ring=commits.wake,
        torn_bytes=opened.torn_bytes,
        recovered_here=True,
        shared=False,
    )


def open_alone(
    storage: Storage,
    lock_file: str,
    config: LogConfig,
    checkpointer: Checkpointer | None,
    *,
    clock_ns: Callable[[], int],
    new_uuid: Callable[[], uuid.UUID],
) -> LogParts:
    """Recover the log for this process alone. Raises as `WriteAheadLog.recover` does."""
    lock = storage.lock(lock_file, config.lock_timeout_s)
    if lock is None:
        raise LogLockedError(
            f"the log directory {storage.describe('')} is open in another process, or in another WriteAheadLog of "
            "this one, and this one wants it for itself. Close that first; if it is about to end, wait for it with "
            "LogConfig(lock_timeout_s=...)"
        )
    try:
        if CONTROL_FILE in storage.list():
            # What is written now is not in that block: who shares the log next must build another one.
            storage.remove(CONTROL_FILE)
        opened = open_log(storage, config, checkpointer, clock_ns=clock_ns, new_uuid=new_uuid)
        return local_parts(storage, lock, opened, config)
    except BaseException:
        lock.release()
        raise

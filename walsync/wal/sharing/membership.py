"""Opening a directory that other processes may have open: the first one recovers the log, the others join it.

Owns the lock that says who is here, and the one that lets one process at a time open. The first to come has the former
for itself while it recovers, builds the control block anew, whatever was there, and then keeps a share of it, as every
other one does; whoever comes when nobody has a share is the first again. So a block that a crash of the machine has
left, damaged or from another version, is never read.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from walsync.exceptions import ConfigurationError, LogError, LogLockedError, LogVersionError
from walsync.wal.appender import Appender, Tail
from walsync.wal.checkpoint_file import CheckpointFile
from walsync.wal.checksum import checksum_function
from walsync.wal.config import LogConfig
from walsync.wal.control_block import (
    CONTROL_FILE,
    FOREIGN,
    FREE,
    HEAD,
    MAGIC,
    MAX_SLOT_FILES,
    SLOTS,
    SLOTS_END,
    TAIL,
    TOTAL_WORDS,
    UUID,
    VERSION,
    WHOLE,
    released_record,
    tail_record,
)
from walsync.wal.directory import read_checkpoint
from walsync.wal.format import header_seed
from walsync.wal.open_files import OpenFiles
from walsync.wal.opening import OpenedLog, open_log
from walsync.wal.parts import LogParts, note_recovered
from walsync.wal.segment import slot_number
from walsync.wal.sharing.commits import SharedGroupCommit
from walsync.wal.sharing.gathering import Gathering
from walsync.wal.sharing.kept_tail import KeptTail
from walsync.wal.sharing.locks import ProcessLease, TimedLock, wait_for
from walsync.wal.sharing.posts import Posts
from walsync.wal.sharing.releases import SegmentList, SharedReleases
from walsync.wal.sharing.slot_files import SharedSlotFiles
from walsync.wal.sharing.tail import SharedTail
from walsync.wal.sharing.urging import Urging
from walsync.wal.sharing.waiting import SyncWaiting
from walsync.wal.storage.protocol import SharedLock, SharedWords, Storage, StorageShare

if TYPE_CHECKING:
    from walsync.wal.checkpointer import Checkpointer

__all__ = ["CONTROL_FILE", "LEASE_LOCK", "open_shared"]

_OPENING_LOCK: Final = "opening.lock"
_APPEND_LOCK: Final = "append.lock"
_SYNC_LOCK: Final = "sync.lock"
_BOX_LOCK: Final = "box-{:02}.lock"
_SLOT_FILES_LOCK: Final = "slots.lock"
_RELEASE_LOCK: Final = "release.lock"
LEASE_LOCK: Final = "applier.lock"
_HEAD: Final = MAGIC ^ VERSION << 56
_LOOK_S: Final = 0.02
_LOOKS: Final = 5
"""How often one looks for the control block of those who seem to have the log open."""
_MAX_LOOKS: Final = 1000


class _Membership:
    """The share of the lock that says who is here, and whatever else ends with it."""

    def __init__(self, here: SharedLock, lease: ProcessLease, urging: Urging, tail: SharedTail, posts: Posts) -> None:
        self._here = here
        self._lease = lease
        self._urging = urging
        self._tail = tail
        self._posts = posts

    def release(self) -> None:
        """Leave."""
        self._urging.stop()
        self._lease.close()
        self._tail.close()
        self._posts.close()
        self._here.close()

    def forget_in_child(self) -> None:
        """In a forked child: be here on its own account."""
        # Its share is taken before the parent's copy is closed, so that there is always one.
        self._here.reopen()
        self._here.try_shared()
        self._lease.forget_in_child()
        self._urging.forget_in_child()


def open_shared(
    storage: Storage,
    share: StorageShare,
    lock_file: str,
    config: LogConfig,
    checkpointer: Checkpointer | None,
    *,
    clock_ns: Callable[[], int],
    new_uuid: Callable[[], uuid.UUID],
) -> LogParts:
    """Recover the log in `storage`, or join those that have it open. Raises what `open_log` does, and `LogLockedError`
    if one keeps it for itself or does not come to an end with opening it.
    """
    opening = share.lock(_OPENING_LOCK)
    here = share.lock(lock_file)
    try:
        if not wait_for(opening, config.open_timeout_s):
            raise LogLockedError(
                f"another process has not finished opening the log in {storage.describe('')} within "
                f"{config.open_timeout_s} s (LogConfig.open_timeout_s): it may be recovering a long one"
            )
        builder = _Builder(storage, share, config, clock_ns, here)
        deadline = time.monotonic() + config.lock_timeout_s
        for _ in range(_LOOKS):
            if _come_in(here, deadline, storage):
                opened = open_log(storage, config, checkpointer, clock_ns=clock_ns, new_uuid=new_uuid)
                try:
                    parts = builder.recovered(opened)
                    if not here.try_shared():
                        # Between giving up all of the lock and taking a share another one came, and has it for itself.
                        raise _locked(storage)
                except BaseException:
                    opened.files.close()
                    opened.checkpoint_file.close()
                    raise
                return parts
            words = builder.control_block()
            if words is not None:
                # Whoever made it, and was here a moment ago, may have left meanwhile; but nobody has written since, for
                # who has the log for itself removes it.
                return builder.joined(words)
            # One who had the log for itself left it just before this one took its share, and the next look finds
            # nobody. Or another version is here: it is given a moment to leave, once for each look.
            time.sleep(_LOOK_S)
        raise builder.another_version()
    except BaseException:
        here.close()
        raise
    finally:
        opening.close()


def _locked(storage: Storage) -> LogLockedError:
    return LogLockedError(
        f"the log directory {storage.describe('')} is open in another process, or in another WriteAheadLog of this "
        "one, that keeps it for itself (LogConfig.shared=False, or a version of walsync that does not share). Close "
        "that first; if it is about to end, wait for it with LogConfig(lock_timeout_s=...)"
    )


def _come_in(here: SharedLock, deadline: float, storage: Storage) -> bool:
    """Have all of the lock, as the first one, or a share of it. True for the first. Looks once at least."""
    while True:
        try:
            here.try_exclusive()
        except BlockingIOError:
            if here.try_shared():
                return False
        else:
            return True
        if time.monotonic() >= deadline:
            raise _locked(storage)
        time.sleep(_LOOK_S)


class _Builder:
    """Puts the parts together. Used once."""

    def __init__(
        self,
        storage: Storage,
        share: StorageShare,
        config: LogConfig,
        clock_ns: Callable[[], int],
        here: SharedLock,
    ) -> None:
        self._storage = storage
        self._share = share
        self._config = config
        self._clock_ns = clock_ns
        self._here = here

    def recovered(self, opened: OpenedLog) -> LogParts:
        """Build the control block of a log that was just recovered."""
        words = self._share.make_words(CONTROL_FILE, TOTAL_WORDS)
        slot = opened.checkpoint_file.slot
        words[HEAD] = _HEAD
        words[UUID], words[UUID + 1] = _uuid_words(slot.log_uuid)
        note_recovered(words, opened)
        released_record(words).write(slot.position, slot.checkpointed_id, opened.segments[0].sequence, slot.generation)
        self._note_slot_files(words, opened)
        return self._assemble(words, opened, self._pool(words, opened.files), recovered_here=True)

    def _note_slot_files(self, words: SharedWords, opened: OpenedLog) -> None:
        in_use = {segment.name: segment.sequence for segment in opened.segments}
        free = set(opened.pool.free_names)
        for name in self._storage.list():
            number = slot_number(name)
            if number is None:
                continue
            if number >= MAX_SLOT_FILES:
                raise LogError(
                    f"{self._storage.describe(name)} has a number beyond {MAX_SLOT_FILES - 1}, which a shared log "
                    "cannot have. Open the log with LogConfig(shared=False), apply what is in it, and begin a new one"
                )
            words[SLOTS + number] = in_use.get(name, FREE if name in free else FOREIGN)
            words[SLOTS_END] = max(words[SLOTS_END], number + 1)

    def control_block(self) -> SharedWords | None:
        """That of the processes that have the log open; None if there is none that is whole and of this version."""
        words = self._share.map_words(CONTROL_FILE, TOTAL_WORDS)
        return None if words is None or words[HEAD] != _HEAD or not words[WHOLE] else words

    def another_version(self) -> LogVersionError:
        """What it means that others have the log open, and that there is no such block."""
        return LogVersionError(
            f"{self._storage.describe(CONTROL_FILE)} is not what this version of walsync shares a log by, and other "
            "processes have the log open: they run another version, or the file was touched. End all of them, then "
            "open the log again"
        )

    def joined(self, words: SharedWords) -> LogParts:
        """Take part in a log that others have open."""
        where = self._storage.describe(CONTROL_FILE)
        # Nothing else in the directory stays as it is while others are at work.
        slot = read_checkpoint(self._storage)
        if _uuid_words(slot.log_uuid) != (words[UUID], words[UUID + 1]):
            raise LogError(f"{where} belongs to another log: the directory was replaced while processes had it open")
        files = OpenFiles(self._storage)
        try:
            pool = self._pool(words, files)
            segment_list = SegmentList(self._storage, files, pool)
            sequence = 0
            for _ in range(_MAX_LOOKS):
                position, next_id, chain_epoch, sequence, _, promised, _ = tail_record(words).read()
                segments = segment_list.followed((), released_record(words).read()[2], sequence)
                # Others go on meanwhile: what was the last segment may have been released.
                if segments and segments[-1].sequence == sequence:
                    break
            else:
                raise LogError(
                    f"segment {sequence} of the log in {self._storage.describe('')} is not there: its file was removed "
                    "or overwritten while processes had the log open. End them all, and restore the directory"
                )
            segment = segments[-1]
            if segment.header.version_info != self._config.version_info:
                raise ConfigurationError(
                    f"the log in {self._storage.describe('')} is open in other processes with "
                    f"LogConfig.version_info={segment.header.version_info!r}, and this one has "
                    f"{self._config.version_info!r}. Entries of one segment have one version: end the others first"
                )
            checksum = checksum_function(slot.checksum_kind)
            appender = Appender(
                Tail(segment, position, chain_epoch & 0xFFFFFFFF, chain_epoch >> 32, next_id),
                config=self._config,
                pool=pool,
                open_file=files.get,
                checksum=checksum,
                seed=header_seed(slot.log_uuid, checksum),
                clock_ns=self._clock_ns,
                on_segment=lambda segment: None,
            )
            appender.promised = promised
            opened = OpenedLog(CheckpointFile(self._storage, slot), appender, pool, files, list(segments), 0)
            return self._assemble(words, opened, pool, recovered_here=False)
        except BaseException:
            files.close()
            raise

    def _pool(self, words: SharedWords, files: OpenFiles) -> SharedSlotFiles:
        lock = TimedLock(
            self._share.lock(_SLOT_FILES_LOCK), self._config.segment_timeout_s, "its work on the segment files"
        )
        return SharedSlotFiles(self._storage, self._config, words, released_record(words), lock, files)

    def _assemble(
        self, words: SharedWords, opened: OpenedLog, pool: SharedSlotFiles, *, recovered_here: bool
    ) -> LogParts:
        share, config, storage = self._share, self._config, self._storage
        appender, files = opened.appender, opened.files
        released = released_record(words)
        bells = share.bells(words)
        tail = KeptTail(
            words,
            share.lock(_APPEND_LOCK),
            share.lock(_SYNC_LOCK),
            bells,
            appender,
            pool,
            config,
            segment_of=lambda sequence: releases.segment_of(sequence),
            file_of=lambda segment: files.get(segment.name),
            forget_after=lambda sequence: releases.forget_after(sequence),
            give_back=lambda next_id: posts.give_back(next_id),
        )
        posts = Posts(
            words,
            bells,
            lambda box: share.lock(_BOX_LOCK.format(box)),
            checksum_function(opened.checkpoint_file.slot.checksum_kind),
        )
        pool.try_append_lock = tail.try_hold
        if recovered_here:
            tail.publish_first()
            words[WHOLE] = 1
        commits = SharedGroupCommit(
            appender,
            words,
            tail,
            SyncWaiting(words, tail, bells, config.sync_timeout_s),
            posts,
            Gathering(words, posts, config.gather_s),
            config.gather_s,
        )
        if tail.poison.is_told:
            tail.poison.raise_told()
        releases = SharedReleases(
            storage,
            opened.segments,
            opened.checkpoint_file,
            segment_bytes=config.segment_bytes,
            durable=tail.durable,
            commits=commits,
            pool=pool,
            files=files,
            released=released,
            last_sequence=lambda: tail.last_sequence,
            lock=TimedLock(share.lock(_RELEASE_LOCK), config.sync_timeout_s, "a release of segments"),
        )
        appender.take_from(pool, releases.add_segment)
        lease = ProcessLease(share.lock(LEASE_LOCK))
        urging = Urging(words, bells, applies=lambda: lease.held, wake=commits.wake, notify=commits.watch.notify)
        commits.before_waiting = urging.attend
        return LogParts(
            membership=_Membership(self._here, lease, urging, tail, posts),
            uuid=opened.checkpoint_file.slot.log_uuid,
            appender=appender,
            pool=pool,
            files=files,
            commits=commits,
            releases=releases,
            words=words,
            lease=lease,
            durable=tail.durable,
            written=tail.written,
            written_stamp=partial(words.__getitem__, TAIL),
            is_before=tail.is_before,
            ring=urging.urge,
            torn_bytes=opened.torn_bytes,
            recovered_here=recovered_here,
            shared=True,
        )


def _uuid_words(log_uuid: uuid.UUID) -> tuple[int, int]:
    return int.from_bytes(log_uuid.bytes[:8], "little"), int.from_bytes(log_uuid.bytes[8:], "little")

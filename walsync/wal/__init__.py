"""The write-ahead log: durable, checksummed, recycled segments with group commit. Never imports SQLAlchemy.

    positions, config, checkpointer    the words: ids, settings, what a checkpointer is asked
    checksum, format, checkpoint_slots byte layouts; pure functions
    storage/, lock                     files, and a storage in memory
    segment, segments, releases        one segment; the pool that prepares them; the beginning of the log, and recycling
    group_commit, leads, siblings      one fdatasync for many commits; who leads, who waits, and who waits for whom
    sync_watch, interval               who wants to hear of syncs; syncs at intervals
    appender                           the only writer of frames
    scanner, recovery, reader, verify  reading: the tight loop, the decision table, entries, a whole directory
    entry, driver, log                 entries as users see them, the checkpointer's thread, and `WriteAheadLog`
    salvage and salvage_*              what can be read of a damaged log, into a new one

`docs/reference/segment-format.md` describes the files.
"""

from __future__ import annotations

from walsync.wal.checkpointer import Checkpointer, Recovery, SegmentInfo
from walsync.wal.config import LogConfig
from walsync.wal.entry import ChunkWriter, Entry, EntryWriter
from walsync.wal.log import WriteAheadLog
from walsync.wal.positions import ChunkRecord, EntryId, LogPosition
from walsync.wal.salvage import LostBytes, LostEntries, SalvageReport, salvage_log
from walsync.wal.stats import LogStats
from walsync.wal.storage.file import FileStorage
from walsync.wal.storage.memory import MemoryStorage
from walsync.wal.storage.protocol import Storage, StorageFile, StorageLock
from walsync.wal.verify import LogVerification, read_log, verify_log

__all__ = [
    "Checkpointer",
    "ChunkRecord",
    "ChunkWriter",
    "Entry",
    "EntryId",
    "EntryWriter",
    "FileStorage",
    "LogConfig",
    "LogPosition",
    "LogStats",
    "LogVerification",
    "LostBytes",
    "LostEntries",
    "MemoryStorage",
    "Recovery",
    "SalvageReport",
    "SegmentInfo",
    "Storage",
    "StorageFile",
    "StorageLock",
    "WriteAheadLog",
    "read_log",
    "salvage_log",
    "verify_log",
]

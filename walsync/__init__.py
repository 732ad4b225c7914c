"""walsync: a durable write buffer for SQLAlchemy.

A session's commit becomes an entry of a local write-ahead log and returns at the speed of the local disk; a
checkpointer applies the entries to the real database (the *target*) in batches, exactly once, in commit order; after a
crash, what is not applied yet is replayed.

The layers, from the top: `walsync.cli` and `walsync.testing`; `walsync.session` (attaching, routing, reads);
`walsync.checkpoint` (applying); `walsync.journal` (capture: the log as an Engine); `walsync.changes` (what a
transaction changed, and its bytes); `walsync.wal` (the log itself, which knows nothing of SQLAlchemy);
`walsync.exceptions`. Imports go downward only.
"""

from walsync._version import __version__
from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName
from walsync.checkpoint import SKIP, CheckpointConfig, SQLAlchemyCheckpointer
from walsync.exceptions import (
    ApplyTimeoutError,
    AttachError,
    BacklogFullError,
    CheckpointFailedError,
    ConfigurationError,
    CorruptEntryError,
    DamagedLogError,
    EntryNotFoundError,
    EntryRejectedError,
    EntryTooLargeError,
    KeysExhaustedError,
    LogClosedError,
    LogError,
    LogFullError,
    LogLockedError,
    LogPoisonedError,
    LogTimeoutError,
    LogVersionError,
    NotCapturedError,
    ReadTimeoutError,
    TargetBlockedError,
    TargetError,
    TargetUnavailableError,
    UsageError,
    WalsyncError,
    WatermarkGapError,
)
from walsync.journal import KeyConfig
from walsync.session import Journal, JournalStats, SessionConfig, attach, direct
from walsync.wal import (
    Checkpointer,
    ChunkRecord,
    Entry,
    EntryId,
    LogConfig,
    LogPosition,
    Recovery,
    WriteAheadLog,
    verify_log,
)

__all__ = [
    "SKIP",
    "ApplyTimeoutError",
    "AttachError",
    "BacklogFullError",
    "ChangeSet",
    "CheckpointConfig",
    "CheckpointFailedError",
    "Checkpointer",
    "ChunkRecord",
    "ConfigurationError",
    "CorruptEntryError",
    "DamagedLogError",
    "Entry",
    "EntryId",
    "EntryNotFoundError",
    "EntryRejectedError",
    "EntryTooLargeError",
    "Journal",
    "JournalStats",
    "KeyConfig",
    "KeysExhaustedError",
    "LogClosedError",
    "LogConfig",
    "LogError",
    "LogFullError",
    "LogLockedError",
    "LogPoisonedError",
    "LogPosition",
    "LogTimeoutError",
    "LogVersionError",
    "NotCapturedError",
    "ReadTimeoutError",
    "Recovery",
    "RowChanges",
    "SQLAlchemyCheckpointer",
    "SessionConfig",
    "StatementChange",
    "TableName",
    "TargetBlockedError",
    "TargetError",
    "TargetUnavailableError",
    "UsageError",
    "WalsyncError",
    "WatermarkGapError",
    "WriteAheadLog",
    "__version__",
    "attach",
    "direct",
    "verify_log",
]

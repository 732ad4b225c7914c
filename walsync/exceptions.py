"""Every error that walsync raises.

The tree says whose fault an error is: the caller (`ConfigurationError`, `UsageError`), the disk (`LogError`) or the
target (`TargetError`). Time-outs are `TimeoutError` as well, configuration errors `ValueError` as well, so that code
which does not know walsync handles them as it handles the built-in ones.

A message says what failed, where (path, offset, entry id), and what to do now.
"""

from __future__ import annotations

__all__ = [
    "ApplyTimeoutError",
    "AttachError",
    "BacklogFullError",
    "CheckpointFailedError",
    "ConfigurationError",
    "CorruptEntryError",
    "DamagedLogError",
    "EntryNotFoundError",
    "EntryRejectedError",
    "EntryTooLargeError",
    "KeysExhaustedError",
    "LogClosedError",
    "LogError",
    "LogFullError",
    "LogLockedError",
    "LogPoisonedError",
    "LogTimeoutError",
    "LogVersionError",
    "NotCapturedError",
    "QuarantineFullError",
    "ReadTimeoutError",
    "TargetBlockedError",
    "TargetError",
    "TargetUnavailableError",
    "UsageError",
    "WalsyncError",
    "WatermarkGapError",
]


class WalsyncError(Exception):
    """The base of every error of walsync."""


# ---------------------------------------------------------------------------------------------- the caller


class ConfigurationError(WalsyncError, ValueError):
    """A setting is out of its range, or two settings contradict each other."""


class UsageError(WalsyncError):
    """A call came at a time, or with an object, for which it has no meaning."""


class AttachError(UsageError):
    """What was given to `walsync.attach()` cannot be attached; the message says what to give instead."""


class NotCapturedError(UsageError):
    """A statement or a value cannot be recorded in the log faithfully, and no direct way was open to it."""


class EntryTooLargeError(UsageError):
    """A transaction is larger than `LogConfig.max_entry_bytes`. The log is unharmed; nothing of it was written."""


class EntryNotFoundError(WalsyncError, LookupError):
    """No entry lies at this position: it was released after its checkpoint, or never written."""


# ------------------------------------------------------------------------------------------------ the disk


class LogError(WalsyncError):
    """The base of what concerns the log directory and its files."""


class LogLockedError(LogError):
    """Another process, or another log object of this process, has the directory open."""


class LogClosedError(LogError):
    """The log was closed before this call."""


class LogPoisonedError(LogError):
    """A write or a sync of the log failed, so nothing more can be promised until it is opened anew."""


class LogFullError(LogError):
    """The disk, or the bound on the log's size, has no room for this entry. The log stays usable."""


class QuarantineFullError(LogError):
    """The quarantine is at one of its bounds, and an entry that belongs into it stays in the log with all after it."""


class LogTimeoutError(LogError, TimeoutError):
    """A wait inside the log reached its bound."""


class LogVersionError(LogError):
    """A file of the log was written by a version of walsync that this one does not understand."""


class DamagedLogError(LogError):
    """Bytes that were once durable are not what was written: the message names file and offset."""


class CorruptEntryError(DamagedLogError):
    """An entry's frames are whole, but its content is not a change set."""


# ---------------------------------------------------------------------------------------------- the target


class TargetError(WalsyncError):
    """The base of what concerns the real database and applying entries to it."""


class TargetUnavailableError(TargetError):
    """The target cannot be reached, or answered with a passing failure. It is tried again."""


class TargetBlockedError(TargetError):
    """The target lacks something that somebody must provide: a table, a permission. It is tried again, slowly."""


class EntryRejectedError(TargetError):
    """The target refuses an entry: a constraint, a value, a version conflict, an update that matches no row.

    `entry_id` is the entry's number (an int), or None when a transaction was refused before it had one.
    """

    def __init__(self, message: str, entry_id: int | None = None) -> None:
        super().__init__(message)
        self.entry_id = entry_id


class CheckpointFailedError(TargetError):
    """The checkpointer's thread ended for a reason that is not the target's: a fault in walsync or in a listener."""


class WatermarkGapError(TargetError):
    """Log and target do not fit together: entries are missing between the target's watermark and the log."""


class ApplyTimeoutError(TargetError, TimeoutError):
    """Entries were not applied within the time given."""


class ReadTimeoutError(ApplyTimeoutError):
    """A read waited `read_timeout_s` for the entries that touch its tables, and they are not applied yet."""


class BacklogFullError(TargetError, TimeoutError):
    """The backlog stayed at its bound for `backlog_timeout_s`; this transaction was not committed."""


class KeysExhaustedError(TargetError):
    """No reserved key is left, and the target cannot be asked for more."""

"""The log's settings. Every bound and every wait of the log has its name here.

Never holds anything that changes while a log is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from walsync.exceptions import ConfigurationError

__all__ = ["DURABILITY_LEVELS", "Durability", "LogConfig", "check_durability"]

Durability: TypeAlias = Literal["sync", "interval"]
"""When a commit returns: `"sync"`, once the entry is on stable storage; `"interval"`, once it is written."""

DURABILITY_LEVELS: Final[tuple[Durability, ...]] = get_args(Durability)

MIN_SEGMENT_BYTES = 32 * 1024
MAX_SEGMENT_BYTES = 1024**3
MAX_VERSION_INFO_BYTES = 255
MAX_ENTRY_BYTES = 1 << 40


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Settings of a `WriteAheadLog`, checked when made (`ConfigurationError`). Sizes in bytes, times in seconds."""

    segment_bytes: int = 16 * 1024 * 1024
    """Size of a segment file, a multiple of 4096. Segments of another size that exist are used up, then replaced."""

    preallocated_segments: int = 1
    """Segments that a background thread keeps ready ahead of need. 0: no thread, a commit makes the file itself."""

    max_free_segments: int = 2
    """Recycled segments kept for reuse; what is beyond that is removed."""

    max_log_bytes: int | None = None
    """Bound on all segment files together; past it `append` raises `LogFullError`. None: the disk is the bound."""

    checkpoint_after_bytes: int = 8 * 1024 * 1024
    """The log's own driver calls a plain `Checkpointer` when this much is durable and not yet checkpointed."""

    buffer_bytes: int = 1024 * 1024
    """An entry being written spills to a temporary file past this; a reader reads the log in blocks of this size."""

    max_entry_bytes: int = 4 * 1024**3
    """The largest entry; a larger one raises `EntryTooLargeError` before anything of it reaches the log."""

    version_info: bytes = b""
    """The application's own mark, at most 255 bytes, in every segment: say, the schema revision."""

    checksum: Literal["crc32c", "crc32"] = "crc32c"
    """Fixed when a log is created; an existing log keeps its own."""

    durability: Durability = "sync"
    """When a commit returns: `"sync"`, when it is on stable storage; `"interval"`, when it is written, and a thread
    makes it durable within `sync_interval_s`. `append`, `begin_entry` and a session may say otherwise for one entry."""

    sync_interval_s: float = 0.1
    """The loss window of `"interval"`: if the machine stops, commits of this stretch of time may be lost; or of two
    such stretches, where the disk does not keep up."""

    shared: bool = True
    """Whether other processes may have the directory open as well. False keeps it for this one, which saves a commit a
    few microseconds. Where the system cannot share (on Windows, in memory) it is kept for one in any case."""

    lock_timeout_s: float = 0.0
    """How long opening waits for a process that keeps the directory for itself."""

    open_timeout_s: float = 60.0
    """How long opening waits for another process that is just opening, and perhaps recovering, the log."""

    append_timeout_s: float = 30.0
    """How long a commit waits for another process to finish a write to the log."""

    sync_timeout_s: float = 60.0
    """How long a commit waits for another process to finish a sync of the log."""

    gather_s: float = 0.0002
    """How long at most, and never longer than the last sync took, one who is about to sync waits for the entries of
    other threads and processes that are likely to have one soon, so that they need no sync of their own. 0: not at
    all."""

    keep_s: float = 0.05
    """How long a process that commits again and again, while no other one does, keeps the log's locks after a commit,
    so that the next one need not take them. Another process gets them at once when it asks. 0: not at all."""

    segment_timeout_s: float = 30.0
    """How long a commit waits for the background thread to prepare a segment."""

    idle_hint_s: float | None = 1.0
    """After so long without a commit the log records how far it is durable. None: only when it is closed."""

    checkpoint_timeout_s: float = 60.0
    """How long `checkpoint_active()` waits."""

    checkpoint_retry_s: float = 1.0
    """How long the driver waits after an error of the checkpointer before it calls it again."""

    close_timeout_s: float = 30.0
    """How long `close()` waits for commits in flight and for the log's threads."""

    network_file_systems: bool = False
    """True allows a directory on a network file system, where locks and syncs may not be what they promise."""

    def __post_init__(self) -> None:
        self._whole("segment_bytes", MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES)
        if self.segment_bytes % 4096:
            raise ConfigurationError(f"segment_bytes must be a multiple of 4096, not {self.segment_bytes}")
        self._whole("preallocated_segments", 0, 64)
        self._whole("max_free_segments", 0, 1024)
        self._whole("checkpoint_after_bytes", 1, 1 << 60)
        self._whole("buffer_bytes", 4096, 1 << 30)
        self._whole("max_entry_bytes", 1, MAX_ENTRY_BYTES)
        if self.max_log_bytes is not None:
            self._whole("max_log_bytes", 2 * self.segment_bytes, 1 << 60)
        version_info: object = self.version_info
        if not isinstance(version_info, bytes) or len(version_info) > MAX_VERSION_INFO_BYTES:
            raise ConfigurationError(f"version_info must be at most {MAX_VERSION_INFO_BYTES} bytes")
        if self.checksum not in ("crc32c", "crc32"):
            raise ConfigurationError(f"checksum must be 'crc32c' or 'crc32', not {self.checksum!r}")
        check_durability("durability", self.durability)
        self._seconds("sync_interval_s", 0.001)
        shared: object = self.shared
        if not isinstance(shared, bool):
            raise ConfigurationError(f"shared must be True or False, not {shared!r}")
        self._seconds("lock_timeout_s", 0.0)
        self._seconds("open_timeout_s", 0.001)
        self._seconds("append_timeout_s", 0.001)
        self._seconds("sync_timeout_s", 0.001)
        self._seconds("gather_s", 0.0)
        self._seconds("keep_s", 0.0)
        self._seconds("segment_timeout_s", 0.001)
        self._seconds("checkpoint_timeout_s", 0.001)
        self._seconds("checkpoint_retry_s", 0.0)
        self._seconds("close_timeout_s", 0.0)
        if self.idle_hint_s is not None:
            self._seconds("idle_hint_s", 0.001)

    def _whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigurationError(f"{name} must be a whole number from {low} to {high}, not {value!r}")

    def _seconds(self, name: str, low: float) -> None:
        value = getattr(self, name)
        # Python's locks wait at most some 292 years; a day is more than any of these waits needs.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= 86_400:
            raise ConfigurationError(f"{name} must be a number of seconds from {low} to 86400, not {value!r}")


def check_durability(name: str, value: object) -> None:
    """Refuse a level that is not known: nothing is to be less durable by a slip of the pen."""
    if value not in DURABILITY_LEVELS:
        raise ConfigurationError(f"{name} must be {' or '.join(map(repr, DURABILITY_LEVELS))}, not {value!r}")

"""The settings of the checkpointer. Nothing here does any work: a config is checked when it is made, and never changes.

Every wait and every bound of this layer is a field of `CheckpointConfig`, with its unit last in the name. A time of 0
means "do not wait"; nothing is unbounded except the number of retries, which is without end on purpose: a target that
is away for a day must not cost a transaction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from walsync.exceptions import ConfigurationError

__all__ = ["CheckpointConfig"]

_AT_LEAST_ONE = (
    "batch_changes",
    "batch_bytes",
    "max_backlog_bytes",
    "max_backlog_entries",
    "max_quarantine_entries",
    "max_quarantine_bytes",
)
_ABOVE_ZERO = (
    "retry_initial_s",
    "retry_max_s",
    "blocked_retry_s",
    "waited_retry_max_s",
    "log_every_s",
    "catalog_max_age_s",
    "standby_interval_s",
)
_NOT_NEGATIVE = (
    "batch_delay_s",
    "backlog_timeout_s",
    "target_lock_timeout_s",
    "check_timeout_s",
    "quarantine_timeout_s",
    "no_applier_timeout_s",
)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How entries are applied to the target. Raises `ConfigurationError` when a field is out of its range."""

    batch_changes: int = 1000
    """A batch is closed when it holds this many rows and statements. Entries are never split: a larger one is a batch
    of its own."""

    batch_bytes: int = 16 * 1024 * 1024
    """A batch is closed when its entries take this many bytes in the log, so that memory stays bounded."""

    batch_delay_s: float = 0.1
    """How long the first entry of a batch waits for company, in seconds. A waiting reader cuts it short."""

    retry_initial_s: float = 0.1
    """The first wait after a passing failure of the target, in seconds; it doubles with every further one."""

    retry_max_s: float = 300.0
    """The longest wait between two tries after a passing failure, in seconds."""

    retry_jitter: float = 1.0
    """The share of each wait that is random, 0 to 1. 1 is full jitter: anything from nothing to the whole wait, so that
    many processes do not come back to a recovering target in step."""

    waited_retry_max_s: float = 2.0
    """The longest wait between two tries while a reader or a full backlog waits for them, in seconds."""

    blocked_retry_s: float = 30.0
    """The wait between two tries while the target lacks something that somebody must provide, in seconds."""

    log_every_s: float = 30.0
    """While a failure lasts, a line in the log (logger ``walsync.checkpoint``) at most this often, in seconds."""

    max_backlog_bytes: int = 1024 * 1024 * 1024
    """The backlog in bytes at which commits begin to block. A warning is logged at 80 % of it."""

    max_backlog_entries: int = 10_000_000
    """The backlog in entries at which commits begin to block. A warning is logged at 80 % of it."""

    backlog_timeout_s: float = 30.0
    """How long a commit blocks at the bound of the backlog before it raises `BacklogFullError`, in seconds."""

    target_lock_timeout_s: float = 30.0
    """How long the checkpointer waits for a lock in the target, in seconds, where its connections do not say so
    themselves. PostgreSQL only (the others have bounds of their own). 0 leaves the server's setting."""

    check_timeout_s: float = 10.0
    """How long `check_watermark` waits for an answer of the target before it says "unreachable", in seconds."""

    reorder: bool = True
    """Changes of a batch are moved past each other, so that many become one statement, where keys, constraints and
    triggers of the target's tables say that this changes nothing. False: always one after the other."""

    catalog_max_age_s: float = 60.0
    """For how long what the target said of its tables (keys, constraints, triggers) is relied upon, in seconds. A
    trigger or a constraint that somebody adds may be disregarded by `reorder` for so long."""

    watermark_schema: str | None = None
    """The schema of the table ``walsync_checkpoint``; None is the connection's default schema."""

    on_reject: Literal["halt", "quarantine"] = "halt"
    """What becomes of an entry that the target refuses, where no listener of ``rejected`` says otherwise. ``"halt"``:
    the entries before it are applied, it and all after it are kept in the log, and commits go on until the backlog is
    full. ``"quarantine"``: it is kept in the directory ``quarantine`` of the log, with later entries that touch the
    same rows, and all others are applied."""

    max_quarantine_entries: int = 10_000
    """The entries that the quarantine holds; past it the checkpointer halts."""

    max_quarantine_bytes: int = 1024 * 1024 * 1024
    """The bytes that the quarantine holds; past it the checkpointer halts."""

    quarantine_timeout_s: float = 30.0
    """How long a change to the quarantine waits for another thread or process that is changing it, and how long a retry
    from the quarantine waits for a target that is away, in seconds."""

    paused: bool = False
    """Start paused: this process applies nothing before `resume()`."""

    standby_interval_s: float = 0.1
    """While another process applies: how often this one looks whether that has ended, to take over, in seconds."""

    external: bool = False
    """This process only writes: it never applies, and leaves that to `walsync apply` or another process."""

    no_applier_timeout_s: float = 30.0
    """With `external`: how long a wait goes on while no process applies, whatever its own time, in seconds."""

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"CheckpointConfig.{name} must be an int of at least 1, not {value!r}")
        for name in (*_ABOVE_ZERO, *_NOT_NEGATIVE):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigurationError(f"CheckpointConfig.{name} must be a finite number of seconds, not {value!r}")
            if value < 0 or (value == 0 and name in _ABOVE_ZERO):
                least = "above 0" if name in _ABOVE_ZERO else "0 or more"
                raise ConfigurationError(f"CheckpointConfig.{name} must be {least}, not {value!r}")
        if isinstance(self.retry_jitter, bool) or not isinstance(self.retry_jitter, (int, float)):
            raise ConfigurationError(f"CheckpointConfig.retry_jitter must be a number, not {self.retry_jitter!r}")
        if not 0 <= self.retry_jitter <= 1:
            raise ConfigurationError(f"CheckpointConfig.retry_jitter must lie in 0 to 1, not {self.retry_jitter!r}")
        if self.retry_initial_s > self.retry_max_s:
            raise ConfigurationError(
                f"CheckpointConfig.retry_initial_s ({self.retry_initial_s!r}) is above retry_max_s "
                f"({self.retry_max_s!r}); lower the first or raise the second"
            )
        if self.on_reject not in ("halt", "quarantine"):
            raise ConfigurationError(
                f"CheckpointConfig.on_reject must be 'halt' or 'quarantine', not {self.on_reject!r}; what else may "
                "become of an entry, a listener of 'rejected' can say"
            )
        if self.watermark_schema is not None and not isinstance(self.watermark_schema, str):
            raise ConfigurationError(
                f"CheckpointConfig.watermark_schema must be a str or None, not {self.watermark_schema!r}"
            )
        for name in ("reorder", "paused", "external"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"CheckpointConfig.{name} must be a bool, not {getattr(self, name)!r}")
        if self.external and self.paused:
            raise ConfigurationError("CheckpointConfig.external leaves nothing to pause; give either of them")

"""The settings of attached sessions."""

from __future__ import annotations

from dataclasses import dataclass

from walsync.exceptions import ConfigurationError

__all__ = ["SessionConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionConfig:
    """How attached sessions behave. Immutable; validated when made.

    `read_timeout_s`: how long a read, or a transaction on its way to the target, waits for entries to be applied before
    it raises `ReadTimeoutError`; in seconds, above 0.
    `drain_timeout_s`: how long `Journal.close()` waits for the backlog when it is not told otherwise; in seconds.
    `async_threads`: how many commits of asynchronous sessions are under way at once, and how many of their waits, each
    in a thread; others wait for their turn, within the same bounds. 1 to 1,000. Without meaning for synchronous
    sessions.
    `tracked_versions`: of how many rows with a `version_id_col` the last committed version is remembered, to find a
    conflict at the commit; of others it is found when the entry is applied. 0 to 10,000,000.
    """

    read_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    async_threads: int = 32
    tracked_versions: int = 100_000

    def __post_init__(self) -> None:
        if not 0 < self.read_timeout_s <= 86_400:
            raise ConfigurationError(f"read_timeout_s must be above 0 and at most 86,400, not {self.read_timeout_s}")
        if not 0 <= self.drain_timeout_s <= 86_400:
            raise ConfigurationError(f"drain_timeout_s must be from 0 to 86,400, not {self.drain_timeout_s}")
        if not 1 <= self.async_threads <= 1000:
            raise ConfigurationError(f"async_threads must be from 1 to 1,000, not {self.async_threads}")
        if not 0 <= self.tracked_versions <= 10_000_000:
            raise ConfigurationError(f"tracked_versions must be from 0 to 10,000,000, not {self.tracked_versions}")

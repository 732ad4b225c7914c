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
    """

    read_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.read_timeout_s <= 86_400:
            raise ConfigurationError(f"read_timeout_s must be above 0 and at most 86,400, not {self.read_timeout_s}")
        if not 0 <= self.drain_timeout_s <= 86_400:
            raise ConfigurationError(f"drain_timeout_s must be from 0 to 86,400, not {self.drain_timeout_s}")

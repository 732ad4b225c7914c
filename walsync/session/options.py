"""Execution options that say what statements mean, and that the log does not carry.

A `schema_translate_map` says which tables they are about; an isolation level, or that a transaction only reads, what
the database promises for them. A transaction that writes with one of these runs directly on the target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

__all__ = ["OPTIONS", "TRANSLATE", "meaning"]

OPTIONS: Final = "execution options"
"""Why a transaction becomes direct that writes with such options."""

TRANSLATE: Final = "schema_translate_map"


def meaning(options: Iterable[str], dialect: Any) -> frozenset[str]:
    """Those of these options, for a target of this dialect."""
    return frozenset(options) & {TRANSLATE, *dialect.connection_characteristics} - {"logging_token"}

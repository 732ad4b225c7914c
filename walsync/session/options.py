"""Execution options that say what statements mean, and that the log does not carry.

A `schema_translate_map` says which tables they are about; an isolation level, or that a transaction only reads, what
the database promises for them. A transaction that writes with one of these runs directly on the target. READ COMMITTED
and less promise nothing for what is written that a buffered transaction does not keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["OPTIONS", "TRANSLATE", "meaning"]

OPTIONS: Final = "execution options"
"""Why a transaction becomes direct that writes with such options."""

TRANSLATE: Final = "schema_translate_map"


_KEPT_ANYWAY: Final = ("READ COMMITTED", "READ UNCOMMITTED")


def meaning(options: Mapping[str, Any], dialect: Any) -> frozenset[str]:
    """The names of those of these options, for a target of this dialect."""
    names = frozenset(options) & {TRANSLATE, *dialect.connection_characteristics} - {"logging_token"}
    if str(options.get("isolation_level")).upper().replace("_", " ") in _KEPT_ANYWAY:
        names -= {"isolation_level"}
    return names

"""Variants of the target's dialect: the same dialect in all but a few settings.

A copy would not do: SQLAlchemy finishes a dialect when its engine connects for the first time (server version,
capabilities), perhaps long after `attach()`, and a copy made before would never hear of it. A variant shares the
original's attributes, whenever they are set, and overrides some of them on its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Dialect

__all__ = ["dialect_variant"]


def dialect_variant(dialect: Dialect, overrides: Mapping[str, Any]) -> Dialect:
    """A dialect that behaves like `dialect` but for these attributes, whose values are looked up at each access."""
    original = type(dialect)
    attributes: dict[str, Any] = {name: _override(overrides, name) for name in overrides}
    # SQLAlchemy asks the very class for this one, lest a subclass promises something unawares.
    attributes["supports_statement_cache"] = original.__dict__.get("supports_statement_cache", False)
    variant: Any = object.__new__(type(original.__name__, (original,), attributes))
    variant.__dict__ = dialect.__dict__
    made: Dialect = variant
    return made


def _override(overrides: Mapping[str, Any], name: str) -> property:
    def refuse(self: Any, value: Any) -> None:
        """What the dialect finds out about its server later does not concern an overridden attribute."""

    return property(lambda self: overrides[name], refuse)

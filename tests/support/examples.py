"""The modules of `examples/`, imported as the examples themselves import them: from their own folder."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from tests.support.processes import REPOSITORY

__all__ = ["EXAMPLES", "example_modules"]

EXAMPLES = REPOSITORY / "examples"


def example_modules(*names: str) -> list[ModuleType]:
    """The modules of these names."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(EXAMPLES))

"""An Engine for the same database with connections of its own.

What walsync does in the background (reserving keys, applying entries) must not compete for the pool with readers that
hold a connection while they wait for exactly that work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool

__all__ = ["private_engine"]


class _PrivateEngine(OptionEngine):
    """An option engine shares its parent's dialect, events and options; this one has a pool of its own."""

    def __init__(self, parent: Engine) -> None:
        self._private_pool = parent.pool.recreate()
        super().__init__(parent, {})

    if not TYPE_CHECKING:
        # OptionEngine's own property passes both on to the parent.
        @property
        def pool(self) -> Pool:
            return self._private_pool

        @pool.setter
        def pool(self, pool: Pool) -> None:
            self._private_pool = pool


def private_engine(target: Engine) -> Engine:
    """An Engine like `target`, with its own pool; the same one where a pool of its own would mean another database.

    An in-memory SQLite database lives in its connection (`StaticPool`, `SingletonThreadPool`), so there the target
    itself is returned. Engine and pool events of the target go on to apply. The caller disposes of it.
    """
    if isinstance(target.pool, (StaticPool, SingletonThreadPool)):
        return target
    return _PrivateEngine(target)

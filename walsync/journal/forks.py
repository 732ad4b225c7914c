"""What is made anew in a forked child: everything above the log that has locks, threads or connections.

A child has a copy of its parent's memory, of one thread of it, and of its locks as they were at that moment, perhaps
held by threads that the child does not have. So whatever has locks registers itself here, and in a child makes new ones
before anybody else runs. Nothing is started there: that is done at the first use.

The log takes care of itself, before (its module is imported first, so its hook runs first). Nothing that is called in a
child takes a lock or does I/O.

SQLite needs more. It keeps in memory, by file, which locks the connections of this process have, and a child inherits
that: what another thread of the parent has locked at the moment of the fork is locked for the child for ever, and a
file that the parent has open can be removed under the child's hands when the parent closes it. So before a fork the
connections to a SQLite target are closed: walsync's own, when their transactions have ended, and those that lie in the
application's pool. What the application's threads use in that moment is the application's own business. The
connections of an asynchronous driver have threads and event loops, which no child has: they are not closed, and a
program that goes on with them forks before it uses them.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import Final, Protocol

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool, QueuePool, StaticPool

import walsync.wal  # noqa: F401  Its hook must be there first.

__all__ = ["ForkAware", "close_before_fork", "leave_to_parent", "renew_in_child"]

_logger: Final = logging.getLogger("walsync")


class ForkAware(Protocol):
    """Something that cannot be used in a child as it is."""

    def forget_parent(self) -> None:
        """In a child, in its only thread: new locks, and nothing left of threads and connections."""


_objects: Final[weakref.WeakSet[ForkAware]] = weakref.WeakSet()
_parents_pools: Final[list[Pool]] = []
"""Kept, in a child, so that no connection in them is closed there: the other end would end the parent's session."""


def renew_in_child(thing: ForkAware) -> None:
    """Call `thing.forget_parent()` in each forked child. Holds no reference to it."""
    _objects.add(thing)


def leave_to_parent(engine: Engine) -> None:
    """Give an engine a new, empty pool; the connections stay the parent's. For use in a child."""
    if isinstance(engine.pool, StaticPool):
        # Its one connection is the database itself: the child goes on with its copy of that.
        return
    _parents_pools.append(engine.pool)
    engine.dispose(close=False)


# -------------------------------------------------------------------------------------------------------- SQLite

QUIET_TIMEOUT_S: Final = 10.0
"""How long a fork waits for walsync's own transactions on a SQLite target, and these for a fork."""


class _Gate:
    """Lets uses of connections in, or a fork. Its lock is held for moments; nothing is called under it."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking, QUIET_TIMEOUT_S)
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside = max(0, self._inside - 1)
            self._changed.notify_all()

    def close(self) -> bool:
        """Nobody is let in any more. Whether everybody has left in time."""
        with self._changed:
            self._forking = True
            return self._changed.wait_for(lambda: not self._inside, QUIET_TIMEOUT_S)

    def open(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()


_gate = _Gate()
_sqlite_engines: Final[weakref.WeakSet[Engine]] = weakref.WeakSet()


def close_before_fork(engine: Engine, *, own: bool) -> None:
    """Close the idle connections of this engine before each fork, if it is SQLite's; if `own`, wait for its uses."""
    if engine.dialect.name != "sqlite" or engine.dialect.is_async or not isinstance(engine.pool, QueuePool):
        return
    _sqlite_engines.add(engine)
    if own:
        event.listen(engine.pool, "checkout", lambda *_: _gate.enter())
        event.listen(engine.pool, "checkin", lambda *_: _gate.leave())


def _before() -> None:
    engines = list(_sqlite_engines)
    if not engines:
        return
    if not _gate.close():
        _logger.warning(
            "this process forks while a transaction of walsync's on the SQLite target goes on since %g s; the child "
            "may find the database locked",
            QUIET_TIMEOUT_S,
        )
    for engine in engines:
        try:
            engine.dispose()
        except Exception:
            # Listeners of "close" and "engine_disposed" may raise anything.
            _logger.exception("connections of %r could not be closed before a fork", engine)


def _in_parent() -> None:
    _gate.open()


def _in_child() -> None:
    global _gate  # noqa: PLW0603 - one for the process
    _gate = _Gate()
    for thing in list(_objects):
        try:
            thing.forget_parent()
        except Exception:
            # Listeners of "engine_disposed" may raise anything; the others must be renewed all the same.
            _logger.exception("%r could not be renewed after a fork", thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)

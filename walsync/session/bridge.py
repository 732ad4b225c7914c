"""Between coroutines and what blocks: an asynchronous session waits in threads, and its event loop goes on.

An `AsyncSession` is a `Session` that runs in a greenlet of SQLAlchemy's. So everything that walsync does for a session
is written once, as for a synchronous one, and where it comes to something that blocks (a sync of the disk, a wait for
the checkpointer, keys from the target) it hands that to a thread, while the greenlet awaits the end of it.

There are two sets of threads: one for commits, so that these go on while all of the other are waiting for a target that
is away. A function that finds no free thread waits for one, and that time counts against the bound of its own wait.

Cancellation. Who only waits (a read, a key) is let go at once; the thread's wait ends by itself within its bound. A
commit is not torn out of its sync: if it has not begun it is given up and nothing is written; if it has, its end is
awaited first, and the cancellation is handed to the caller together with the outcome.

Invariants: nothing that runs here touches a session; no lock is held across a hop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from walsync.exceptions import LogClosedError
from walsync.journal import renew_in_child

__all__ = ["Bridge", "await_in_thread"]

_T = TypeVar("_T")


class Bridge:
    """The threads of one journal. Started when they are needed; none if `is_async` is False. Thread-safe."""

    def __init__(self, threads: int, *, is_async: bool) -> None:
        self._threads: Final = threads
        self.is_async: Final = is_async
        """Whether a caller may run in a greenlet over an event loop at all."""
        self._commits: ThreadPoolExecutor | None = None
        self._waits: ThreadPoolExecutor | None = None
        self._closed = False
        self.forget_parent()
        renew_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: the threads are the parent's."""
        self._lock = threading.Lock()  # guards the two sets of threads and _closed; nothing is waited for under it
        self._commits = self._waits = None

    @property
    def is_needed(self) -> bool:
        """Whether the caller runs in a greenlet over an event loop, which must not be blocked."""
        if not self.is_async:
            return False
        from sqlalchemy.util.concurrency import in_greenlet  # greenlet need not be installed for other targets

        return in_greenlet()

    def wait(self, function: Callable[[], _T], /) -> _T:
        """What `function` returns or raises; it runs in a thread if that `is_needed`, else here.

        When the task is cancelled the function is left to itself.
        """
        if not self.is_needed:
            return function()
        from sqlalchemy.util.concurrency import await_only

        return await_only(asyncio.wrap_future(self._submit(function, commits=False)))

    def finish(self, function: Callable[[], _T], /) -> tuple[_T, asyncio.CancelledError | None]:
        """Runs `function` in a thread, to its end if it has begun. To be called where that `is_needed`.

        Returns what it returns, and the cancellation that was held back meanwhile, which is the caller's to raise.
        Raises what it raises; and the cancellation itself if the function was not begun, or failed.
        """
        from sqlalchemy.util.concurrency import await_only

        return await_only(_finished(self._submit(function, commits=True)))

    def close(self) -> None:
        """Nothing is begun any more. What was begun ends by itself; its threads end then."""
        with self._lock:
            self._closed = True
            pools = [pool for pool in (self._commits, self._waits) if pool is not None]
        for pool in pools:
            pool.shutdown(wait=False)

    def _submit(self, function: Callable[[], _T], *, commits: bool) -> Future[_T]:
        with self._lock:
            if self._closed:
                raise LogClosedError("the journal of this session was closed; roll back, and use a session of its own")
            if commits:
                if self._commits is None:
                    self._commits = ThreadPoolExecutor(self._threads, "walsync-commit")
                return self._commits.submit(function)
            if self._waits is None:
                self._waits = ThreadPoolExecutor(self._threads, "walsync-wait")
            return self._waits.submit(function)


async def _finished(job: Future[_T]) -> tuple[_T, asyncio.CancelledError | None]:
    future = asyncio.wrap_future(job)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # Unlike awaiting the future itself, this leaves it alone when the task is cancelled.
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if job.cancel():
                raise
    if cancelled is not None and (failure := future.exception()) is not None:
        raise cancelled from failure
    return future.result(), cancelled


async def await_in_thread(function: Callable[[], _T], name: str) -> _T:
    """Await a function that blocks, in a thread of its own. It goes on to its end when the task is cancelled."""
    pool = ThreadPoolExecutor(1, name)
    try:
        return await asyncio.wrap_future(pool.submit(function))
    finally:
        pool.shutdown(wait=False)

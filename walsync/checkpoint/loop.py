"""An asynchronous target, used by threads: an event loop of the checkpointer's own.

The connections of an asynchronous driver belong to the event loop that made them, and the application's loop may be
busy, closed or not there yet when entries are to be applied. So the checkpointer has a loop in a thread of its own, and
what it does with the target (a transaction, a question) is a function that runs there, in a greenlet of SQLAlchemy's.
It is the same function that runs in the calling thread where the driver is a synchronous one: nothing is written
twice, and no second driver is needed.

Invariants: what runs on the loop is on its way to the target or back; nothing waits there for the log, for orders or
for another thread. The thread is started at the first use, also in a forked child.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from walsync.exceptions import TargetUnavailableError
from walsync.journal import renew_in_child

__all__ = ["TargetLoop"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_T = TypeVar("_T")

_END_TIMEOUT_S: Final = 5.0
"""How long stopping waits for the calls that it interrupts, and then for the thread."""


class TargetLoop:
    """Runs functions on an event loop of its own, while their callers wait. Thread-safe."""

    def __init__(self) -> None:
        self.forget_parent()
        renew_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: the thread is the parent's, and so is the loop."""
        self._lock = threading.Lock()  # guards the two below; held for a thread's start, and no longer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was used, and not stopped since."""
        return self._loop is not None

    def run(self, function: Callable[[], _T]) -> _T:
        """What `function` returns or raises. It may use asynchronous connections as if they were synchronous ones.

        Blocks for as long as it takes; raises `TargetUnavailableError` when the loop is stopped in between.
        """
        if threading.current_thread() is self._thread:
            # Called by something that runs here already.
            return function()
        job = asyncio.run_coroutine_threadsafe(_call(function), self._started())
        try:
            value, ended = job.result()
        except concurrent.futures.CancelledError as error:
            raise TargetUnavailableError("the checkpointer was stopped during a call to the target") from error
        except asyncio.TimeoutError as error:
            if isinstance(error, OSError):
                raise
            # Before Python 3.11 it is not the built-in one.
            raise TimeoutError(*error.args) from error
        if ended is not None:
            raise ended
        return value  # type: ignore[return-value]

    def stop(self) -> None:
        """Interrupts what runs on the loop, and ends its thread. A later `run` starts it again."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(lambda: loop.create_task(_end()))
        if thread is not threading.current_thread():
            thread.join(2 * _END_TIMEOUT_S)
            if thread.is_alive():
                _logger.warning("the target's driver holds up the end of its event loop; the thread is left to itself")

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="walsync-target-loop", daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _call(function: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
    """What it returns, and what it ends the caller's thread with, which must not end the loop."""
    from sqlalchemy.util.concurrency import greenlet_spawn  # greenlet need not be installed for other targets

    try:
        return await greenlet_spawn(function), None
    except (KeyboardInterrupt, SystemExit) as error:
        return None, error


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_END_TIMEOUT_S)
    asyncio.get_running_loop().stop()

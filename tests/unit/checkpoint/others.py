"""Other processes that have a log open, played in this one: each has a control of its own, and they share one lease."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from walsync.wal import WriteAheadLog
from walsync.wal.control import LogControl

__all__ = ["Machine"]


class _Lease:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def held(self) -> bool:
        return self._machine.holder is self

    def try_acquire(self) -> bool:
        if self._machine.holder is None:
            self._machine.holder = self
        return self.held

    def release(self) -> None:
        if self.held:
            self._machine.holder = None

    def forget_in_child(self) -> None:
        raise AssertionError("nobody forks here")


class Machine:
    """One log, and as many "processes" as `process()` is called: what each gets behaves as the log does there."""

    def __init__(self, log: WriteAheadLog) -> None:
        self.log = log
        self.holder: _Lease | None = None

    def process(self) -> Any:
        """The log, as another process has it."""
        return _Process(self)

    def kill_the_applier(self) -> None:
        """What the system does when a process dies."""
        self.holder = None


class _Process:
    def __init__(self, machine: Machine) -> None:
        log = machine.log
        self._log = log
        self.control = LogControl(
            log.control._words,
            shared=True,
            lease=_Lease(machine),
            last_id=lambda: log.last_id,
            stamp=lambda: log.last_id,
            released_id=lambda: log.checkpointed_id,
            exclusive=nullcontext,
            ring=log.wake,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

"""What goes wrong, and when: the plan of a `FaultyStorage`.

Owns the plan only. A fault counts the operations that it is about, whoever does them, and is used up by one storage.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable

from walsync.exceptions import ConfigurationError
from walsync.testing.operations import Operation, OperationKind

__all__ = ["Fault", "FaultAction"]


class FaultAction(enum.Enum):
    """What happens in place of the operation."""

    ERROR = "error"
    """It raises an `OSError` and has done nothing. Of a sync, what was to be synced may be lost."""

    TORN_ERROR = "torn error"
    """A write of which the first half was done raises; any other operation as with `ERROR`."""

    SHORT = "short"
    """A read or a write stops half way and says so, without an error; any other operation is done."""

    CRASH = "crash"
    """`SimulatedCrash`, now and from every operation after it."""


class Fault:
    """What happens to the operations from the `at`-th on, `times` of them (None: all).

    Only those of some `kinds` (None: all) on files whose name begins with `name` are counted.
    """

    def __init__(
        self,
        action: FaultAction,
        *,
        at: int = 1,
        times: int | None = 1,
        kinds: OperationKind | Iterable[OperationKind] | None = None,
        name: str = "",
        error: int = errno.EIO,
    ) -> None:
        if at < 1 or (times is not None and times < 1):
            raise ConfigurationError(
                f"a fault is at the first operation or later, and happens at least once, not {at}, {times}"
            )
        self.action = action
        self.at = at
        self.times = times
        self.kinds = frozenset((kinds,) if isinstance(kinds, OperationKind) else kinds) if kinds is not None else None
        self.name = name
        self.error = error
        self.seen = 0
        """How many operations that it is about there were."""
        self.happened = 0
        """How many of them it has changed."""

    @classmethod
    def io_error(
        cls,
        at: int = 1,
        *,
        times: int | None = 1,
        kinds: OperationKind | Iterable[OperationKind] | None = None,
        name: str = "",
    ) -> Fault:
        """The disk fails: EIO."""
        return cls(FaultAction.ERROR, at=at, times=times, kinds=kinds, name=name, error=errno.EIO)

    @classmethod
    def disk_full(cls, at: int = 1, *, times: int | None = None, name: str = "") -> Fault:
        """Writes and new files raise ENOSPC, by default until the fault is taken out."""
        kinds = (OperationKind.WRITE, OperationKind.CREATE, OperationKind.MAKE_DIRECTORY, OperationKind.RENAME)
        return cls(FaultAction.TORN_ERROR, at=at, times=times, kinds=kinds, name=name, error=errno.ENOSPC)

    @classmethod
    def short_write(cls, at: int = 1, *, times: int | None = 1, name: str = "") -> Fault:
        """A write stops half way, without an error."""
        return cls(FaultAction.SHORT, at=at, times=times, kinds=OperationKind.WRITE, name=name)

    @classmethod
    def crash(
        cls, at: int = 1, *, kinds: OperationKind | Iterable[OperationKind] | None = None, name: str = ""
    ) -> Fault:
        """The process ends in this operation, before it is done."""
        return cls(FaultAction.CRASH, at=at, times=None, kinds=kinds, name=name)

    def strikes(self, operation: Operation) -> bool:
        """Count `operation` if this fault is about it, and say whether it happens now."""
        if self.kinds is not None and operation.kind not in self.kinds:
            return False
        if not operation.name.startswith(self.name):
            return False
        self.seen += 1
        if self.seen < self.at or (self.times is not None and self.seen >= self.at + self.times):
            return False
        self.happened += 1
        return True

    def __repr__(self) -> str:
        kinds = "any operation" if self.kinds is None else ", ".join(sorted(kind.value for kind in self.kinds))
        times = "for ever" if self.times is None else f"{self.times} times"
        error = errno.errorcode.get(self.error, str(self.error))
        return f"<Fault {self.action.value} {error} at {self.at} of {kinds}, {times}>"

"""Storages for tests: a disk that loses power, and one that fails. For walsync's own tests and for those of its users.

    operations          the words: kinds of operations, `SimulatedCrash`
    contents, names     what a simulated disk has of a file's bytes, and of names, and what is not synced of them
    survival            what a crash leaves of it
    simulated           `SimulatedStorage`
    faults, faulty      the plan of what goes wrong; `FaultyStorage`

Both may be passed to `WriteAheadLog.recover` in place of a directory. Never used by the log itself.
"""

from __future__ import annotations

from walsync.testing.faults import Fault, FaultAction
from walsync.testing.faulty import FaultyStorage
from walsync.testing.operations import CHANGES, Operation, OperationKind, SimulatedCrash
from walsync.testing.simulated import SimulatedStorage
from walsync.testing.survival import Survival

__all__ = [
    "CHANGES",
    "Fault",
    "FaultAction",
    "FaultyStorage",
    "Operation",
    "OperationKind",
    "SimulatedCrash",
    "SimulatedStorage",
    "Survival",
]

"""From the log to the target: entries are applied in batches, exactly once, in commit order.

- `checkpointer`: `SQLAlchemyCheckpointer`, what the other layers and users see.
- `applier`: the thread; what a failure leads to. `waits`: how long. `progress`: what it shares with everybody else.
- `lease`: whose turn it is, of all processes. `elsewhere`: waiting for what another one applies. `stuck`: what waiters
  are told when nobody gets there.
- `transaction`: one transaction of the target. `watermark`: the row that makes it exactly-once.
- `apply`, `statements`, `multirow`: from recorded changes to what a driver executes; also used by sessions that go on
  directly.
- `quarantine`: entries that the target refuses, kept until somebody decides.
- `failures`: whose fault an error of the target is, as tables.
- `engine`: the checkpointer's own pool. `loop`: its event loop, for an asynchronous target.
- `asking`: whether log and target fit. `batch`, `backlog`: the bounds.
- `config`, `status`, `events`: the words.

This layer never writes to the log; it reads entries and tells the log what may be released.
"""

from walsync.checkpoint.apply import apply_changes
from walsync.checkpoint.checkpointer import SQLAlchemyCheckpointer
from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.events import SKIP, EventSource, Verdict, WalsyncEvents
from walsync.checkpoint.failures import Failure, FailureKind, classify, register_failure
from walsync.checkpoint.quarantine import Quarantine, QuarantinedEntry, QuarantineRetry
from walsync.checkpoint.status import CheckpointState, CheckpointStatus

__all__ = [
    "SKIP",
    "CheckpointConfig",
    "CheckpointState",
    "CheckpointStatus",
    "EventSource",
    "Failure",
    "FailureKind",
    "Quarantine",
    "QuarantineRetry",
    "QuarantinedEntry",
    "SQLAlchemyCheckpointer",
    "Verdict",
    "WalsyncEvents",
    "apply_changes",
    "classify",
    "register_failure",
]

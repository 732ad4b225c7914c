"""What somebody who waits for entries is told when the checkpointer cannot get there by itself. Pure.

The same words and the same errors, whether it is this process's checkpointer that is stuck or another one's, of which
no more is known than the report that it wrote (`walsync.checkpoint.status_file`).
"""

from __future__ import annotations

from walsync.checkpoint.failures import describe_error
from walsync.checkpoint.status import CheckpointState
from walsync.exceptions import (
    CheckpointFailedError,
    EntryRejectedError,
    QuarantineFullError,
    TargetBlockedError,
    UsageError,
    WalsyncError,
    WatermarkGapError,
)

__all__ = ["error_of", "pending", "raise_if_stuck"]

_HALTING: tuple[type[WalsyncError], ...] = (EntryRejectedError, QuarantineFullError, WatermarkGapError)


def pending(applied_id: int, through: int) -> str:
    """ "entries 4 to 9 are not applied"."""
    first = applied_id + 1
    return (f"entry {first} is" if first >= through else f"entries {first} to {through} are") + " not applied"


def error_of(type_name: str | None, words: str) -> BaseException:
    """What another process's checkpointer halted with, as far as it said so."""
    for kind in _HALTING:
        if kind.__name__ == type_name:
            return kind(words)
    return WalsyncError(words)


def raise_if_stuck(
    unapplied: str, state: CheckpointState, error: BaseException | None, entry_id: int | None, where: str = ""
) -> None:
    """Raises what follows from a state in which nothing is applied; from any other, nothing follows.

    `unapplied` says what is waited for, as `pending` does; `where` which process is meant, if not this one.
    """
    words = "" if error is None else describe_error(error)
    if state == "blocked":
        lacks = "the target lacks something: "
        culprit = lacks if entry_id is None else f"entry {entry_id} cannot be applied, {lacks}"
        raise TargetBlockedError(
            f"{unapplied}{where}: {culprit}{words}. It is tried again by itself; what was committed is safe in the log"
        ) from error
    if state == "halted":
        if isinstance(error, WatermarkGapError):
            raise WatermarkGapError(f"{unapplied}{where}: {error}") from error
        if isinstance(error, QuarantineFullError):
            raise QuarantineFullError(f"{unapplied}{where}: {error}") from error
        if isinstance(error, EntryRejectedError):
            raise EntryRejectedError(f"{unapplied}{where}: {error}", entry_id) from error
        raise CheckpointFailedError(f"{unapplied}{where}, the checkpointer has halted: {words}") from error
    if state == "failed":
        raise CheckpointFailedError(
            f"{unapplied}: the checkpointer's thread has ended: {words}. What was committed is safe in the log; mend "
            "the cause and open the log anew"
        ) from error
    if state == "stopped":
        raise UsageError(f"{unapplied}, and the checkpointer is not running; what was committed is safe in the log")

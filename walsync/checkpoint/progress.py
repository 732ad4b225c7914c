"""What the checkpointer's thread and everybody else share: its state, how far it is, and what it was told.

One lock guards all of it, with one condition on which both sides wait: callers for progress, the thread for orders.

Lock: `Progress._condition` guards every field that begins with an underscore. Nothing is called with it held except
`notify_all` and the setting of `state_changed`: no I/O, no listener, no other lock. `applied_id` is read without it: an
int, replaced as a whole, that only grows.

A caller's wait ends when what it waits for has happened, when its time is over, or at once when the thread cannot get
there by itself (blocked, halted, failed, stopped): nobody waits for something that will not come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from walsync.checkpoint.failures import FailureKind, describe_error
from walsync.checkpoint.rates import RateMeter
from walsync.checkpoint.status import CheckpointState, CheckpointStatus
from walsync.exceptions import (
    ApplyTimeoutError,
    CheckpointFailedError,
    EntryRejectedError,
    QuarantineFullError,
    TargetBlockedError,
    UsageError,
    WatermarkGapError,
)
from walsync.wal import EntryId

__all__ = ["Progress"]

_NEVER: Final = EntryId(0)


class Progress:
    """The shared state of a checkpointer. Thread-safe."""

    def __init__(self, *, paused: bool) -> None:
        self._condition = threading.Condition(threading.Lock())
        self.applied_id = _NEVER
        self.state_changed: Final = threading.Event()
        """Set when the state changes, for one who watches it from outside and clears it."""
        self._state: CheckpointState = "stopped"
        self._since = time.time()
        self._error: BaseException | None = None
        self._error_kind: FailureKind | None = None
        self._rejected_entry_id: int | None = None
        self._failures = 0
        self._next_retry: float | None = None
        self._applied_entries = 0
        self._applied_rate = RateMeter()
        self._applied_changes = 0
        self._batches = 0
        self._last_applied_at: float | None = None
        self._replay_pending = False
        self._quarantined_entries = 0
        # Orders.
        self._started = False
        self._paused = paused
        self._stop = False
        self._retry_now = False
        self._urgent_id = _NEVER
        self._waiting = 0

    # ------------------------------------------------------------------------------------- for the callers

    def status(self) -> CheckpointStatus:
        """The picture of this moment."""
        with self._condition:
            return CheckpointStatus(
                state=self._state,
                since=self._since,
                applied_id=self.applied_id,
                last_error=None if self._error is None else describe_error(self._error),
                last_error_kind=self._error_kind,
                next_retry_s=None if self._next_retry is None else max(0.0, self._next_retry - time.monotonic()),
                rejected_entry_id=self._rejected_entry_id,
                failures=self._failures,
                replay_pending=self._replay_pending,
                applied_entries=self._applied_entries,
                applied_per_s=self._applied_rate.per_second(),
                applied_changes=self._applied_changes,
                batches=self._batches,
                last_applied_at=self._last_applied_at,
                quarantined_entries=self._quarantined_entries,
            )

    @property
    def state(self) -> CheckpointState:
        """The state alone, without the lock: a str, replaced as a whole."""
        return self._state

    def raise_if_failed(self) -> None:
        """Raises `CheckpointFailedError` if the thread has died. One attribute read when it has not."""
        if self._state == "failed":
            with self._condition:
                error = self._error
            raise CheckpointFailedError(
                "the checkpointer's thread has ended, and nothing is applied any more: "
                f"{describe_error(error) if error is not None else 'unknown'}. Committed entries are safe in the log; "
                "mend the cause and open the log anew"
            ) from error

    def wait_applied(self, through: int, timeout: float | None) -> None:
        """See `SQLAlchemyCheckpointer.wait_applied`."""
        if self.applied_id >= through:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            self._urgent_id = EntryId(max(self._urgent_id, through))
            self._waiting += 1
            self._condition.notify_all()
            try:
                while self.applied_id < through:
                    self._raise_if_stuck(through)
                    remaining = None if deadline is None else deadline - time.monotonic()
                    if remaining is not None and remaining <= 0:
                        raise ApplyTimeoutError(self._late(through, timeout))
                    self._condition.wait(remaining)
            finally:
                self._waiting -= 1

    def wait_until(self, condition: Callable[[], bool], timeout: float, *, urgent: bool = True) -> bool:
        """Waits until `condition` holds, looked at after every step of the thread; False if it does not in time.

        Ends early, with False, when the thread cannot go on by itself. `condition` is called with the lock held and may
        only look at attributes.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            self._waiting += urgent
            self._condition.notify_all()
            try:
                while not condition():
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or self._state in ("failed", "stopped"):
                        return False
                    self._condition.wait(remaining)
            finally:
                self._waiting -= urgent
        return True

    def wait_drained(self, through: int, timeout: float) -> bool:
        """Waits until the entries up to `through` are applied, or the thread does not get there by itself."""
        deadline = time.monotonic() + timeout
        with self._condition:
            self._urgent_id = EntryId(max(self._urgent_id, through))
            self._waiting += 1
            self._condition.notify_all()
            try:
                while self.applied_id < through:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or self._state in ("blocked", "halted", "failed", "stopped", "paused"):
                        return False
                    self._condition.wait(remaining)
            finally:
                self._waiting -= 1
        return True

    def _raise_if_stuck(self, through: int) -> None:
        """With the lock held: raises what a waiting caller has to know."""
        error = self._error
        words = "" if error is None else describe_error(error)
        pending = f"{self._pending(through)} not applied"
        if self._state == "blocked":
            raise TargetBlockedError(
                f"{pending}: {self._blocked_by()}{words}. It is tried again by itself; what was committed is "
                "safe in the log"
            ) from error
        if self._state == "halted":
            if isinstance(error, WatermarkGapError):
                raise WatermarkGapError(f"{pending}: {error}") from error
            if isinstance(error, QuarantineFullError):
                raise QuarantineFullError(f"{pending}: {error}") from error
            if isinstance(error, EntryRejectedError):
                raise EntryRejectedError(f"{pending}: {error}", self._rejected_entry_id) from error
            raise CheckpointFailedError(f"{pending}, the checkpointer has halted: {words}") from error
        if self._state == "failed":
            raise CheckpointFailedError(
                f"{pending}: the checkpointer's thread has ended: {words}. What was committed is safe in the log; mend "
                "the cause and open the log anew"
            ) from error
        if self._state == "stopped":
            raise UsageError(f"{pending}, and the checkpointer is not running; what was committed is safe in the log")

    def _blocked_by(self) -> str:
        if self._rejected_entry_id is None:
            return "the target lacks something: "
        return f"entry {self._rejected_entry_id} cannot be applied, the target lacks something: "

    def _late(self, through: int, timeout: float | None) -> str:
        state = self._state
        why = f"the checkpointer is {state}"
        if self._error is not None:
            why += f" ({describe_error(self._error)})"
        return (
            f"{self._pending(through)} not applied, and {timeout} s have passed; {why}. Nothing is lost: what was "
            "committed is safe in the log"
        )

    def _pending(self, through: int) -> str:
        first = self.applied_id + 1
        return f"entry {first} is" if first == through else f"entries {first} to {through} are"

    def order(
        self, *, pause: bool | None = None, retry: bool = False, stop: bool = False, urge_through: int = 0
    ) -> None:
        """Tells the thread what to do. Returns at once."""
        with self._condition:
            if pause is not None:
                self._paused = pause
            if retry and self._state in ("retrying", "blocked", "halted"):
                # At once, and not when the thread wakes: who waits from now on waits for the new try.
                self._retry_now = True
                self._failures = 0
                self._enter("running")
            self._stop |= stop
            self._urgent_id = EntryId(max(self._urgent_id, urge_through))
            self._condition.notify_all()

    # -------------------------------------------------------------------------------------- for the thread

    def begin(self, replay_pending: bool) -> None:
        """The thread is about to run. Raises `UsageError` if one did already."""
        with self._condition:
            if self._started:
                raise UsageError("this checkpointer has been started before; make a new one for each opening of a log")
            self._started = True
            self._replay_pending = replay_pending
            self._enter("paused" if self._paused else "running")

    @property
    def started(self) -> bool:
        return self._started

    @property
    def stopping(self) -> bool:
        """Without the lock: a bool that only becomes True."""
        return self._stop

    @property
    def interrupted(self) -> bool:
        """The thread should look at its orders before it goes on."""
        return self._stop or self._paused

    @property
    def waited_for(self) -> bool:
        """Somebody waits in this moment."""
        return self._waiting > 0

    def urgent(self, after: int) -> bool:
        """Somebody wants entries after this one without delay."""
        return self._urgent_id > after

    def hold(self) -> bool:
        """Waits while paused; False when the thread shall end."""
        with self._condition:
            if self._paused and not self._stop:
                self._enter("paused")
                self._condition.wait_for(lambda: self._stop or not self._paused)
                if not self.stopping:
                    self._enter("running")
            return not self.stopping

    def linger(self, seconds: float, after: int) -> bool:
        """Waits this long for company; False as soon as somebody is in a hurry or there are orders."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while not (self._stop or self._paused or self._urgent_id > after):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return True
                self._condition.wait(remaining)
        return False

    def wait_interrupted(self) -> None:
        """Waits for an order: there is nothing else to wait for."""
        with self._condition:
            self._condition.wait_for(lambda: self._stop or self._paused)

    def advance(self, through: EntryId, entries: int, changes: int) -> None:
        """Entries up to `through` are in the target: tells it to everybody who waits."""
        with self._condition:
            self.applied_id = EntryId(max(self.applied_id, through))
            if entries:
                self._applied_entries += entries
                self._applied_rate.note(self._applied_entries)
                self._applied_changes += changes
                self._batches += 1
                self._last_applied_at = time.time()
            self._condition.notify_all()

    def quarantined(self, entries: int) -> None:
        """So many entries are in the quarantine."""
        with self._condition:
            self._quarantined_entries = entries

    def recovered(self) -> None:
        with self._condition:
            self._replay_pending = False

    def well(self) -> None:
        """The target does what it shall: forgets the failure that lasted."""
        if self._error is None and self._state == "running":
            return
        with self._condition:
            self._error = self._error_kind = self._rejected_entry_id = None
            self._failures = 0
            if not self._paused:
                self._enter("running")

    def troubled(
        self, state: CheckpointState, error: BaseException, kind: FailureKind | None, entry_id: int | None
    ) -> int:
        """A failure: the state that it leads to. Returns how many there were in a row."""
        with self._condition:
            self._error = error
            self._error_kind = kind
            self._rejected_entry_id = entry_id
            self._failures += 1
            self._retry_now = False
            self._enter(state)
            return self._failures

    def wait_retry(self, seconds: float | None, waited_seconds: float) -> None:
        """Waits before the next try, at most `waited_seconds` while somebody waits; None waits for `resume()` alone.

        Ends at once on orders.
        """
        started = time.monotonic()
        with self._condition:
            while not (self._stop or self._retry_now):
                if seconds is None:
                    self._condition.wait()
                    continue
                if self._paused:
                    break
                bound = min(seconds, waited_seconds) if self._waiting else seconds
                self._next_retry = started + bound
                remaining = self._next_retry - time.monotonic()
                if remaining <= 0:
                    break
                self._condition.wait(remaining)
            self._next_retry = None
            self._retry_now = False

    def end(self, error: BaseException | None) -> None:
        """The thread is over, by order (None) or by a fault."""
        with self._condition:
            if error is not None:
                self._error = error
                self._error_kind = None
                self._enter("failed")
            else:
                self._enter("stopped")

    def _enter(self, state: CheckpointState) -> None:
        """With the lock held."""
        if state != self._state:
            self._state = state
            self._since = time.time()
            self.state_changed.set()
        self._condition.notify_all()

"""What the checkpointer's thread and everybody else in this process share: its state, and what it was told.

One lock guards all of it, with one condition on which both sides wait: callers for progress, the thread for orders. How
far entries are applied is the log's to say (`LogControl.applied_id`), for all processes.

Lock: `Progress._condition` guards every field that begins with an underscore. Nothing is called with it held except
`notify_all`, the setting of `state_changed`, and what reads a word of the log: no I/O, no listener, no other lock.

A caller's wait ends when what it waits for has happened, when its time is over, or at once when the thread cannot get
there by itself (blocked, halted, failed, stopped): nobody waits for something that will not come. Where the thread
stands by, because another process applies, callers wait in `walsync.checkpoint.elsewhere`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from walsync.checkpoint.failures import FailureKind, describe_error
from walsync.checkpoint.rates import RateMeter
from walsync.checkpoint.status import CheckpointState, CheckpointStatus
from walsync.checkpoint.stuck import pending, raise_if_stuck
from walsync.exceptions import ApplyTimeoutError, CheckpointFailedError, UsageError
from walsync.wal import EntryId
from walsync.wal.control import LogControl

__all__ = ["Progress"]

_NEVER: Final = EntryId(0)

_URGE_LOOK_S: Final = 0.002
"""While a batch waits for company, other processes are asked this often whether somebody is in a hurry."""

_WAITER_LOOK_S: Final = 0.2
"""While a retry is waited for, they are asked this often whether somebody waits."""

_ROOM_LOOK_S: Final = 0.02
"""How often a condition is looked at where another process brings it about."""


class Progress:
    """The shared state of a checkpointer. Thread-safe."""

    def __init__(self, *, paused: bool) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._control: LogControl | None = None
        self.state_changed: Final = threading.Event()
        """Set when the state changes, for one who watches it from outside and clears it."""
        self._state: CheckpointState = "stopped"
        self.has_failed = False
        """Whether the thread has died. Asked before each commit."""
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
        self._here = True
        self.applies_since = 0.0
        """When this process's thread began to apply, in seconds since the epoch."""
        self._paused = paused
        self._stop = False
        self._retry_now = False
        self._urgent_id = _NEVER
        self._waiting = 0

    # ------------------------------------------------------------------------------------- for the callers

    @property
    def applied_id(self) -> EntryId:
        """The last entry that is in the target, whoever applied it. Without a lock."""
        control = self._control
        return _NEVER if control is None else control.applied_id

    @property
    def applies_here(self) -> bool:
        """Whether it is this process's thread that callers wait for; False while it stands by, or there is none."""
        return self._here

    @property
    def paused(self) -> bool:
        """It is told to apply nothing."""
        return self._paused

    def status(self) -> CheckpointStatus:
        """The picture of this moment."""
        with self._condition:
            return CheckpointStatus(
                state=self._state,
                since=self._since,
                applied_id=self.applied_id,
                last_error=None if self._error is None else describe_error(self._error),
                last_error_kind=self._error_kind,
                last_error_type=None if self._error is None else type(self._error).__name__,
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
        """Raises `CheckpointFailedError` if the thread has died."""
        if self.has_failed:
            with self._condition:
                error = self._error
            raise CheckpointFailedError(
                "the checkpointer's thread has ended, and nothing is applied any more: "
                f"{describe_error(error) if error is not None else 'unknown'}. Committed entries are safe in the log; "
                "mend the cause and open the log anew"
            ) from error

    def wait_applied(self, through: int, timeout: float | None) -> None:
        """See `SQLAlchemyCheckpointer.wait_applied`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._waiter(through):
            while self.applied_id < through:
                self._raise_if_stuck(through)
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise ApplyTimeoutError(self._late(through, timeout))
                self._condition.wait(remaining)

    @contextmanager
    def _waiter(self, through: int = 0) -> Iterator[None]:
        """Somebody waits, with the lock held inside; for these entries, if that is what is waited for."""
        with self._condition:
            self._urgent_id = EntryId(max(self._urgent_id, through))
            self._waiting += 1
            self._condition.notify_all()
            try:
                yield
            finally:
                self._waiting -= 1

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits until `condition` holds, looked at after every step of the thread; False if it does not in time.

        Ends early, with False, when the thread cannot go on by itself. `condition` is called with the lock held and may
        only look at attributes.
        """
        deadline = time.monotonic() + timeout
        with self._waiter():
            while not condition():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._state in ("failed", "stopped"):
                    return False
                self._condition.wait(remaining if self._here else min(remaining, _ROOM_LOOK_S))
        return True

    def wait_drained(self, through: int, timeout: float) -> bool:
        """Waits until the entries up to `through` are applied, or the thread does not get there by itself."""
        deadline = time.monotonic() + timeout
        with self._waiter(through):
            while self.applied_id < through:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._state in ("blocked", "halted", "failed", "stopped", "paused"):
                    return False
                self._condition.wait(remaining)
        return True

    def raise_if_stuck(self, through: int) -> None:
        """Raises what somebody who waits for these entries has to know, if the thread cannot get there by itself."""
        with self._condition:
            self._raise_if_stuck(through)

    def _raise_if_stuck(self, through: int) -> None:
        """The same with the lock held."""
        raise_if_stuck(pending(self.applied_id, through), self._state, self._error, self._rejected_entry_id)

    def _late(self, through: int, timeout: float | None) -> str:
        state = self._state
        why = f"the checkpointer is {state}"
        if self._error is not None:
            why += f" ({describe_error(self._error)})"
        return (
            f"{pending(self.applied_id, through)}, and {timeout} s have passed; {why}. Nothing is lost: what was "
            "committed is safe in the log"
        )

    def order(
        self, *, pause: bool | None = None, retry: bool = False, stop: bool = False, urge_through: int = 0
    ) -> None:
        """Tells the thread what to do. Returns at once."""
        with self._condition:
            if pause is not None:
                self._paused = pause
            if pause is False and self._state == "paused":
                # At once, and not when the thread wakes: who drains from now on does not meet a pause that is over.
                self._enter("running" if self._here else "standby")
            if retry and self._state in ("retrying", "blocked", "halted"):
                # At once, and not when the thread wakes: who waits from now on waits for the new try.
                self._retry_now = True
                self._failures = 0
                self._enter("running")
            self._stop |= stop
            self._urgent_id = EntryId(max(self._urgent_id, urge_through))
            self._condition.notify_all()

    # -------------------------------------------------------------------------------------- for the thread

    def begin(self, control: LogControl, *, replay_pending: bool, here: bool = True, external: bool = False) -> None:
        """The thread is about to run (`external`: there is none). Raises `UsageError` if one did already."""
        with self._condition:
            if self._started:
                raise UsageError("this checkpointer has been started before; make a new one for each opening of a log")
            self._started = True
            self._control = control
            self._replay_pending = replay_pending
            self._here = here
            self.applies_since = time.time()
            if external:
                self._enter("external")
            elif self._paused:
                self._enter("paused")
            else:
                self._enter("running" if here else "standby")

    def stand_by(self, seconds: float) -> None:
        """Another process applies: waits this long, or until there is an order."""
        deadline = time.monotonic() + seconds
        with self._condition:
            paused = self._paused
            self._enter("paused" if paused else "standby")
            while not self._stop and self._paused is paused:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._condition.wait(remaining)

    def take_over(self) -> None:
        """It is this thread that applies from now on."""
        with self._condition:
            if not self._here:
                self._here = True
                self.applies_since = time.time()
            self._enter("paused" if self._paused else "running")

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

    def _urged(self, after: int) -> bool:
        """Somebody wants entries after this one without delay, in this process or in another one."""
        control = self._control
        return self._urgent_id > after or (control is not None and control.urgent_id > after)

    def _waited_for_elsewhere(self) -> bool:
        """Another process has said that it waits for what is not applied; whether it still does, it does not say."""
        control = self._control
        if control is None or not control.shared:
            return False
        return control.urgent_id > max(self._urgent_id, control.applied_id)

    @property
    def _shared(self) -> bool:
        return self._control is not None and self._control.shared

    def hold(self) -> bool:
        """Waits while paused; False when the thread shall end."""
        with self._condition:
            if self._paused and not self._stop:

                def ended() -> bool:
                    if self._stop or not self._paused:
                        return True
                    # Each time: it may have been resumed and paused again before this thread woke up.
                    self._enter("paused")
                    return False

                self._condition.wait_for(ended)
                if not self.stopping:
                    self._enter("running")
            return not self.stopping

    def linger(self, seconds: float, after: int) -> bool:
        """Waits this long for company; False as soon as somebody is in a hurry or there are orders."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while not (self._stop or self._paused or self._urged(after)):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return True
                self._condition.wait(min(remaining, _URGE_LOOK_S) if self._shared else remaining)
        return False

    def wait_interrupted(self) -> None:
        """Waits for an order: there is nothing else to wait for."""
        with self._condition:
            self._condition.wait_for(lambda: self._stop or self._paused)

    def advance(self, through: EntryId, entries: int, changes: int) -> None:
        """Entries up to `through` are in the target: tells it to everybody who waits."""
        with self._condition:
            if self._control is not None:
                self._control.note_applied(through)
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
                waited_for = self._waiting or self._waited_for_elsewhere()
                bound = min(seconds, waited_seconds) if waited_for else seconds
                self._next_retry = started + bound
                remaining = self._next_retry - time.monotonic()
                if remaining <= 0:
                    break
                self._condition.wait(min(remaining, _WAITER_LOOK_S) if self._shared else remaining)
            self._next_retry = None
            self._retry_now = False

    def end(self, error: BaseException | None) -> None:
        """The thread is over, by order (None) or by a fault."""
        with self._condition:
            self._here = True
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
            self.has_failed = state == "failed"
            self._since = time.time()
            self.state_changed.set()
        self._condition.notify_all()

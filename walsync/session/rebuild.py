"""Looks through the entries that a log held when it was opened, for the tables that they write.

Entries that are appended bear the tables that they write as marks, which all processes see (`LogControl.last_marked`).
Of those that are found when a log is opened the marks are gone; so the process that opens it, before others join, looks
them up. Until it has, every read, in every process, waits for all of them: never wrong, only slower.

A few thousand take no time and are looked at while the journal is attached, so that it starts with everything known. A
large backlog takes seconds for each million, and the target must not wait for that: what is not done within
`patience_s` goes on in a thread of its own, beside the applying.

The thread ends when it has seen them all, when they are applied (what is applied need not be known), or when it is
told to. It is in no hurry: after each few entries it lets others have the interpreter.

Invariants: nothing is called known before every entry that is not applied was looked at; an entry that cannot be read
leaves everything unknown, which is slow and right, and is the checkpointer's to report.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from walsync.changes.codec import decode_tables
from walsync.exceptions import EntryNotFoundError, LogClosedError, WalsyncError
from walsync.journal import renew_in_child
from walsync.journal.marks import marks_of
from walsync.wal import EntryId, WriteAheadLog

__all__ = ["TableIndexer"]

_logger: Final = logging.getLogger("walsync.session")

PATIENCE_S: Final = 0.1
"""How long attaching waits for it, in seconds."""

_SLICE_ENTRIES: Final = 100
_PAUSE_S: Final = 0.0002
"""A slice takes less than the interpreter gives a thread at a time; a pause lets one that waits go first."""

_STOP_TIMEOUT_S: Final = 10.0


class TableIndexer:
    """Marks what `log` held when it was recovered. `applied` tells the last entry that is in the target. Used once."""

    def __init__(self, log: WriteAheadLog, applied: Callable[[], EntryId], *, patience_s: float = PATIENCE_S) -> None:
        self._log = log
        self._applied = applied
        self._patience_s = patience_s
        self._through = log.control.unmarked_through
        self._after = log.checkpointed_id
        self._found: dict[str, EntryId] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        renew_in_child(self)

    def forget_parent(self) -> None:
        """Called in a forked child: it is the parent that looks."""
        self._stop = threading.Event()
        self._thread = None

    @property
    def is_done(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._thread is None or not self._thread.is_alive()

    def start(self) -> None:
        """Looks for `patience_s`, and goes on in a thread if that was not enough. Raises what reading raises."""
        if not self._log.recovered_here or not self._through:
            return
        deadline = time.monotonic() + self._patience_s
        if self._look(lambda: time.monotonic() >= deadline):
            return
        self._thread = threading.Thread(target=self._run, name="walsync-tables", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, before the log is closed. May be called again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            # `wait` answers True when it is to stop.
            self._look(lambda: self._stop.wait(_PAUSE_S))
        except LogClosedError:
            return
        except WalsyncError as error:
            _logger.warning(
                "the tables that the backlog writes cannot be told (%s); reads wait for all of it until entry %d is "
                "applied",
                error,
                self._through,
            )
        except Exception:
            _logger.exception("looking for the tables that the backlog writes failed; reads wait for all of it")

    def _look(self, interrupted: Callable[[], bool]) -> bool:
        """Goes on until all is known, and returns True, or until it is interrupted after a slice."""
        while True:
            self._after = EntryId(max(self._after, self._applied(), self._log.checkpointed_id))
            if self._after >= self._through:
                break
            try:
                if not self._look_at_slice():
                    break
            except EntryNotFoundError:
                # Applied and released while it was being read: go on behind it.
                continue
            if interrupted():
                return False
        self._log.control.note_marks(self._found)
        return True

    def _look_at_slice(self) -> bool:
        """False when there are no more entries."""
        found = self._found
        for seen, entry in enumerate(self._log.entries(self._after, self._through), 1):
            for table in decode_tables(entry.id, entry.chunks()):
                found.update(dict.fromkeys(marks_of((table,)), entry.id))
            self._after = entry.id
            if seen == _SLICE_ENTRIES:
                return True
        return False

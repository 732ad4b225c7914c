"""Per table, the last entry that touches it: what a read of that table must wait for.

The index only grows by the number of tables. An entry is noted before its commit returns, so whoever starts a read
after that commit finds it; whether it is applied already is asked of the checkpointer, whose position only moves on.

Of the entries that a log held when it was opened nothing is known at first: until they have been looked at
(`walsync.session.rebuild`), a read of any table waits for all of them. That is never wrong, only slower.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from walsync.changes import TableName
from walsync.wal import EntryId

__all__ = ["PendingTables"]


class PendingTables:
    """Thread-safe. `note`, `begin_unknown` and `end_unknown` take a lock; `last_entry` does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the order of updates; reading a dict or an int needs none
        self._last_by_table: dict[TableName, EntryId] = {}
        self._last = EntryId(0)
        self._unknown_through = EntryId(0)

    def note(self, tables: Iterable[TableName], entry_id: EntryId) -> None:
        """This entry writes these tables."""
        with self._lock:
            last_by_table = self._last_by_table
            for table in tables:
                if last_by_table.get(table, 0) < entry_id:
                    last_by_table[table] = entry_id
            if self._last < entry_id:
                self._last = entry_id

    def begin_unknown(self, through: EntryId) -> None:
        """The entries up to this one may write any table."""
        with self._lock:
            self._unknown_through = through
            self._last = EntryId(max(self._last, through))

    def end_unknown(self, last_by_table: Mapping[TableName, EntryId]) -> None:
        """What the entries of `begin_unknown` write is known now: this, per table the last of them."""
        for table, entry_id in last_by_table.items():
            self.note((table,), entry_id)
        # Last: a reader that finds nothing unknown must find everything that is noted.
        with self._lock:
            self._unknown_through = EntryId(0)

    def last_entry(self, tables: frozenset[TableName] | None) -> EntryId:
        """The last entry that touches one of these tables; None stands for every table. 0 if there is none."""
        if tables is None:
            return self._last
        # First: what ceases to be unknown after this is noted by then.
        found = self._unknown_through
        last_by_table = self._last_by_table
        for table in tables:
            entry_id = last_by_table.get(table)
            if entry_id is not None and entry_id > found:
                found = entry_id
        return found

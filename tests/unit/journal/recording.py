"""A journal's engine whose commits are kept in a list: capture without a log and without a target."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect, Engine

from walsync.changes import ChangeSet, decode_change_set, encode_change_set
from walsync.changes.model import Change
from walsync.journal import KeyAllocator, KeyConfig, TransactionBuffer, journal_engine
from walsync.journal.key_file import KeyRange


def target_dialects() -> list[Dialect]:
    return [sqlite.dialect(), postgresql.psycopg.dialect(), mysql.pymysql.dialect()]  # type: ignore[no-untyped-call, attr-defined]


class CountingSource:
    """A key source with one counter for each column, starting at 101."""

    def __init__(self) -> None:
        self.next_keys: dict[str, int] = {}
        self.fetches = 0

    def fetch(self, column: Column[Any], count: int, above: int) -> list[KeyRange]:
        self.fetches += 1
        name = str(column)
        first = max(self.next_keys.get(name, 101), above + 1)
        self.next_keys[name] = first + count
        return [(first, first + count - 1)]


class Recorder:
    """`engine` records into `commits`; `expects_rows` stands for a flushing unit of work."""

    def __init__(self, dialect: Dialect | None = None, *, expects_rows: bool = True) -> None:
        self.commits: list[ChangeSet] = []
        self.expects_rows = expects_rows
        self.dialect = dialect or sqlite.dialect()  # type: ignore[no-untyped-call]
        keys = KeyAllocator(CountingSource(), None, KeyConfig(block_keys=10))
        self.next_key = keys.next_key
        self.engine: Engine = journal_engine(self.dialect, keys, self._commit)

    def _commit(self, buffer: TransactionBuffer) -> None:
        change_set = ChangeSet(time.time_ns(), "test", {}, buffer.changes)
        self.commits.append(decode_change_set(None, encode_change_set(change_set)))

    def own(self, buffer: TransactionBuffer) -> None:
        buffer.owner = self

    def changes_added(self) -> None:
        """A buffer's owner is told; a buffered transaction has nothing to do."""

    @property
    def changes(self) -> Sequence[Change]:
        """The changes of the only commit."""
        (commit,) = self.commits
        return commit.changes

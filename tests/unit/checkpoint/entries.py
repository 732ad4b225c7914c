"""Small entries for the tests of the checkpointer: rows of one table, built in a word."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, String, Table

from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName, encode_change_set
from walsync.wal import Checkpointer, EntryId, WriteAheadLog
from walsync.wal.storage.memory import MemoryStorage

INTEGER = ("integer",)
STRING = ("string",)
ITEMS = TableName(None, "items")

metadata = MetaData()
items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(40), unique=True),
    Column("version", Integer),
    Column("price", Float),
)


def insert(*rows: tuple[Any, ...], table: TableName = ITEMS, commit_times: tuple[str, ...] = ()) -> RowChanges:
    """Rows (id, name)."""
    return RowChanges(
        "insert",
        table,
        ("id", "name"),
        (INTEGER, STRING),
        (),
        (),
        [list(row) for row in rows],
        commit_times=tuple(commit_times),
    )


def update(*rows: tuple[Any, ...], table: TableName = ITEMS, must_match: bool = True) -> RowChanges:
    """Rows (new name, id)."""
    return RowChanges(
        "update", table, ("name",), (STRING,), ("id",), (INTEGER,), [list(row) for row in rows], must_match
    )


def delete(*keys: int, table: TableName = ITEMS, must_match: bool = True) -> RowChanges:
    return RowChanges("delete", table, (), (), ("id",), (INTEGER,), [[key] for key in keys], must_match)


def statement(sql: str, dialect: str, **parameters: Any) -> StatementChange:
    types = {name: INTEGER if isinstance(value, int) else STRING for name, value in parameters.items()}
    return StatementChange(sql, parameters, types, [ITEMS], [], dialect)


def change_set(
    *changes: RowChanges | StatementChange, entry_id: int | None = None, commit_time_ns: int | None = None
) -> ChangeSet:
    made = time.time_ns() if commit_time_ns is None else commit_time_ns
    return ChangeSet(made, "test", {}, list(changes), None if entry_id is None else EntryId(entry_id))


def append(log: WriteAheadLog, *changes: RowChanges | StatementChange) -> EntryId:
    """One entry of these changes."""
    return log.append(*encode_change_set(change_set(*changes)))


def open_log(storage: MemoryStorage | None = None, checkpointer: Checkpointer | None = None) -> WriteAheadLog:
    """A log in memory; given the same storage again, the same log reopened."""
    return WriteAheadLog.recover(MemoryStorage() if storage is None else storage, checkpointer)

"""Batches become small where large ones do not get through, and large again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, event, insert, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

import walsync
from walsync.changes import ChangeSet, StatementChange
from walsync.checkpoint.batch import BatchSize

ENTRIES = 100
MOST = 3


def batch_of(count: int) -> list[ChangeSet]:
    change = StatementChange("", {}, {}, [], [], "sqlite")
    return [ChangeSet(0, "", {}, [change]) for _ in range(count)]


def test_half_of_what_was_tried_and_twice_of_what_went_well() -> None:
    size = BatchSize(walsync.CheckpointConfig(batch_changes=1000))
    assert size.changes == 1000
    size.failed(batch_of(50))
    assert size.changes == 25
    size.failed(batch_of(25))
    assert size.changes == 12
    size.succeeded()
    assert size.changes == 24
    for _ in range(10):
        size.failed(batch_of(1))
    assert size.changes == 1
    for _ in range(20):
        size.succeeded()
    assert size.changes == 1000


def test_a_line_that_carries_small_batches_only_carries_everything(tmp_path: Path) -> None:
    table = Table("item", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))
    engine = create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}")
    table.create(engine)
    config = walsync.CheckpointConfig(paused=True, retry_initial_s=0.001, retry_max_s=0.001)
    tried: list[int] = []

    def carry(session: Any, first_id: int, last_id: int) -> None:
        tried.append(last_id - first_id + 1)
        if tried[-1] > MOST:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))

    with walsync.attach(sessionmaker(engine), tmp_path / "log", checkpoint=config) as journal:
        event.listen(journal, "before_checkpoint", carry)
        for number in range(ENTRIES):
            with journal.engine.begin() as connection:
                connection.execute(insert(table), {"id": number})
        journal.resume()
        journal.wait_applied(timeout=30)
    with engine.connect() as connection:
        assert len(connection.execute(select(table)).all()) == ENTRIES
    engine.dispose()
    assert tried[0] == ENTRIES
    assert len(tried) < ENTRIES * 2

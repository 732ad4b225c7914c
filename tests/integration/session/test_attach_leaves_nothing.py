"""What a closed journal leaves behind: nothing that stays for as long as the process runs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert
from sqlalchemy.orm import Session, sessionmaker

import walsync

ROUNDS = 5


def test_a_closed_journal_is_collected(tmp_path: Path) -> None:
    """With Core statements: a mapper keeps the dialects of its last hundred compiled ones, and so some journals."""
    engine = create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}")
    metadata = MetaData()
    table = Table("t", metadata, Column("id", Integer, primary_key=True, autoincrement=False))
    metadata.create_all(engine)
    journals: list[weakref.ref[Any]] = []
    for number in range(ROUNDS):
        factory = sessionmaker(engine)
        with walsync.attach(factory, tmp_path / "wal") as journal:
            with factory() as session:
                session.execute(insert(table).values(id=number))
                session.commit()
            journal.wait_applied(timeout=30)
            with Session(engine) as other:
                assert other.get_bind() is engine
        journals.append(weakref.ref(journal))
        del journal, factory, session
    gc.collect()
    assert [reference() for reference in journals] == [None] * ROUNDS
    engine.dispose()

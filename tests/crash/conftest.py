"""A database that holds what killed processes write, without any of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.crash.child import commit_one
from tests.crash.ledger import Ledger, Writer, engine_of


@pytest.fixture
def ledger_engine(tmp_path: Path) -> Iterator[Engine]:
    """Ten transactions each of two writers, "one" and "two", in order."""
    engine = engine_of(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    Ledger.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session:
        session.add_all([Writer(name="one", counter=0, added=0), Writer(name="two", counter=0, added=0)])
        session.commit()
        for number in range(1, 11):
            for name in ("one", "two"):
                commit_one(session, session.get_one(Writer, name), number, random.Random(number))
    yield engine
    engine.dispose()

"""An attached sessionmaker on each kind of target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session import models

Attach = Callable[..., walsync.Journal]


@pytest.fixture
def engine(target_url: str) -> Iterator[Engine]:
    engine = create_engine(target_url)
    models.create(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def factory(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


@pytest.fixture
def attach(factory: sessionmaker[Session], tmp_path: Path) -> Iterator[Attach]:
    """`attach(**arguments)` attaches `factory` to this test's log directory; closed when the test ends."""
    journals: list[walsync.Journal] = []

    def attach(**arguments: Any) -> walsync.Journal:
        arguments.setdefault("keys", walsync.KeyConfig(block_keys=100))
        journal = walsync.attach(factory, tmp_path / "log", **arguments)
        journals.append(journal)
        return journal

    yield attach
    for journal in journals:
        journal.close(drain=False)


@pytest.fixture
def journal(attach: Attach) -> walsync.Journal:
    return attach()

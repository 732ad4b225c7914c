"""A target file, a log in memory, and checkpointers that are stopped whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from tests.unit.checkpoint.entries import metadata, open_log
from walsync.checkpoint import CheckpointConfig, SQLAlchemyCheckpointer
from walsync.wal import WriteAheadLog

StartCheckpointer = Callable[..., SQLAlchemyCheckpointer]


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def log() -> Iterator[WriteAheadLog]:
    with open_log() as log:
        yield log


@pytest.fixture
def start(engine: Engine, log: WriteAheadLog) -> Iterator[StartCheckpointer]:
    """Starts a checkpointer on `log` and `engine`; the settings are those of CheckpointConfig."""
    started: list[SQLAlchemyCheckpointer] = []

    def start(**settings: Any) -> SQLAlchemyCheckpointer:
        arguments = {name: settings.pop(name) for name in ("session_factory", "events", "origin") if name in settings}
        listeners = settings.pop("listeners", None)
        applied_log = settings.pop("log", log)
        target = settings.pop("target", engine)
        settings = {
            "batch_delay_s": 0.02,
            "retry_initial_s": 0.01,
            "retry_max_s": 0.05,
            "blocked_retry_s": 0.05,
        } | settings
        checkpointer = SQLAlchemyCheckpointer(target, config=CheckpointConfig(**settings), **arguments)
        started.append(checkpointer)
        if listeners is not None:
            listeners(checkpointer)
        checkpointer.start(applied_log)
        return checkpointer

    yield start
    for checkpointer in started:
        checkpointer.stop(timeout=20)

"""The databases that benchmarks run against."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event

from tests.support.databases import fresh_database
from tests.support.servers import find_server

__all__ = ["engine_for", "sqlite_engine"]


def sqlite_engine(path: Path) -> Engine:
    """A SQLite file whose commits are durable: journal_mode=WAL, synchronous=FULL."""
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def engine_for(target: str, path: Path, stack: ExitStack) -> Engine:
    """An empty database: a SQLite file at `path`, or one on a server. `stack` takes it away again."""
    if target == "sqlite":
        engine = sqlite_engine(path)
    else:
        engine = create_engine(stack.enter_context(fresh_database(stack.enter_context(find_server(target)))))
    stack.callback(engine.dispose)
    return engine

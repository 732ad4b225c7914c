"""The databases that programs run on, and the two ways to run on them.

Databases live long: they are made once and emptied between programs, for making the tables anew would take longer than
a program does. The log lives as long, so that keys, segments and recoveries pile up over hundreds of programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event, make_url
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.differential.schema import Base
from tests.support.databases import fresh_database

__all__ = ["BufferedSide", "DirectSide", "database", "empty", "pair_of_databases"]

WAIT_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 20.0
SEGMENT_BYTES = 1 << 18


@contextmanager
def database(url: str, metadata: MetaData = Base.metadata) -> Iterator[Engine]:
    """An engine on an empty database with the tables of the schema."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    metadata.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    """Foreign keys on; transactions and savepoints begun by SQLAlchemy, as its documentation advises."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # no test here takes the power away

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@contextmanager
def pair_of_databases(server: str | Path, metadata: MetaData = Base.metadata) -> Iterator[tuple[Engine, Engine]]:
    """Two empty databases of one kind: on the server of this URL, or SQLite files in this directory."""
    with ExitStack() as stack:
        if isinstance(server, Path):
            urls = [f"sqlite:///{server / name}.sqlite" for name in ("direct", "buffered")]
        else:
            urls = [stack.enter_context(fresh_database(make_url(server))) for _ in range(2)]
        first, second = (stack.enter_context(database(url, metadata)) for url in urls)
        yield first, second


def empty(engine: Engine, metadata: MetaData = Base.metadata) -> None:
    """Every row of every table of the schema is deleted."""
    quote = engine.dialect.identifier_preparer.quote
    statements = [f"DELETE FROM {quote(table.name)}" for table in reversed(metadata.sorted_tables)]
    # A trigger may have written into a table that was empty already.
    statements += [
        f"DELETE FROM {quote(table.name)}" for table in metadata.sorted_tables if table.info.get("triggered")
    ]
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("; ".join(statements))
            return
        if engine.dialect.name in {"mysql", "mariadb"}:
            # InnoDB checks a reference of a table to itself row by row.
            statements = ["SET foreign_key_checks = 0", *statements, "SET foreign_key_checks = 1"]
        for statement in statements:
            connection.exec_driver_sql(statement)


class DirectSide:
    """Sessions on the database itself."""

    def __init__(self, engine: Engine) -> None:
        self.core_engine = engine
        self.factory: Callable[..., Session] = sessionmaker(engine)

    def pause(self) -> None:
        pass

    def reopen(self) -> None:
        pass


@dataclass
class Counts:
    """What walsync did over all programs; a run in which nothing was buffered would prove nothing."""

    entries: int = 0
    replayed: int = 0
    opened: int = 0
    direct: Counter[str] = field(default_factory=Counter)


class BufferedSide:
    """Sessions of a factory that walsync is attached to."""

    def __init__(
        self,
        engine: Engine,
        directory: Path,
        batch_changes: int = 1000,
        *,
        count_replayed: bool = True,
        finds_conflicts: bool = True,
    ) -> None:
        self.engine = engine
        self.directory = directory
        self.batch_changes = batch_changes
        self.tracked_versions = 100_000 if finds_conflicts else 0
        self.counts = Counts()
        self.listeners: list[tuple[str, Callable[..., Any]]] = [("after_append", self._appended)]
        if count_replayed:
            # With a listener to it, replayed entries are applied one by one.
            self.listeners.append(("after_replay", self._replayed))
        self._open()

    @property
    def factory(self) -> Callable[..., Session]:
        return self._factory

    @property
    def core_engine(self) -> Engine:
        return self.journal.engine

    def pause(self) -> None:
        self.journal.pause()

    def reopen(self) -> None:
        """Closes the journal, whatever it has not applied yet, and attaches a new factory to the same directory."""
        self._leave(drain=False)
        self._open()

    def use(self, batch_changes: int) -> None:
        """Goes on with batches of another size."""
        if batch_changes != self.batch_changes:
            self.batch_changes = batch_changes
            self.reopen()

    def settle(self) -> None:
        """Returns when everything committed is in the database."""
        self.journal.resume()
        self.journal.wait_applied(timeout=WAIT_TIMEOUT_S)

    def close(self) -> None:
        self._leave(drain=True)

    def _leave(self, *, drain: bool) -> None:
        self.counts.direct.update(self.journal.stats().direct_reasons)
        self.journal.close(drain=drain)

    def abandon(self) -> None:
        """Closes the journal without waiting for anything, and whatever state it is in."""
        self._leave(drain=False)

    def _open(self) -> None:
        self._factory = sessionmaker(self.engine)
        self.journal = walsync.attach(
            self._factory,
            self.directory,
            log=walsync.LogConfig(segment_bytes=SEGMENT_BYTES),
            checkpoint=walsync.CheckpointConfig(paused=True, batch_changes=self.batch_changes, batch_delay_s=0.002),
            session=walsync.SessionConfig(read_timeout_s=READ_TIMEOUT_S, tracked_versions=self.tracked_versions),
        )
        self.counts.opened += 1
        for name, listener in self.listeners:
            event.listen(self.journal, name, listener)
        self.journal.resume()

    def _appended(self, *arguments: Any) -> None:
        self.counts.entries += 1

    def _replayed(self, *arguments: Any) -> None:
        self.counts.replayed += 1

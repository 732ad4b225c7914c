"""Pairs of equal databases, filled with the seed: one for the program without walsync, one for the attached one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

from tests.contract.captured.model import Base, create, seed
from tests.support.databases import fresh_database


def _engine(url: str) -> Engine:
    # MariaDB's default, REPEATABLE READ, makes the first read of a transaction wait for every entry.
    engine = create_engine(url, isolation_level="READ COMMITTED") if "mysql" in url else create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = OFF")  # for speed; nothing crashes here

    return engine


@contextmanager
def _pair(urls: tuple[str, str]) -> Iterator[tuple[Engine, Engine]]:
    engines = _engine(urls[0]), _engine(urls[1])
    try:
        yield engines
    finally:
        for engine in engines:
            engine.dispose()


def _fill(engine: Engine) -> None:
    with Session(engine) as session:
        seed(session)


def _empty(engine: Engine) -> None:
    """Of a server's database, whose tables stay."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            names = ", ".join(table.name for table in Base.metadata.sorted_tables)
            connection.exec_driver_sql(f"TRUNCATE {names} CASCADE")
            return
        connection.exec_driver_sql("SET foreign_key_checks = 0")
        for table in Base.metadata.sorted_tables:
            connection.execute(table.delete())
        connection.exec_driver_sql("SET foreign_key_checks = 1")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the seed, to be copied."""
    path = tmp_path_factory.mktemp("captured") / "template.sqlite"
    engine = _engine(f"sqlite:///{path}")
    create(engine)
    _fill(engine)
    engine.dispose()
    return path


@pytest.fixture
def sqlite_pair(sqlite_template: Path, tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    paths = tmp_path / "plain.sqlite", tmp_path / "target.sqlite"
    for path in paths:
        shutil.copyfile(sqlite_template, path)
    with _pair((f"sqlite:///{paths[0]}", f"sqlite:///{paths[1]}")) as engines:
        yield engines


@pytest.fixture
def others(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    """A second database for each side, of another kind where the first is on a server."""
    paths = tmp_path / "plain_other.sqlite", tmp_path / "other.sqlite"
    for path in paths:
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
    with _pair((f"sqlite:///{paths[0]}", f"sqlite:///{paths[1]}")) as engines:
        yield engines


def _server_pair(server_url: str) -> Iterator[tuple[Engine, Engine]]:
    with ExitStack() as stack:
        urls = stack.enter_context(fresh_database(server_url)), stack.enter_context(fresh_database(server_url))
        engines = stack.enter_context(_pair(urls))
        for engine in engines:
            create(engine)
        yield engines


@pytest.fixture(scope="module")
def postgresql_databases(postgres_server_url: str) -> Iterator[tuple[Engine, Engine]]:
    yield from _server_pair(postgres_server_url)


@pytest.fixture(scope="module")
def mariadb_databases(mariadb_server_url: str) -> Iterator[tuple[Engine, Engine]]:
    yield from _server_pair(mariadb_server_url)


@pytest.fixture
def postgresql_pair(postgresql_databases: tuple[Engine, Engine]) -> tuple[Engine, Engine]:
    return _filled(postgresql_databases)


@pytest.fixture
def mariadb_pair(mariadb_databases: tuple[Engine, Engine]) -> tuple[Engine, Engine]:
    return _filled(mariadb_databases)


def _filled(engines: tuple[Engine, Engine]) -> tuple[Engine, Engine]:
    for engine in engines:
        _empty(engine)
        _fill(engine)
    return engines

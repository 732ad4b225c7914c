"""Fixtures for every suite: URLs of databases that no other test uses, and servers that a test may stop.

The databases belong to this session of this worker: each xdist worker has its own. A test that needs a server is
skipped where there is none, and fails for it with `CI=true`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.databases import empty_database, fresh_database
from tests.support.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateServer, ServerMissingError, find_server


def pytest_configure(config: pytest.Config) -> None:
    """Where no bytecode is to be written beside the sources, the processes that tests start share theirs elsewhere.

    Each of them would compile walsync anew otherwise, which takes as long as to import SQLAlchemy.
    """
    if "PYTHONPYCACHEPREFIX" not in os.environ and os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        directory = tempfile.mkdtemp(prefix="walsync-bytecode-")
        os.environ["PYTHONPYCACHEPREFIX"] = directory
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def _no_server(error: ServerMissingError) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


def _server(name: str) -> Iterator[str]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(find_server(name))
        except ServerMissingError as error:
            _no_server(error)
        yield url


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """A PostgreSQL server's URL, for a test that makes its databases itself with `fresh_database`."""
    yield from _server("postgresql")


@pytest.fixture(scope="session")
def mariadb_server_url() -> Iterator[str]:
    """A MariaDB server's URL, for a test that makes its databases itself with `fresh_database`."""
    yield from _server("mariadb")


@pytest.fixture(scope="session")
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """A PostgreSQL database of this session's own (psycopg). Empty at first; tests drop what they create."""
    with fresh_database(postgres_server_url) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url(mariadb_server_url: str) -> Iterator[str]:
    """A MariaDB database of this session's own (PyMySQL). Empty at first; tests drop what they create."""
    with fresh_database(mariadb_server_url) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file of this test's own; it does not exist yet."""
    return f"sqlite:///{tmp_path / 'target.sqlite'}"


@pytest.fixture(scope="session")
def _postgres_target_url(postgres_server_url: str) -> Iterator[str]:
    with fresh_database(postgres_server_url) as url:
        yield url


@pytest.fixture(scope="session")
def _mariadb_target_url(mariadb_server_url: str) -> Iterator[str]:
    with fresh_database(mariadb_server_url) as url:
        yield url


@pytest.fixture
def empty_postgres_url(_postgres_target_url: str) -> str:
    """A PostgreSQL database with nothing in it when the test begins."""
    empty_database(_postgres_target_url)
    return _postgres_target_url


@pytest.fixture
def empty_mariadb_url(_mariadb_target_url: str) -> str:
    """A MariaDB database with nothing in it when the test begins."""
    empty_database(_mariadb_target_url)
    return _mariadb_target_url


@pytest.fixture(
    params=[
        pytest.param("sqlite_url", id="sqlite"),
        pytest.param("empty_postgres_url", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("empty_mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
    ]
)
def target_url(request: pytest.FixtureRequest) -> str:
    """An empty database on each kind of target in turn: the test runs three times."""
    url: str = request.getfixturevalue(request.param)
    return url


def _private_server(server_class: type[PrivateServer]) -> Iterator[PrivateServer]:
    try:
        server = server_class()
    except ServerMissingError as error:
        _no_server(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def _private_postgresql() -> Iterator[PrivateServer]:
    yield from _private_server(PrivatePostgreSQL)


@pytest.fixture(scope="session")
def _private_mariadb() -> Iterator[PrivateServer]:
    yield from _private_server(PrivateMariaDB)


@pytest.fixture
def private_postgresql(_private_postgresql: PrivateServer) -> Iterator[PrivateServer]:
    """A PostgreSQL that this test may stop, kill and start; it runs when the test begins.

    The server outlives the test: take a database of its own with `fresh_database(private_postgresql.url)`.
    """
    _private_postgresql.start()
    yield _private_postgresql
    _private_postgresql.start()


@pytest.fixture
def private_mariadb(_private_mariadb: PrivateServer) -> Iterator[PrivateServer]:
    """A MariaDB that this test may stop, kill and start; it runs when the test begins. See `private_postgresql`."""
    _private_mariadb.start()
    yield _private_mariadb
    _private_mariadb.start()


_SLOW = ("differential/test_differential", "differential/test_order")
"""Modules that are in the slow run alone."""

_SLOW_ON_SERVERS = (
    "differential/",
    *[f"integration/{name}/" for name in ("applications", "asynchronous", "processes", "session")],
    *[f"integration/checkpoint/test_{name}" for name in ("missing_table", "quarantine")],
    "integration/test_flights",
)
"""Of these, only what runs on SQLite is in the default run; the same tests on servers are in the slow one."""

_SLOW_ON_MARIADB = "integration/checkpoint/"
"""Of this, what runs on MariaDB as well as on PostgreSQL is in the slow run."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the slow tests, each n-th is kept with `WALSYNC_SLICE=n`; odd, for every second is on the same server."""
    tests = Path(__file__).parent
    slice_ = int(os.environ.get("WALSYNC_SLICE", "1"))
    kept, left_out, count = [], [], 0
    for item in items:
        on_server = item.get_closest_marker("postgresql") or item.get_closest_marker("mariadb")
        path = item.path.relative_to(tests).as_posix()
        on_mariadb = item.get_closest_marker("mariadb") is not None
        if (
            path.startswith(_SLOW)
            or (on_server and path.startswith(_SLOW_ON_SERVERS))
            or (on_mariadb and path.startswith(_SLOW_ON_MARIADB))
        ):
            item.add_marker(pytest.mark.slow)
        if slice_ > 1 and item.get_closest_marker("slow"):
            count += 1
            if count % slice_:
                left_out.append(item)
                continue
        kept.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept

"""Tests that are coroutines run in an event loop of their own; and an application on each kind of target."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.integration.asynchronous.application import Application
from tests.support.databases import rendered


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _application(request: pytest.FixtureRequest, directory: Path, fixture: str, driver: str) -> Application:
    url = make_url(request.getfixturevalue(fixture)).set(drivername=driver)
    application = Application(rendered(url), directory / "log")
    asyncio.run(application.make_tables())
    return application


@pytest.fixture(
    params=[
        pytest.param(("sqlite_url", "sqlite+aiosqlite"), id="aiosqlite"),
        pytest.param(("empty_postgres_url", "postgresql+asyncpg"), id="asyncpg", marks=pytest.mark.postgresql),
        pytest.param(
            ("empty_postgres_url", "postgresql+psycopg"), id="psycopg", marks=[pytest.mark.postgresql, pytest.mark.slow]
        ),
        pytest.param(
            ("empty_mariadb_url", "mariadb+asyncmy"), id="asyncmy", marks=[pytest.mark.mariadb, pytest.mark.slow]
        ),
    ]
)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Application:
    """An application with each asynchronous driver in turn; with two of them in the default run."""
    return _application(request, tmp_path, *request.param)


@pytest.fixture
def sqlite_app(request: pytest.FixtureRequest, tmp_path: Path) -> Application:
    """An application on SQLite, for what has nothing to do with the target."""
    return _application(request, tmp_path, "sqlite_url", "sqlite+aiosqlite")

"""A target for these tests, and workers that share a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from tests.integration.session import models
from tests.support.worker import Worker


@pytest.fixture(
    params=[
        pytest.param("sqlite_url", id="sqlite"),
        pytest.param("empty_postgres_url", id="postgresql", marks=pytest.mark.postgresql),
    ]
)
def target(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine of a database with the tables; for the test itself, which holds no connection meanwhile."""
    engine = create_engine(request.getfixturevalue(request.param), poolclass=NullPool)
    models.create(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def join(target: Engine, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts a worker on the log in `tmp_path / "log"`; it is attached when it is returned."""
    url = target.url.render_as_string(hide_password=False)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Worker(url, tmp_path / "log"))

"""The target's engine as sessions get it has the events of the target's engine, and can have its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.pool import StaticPool

from walsync.session.connection import ReadConnection, session_view


@pytest.fixture
def target() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    yield engine
    engine.dispose()


def statements_of(view: Engine, listen_to: Engine) -> list[str]:
    """What a listener that is put on `listen_to` after the view was made hears of a statement on the view."""
    heard: list[str] = []

    def hear(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        heard.append(statement)

    event.listen(listen_to, "before_cursor_execute", hear)
    with view.connect() as connection:
        connection.execute(text("SELECT 1"))
    event.remove(listen_to, "before_cursor_execute", hear)
    return heard


def test_it_shares_the_pool_and_makes_connections_of_its_own_kind(target: Engine) -> None:
    view = session_view(target)
    assert view.pool is target.pool
    assert not view._has_events
    with view.connect() as connection:
        assert type(connection) is ReadConnection
        assert connection.engine is view


def test_a_listener_of_the_target_that_comes_later_is_told(target: Engine) -> None:
    view = session_view(target)
    assert statements_of(view, target) == ["SELECT 1"]


def test_a_listener_of_its_own_is_told_and_the_target_has_none(target: Engine) -> None:
    view = session_view(target)
    assert statements_of(view, view) == ["SELECT 1"]
    assert view._has_events
    assert not target._has_events
    assert statements_of(view, target) == ["SELECT 1"], "and those of the target still are"


def test_a_new_pool_of_the_target_is_the_views(target: Engine) -> None:
    view = session_view(target)
    before = target.pool
    target.dispose()
    assert view.pool is target.pool is not before

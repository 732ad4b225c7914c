"""A pytest plugin for the run of examples/library/tests in which its factory of sessions is attached to a log.

The suite is not changed: the plugin wraps the function with which the application opens its database. The suite empties
the tables between its tests, by the engine and so past the log: what waits is applied before that.

Environment: `LIBRARY_LOG`, the log's directory; `LIBRARY_STATS`, a file for the figures and the tests that failed;
`LIBRARY_BUFFER_ALL`, to leave no class out of the log, and to discard what the database refuses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import pytest
from library import database
from library.models import Book, Member, Settings
from sqlalchemy import Engine, event

import walsync

journals: list[walsync.Journal] = []
failed: set[str] = set()

WANTS_AN_ANSWER = [Book.__table__, Member.__table__, Settings.__table__]
"""Where the application waits to be told that the database refuses: an address is taken, an ISBN is there already."""


def pytest_configure() -> None:
    connect = database.connect

    def connect_and_attach(url: str) -> Engine:
        engine = connect(url)
        buffer_all = "LIBRARY_BUFFER_ALL" in os.environ
        exclude = None if buffer_all else WANTS_AN_ANSWER
        journals.append(walsync.attach(database.Session, os.environ["LIBRARY_LOG"], exclude=exclude))
        if buffer_all:
            event.listen(journals[0], "rejected", lambda *_: walsync.Verdict.DISCARD)
        return engine

    database.connect = connect_and_attach


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, Any, Any]:
    result = yield
    if fixturedef.argname == "clean":
        fixturedef.addfinalizer(lambda: journals[0].wait_applied(timeout=30))
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        failed.add(report.nodeid.rpartition("::")[2])


def pytest_unconfigure() -> None:
    with open(os.environ["LIBRARY_STATS"], "w", encoding="utf-8") as file:
        json.dump({"stats": asdict(journals[0].stats()), "failed": sorted(failed)}, file)
    journals[0].close()

"""Session, mapper and instance events fire as they do without the log, in the same order.

The same programs run with sessions that are not attached and with sessions that are, and everything that listeners are
told is compared. What is known to differ is in docs/reference/session-events.md, and each difference has a test here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session.event_programs import DIRECT, PROGRAMS, Base, Program
from tests.integration.session.event_recorder import (
    INSTANCE_EVENTS,
    MAPPER_EVENTS,
    SESSION_EVENTS,
    Recorder,
    recording,
)
from tests.support.databases import without_syncs

_SLOW = pytest.mark.slow

_OF_SETS = {
    "deleted_to_detached",
    "deleted_to_persistent",
    "expire",
    "pending_to_persistent",
    "pending_to_transient",
    "persistent_to_deleted",
    "persistent_to_detached",
    "persistent_to_transient",
    "refresh",
}
"""Told of each object of a set, in whatever order that has: not even two runs without the log agree."""


def comparable(recorder: Recorder) -> list[tuple[Any, ...]]:
    """The lines; those that have no order among themselves sorted, and of each transaction only its first connection.

    That an attached transaction begins on a second one is the known difference: the log's, or the target's.
    """
    lines: list[tuple[Any, ...]] = []
    for in_no_order, group in groupby(recorder.lines, key=lambda line: line[0] in _OF_SETS):
        told = list(group)
        lines += sorted(told, key=repr) if in_no_order else told
    return without_second_begin(lines)


def without_second_begin(lines: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    left: list[tuple[Any, ...]] = []
    begun: dict[str, list[bool]] = {}  # of each session's transactions, the innermost last: whether told already
    for line in lines:
        name, rest = line[0], line[1:]
        if name == "after_transaction_create" and rest[1] != "inner":
            begun.setdefault(rest[0], []).append(False)
        elif name == "after_transaction_end" and rest[1] != "inner":
            begun[rest[0]].pop()
        elif name == "after_begin":
            if begun[rest[0]][rest[1]]:
                continue
            begun[rest[0]][rest[1]] = True
        left.append(line)
    return left


@contextmanager
def _sessions(url: str, log: Path | None, expire: bool) -> Iterator[tuple[sessionmaker[Session], Any]]:
    engine = without_syncs(create_engine(url))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine, expire_on_commit=expire)
    journal = None
    if log is not None:
        keys = walsync.KeyConfig(block_keys=100)
        journal = walsync.attach(sessions, log, keys=keys, expire_on_commit=expire)
    try:
        yield sessions, journal
    finally:
        if journal is not None:
            journal.close()
        engine.dispose()


def run(program: Program, url: str, log: Path | None, expire: bool) -> Recorder:
    with _sessions(url, log, expire) as (sessions, journal), recording(sessions.class_, Base) as recorder:
        program(sessions, recorder.mark)
        if journal is not None:
            assert (journal.stats().buffered_transactions == 0) == (program.__name__ in DIRECT)
    return recorder


@pytest.mark.parametrize("expire", [pytest.param(False, id="kept"), pytest.param(True, id="expired", marks=_SLOW)])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_events_are_those_of_a_session_without_the_log(
    program: Program, expire: bool, target_url: str, tmp_path: Path
) -> None:
    plain = comparable(run(program, target_url, None, expire))
    attached = comparable(run(program, target_url, tmp_path / "log", expire))
    assert attached == plain


def run_async(program: Program, url: str, log: Path | None) -> Recorder:
    """The same program inside of an AsyncSession's greenlet."""

    async def main() -> Recorder:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        own_class = type("OwnSession", (Session,), {})
        sessions = async_sessionmaker(engine, sync_session_class=own_class, expire_on_commit=False)
        journal = await asyncio.to_thread(walsync.attach, sessions, log) if log is not None else None
        with recording(own_class, Base) as recorder:
            outer = sessions()
            await outer.run_sync(lambda _: program(lambda: sessions().sync_session, recorder.mark))
            await outer.close()
        if journal is not None:
            await journal.aclose()
        await engine.dispose()
        return recorder

    return asyncio.run(main())


_ALSO_ASYNCHRONOUS = [
    program for program in PROGRAMS if program.__name__ in {"savepoints_of_new_objects", "delete_and_cascade"}
]


@pytest.mark.parametrize("program", _ALSO_ASYNCHRONOUS, ids=lambda program: program.__name__)
def test_events_of_asynchronous_sessions_are_those_without_the_log(program: Program, tmp_path: Path) -> None:
    plain = comparable(run_async(program, f"sqlite+aiosqlite:///{tmp_path / 'plain.sqlite'}", None))
    attached = comparable(run_async(program, f"sqlite+aiosqlite:///{tmp_path / 'attached.sqlite'}", tmp_path / "log"))
    assert attached == plain


def test_the_programs_make_every_event_happen(tmp_path: Path) -> None:
    """What no program makes happen is compared by none."""
    seen: set[Any] = set()
    for program in PROGRAMS:
        seen |= {line[0] for line in run(program, f"sqlite:///{tmp_path / 'target.sqlite'}", None, True).lines}
    assert {*SESSION_EVENTS, *MAPPER_EVENTS, *INSTANCE_EVENTS} - seen == set()

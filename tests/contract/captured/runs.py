"""Runs a case, and says what is wrong with it.

Writes: the program is run in a session without walsync on one database, in an attached one on the other, and commits.
Reads: while the journal is paused, entries wait that the program does not read (it must not wait for them, or the row
says that it waits for all), then entries that it reads (it must run into `read_timeout_s`); when they are applied, it
must read what it reads without walsync. A program whose row says that it does not wait reads what was applied before.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.contract.captured.model import Audit, Author, Base, Book, Tag
from tests.contract.captured.page import Row
from tests.contract.captured.registry import Case
from tests.differential.comparison import differences

__all__ = ["run", "run_in_savepoint"]

SHORT_S = 0.02
"""A read that waits at all waits for longer: nothing is applied meanwhile."""

LONG_S = 20.0


def run(case: Case, row: Row, plain: Engine, target: Engine, others: tuple[Engine, Engine], directory: Path) -> None:
    """Raises `AssertionError` where the case is not what its row says. All four databases hold the seed."""
    assert case.way == row.way, f"the page says {row.way!r}, the case {case.way!r}"
    if case.attaches:
        _run_attach(case, row, target, directory)
        return
    if case.asynchronous:
        asyncio.run(_run_async(case, row, plain, target, directory))
        return
    plain_factory, factory = (
        sessionmaker(
            engine, class_=case.session_class, binds=dict.fromkeys(case.elsewhere, other), expire_on_commit=False
        )
        for engine, other in zip((plain, target), others, strict=True)
    )
    with _attach(factory, target, directory, case) as journal:
        if case.way == "error":
            _run_error(case, row, factory, journal)
        elif case.way in ("buffered", "direct", "untouched"):
            expected = _program(case, plain_factory)
            assert _program(case, factory) == expected
            _check_counts(case, row, journal)
        else:
            _run_read(case, plain_factory, factory, journal)
        journal.resume()
        journal.wait_applied(timeout=LONG_S)
    found = differences(plain, target, metadata=Base.metadata)
    assert not found, "\n".join(found)
    if case.elsewhere:
        found = differences(*others, metadata=Base.metadata)
        assert not found, "in the other database: " + "\n".join(found)


def run_in_savepoint(
    case: Case, row: Row, plain: Engine, target: Engine, others: tuple[Engine, Engine], directory: Path
) -> None:
    """The same, with the whole program inside of a savepoint, and another one that is rolled back before it."""

    def program(session: Session) -> Any:
        with session.begin_nested() as savepoint:
            case.program(session)
            session.flush()
            savepoint.rollback()
        with session.begin_nested():
            return case.program(session)

    run(dataclasses.replace(case, program=program), row, plain, target, others, directory)


def _attach(factory: Any, target: Any, directory: Path, case: Case) -> walsync.Journal:
    return walsync.attach(
        factory,
        directory,
        target,
        keys=walsync.KeyConfig(block_keys=20),
        log=walsync.LogConfig(segment_bytes=65_536, preallocated_segments=0),
        **case.attach,
    )


def _program(case: Case, factory: sessionmaker[Any]) -> Any:
    if case.makes_sessions:
        return case.program(factory)
    with factory() as session:
        result = case.program(session)
        session.commit()
        return result


async def _run_async(case: Case, row: Row, plain: Engine, target: Engine, directory: Path) -> None:
    results = []
    for engine in (plain, target):
        asynchronous = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))
        factory = async_sessionmaker(asynchronous, expire_on_commit=False)
        journal = None
        if engine is target:
            journal = await asyncio.to_thread(_attach, factory, asynchronous, directory, case)
        async with factory() as session:
            results.append(await case.program(session))
            await session.commit()
        if journal is not None:
            _check_counts(case, row, journal)
            await journal.aclose()
        await asynchronous.dispose()
    assert results[1] == results[0]
    found = differences(plain, target, metadata=Base.metadata)
    assert not found, "\n".join(found)


def _run_attach(case: Case, row: Row, target: Engine, directory: Path) -> None:
    assert case.raises is not None
    assert f"`{case.raises.__name__}`" in row.why, f"the row does not name {case.raises.__name__}"
    with pytest.raises(case.raises, match=case.says):
        case.program(target, directory)
    assert not directory.exists()


# ------------------------------------------------------------------------------------------------------------ writes


def _check_counts(case: Case, row: Row, journal: walsync.Journal) -> None:
    stats = journal.stats()
    reasons = dict(stats.direct_reasons)
    if case.way == "direct":
        assert reasons == {case.reason: case.directs}
        assert f"`{case.reason}`" in row.why, f"the row does not name the reason that is counted: {case.reason}"
    else:
        assert reasons == {}
    assert stats.buffered_transactions == case.entries


def _run_error(case: Case, row: Row, factory: sessionmaker[Session], journal: walsync.Journal) -> None:
    assert case.raises is not None
    assert f"`{case.raises.__name__}`" in row.why, f"the row does not name {case.raises.__name__}"
    with factory() as session:
        with pytest.raises(case.raises, match=case.says):  # noqa: PT012 - wherever it is found out
            case.program(session)
            session.commit()
        session.rollback()
    stats = journal.stats()
    assert (stats.buffered_transactions, stats.direct_transactions) == (case.entries, 0)


# ------------------------------------------------------------------------------------------------------------- reads


def _unrelated(session: Session, turn: int) -> None:
    """Writes what no program reads."""
    session.add(Audit(label=f"turn {turn}"))
    session.commit()


def _related(session: Session, turn: int) -> None:
    """Writes every table that a program may read."""
    author = session.scalars(select(Author).where(Author.label.startswith("ada"))).one()
    author.label = f"ada {turn}"
    author.visits += 1
    book = Book(label=f"new {turn}", pages=turn, author=author)
    tag = Tag(name=f"tag {turn}")
    session.add_all([book, tag])
    book.tags.append(tag)
    session.commit()


class _Reading:
    """A program that reads, in a session of its own; ``prepare`` runs it up to its ``yield``."""

    def __init__(self, case: Case, factory: sessionmaker[Session]) -> None:
        self.session = factory()
        self._case = case
        self._generator: Generator[None, None, Any] | None = None

    def prepare(self) -> None:
        if self._case.has_preparation:
            self._generator = self._case.program(self.session)
            next(self._generator)

    def read(self) -> Any:
        if self._generator is None:
            return self._case.program(self.session)
        with pytest.raises(StopIteration) as stop:
            next(self._generator)
        return stop.value.value


def _run_read(
    case: Case, plain: sessionmaker[Session], factory: sessionmaker[Session], journal: walsync.Journal
) -> None:
    written = factory(), plain()

    def write(change: Any, turn: int) -> None:
        for session in written:
            with session:
                change(session, turn)

    def settle() -> None:
        journal.resume()
        journal.wait_applied(timeout=LONG_S)

    def prepared() -> _Reading:
        settle()
        reading = _Reading(case, factory)
        reading.prepare()
        return reading

    def must_wait(change: Any, turn: int, waits: bool) -> None:
        reading = prepared()
        with reading.session:
            journal.pause()
            write(change, turn)
            journal.config = dataclasses.replace(journal.config, read_timeout_s=SHORT_S)
            if waits:
                with pytest.raises(walsync.ReadTimeoutError):
                    reading.read()
            else:
                reading.read()
        journal.config = dataclasses.replace(journal.config, read_timeout_s=LONG_S)

    must_wait(_unrelated, 1, case.way == "waits for all")
    must_wait(_related, 2, case.way != "does not wait")
    mine, theirs = prepared(), _Reading(case, plain)
    theirs.prepare()
    with mine.session, theirs.session:
        if case.way == "does not wait":
            # Without walsync it reads what is applied, and that is what it reads with it, too.
            expected = theirs.read()
            journal.pause()
            write(_related, 3)
        else:
            write(_related, 3)
            expected = theirs.read()
        assert mine.read() == expected
    assert journal.stats().direct_transactions == 0
    assert journal.stats().buffered_transactions == 3

"""The decorators by which a program becomes a case of a row, and the list of all cases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

__all__ = [
    "ALL",
    "CASES",
    "MARIADB",
    "POSTGRESQL",
    "SQLITE",
    "Case",
    "buffered",
    "case",
    "direct",
    "error",
    "read",
    "untouched",
]

SQLITE, POSTGRESQL, MARIADB = "sqlite", "postgresql", "mariadb"
ALL = (SQLITE, POSTGRESQL, MARIADB)

Program = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A program and what is to come of it.

    `row`: the page's row. `way`: which way the row says, see `page`. `on`: the databases that have the construct.
    `reason`: what a direct transaction is counted under. `raises` and `says`: the error, and a regular expression that
    its message matches: what to do instead. `entries`: how many of the program's transactions are buffered.
    `attach`: arguments of `walsync.attach()`. `makes_sessions`: the program is given the factory, and not a session of
    it. `elsewhere`: classes that are bound to another database. `attaches`: it is given an engine and a directory.
    `session_class`: of the sessions. `asynchronous`: the program is a coroutine function, and the session is an
    `AsyncSession`.
    """

    row: str
    way: str
    program: Program
    on: tuple[str, ...] = ALL
    reason: str | None = None
    raises: type[BaseException] | None = None
    says: str = ""
    entries: int = 0
    directs: int = 1
    attach: dict[str, Any] = field(default_factory=dict)
    makes_sessions: bool = False
    elsewhere: tuple[type, ...] = ()
    attaches: bool = False
    session_class: type[Session] = Session
    asynchronous: bool = False

    @property
    def name(self) -> str:
        module = self.program.__module__.rpartition(".")[2].removeprefix("case_")
        return f"{module}.{self.program.__name__}"

    @property
    def has_preparation(self) -> bool:
        """The program is a generator: what it does before its ``yield`` is not what the case is about."""
        return inspect.isgeneratorfunction(self.program)

    @property
    def fits_in_savepoint(self) -> bool:
        """The program writes, and leaves the end of its transaction to others; MariaDB ends one at DDL by itself."""
        source = inspect.getsource(self.program)
        ends = "session.commit()" in source or "session.rollback()" in source
        ends = ends or self.makes_sessions or self.asynchronous or self.reason == "DDL"
        return self.way in ("buffered", "direct") and not ends


CASES: list[Case] = []


def case(row: str, way: str, **settings: Any) -> Callable[[Program], Program]:
    """The decorated program is a case of this row."""

    def register(program: Program) -> Program:
        CASES.append(Case(row, way, program, **settings))
        return program

    return register


def buffered(row: str, *, entries: int = 1, **settings: Any) -> Callable[[Program], Program]:
    """``program(session)``: `entries` transactions, all of them buffered. The last one is committed for it."""
    return case(row, "buffered", entries=entries, **settings)


def direct(row: str, reason: str, **settings: Any) -> Callable[[Program], Program]:
    """``program(session)``: a transaction that becomes direct, for this reason. It is committed for it."""
    return case(row, "direct", reason=reason, **settings)


def error(row: str, raises: type[BaseException], says: str, **settings: Any) -> Callable[[Program], Program]:
    """``program(session)`` raises this in an attached session."""
    return case(row, "error", raises=raises, says=says, **settings)


def untouched(row: str, **settings: Any) -> Callable[[Program], Program]:
    """``program(...)`` does what the journal does not count."""
    return case(row, "untouched", **settings)


def read(row: str, way: str = "waits", **settings: Any) -> Callable[[Program], Program]:
    """``program(session)`` reads authors, books or tags, and nothing else. With a ``yield``: after that."""
    return case(row, way, **settings)

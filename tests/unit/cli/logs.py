"""Logs for the tests of the command line, and the ways to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from typer.testing import CliRunner

import walsync
from walsync.cli.app import app

__all__ = ["Base", "Note", "commit", "invoke", "invoke_json", "make_log", "segment_files", "sessions"]


SEGMENT_BYTES = 256 * 1024


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(String(200))


def sessions(url: str) -> sessionmaker[Any]:
    """A factory on a database that has the table."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    return sessionmaker(engine)


def commit(factory: sessionmaker[Any], numbers: range) -> None:
    for number in numbers:
        with factory() as session:
            session.add(Note(number=number, text=f"note {number}"))
            session.commit()


def make_log(directory: Path, url: str, applied: int = 0, waiting: int = 0) -> None:
    """A closed log with so many entries that the target has, and behind them so many that it has not."""
    factory = sessions(url)
    with walsync.attach(factory, directory, log=walsync.LogConfig(segment_bytes=SEGMENT_BYTES)) as journal:
        commit(factory, range(1, applied + 1))
        journal.wait_applied(timeout=20)
        journal.pause()
        commit(factory, range(applied + 1, applied + waiting + 1))
        journal.close(drain=False)
    factory.kw["bind"].dispose()


def segment_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("segment-*"))


def invoke(*arguments: str | Path) -> Any:
    """The command's result: `exit_code`, `stdout`, `stderr`, `output`. A traceback fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def invoke_json(*arguments: str | Path, expect: int = 0) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == expect, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document

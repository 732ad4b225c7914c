"""A file system that is really full: a small tmpfs, filled up by somebody else's file.

A commit that finds no room raises a clear error and leaves nothing behind; when there is room again, the same session
goes on.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from walsync.exceptions import LogFullError
from walsync.wal import EntryId, LogConfig, WriteAheadLog, verify_log

DISK_BYTES = 1536 * 1024
SEGMENT_BYTES = 64 * 1024
WAIT_TIMEOUT_S = 60.0


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(2000))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for DISK_BYTES."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root, and Linux")
    place = tmp_path / "small"
    place.mkdir()
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, f"size={DISK_BYTES}".encode()) != 0:
        pytest.skip(f"no file system may be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    detach = 2
    assert libc.umount2(bytes(place), detach) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/target.sqlite")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def fill_up(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def test_the_log_refuses_entries_while_the_disk_is_full_and_goes_on_afterwards(disk: Path) -> None:
    acknowledged: dict[int, bytes] = {}
    refused: list[str] = []
    log = WriteAheadLog.recover(disk / "log", config=LogConfig(segment_bytes=SEGMENT_BYTES))
    acknowledged[log.append(b"the first")] = b"the first"
    ballast = fill_up(disk)
    for number in range(400):
        data = b"%d " % number + b"x" * 1000
        try:
            acknowledged[log.append(data)] = data
        except LogFullError as error:
            refused.append(str(error))
    # The segment that was there, or two, took their share; then every entry was refused, and each was told so.
    assert len(refused) > 200
    assert all(str(disk / "log") in message and "No space left on device" in message for message in refused)
    assert 40 < len(acknowledged) < 150
    assert log.poisoned is None
    ballast.unlink()
    for number in range(100):
        data = b"again %d " % number + b"y" * 1000
        acknowledged[log.append(data)] = data
    assert {entry.id: b"".join(entry.chunks()) for entry in log.entries(EntryId(0))} == acknowledged
    log.close()
    assert verify_log(disk / "log").ok
    with WriteAheadLog.recover(disk / "log", config=LogConfig(segment_bytes=SEGMENT_BYTES)) as log:
        assert {entry.id: b"".join(entry.chunks()) for entry in log.entries(EntryId(0))} == acknowledged


def test_sessions_raise_while_the_disk_is_full_and_go_on_afterwards(disk: Path, target: Engine) -> None:
    factory: sessionmaker[Session] = sessionmaker(target)
    log, paused = LogConfig(segment_bytes=SEGMENT_BYTES), walsync.CheckpointConfig(paused=True)
    texts: list[str] = []
    refused = 0

    def commit(session: Session, text: str) -> None:
        session.add(Note(text=text))
        session.commit()
        texts.append(text)

    with walsync.attach(factory, disk / "log", log=log, checkpoint=paused) as journal, factory() as session:
        commit(session, "the first")
        ballast = fill_up(disk)
        for number in range(300):
            try:
                commit(session, f"{number} " + "x" * 1000)
            except LogFullError:
                refused += 1
                session.rollback()
        assert refused > 100
        ballast.unlink()
        for number in range(50):
            commit(session, f"again {number} " + "y" * 1000)
        journal.resume()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
    with Session(target) as session:
        assert list(session.scalars(select(Note.text).order_by(Note.id))) == texts
        assert session.scalar(select(func.count(Note.id))) == len(texts)

"""A process in which gevent has put greenlets in the place of threads: who waits lets the others run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import run_python

pytest.importorskip("gevent", reason="gevent is not made for this system")

PROGRAM = """
from gevent import monkey
monkey.patch_all()

import sys
import threading
import gevent
from sqlalchemy import String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
import walsync


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(String(50))


engine = create_engine(f"sqlite:///{sys.argv[1]}/target.sqlite")
Base.metadata.create_all(engine)
sessions = sessionmaker(engine)
journal = walsync.attach(sessions, f"{sys.argv[1]}/log")
ticks = 0


def tick():
    global ticks
    while True:
        gevent.sleep(0.001)
        ticks += 1


def work(name):
    for number in range(25):
        with sessions() as session:
            session.add(Note(body=f"{name} {number}"))
            session.commit()
        gevent.sleep(0)


ticking = gevent.spawn(tick)
gevent.joinall([gevent.spawn(work, name) for name in range(8)], raise_error=True)
with sessions() as session:
    print(session.scalar(select(func.count()).select_from(Note)))
seen = ticks
gevent.sleep(0.3)  # all are idle
print(ticks - seen > 30)
ticking.kill()
journal.close()
print([thread.name for thread in threading.enumerate() if thread.name.startswith("walsync")])
"""


def test_greenlets_commit_read_and_idle_side_by_side(tmp_path: Path) -> None:
    assert run_python("-c", PROGRAM, tmp_path, timeout_s=60).stdout.splitlines() == ["200", "True", "[]"]

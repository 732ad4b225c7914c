"""A process that is killed, or an answer that is lost, between any two steps around the quarantine: exactly once all
the same.

Every operation on the quarantine's files, and every COMMIT, is a step before and after which the process may end. The
tests walk through all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy import delete as delete_from
from sqlalchemy import insert as insert_into
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, insert, items, metadata, update
from walsync.checkpoint import CheckpointConfig, Quarantine, SQLAlchemyCheckpointer
from walsync.checkpoint.watermark import TABLE_NAME
from walsync.wal import WriteAheadLog
from walsync.wal.storage.file import FileStorage

WAIT_S = 20.0

HELD = [2, 3, 5]
APPLIED = [(1, "a"), (3, "c"), (4, "d"), (100, "taken")]
MENDED = [(1, "a"), (2, "twice"), (3, "c"), (4, "d"), (5, "e")]


class Killed(BaseException):
    """The process has ended."""


class Fate:
    """What happens at the step of this number: the end of the process, or the loss of COMMIT's answer."""

    def __init__(self) -> None:
        self.at = 0
        self.kind: Literal["kill", "lose"] = "kill"
        self.steps = 0
        self.struck = False

    def arm(self, at: int, kind: Literal["kill", "lose"]) -> None:
        self.at, self.kind, self.steps, self.struck = at, kind, 0, False

    def step(self, *, after_commit: bool = False) -> None:
        if self.struck and self.kind == "kill":
            raise Killed
        self.steps += self.kind == "kill" or after_commit
        if self.at and self.steps == self.at and not self.struck:
            self.struck = True
            if self.kind == "kill":
                raise Killed
            raise OperationalError("COMMIT", {}, Exception("the line is cut"), connection_invalidated=True)


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    fate = Fate()

    def stepping(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: FileStorage, *arguments: Any, **options: Any) -> Any:
            if not self.directory.endswith("quarantine"):
                return method(self, *arguments, **options)
            fate.step()
            answer = method(self, *arguments, **options)
            fate.step()
            return answer

        return call

    for name in ("create", "rename", "remove", "sync_directory"):
        monkeypatch.setattr(FileStorage, name, stepping(getattr(FileStorage, name)))
    return fate


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert_into(items).values(id=100, name="taken"))
    yield engine
    engine.dispose()


class Bench:
    """A log of six entries: entry 2 is refused, 3 and 5 touch its row."""

    def __init__(self, directory: Path, engine: Engine, fate: Fate) -> None:
        self.directory = directory
        self.engine = engine
        self.fate = fate

    def session(self, bind: Engine) -> Session:
        fate = self.fate

        class Stepping(Session):
            def commit(self) -> None:
                fate.step()
                super().commit()
                fate.step(after_commit=True)

        return Stepping(bind, expire_on_commit=False)

    def fill(self) -> None:
        with WriteAheadLog.recover(self.directory) as log:
            append(log, insert((1, "a")))
            append(log, insert((2, "taken")))
            append(log, update(("once", 2)), insert((5, "e")))
            append(log, insert((3, "c")))
            append(log, update(("twice", 2)))
            append(log, insert((4, "d")))

    def run(self) -> None:
        """Open the log and apply what there is; until the end, or until the process is killed."""
        config = CheckpointConfig(
            on_reject="quarantine", batch_delay_s=0.0, retry_initial_s=0.001, retry_max_s=0.01, quarantine_timeout_s=5
        )
        with WriteAheadLog.recover(self.directory) as log:
            checkpointer = SQLAlchemyCheckpointer(self.engine, config=config, session_factory=self.session)
            checkpointer.start(log)
            try:
                wait_until(lambda: checkpointer.applied_id == 6 or checkpointer.status.state == "failed", WAIT_S)
            finally:
                checkpointer.stop(timeout=WAIT_S)

    @contextmanager
    def quarantine(self, log: WriteAheadLog) -> Iterator[Quarantine]:
        checkpointer = SQLAlchemyCheckpointer(
            self.engine,
            config=CheckpointConfig(paused=True, retry_initial_s=0.001),
            session_factory=self.session,
        )
        checkpointer.start(log)
        try:
            yield checkpointer.quarantine
        finally:
            checkpointer.stop(timeout=WAIT_S)

    def retry(self) -> None:
        with WriteAheadLog.recover(self.directory) as log, self.quarantine(log) as quarantine:
            quarantine.retry()

    def held(self) -> list[int]:
        with WriteAheadLog.recover(self.directory) as log, self.quarantine(log) as quarantine:
            return [entry.entry_id for entry in quarantine.list()]

    def rows(self) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(select(items.c.id, items.c.name).order_by(items.c.id))]

    def watermarks(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(f"SELECT last_entry_id FROM {TABLE_NAME}")).scalars())

    def mend(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete_from(items).where(items.c.id == 100))


@pytest.fixture
def make_bench(tmp_path: Path, engine: Engine, fate: Fate) -> Callable[[], Bench]:
    numbers = itertools.count()

    def make() -> Bench:
        with engine.begin() as connection:
            connection.execute(delete_from(items))
            connection.execute(insert_into(items).values(id=100, name="taken"))
            if next(numbers):
                connection.execute(text(f"DELETE FROM {TABLE_NAME}"))
                fate.arm(0, "kill")
        bench = Bench(tmp_path / f"log{next(numbers)}", engine, fate)
        bench.fill()
        return bench

    return make


@pytest.mark.parametrize("kind", [pytest.param("kill", marks=pytest.mark.slow), "lose"])
def test_putting_aside_is_done_once_whatever_happens_between_two_steps(
    make_bench: Callable[[], Bench], fate: Fate, kind: Literal["kill", "lose"]
) -> None:
    for at in itertools.count(1):
        bench = make_bench()
        fate.arm(at, kind)
        bench.run()
        if not fate.struck:
            break
        fate.arm(0, "kill")
        if kind == "kill":
            bench.run()
        assert bench.held() == HELD, at
        assert bench.rows() == APPLIED, at
        assert bench.watermarks() == [6]
    assert at > (10 if kind == "kill" else 3)


@pytest.mark.parametrize("kind", [pytest.param("kill", marks=pytest.mark.slow), "lose"])
def test_a_retry_applies_once_whatever_happens_between_two_steps(
    make_bench: Callable[[], Bench], fate: Fate, kind: Literal["kill", "lose"]
) -> None:
    for at in itertools.count(1):
        bench = make_bench()
        bench.run()
        assert bench.held() == HELD
        bench.mend()
        fate.arm(at, kind)
        try:
            bench.retry()
        except Killed:
            assert fate.struck
        if not fate.struck:
            break
        fate.arm(0, "kill")
        if kind == "kill":
            # The application runs in between: what the retry has left is not in its way, and not applied by it.
            bench.run()
            bench.retry()
        assert bench.held() == []
        assert bench.rows() == MENDED, at
        assert bench.watermarks() == [6], "no receipt is left"
    assert at > (10 if kind == "kill" else 3)


def test_a_retry_leaves_what_the_watermark_has_not_passed(make_bench: Callable[[], Bench], fate: Fate) -> None:
    """Killed between the file and the watermark: the entry is still in the log, and would be applied twice."""
    for at in itertools.count(1):
        bench = make_bench()
        fate.arm(at, "kill")
        bench.run()
        assert fate.struck
        fate.arm(0, "kill")
        if bench.held() == [2] and bench.watermarks() == [1]:
            break
    bench.mend()
    with WriteAheadLog.recover(bench.directory) as log, bench.quarantine(log) as quarantine:
        retry = quarantine.retry()
        assert (retry.applied, list(retry.waiting)) == ((), [2])
        assert "has not moved past it" in retry.waiting[2]
    bench.run()
    bench.retry()
    assert (bench.held(), bench.rows()) == ([], MENDED)


def test_what_is_discarded_before_the_watermark_has_passed_it_is_not_applied(
    make_bench: Callable[[], Bench], fate: Fate
) -> None:
    for at in itertools.count(1):
        bench = make_bench()
        fate.arm(at, "kill")
        bench.run()
        fate.arm(0, "kill")
        if bench.held() == [2] and bench.watermarks() == [1]:
            break
    bench.mend()
    with WriteAheadLog.recover(bench.directory) as log, bench.quarantine(log) as quarantine:
        quarantine.discard([2])
    bench.run()
    # What depended on it finds no row, and is refused for that.
    assert bench.held() == [3, 5]
    assert bench.rows() == [(1, "a"), (3, "c"), (4, "d")]

"""The quarantine on each kind of target: exactly what may be applied is applied, and a retry makes up for the rest.

A backlog with poison meets a target with causes for refusal; a model (`tests.support.poison`) says what must become of
each entry. After the causes are mended and the quarantine retried, the target equals a database in which the same
entries were executed directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select, text

from tests.integration.checkpoint.test_lost_answers import CONNECT_ARGUMENTS, BadCommits
from tests.support.databases import assert_databases_equal, fresh_database
from tests.support.poison import (
    Backlog,
    accounts,
    bookings,
    drop_check,
    impose_causes,
    make_backlog,
    mend_causes,
    prices,
    seed,
    taken_name,
)
from tests.support.proxy import TcpProxy
from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, change_set
from walsync.checkpoint import CheckpointConfig, SQLAlchemyCheckpointer, apply_changes
from walsync.checkpoint.watermark import TABLE_NAME
from walsync.exceptions import EntryRejectedError
from walsync.wal import WriteAheadLog

WAIT_S = 60.0
TABLES = (accounts, bookings, prices)

Start = Callable[..., SQLAlchemyCheckpointer]


@pytest.fixture(
    params=[
        pytest.param(None, id="sqlite"),
        pytest.param("postgres_server_url", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb_server_url", id="mariadb", marks=pytest.mark.mariadb),
    ]
)
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    """The target, and the database in which everything is executed directly."""
    with ExitStack() as stack:
        found = []
        for name in ("target", "direct"):
            if request.param is None:
                engine = create_engine(f"sqlite:///{tmp_path / name}.db")
                event.listen(engine, "connect", _enforce_foreign_keys)
            else:
                engine = create_engine(stack.enter_context(fresh_database(request.getfixturevalue(request.param))))
            stack.callback(engine.dispose)
            found.append(engine)
        yield found[0], found[1]


def _enforce_foreign_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[SQLAlchemyCheckpointer] = []

    def start(log: WriteAheadLog, target: Engine, **settings: Any) -> SQLAlchemyCheckpointer:
        settings = {
            "batch_delay_s": 0.01,
            "retry_initial_s": 0.01,
            "retry_max_s": 0.1,
            "on_reject": "quarantine",
        } | settings
        checkpointer = SQLAlchemyCheckpointer(target, config=CheckpointConfig(**settings))
        started.append(checkpointer)
        checkpointer.start(log)
        return checkpointer

    yield start
    for checkpointer in started:
        checkpointer.stop(timeout=WAIT_S)


def execute_directly(engine: Engine, backlog: Backlog) -> None:
    seed(engine, backlog)
    drop_check(engine)
    with engine.begin() as connection:
        apply_changes(connection, [change_set(*changes) for changes in backlog.entries])


def contents(engine: Engine) -> dict[str, set[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {table.name: {tuple(row) for row in connection.execute(select(table))} for table in TABLES}


def watermarks(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text(f"SELECT last_entry_id FROM {TABLE_NAME}")).scalars())


def check_poison(
    engines: tuple[Engine, Engine], directory: Path, start: Start, backlog: Backlog, **settings: Any
) -> None:
    target, direct = engines
    count = len(backlog.entries)
    fates = set(backlog.fate.values())
    assert fates == {"applied", "rejected", "depends"}, "a backlog without one of them proves nothing"
    execute_directly(direct, backlog)
    seed(target, backlog)
    impose_causes(target, backlog)
    with WriteAheadLog.recover(directory) as log:
        for changes in backlog.entries:
            append(log, *changes)
        checkpointer = start(log, target, **settings)
        checkpointer.wait_applied(log.last_id, WAIT_S + count / 50)
        found = {entry.entry_id: entry.kind for entry in checkpointer.quarantine.list()}
        assert found == {number: fate for number, fate in backlog.fate.items() if fate != "applied"}
        assert contents(target) == {table.name: backlog.target.contents(table.name) for table in TABLES}
        assert checkpointer.status.quarantined_entries == len(found)
        assert checkpointer.status.applied_entries == count - len(found)
        assert watermarks(target) == [count]
        print(f"{count} entries, {len(found)} in quarantine, {checkpointer.status.batches} batches")
        # With the causes there, all of them are refused again, and nothing changes.
        again = checkpointer.quarantine.retry()
        assert not again.applied
        assert sorted([*again.refused, *again.waiting]) == sorted(found)
        assert contents(target) == {table.name: backlog.target.contents(table.name) for table in TABLES}
        mend_causes(target, backlog)
        retry = checkpointer.quarantine.retry()
        assert (retry.refused, retry.waiting) == ({}, {})
        assert list(retry.applied) == sorted(found)
        assert checkpointer.quarantine.list() == []
        assert_databases_equal(target, direct, TABLES)
        assert watermarks(target) == [count], "receipts are removed"
        wait_until(lambda: checkpointer.status.quarantined_entries == 0)


def test_halt_stops_before_the_first_and_says_which_and_why(
    engines: tuple[Engine, Engine], tmp_path: Path, start: Start
) -> None:
    target, _ = engines
    backlog = make_backlog(7, 200)
    first = backlog.in_quarantine()[0]
    seed(target, backlog)
    impose_causes(target, backlog)
    with WriteAheadLog.recover(tmp_path / "log") as log:
        for changes in backlog.entries:
            append(log, *changes)
        checkpointer = start(log, target, on_reject="halt")
        with pytest.raises(EntryRejectedError, match=f"the target refuses entry {first} ") as caught:
            checkpointer.wait_applied(log.last_id, WAIT_S)
        assert caught.value.entry_id == first
        assert taken_name(first) in str(caught.value) or "onstraint" in str(caught.value)
        assert (checkpointer.status.state, checkpointer.status.rejected_entry_id) == ("halted", first)
        assert watermarks(target) == [first - 1] == [checkpointer.applied_id]
        assert checkpointer.quarantine.list() == []
        mend_causes(target, backlog)
        checkpointer.resume()
        checkpointer.wait_applied(log.last_id, WAIT_S)
        checkpointer.stop()


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ],
)
def test_lost_answers_to_commit_around_the_quarantine_count_once(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, start: Start
) -> None:
    """On a real line that loses COMMITs and their answers while entries are put aside, and while they are retried."""
    server = request.getfixturevalue({"postgresql": "postgres_server_url", "mariadb": "mariadb_server_url"}[backend])
    backlog = make_backlog(11, 120, share=0.1)
    with ExitStack() as stack:
        target, direct = (create_engine(stack.enter_context(fresh_database(server))) for _ in range(2))
        stack.callback(target.dispose)
        stack.callback(direct.dispose)
        execute_directly(direct, backlog)
        seed(target, backlog)
        impose_causes(target, backlog)
        assert target.url.host is not None
        commits = BadCommits(backend, 1_000)
        proxy = stack.enter_context(TcpProxy(target.url.host, target.url.port or 0, watch=commits))
        proxy.late_s = 0.03
        line = create_engine(target.url.set(host="127.0.0.1", port=proxy.port), connect_args=CONNECT_ARGUMENTS[backend])
        stack.callback(line.dispose)
        log = stack.enter_context(WriteAheadLog.recover(tmp_path / "log"))
        for changes in backlog.entries:
            append(log, *changes)
        checkpointer = start(log, line, batch_changes=8, retry_initial_s=0.001, retry_max_s=0.01)
        checkpointer.wait_applied(log.last_id, WAIT_S)
        lost = commits.lost_answers
        assert lost > 5
        found = {entry.entry_id: entry.kind for entry in checkpointer.quarantine.list()}
        assert found == {number: fate for number, fate in backlog.fate.items() if fate != "applied"}
        assert contents(target) == {table.name: backlog.target.contents(table.name) for table in TABLES}
        mend_causes(target, backlog)
        retry = checkpointer.quarantine.retry(timeout=WAIT_S)
        assert retry.complete
        assert commits.lost_answers > lost + 3
        commits.answers_to_lose = 0
        checkpointer.quarantine.retry()
        assert checkpointer.quarantine.list() == []
        assert_databases_equal(target, direct, TABLES)
        assert watermarks(target) == [len(backlog.entries)], "receipts are removed"
        checkpointer.stop()


def test_retries_while_entries_come_keep_the_order(
    engines: tuple[Engine, Engine], tmp_path: Path, start: Start
) -> None:
    """Entries come, the cause is mended in the middle, and somebody retries all the time: nothing is applied twice or
    early."""
    target, direct = engines
    backlog = make_backlog(3, 300, share=0.05)
    execute_directly(direct, backlog)
    seed(target, backlog)
    impose_causes(target, backlog)
    half = len(backlog.entries) // 2
    stop = threading.Event()
    applied: list[int] = []
    with WriteAheadLog.recover(tmp_path / "log") as log:
        checkpointer = start(log, target, batch_changes=10, batch_delay_s=0.0)

        def retry_for_ever() -> None:
            while not stop.is_set():
                applied.extend(checkpointer.quarantine.retry(timeout=WAIT_S).applied)

        with ThreadPoolExecutor(1) as pool:
            retrying = pool.submit(retry_for_ever)
            try:
                for number, changes in enumerate(backlog.entries):
                    if number == half:
                        checkpointer.wait_applied(log.last_id, WAIT_S)
                        mend_causes(target, backlog)
                    append(log, *changes)
                checkpointer.wait_applied(log.last_id, WAIT_S)
            finally:
                stop.set()
            retrying.result(WAIT_S)
        applied.extend(checkpointer.quarantine.retry().applied)
        assert checkpointer.quarantine.ids() == []
        assert len(applied) == len(set(applied)) > 5
        assert_databases_equal(target, direct, TABLES)
        checkpointer.stop()


def test_exactly_what_may_be_applied_is_applied(engines: tuple[Engine, Engine], tmp_path: Path, start: Start) -> None:
    check_poison(engines, tmp_path / "log", start, make_backlog(7, 400, share=0.02), batch_changes=150)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_exactly_what_may_be_applied_of_a_long_backlog_is_applied(
    engines: tuple[Engine, Engine], tmp_path: Path, start: Start
) -> None:
    check_poison(engines, tmp_path / "log", start, make_backlog(7, 20_000, care=0.7))

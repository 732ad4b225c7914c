"""The checkpointer on each kind of target: exactly once, in order, whatever happens to the connection."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests.support.databases import fresh_database
from tests.support.servers import PrivateServer
from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import (
    ITEMS,
    append,
    change_set,
    delete,
    insert,
    items,
    metadata,
    open_log,
    statement,
    update,
)
from walsync.changes import RowChanges, TableName
from walsync.checkpoint import CheckpointConfig, FailureKind, SQLAlchemyCheckpointer, apply_changes
from walsync.checkpoint.watermark import TABLE_NAME
from walsync.exceptions import CheckpointFailedError, EntryRejectedError, TargetBlockedError, WatermarkGapError
from walsync.wal import WriteAheadLog

WAIT_S = 30.0

Start = Callable[..., SQLAlchemyCheckpointer]


@pytest.fixture
def engine(target_url: str) -> Iterator[Engine]:
    engine = create_engine(target_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def log() -> Iterator[WriteAheadLog]:
    with open_log() as log:
        yield log


@pytest.fixture
def start(log: WriteAheadLog) -> Iterator[Start]:
    started: list[SQLAlchemyCheckpointer] = []

    def start(target: Engine, **settings: Any) -> SQLAlchemyCheckpointer:
        settings = {
            "batch_delay_s": 0.01,
            "retry_initial_s": 0.01,
            "retry_max_s": 0.1,
            "blocked_retry_s": 0.1,
        } | settings
        checkpointer = SQLAlchemyCheckpointer(target, config=CheckpointConfig(**settings))
        started.append(checkpointer)
        checkpointer.start(log)
        return checkpointer

    yield start
    for checkpointer in started:
        checkpointer.stop(timeout=WAIT_S)


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(items.c.id, items.c.name).order_by(items.c.id))]


def watermark(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT last_entry_id FROM {TABLE_NAME}")).scalar_one())


def concatenation(engine: Engine) -> str:
    """As SQLAlchemy's compilers write it for each of them."""
    return {"sqlite": "name || %(s)s", "postgresql": "name || %(s)s::VARCHAR"}.get(
        engine.dialect.name, "CONCAT(name, %(s)s)"
    )


def test_every_kind_of_change_arrives_in_order(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    for number in range(1, 21):
        append(log, insert((number, f"n{number}"), (number + 100, f"n{number + 100}")))
        append(log, update((f"m{number}", number)), delete(number + 100))
        append(
            log,
            statement(
                f"UPDATE items SET name = {concatenation(engine)} WHERE id = %(id)s AND name <> '50%%:x'",
                engine.dialect.name,
                s="%:y\\",
                id=number,
            ),
        )
    start(engine).wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(n, f"m{n}%:y\\") for n in range(1, 21)]
    assert watermark(engine) == log.last_id == log.checkpointed_id


def test_a_lost_answer_to_commit_counts_once(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    chance = random.Random(7)
    lost = [0]
    checkpointer = start(engine, paused=True, batch_changes=5)

    def cut(connection: Any) -> None:
        """In place of SQLAlchemy's COMMIT: nothing, COMMIT and a cut line, or a cut line alone."""
        if lost[0] >= 40 or chance.random() < 0.4:
            return
        lost[0] += 1
        dbapi_connection = connection.connection.dbapi_connection
        if chance.random() < 0.5:
            dbapi_connection.commit()
        else:
            dbapi_connection.rollback()
        connection.invalidate()
        raise OperationalError("COMMIT", {}, Exception("the line is cut"), connection_invalidated=True)

    event.listen(checkpointer.engine, "commit", cut)
    for number in range(200):
        append(log, insert((number, "0")) if number == 0 else insert((number, str(number))))
        append(
            log, statement(f"UPDATE items SET name = {concatenation(engine)} WHERE id = 0", engine.dialect.name, s="+")
        ) if number < 30 else None
    checkpointer.resume()
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert lost[0] > 10
    assert rows(engine) == [(0, "0" + "+" * 30)] + [(n, str(n)) for n in range(1, 200)]


def test_racing_appliers_apply_each_entry_once(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    racers = [start(engine, batch_changes=4, batch_delay_s=0.001) for _ in range(3)]
    append(log, insert((0, "0")))
    for number in range(1, 151):
        append(
            log,
            insert((number, str(number))),
            statement(f"UPDATE items SET name = {concatenation(engine)} WHERE id = 0", engine.dialect.name, s="+")
            if number % 5 == 0
            else insert((number + 1000, str(number + 1000))),
        )
    for racer in racers:
        racer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine)[0] == (0, "0" + "+" * 30)
    assert len(rows(engine)) == 1 + 150 + 120
    assert sum(racer.status.applied_entries for racer in racers) == log.last_id
    assert watermark(engine) == log.last_id


def test_racing_appliers_make_table_and_row_once(target_url: str, log: WriteAheadLog) -> None:
    engine = create_engine(target_url)
    checkpointers = [SQLAlchemyCheckpointer(engine) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda checkpointer: checkpointer.check_watermark(log), checkpointers))
    assert answers == [True] * 4
    assert watermark(engine) == 0
    for checkpointer in checkpointers:
        checkpointer.stop()
    engine.dispose()


def test_gaps_between_log_and_target_are_refused(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    for number in range(3):
        append(log, insert((number, str(number))))
    first = start(engine)
    first.wait_applied(log.last_id, WAIT_S)
    first.stop()
    append(log, insert((3, "3")))
    for changed, message in (
        (f"UPDATE {TABLE_NAME} SET last_entry_id = 2", "older backup"),
        (f"UPDATE {TABLE_NAME} SET last_entry_id = 9", "ends at entry 4"),
        (f"DELETE FROM {TABLE_NAME}", "no watermark"),
    ):
        with engine.begin() as connection:
            connection.execute(text(changed))
        second = start(engine)
        with pytest.raises(WatermarkGapError, match=message):
            second.wait_applied(log.last_id, WAIT_S)
        second.stop()
    assert len(rows(engine)) == 3


def test_halted_by_a_rejected_entry_until_its_cause_is_removed(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    append(log, insert((1, "a")))
    append(log, insert((2, "b"), (3, "a")))
    append(log, insert((4, "d")))
    checkpointer = start(engine)
    with pytest.raises(EntryRejectedError, match="entry 2"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "a")]
    assert checkpointer.status.last_error_kind is FailureKind.REJECTED
    with engine.begin() as connection:
        connection.execute(items.update().values(name="other"))
    checkpointer.resume()
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "other"), (2, "b"), (3, "a"), (4, "d")]


def test_rows_that_are_not_there_are_found_inside_of_a_bulk_statement(
    engine: Engine, log: WriteAheadLog, start: Start
) -> None:
    append(log, insert(*[(number, str(number)) for number in range(20)]))
    # Setting what is there already must count as found: MariaDB counts changed rows unless it is told otherwise.
    append(log, update(*[(str(number), number) for number in range(20)]))
    append(log, update(*[(f"x{number}", number) for number in range(10, 25)]))
    checkpointer = start(engine)
    with pytest.raises(EntryRejectedError, match=r"entry 3 .*id = 20 was found 0 times"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert watermark(engine) == 2


def test_blocked_by_a_missing_table_until_it_is_there(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    append(log, insert((1, "a")))
    append(log, insert((7, "x"), table=TableName(None, "later")))
    append(log, insert((2, "b")))
    checkpointer = start(engine)
    with pytest.raises(TargetBlockedError, match="later"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.status.rejected_entry_id == 2
    assert rows(engine) == [(1, "a")]
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE later (id INT PRIMARY KEY, name VARCHAR(10))"))
    wait_until(lambda: checkpointer.applied_id == log.last_id)
    assert rows(engine) == [(1, "a"), (2, "b")]


def test_a_lock_that_somebody_holds_is_waited_for(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    if engine.dialect.name in ("mysql", "mariadb"):
        event.listen(engine, "connect", lambda connection, _: connection.query("SET innodb_lock_wait_timeout = 1"))
    append(log, insert((1, "a")))
    checkpointer = start(engine, target_lock_timeout_s=0.05)
    checkpointer.wait_applied(log.last_id, WAIT_S)
    holder = create_engine(engine.url, connect_args={"timeout": 0.05} if engine.dialect.name == "sqlite" else {})
    with holder.connect() as connection:
        connection.execute(items.update().values(name="held"))
        append(log, update(("b", 1)))
        if engine.dialect.name != "sqlite":  # its driver waits for 5 seconds by itself
            wait_until(lambda: checkpointer.status.state == "retrying")
        connection.rollback()
    wait_until(lambda: checkpointer.applied_id == log.last_id)
    assert rows(engine) == [(1, "b")]
    holder.dispose()


def kill_own_connection(session: Session) -> None:
    """Cuts the transaction that is under way, from a second connection."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        number = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        kill = f"SELECT pg_terminate_backend({number})"
    else:
        number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
        kill = f"KILL {number}"
    engine = create_engine(connection.engine.url)
    with engine.begin() as other:
        other.exec_driver_sql(kill)
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("empty_postgres_url", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("empty_mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
    ],
)
@pytest.mark.parametrize("when", ["before_checkpoint", "after_replay", "after_checkpoint"])
def test_a_killed_connection_costs_nothing(
    request: pytest.FixtureRequest, log: WriteAheadLog, start: Start, url: str, when: str
) -> None:
    engine = create_engine(request.getfixturevalue(url))
    metadata.create_all(engine)
    for number in range(30):
        append(log, insert((number, str(number))))
    checkpointer = start(engine, paused=True, batch_changes=4)
    calls = [0]

    @event.listens_for(checkpointer, when)
    def cut(session: Session, *rest: Any) -> None:
        calls[0] += 1
        if calls[0] in (1, 4, 5):
            kill_own_connection(session)

    checkpointer.resume()
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert calls[0] > 5
    assert rows(engine) == [(n, str(n)) for n in range(30)]
    engine.dispose()


# ------------------------------------------------------------------------------------- what a dialect does its own way


@pytest.mark.postgresql
def test_a_generated_always_identity_gets_the_recorded_key(empty_postgres_url: str) -> None:
    engine = create_engine(empty_postgres_url)
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE items (id INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name VARCHAR(10))")
        )
        apply_changes(connection, change_set(insert((5, "a"), (6, "b")), insert((7, "c"))))
    assert [row[0] for row in rows(engine)] == [5, 6, 7]
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("empty_postgres_url", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("empty_mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
    ],
)
@pytest.mark.parametrize("how", ["isolation level", "driver"])
def test_statements_that_commit_by_themselves_are_overruled_or_refused(
    request: pytest.FixtureRequest, log: WriteAheadLog, start: Start, url: str, how: str
) -> None:
    settings: dict[str, Any] = (
        {"isolation_level": "AUTOCOMMIT"} if how == "isolation level" else {"connect_args": {"autocommit": True}}
    )
    engine = create_engine(request.getfixturevalue(url), **settings)
    metadata.create_all(engine)
    append(log, insert((1, "a")))
    append(log, insert((2, "b")), insert((1, "again")))
    checkpointer = start(engine)
    if how == "isolation level":
        with pytest.raises(EntryRejectedError):
            checkpointer.wait_applied(log.last_id, WAIT_S)
        assert rows(engine) == [(1, "a")]
        assert watermark(engine) == 1
    else:
        with pytest.raises(CheckpointFailedError, match="autocommit"):
            checkpointer.wait_applied(log.last_id, WAIT_S)
        assert rows(engine) == []
        assert watermark(engine) == 0
    engine.dispose()


@pytest.mark.mariadb
def test_a_recorded_zero_stays_a_zero(empty_mariadb_url: str, log: WriteAheadLog, start: Start) -> None:
    engine = create_engine(empty_mariadb_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE items (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(10))"))
    append(log, insert((0, "a"), (5, "b")))
    start(engine).wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(0, "a"), (5, "b")]
    with engine.connect() as connection:  # the application's own connections are as they were
        assert "NO_AUTO_VALUE_ON_ZERO" not in connection.exec_driver_sql("SELECT @@sql_mode").scalar_one()
    engine.dispose()


@pytest.mark.mariadb
def test_many_rows_with_commit_times_are_few_statements(
    empty_mariadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walsync.checkpoint.multirow._BYTES_MAX", 1000)
    engine = create_engine(empty_mariadb_url)
    counts: list[int] = []
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE items (id INT PRIMARY KEY, name VARCHAR(2000), `a%b (` DATETIME NOT NULL)")
        )
        event.listen(connection, "after_cursor_execute", lambda conn, cursor, *rest: counts.append(cursor.rowcount))
        apply_changes(
            connection,
            [
                change_set(
                    insert(
                        *[(entry * 300 + n, f"%s' {n}" if n % 100 else "x" * 1500) for n in range(300)],
                        commit_times=("a%b (",),
                    ),
                    commit_time_ns=entry * 10**9,
                )
                for entry in range(1, 3)
            ],
        )
        found = connection.execute(text("SELECT id, name, UNIX_TIMESTAMP(`a%b (`) FROM items ORDER BY id")).all()
    assert [tuple(row) for row in found] == [
        (entry * 300 + n, f"%s' {n}" if n % 100 else "x" * 1500, entry) for entry in range(1, 3) for n in range(300)
    ]
    assert sum(counts[:-1]) == 600
    assert len(counts) < 30
    engine.dispose()


MOMENT_US = 1_700_000_000_654_321


@pytest.mark.postgresql
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_commit_times_on_postgresql_are_what_now_would_have_written(empty_postgres_url: str, zone: str) -> None:
    engine = create_engine(empty_postgres_url, connect_args={"options": f"-c timezone={zone}"})
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE items (id INT, name VARCHAR(10), naive TIMESTAMP, aware TIMESTAMPTZ, day DATE)")
        )
        apply_changes(
            connection,
            change_set(
                insert((1, "a"), commit_times=("naive", "aware", "day")),
                commit_time_ns=MOMENT_US * 1000,
            ),
        )
        found = connection.execute(
            text(
                "SELECT aware = TIMESTAMPTZ '2023-11-14 22:13:20.654321+00', naive = aware::timestamp, "
                "day = aware::date FROM items"
            )
        ).one()
    assert tuple(found) == (True, True, True)
    engine.dispose()


@pytest.mark.mariadb
@pytest.mark.parametrize("zone", ["+00:00", "-05:00", "+05:45"])
def test_commit_times_on_mariadb_are_what_now_would_have_written(empty_mariadb_url: str, zone: str) -> None:
    engine = create_engine(empty_mariadb_url, connect_args={"init_command": f"SET time_zone = '{zone}'"})
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE items (id INT, name VARCHAR(10), wall DATETIME(6), moment TIMESTAMP NULL)")
        )
        change = insert((1, "a"), (2, "b"), commit_times=("wall", "moment"))
        apply_changes(connection, change_set(change, commit_time_ns=MOMENT_US * 1000))
        connection.execute(text(f"SET timestamp = {MOMENT_US // 1_000_000}.654321"))
        connection.execute(text("INSERT INTO items VALUES (3, 'c', NOW(), NOW())"))
        found = connection.execute(text("SELECT wall, moment FROM items")).all()
    assert found[0] == found[1] == found[2]
    assert isinstance(found[0][0], datetime.datetime)
    engine.dispose()


@pytest.mark.mariadb
def test_updates_of_commit_times_and_versions(empty_mariadb_url: str) -> None:
    engine = create_engine(empty_mariadb_url)
    metadata.create_all(engine)
    integer = ("integer",)
    with engine.begin() as connection:
        connection.execute(items.insert().values(id=1, name="a", version=1))
        versioned = RowChanges(
            "update", ITEMS, ("version",), (integer,), ("id", "version"), (integer,) * 2, [[2, 1, 1]], must_match=True
        )
        apply_changes(connection, change_set(versioned))
        with pytest.raises(EntryRejectedError, match="version = 1"):
            apply_changes(connection, change_set(versioned))
    engine.dispose()


# --------------------------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize(
    "server_name",
    [
        pytest.param("private_postgresql", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("private_mariadb", id="mariadb", marks=pytest.mark.mariadb),
    ],
)
def test_a_target_that_goes_and_comes_back(
    request: pytest.FixtureRequest, log: WriteAheadLog, start: Start, server_name: str
) -> None:
    server: PrivateServer = request.getfixturevalue(server_name)
    with fresh_database(server.url) as url:
        engine = create_engine(url)
        metadata.create_all(engine)
        checkpointer = start(engine, batch_changes=5)
        append(log, insert((0, "0")))
        checkpointer.wait_applied(log.last_id, WAIT_S)
        for outage in range(2):
            server.stop(immediate=outage == 1)
            for number in range(20):
                append(log, insert((1 + outage * 20 + number, f"{outage}/{number}")))
            wait_until(lambda: checkpointer.status.state == "retrying")
            assert checkpointer.status.last_error_kind is FailureKind.TRANSIENT
            assert checkpointer.check_watermark() is False
            server.start()
            wait_until(lambda: checkpointer.applied_id == log.last_id)
        engine.dispose()
        assert len(rows(engine)) == 41
        assert checkpointer.status.state == "running"
        checkpointer.stop()
        engine.dispose()

"""A batch of many small transactions becomes a few statements, which say exactly what they found."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, String, Table, create_engine, event, select
from sqlalchemy.exc import DBAPIError

from tests.unit.checkpoint.entries import append, change_set, delete, insert, items, metadata, open_log, update
from walsync.changes import TableName
from walsync.checkpoint import CheckpointConfig, FailureKind, SQLAlchemyCheckpointer, apply_changes
from walsync.checkpoint.failures import classify
from walsync.exceptions import EntryRejectedError
from walsync.wal import WriteAheadLog

WAIT_S = 30.0
ENTRIES = 400

# As `items`, and its names may be the same.
words = Table(
    "words", metadata, Column("id", Integer, primary_key=True, autoincrement=False), Column("name", String(40))
)
WORDS = TableName(None, "words")


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


def rows(engine: Engine, table: Table = words) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(table.c.id, table.c.name).order_by(table.c.id))]


def executed_by(engine: Engine) -> list[str]:
    seen: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        seen.append(sql)

    return seen


def drain(engine: Engine, log: WriteAheadLog, **settings: Any) -> list[str]:
    checkpointer = SQLAlchemyCheckpointer(engine, config=CheckpointConfig(batch_changes=10_000, **settings))
    checkpointer.check_watermark(log)
    seen = executed_by(checkpointer.engine)
    checkpointer.start(log)
    try:
        checkpointer.wait_applied(log.last_id, WAIT_S)
    finally:
        checkpointer.stop(timeout=WAIT_S)
    return [sql for sql in seen if "words" in sql and "information_schema" not in sql and "pragma" not in sql]


def append_mixed(log: WriteAheadLog) -> None:
    append(log, insert(*[(number, "old") for number in range(ENTRIES)], table=WORDS))
    for number in range(ENTRIES):
        append(log, update((f"n{number}", number), table=WORDS))
        append(log, insert((1000 + number, "new"), table=WORDS))
        append(log, delete(number, table=WORDS) if number % 2 else update(("twice", number), table=WORDS))


MIXED = [(number, "twice") for number in range(0, ENTRIES, 2)] + [(1000 + number, "new") for number in range(ENTRIES)]


def test_many_transactions_become_few_statements(engine: Engine, log: WriteAheadLog) -> None:
    append_mixed(log)
    seen = drain(engine, log)
    assert rows(engine) == MIXED
    # Insert, update, delete; the parts of MariaDB's compound statements are bounded.
    assert len(seen) <= 12


def test_they_can_be_left_in_their_order(engine: Engine, log: WriteAheadLog) -> None:
    append_mixed(log)
    seen = drain(engine, log, reorder=False)
    assert rows(engine) == MIXED
    assert len(seen) > 2 * ENTRIES


def test_what_is_refused_only_when_moved_is_done_in_order(
    engine: Engine, log: WriteAheadLog, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.begin() as connection:
        connection.execute(items.insert(), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    append(log, insert((3, "c")))
    append(log, update(("d", 1)))
    # Free only since the line before, which does not say what the name was.
    append(log, insert((4, "a")))
    append(log, update(("e", 2)))
    append(log, insert((5, "b")))
    with caplog.at_level(logging.INFO, "walsync.checkpoint"):
        drain(engine, log)
    assert rows(engine, items) == [(1, "d"), (2, "e"), (3, "c"), (4, "a"), (5, "b")]
    assert "in the order of the log only" in caplog.text
    assert "in parts" not in caplog.text


def test_a_row_that_is_not_there_is_found_among_many(engine: Engine) -> None:
    with engine.connect() as connection:
        apply_changes(connection, change_set(insert(*[(number, "x") for number in range(450)], table=WORDS)))
        many = [(f"n{number}", number) for number in range(450)]
        apply_changes(connection, change_set(update(*many, table=WORDS)))
        with pytest.raises(EntryRejectedError, match="450 of 451"):
            apply_changes(connection, change_set(update(*many, ("x", 9999), table=WORDS)))


def test_a_row_that_is_written_many_times_has_its_last_value(engine: Engine) -> None:
    with engine.begin() as connection:
        apply_changes(connection, change_set(insert((1, "x"), table=WORDS)))
        apply_changes(connection, change_set(update(*[(f"n{number}", 1) for number in range(401)], table=WORDS)))
    assert rows(engine) == [(1, "n400")]


def test_a_row_that_keeps_its_values_counts_as_found(engine: Engine) -> None:
    with engine.begin() as connection:
        apply_changes(connection, change_set(insert((1, "x"), (2, "x"), table=WORDS)))
        apply_changes(connection, change_set(update(("x", 1), ("x", 2), ("x", 1), table=WORDS)))
    assert rows(engine) == [(1, "x"), (2, "x")]


def test_values_that_look_like_code_stay_values(engine: Engine) -> None:
    odd = ["a'; SELECT 1; -- ", "%s %(x)s %%", "END", "\\' ; \\", "ä€😀", ""]
    new = [(value, number) for number, value in enumerate(odd)]
    with engine.begin() as connection:
        apply_changes(connection, change_set(insert(*[(number, "x") for number in range(len(odd))], table=WORDS)))
        apply_changes(connection, change_set(update(*new, table=WORDS)))
    assert rows(engine) == list(enumerate(odd))


def test_the_refusal_of_one_among_many_keeps_its_code(engine: Engine) -> None:
    with engine.connect() as connection:
        apply_changes(connection, change_set(insert((1, "a"), (2, "b"), (3, "c"))))
        with pytest.raises(DBAPIError) as caught:
            apply_changes(connection, change_set(update(("x", 1), ("x", 2), ("z", 3))))
    failure = classify(caught.value, engine.dialect.name)
    assert failure is not None
    assert failure.kind is FailureKind.REJECTED


def test_after_a_pause_the_tables_are_looked_at_again(engine: Engine, log: WriteAheadLog) -> None:
    checkpointer = SQLAlchemyCheckpointer(engine, config=CheckpointConfig(batch_changes=10_000, batch_delay_s=0.01))
    checkpointer.check_watermark(log)
    seen = executed_by(checkpointer.engine)
    checkpointer.start(log)
    try:
        append_mixed(log)
        checkpointer.wait_applied(log.last_id, WAIT_S)

        def questions() -> int:
            return sum("pg_index" in sql or "information_schema" in sql or "pragma_index" in sql for sql in seen)

        asked = questions()
        assert asked
        checkpointer.pause()
        for number in range(10):
            append(log, insert((5000 + number, "x"), table=WORDS))
            append(log, update(("y", 5000 + number), table=WORDS))
        checkpointer.resume()
        checkpointer.wait_applied(log.last_id, WAIT_S)
        assert questions() > asked
    finally:
        checkpointer.stop(timeout=WAIT_S)

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from walsync.checkpoint.watermark import TABLE_NAME, Watermark, resume_after
from walsync.exceptions import WatermarkGapError


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    yield engine
    engine.dispose()


def test_every_combination_of_watermark_checkpoint_and_end() -> None:
    numbers = range(4)
    for watermark, checkpointed_id, last_id in itertools.product([None, *numbers], numbers, numbers):
        if last_id < checkpointed_id:
            continue  # no log is like this
        fits = (watermark is None and checkpointed_id == 0) or (
            watermark is not None and checkpointed_id <= watermark <= last_id
        )
        if fits:
            assert resume_after(watermark, checkpointed_id, last_id, log="x") == watermark
        else:
            with pytest.raises(WatermarkGapError):
                resume_after(watermark, checkpointed_id, last_id, log="x")


def test_messages_say_which_gap_with_the_numbers_and_what_to_do() -> None:
    with pytest.raises(WatermarkGapError, match=r"no watermark for log L.*up to 70.*insert"):
        resume_after(None, 70, 90, log="log L")
    with pytest.raises(WatermarkGapError, match=r"is 50.*up to 70.*older backup.*51 to 70.*Restore"):
        resume_after(50, 70, 90, log="log L")
    with pytest.raises(WatermarkGapError, match=r"is 95.*ends at entry 90.*log directory"):
        resume_after(95, 70, 90, log="log L")


def test_the_row_is_made_once_and_moved_by_compare_and_set(engine: Engine) -> None:
    watermark = Watermark(uuid.uuid4(), "here")
    watermark.ensure_table(engine)
    with engine.begin() as connection:
        assert watermark.read(connection) is None
        watermark.insert(connection)
        assert watermark.read(connection) == 0
    with pytest.raises(IntegrityError), engine.begin() as connection:
        watermark.insert(connection)
    with engine.begin() as connection:
        assert not watermark.advance(connection, 3, 9)
        assert watermark.read(connection) == 0
        assert watermark.advance(connection, 0, 5)
        assert not watermark.advance(connection, 0, 7)
        assert watermark.read(connection) == 5
    with engine.connect() as connection:
        row = connection.execute(text(f"SELECT * FROM {TABLE_NAME}")).mappings().one()
    assert row["origin"] == "here"
    assert row["applied_at"]


def test_logs_have_rows_of_their_own(engine: Engine) -> None:
    first, second = Watermark(uuid.uuid4(), "a"), Watermark(uuid.uuid4(), "b" * 1000)
    first.ensure_table(engine)
    with engine.begin() as connection:
        first.insert(connection)
        second.insert(connection)
        assert first.advance(connection, 0, 7)
        assert second.read(connection) == 0


def test_an_entry_id_may_be_as_large_as_the_log_allows(engine: Engine) -> None:
    watermark = Watermark(uuid.uuid4(), "x")
    watermark.ensure_table(engine)
    with engine.begin() as connection:
        watermark.insert(connection)
        assert watermark.advance(connection, 0, 2**62)
        assert watermark.read(connection) == 2**62


def test_making_the_table_twice_is_no_failure(engine: Engine) -> None:
    watermark = Watermark(uuid.uuid4(), "x")
    watermark.ensure_table(engine)
    watermark.ensure_table(engine)
    assert inspect(engine).has_table(TABLE_NAME)


def test_two_appliers_may_make_the_table_at_the_same_moment(tmp_path: Path) -> None:
    def make(engine: Engine, barrier: threading.Barrier) -> None:
        barrier.wait(10)
        Watermark(uuid.uuid4(), "x").ensure_table(engine)

    for attempt in range(10):
        engine = create_engine(f"sqlite:///{tmp_path / f'{attempt}.db'}")
        barrier = threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            for made in [pool.submit(make, engine, barrier) for _ in range(3)]:
                made.result(20)
        assert inspect(engine).has_table(TABLE_NAME)
        engine.dispose()

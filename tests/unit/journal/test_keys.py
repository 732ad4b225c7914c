"""Keys: none is given out twice, whatever happens to the process, the file and the target."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, select
from sqlalchemy.pool import QueuePool

from tests.support.waiting import wait_until
from tests.unit.journal.recording import CountingSource
from walsync.exceptions import ConfigurationError, KeysExhaustedError
from walsync.journal import KeyAllocator, KeyConfig
from walsync.journal.key_file import KeyFile
from walsync.journal.key_sources import KEYS_TABLE, TargetKeySource

METADATA = MetaData()
COLUMN: Column[Any] = Table("thing", METADATA, Column("id", Integer, primary_key=True)).c.id
OTHER: Column[Any] = Table("other", METADATA, Column("id", Integer, primary_key=True)).c.id


class FailingSource(CountingSource):
    failing = False

    def fetch(self, column: Column[Any], count: int, above: int) -> Any:
        if self.failing:
            raise ConnectionError("the target is away")
        return super().fetch(column, count, above)


def allocator(source: Any, file: KeyFile | None = None, block_keys: int = 10) -> KeyAllocator:
    return KeyAllocator(source, file, KeyConfig(block_keys=block_keys))


def test_a_block_is_dense_and_columns_are_independent() -> None:
    keys = allocator(CountingSource(), block_keys=30)
    assert [keys.next_key(COLUMN) for _ in range(25)] == list(range(101, 126))
    assert keys.next_key(OTHER) == 101


def test_many_threads_get_different_keys() -> None:
    keys = allocator(CountingSource(), block_keys=7)
    found: list[int] = []

    def take() -> None:
        mine = [keys.next_key(COLUMN) for _ in range(500)]
        found.extend(mine)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    keys.close()
    assert len(set(found)) == 4000


def test_a_reserve_is_used_while_the_target_is_away_and_then_the_error_says_so(tmp_path: Path) -> None:
    source = FailingSource()
    file = KeyFile(tmp_path)
    keys = allocator(source, file)
    first = keys.next_key(COLUMN)
    wait_until(lambda: file.read() != {})
    source.failing = True
    rest = [keys.next_key(COLUMN) for _ in range(19)]
    assert [first, *rest] == list(range(101, 121))
    with pytest.raises(KeysExhaustedError, match=r"thing\.id.*the target is away"):
        keys.next_key(COLUMN)
    source.failing = False
    assert keys.next_key(COLUMN) == 121
    keys.close()


def test_a_reserve_survives_a_restart_and_nothing_is_given_out_twice(tmp_path: Path) -> None:
    source = FailingSource()
    seen: list[int] = []
    for _ in range(4):
        file = KeyFile(tmp_path)
        keys = allocator(source, file)
        seen.extend(keys.next_key(COLUMN) for _ in range(3))
        wait_until(lambda file=file: file.read() != {})  # type: ignore[misc]
        keys.close()
        source.failing = False
    assert len(set(seen)) == len(seen)
    source.failing = True
    keys = allocator(source, KeyFile(tmp_path))
    assert keys.next_key(COLUMN) not in seen


def test_a_key_chosen_by_the_application_is_skipped() -> None:
    keys = allocator(CountingSource())
    assert keys.next_key(COLUMN) == 101
    keys.note_keys(COLUMN, [105, 3, None, "x"])
    assert keys.next_key(COLUMN) == 106
    keys.note_keys(COLUMN, [500])
    assert keys.next_key(COLUMN) > 500


def test_the_last_key_of_a_block_is_given_out() -> None:
    source = CountingSource()
    keys = allocator(source, block_keys=1)
    given = {keys.next_key(COLUMN) for _ in range(20)}
    keys.close()
    # All that was fetched was given out, but for the reserve.
    assert given <= set(range(101, 101 + source.fetches))
    assert source.fetches - len(given) <= 2


@pytest.mark.parametrize("content", [b"", b"nonsense", b"00000000 {}", b"\xff" * 100])
def test_a_damaged_file_is_set_aside_and_its_blocks_are_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    assert KeyFile(tmp_path).read() == {}
    assert (tmp_path / "keys.damaged").read_bytes() == content


def test_any_changed_byte_of_the_file_is_noticed(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    blocks = {"thing.id": [(1, 10), (20, 30)]}
    file.write(blocks)
    whole = (tmp_path / "keys").read_bytes()
    assert file.read() == blocks
    for place in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 0x01
        (tmp_path / "keys").write_bytes(bytes(damaged))
        assert file.read() in ({}, blocks), f"byte {place}"


@pytest.mark.parametrize("settings", [{"block_keys": 0}, {"block_keys": 10**9}, {"close_timeout_s": -1}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        KeyConfig(**settings)


# ---------------------------------------------------------------------------------------------- the target


def test_blocks_from_the_key_table_start_above_the_largest_key_and_never_overlap(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 't.sqlite'}", poolclass=QueuePool)
    METADATA.create_all(engine)
    with engine.begin() as connection:
        connection.execute(COLUMN.table.insert().values(id=50))
    one, two = TargetKeySource(lambda: engine), TargetKeySource(lambda: engine)
    assert one.fetch(COLUMN, 10, 0) == [(51, 60)]
    assert two.fetch(COLUMN, 10, 0) == [(61, 70)]
    assert one.fetch(COLUMN, 10, 100) == [(101, 110)]
    with engine.begin() as connection:
        connection.execute(COLUMN.table.insert().values(id=500))
    assert two.fetch(COLUMN, 10, 0) == [(501, 510)]
    with engine.begin() as connection:
        assert one.reserve_on(connection, COLUMN, 1, 0) == [(511, 511)]
    assert two.fetch(OTHER, 5, 0) == [(1, 5)]
    with engine.connect() as connection:
        rows = connection.execute(select(KEYS_TABLE).order_by(KEYS_TABLE.c.name)).all()
    assert [tuple(row) for row in rows] == [("other.id", 6), ("thing.id", 512)]
    engine.dispose()


def test_a_reservation_inside_of_a_transaction_is_undone_with_it(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 't.sqlite'}")
    METADATA.create_all(engine)
    source = TargetKeySource(lambda: engine)
    assert source.fetch(COLUMN, 10, 0) == [(1, 10)]
    with engine.connect() as connection:
        assert source.reserve_on(connection, COLUMN, 1, 0) == [(11, 11)]
        connection.rollback()
    assert source.fetch(COLUMN, 10, 0) == [(11, 20)]
    engine.dispose()

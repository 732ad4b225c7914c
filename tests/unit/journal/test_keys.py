"""Keys: none is given out twice, whatever happens to the process, the file and the target."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, select
from sqlalchemy.pool import QueuePool

from tests.support.processes import run_python, start_python
from tests.support.waiting import wait_until
from tests.unit.journal.recording import CountingSource
from walsync.exceptions import ConfigurationError, KeysExhaustedError, LogTimeoutError
from walsync.journal import KeyAllocator, KeyConfig, key_file
from walsync.journal.key_file import KeyFile
from walsync.journal.key_sources import KEYS_TABLE, TargetKeySource
from walsync.wal.lock import FileLock

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
    wait_until(lambda: not keys._threads)  # which asks for a new reserve in vain
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


# ------------------------------------------------------------------------------------------ several processes


def test_several_allocators_share_the_reserve_and_never_a_key(tmp_path: Path) -> None:
    source = FailingSource()
    several = [allocator(source, KeyFile(tmp_path)) for _ in range(3)]
    seen: list[int] = []
    for number, keys in enumerate(several, 1):
        seen.append(keys.next_key(COLUMN))
        wait_until(lambda number=number: KeyFile(tmp_path).count("thing.id") == 10 * number)  # type: ignore[misc]
    source.failing = True
    # Each has the rest of its block, and finds one of the three in the reserve.
    for keys in several:
        seen.extend(keys.next_key(COLUMN) for _ in range(19))
        keys.close()
    assert sorted(seen) == list(range(101, 161))
    with pytest.raises(KeysExhaustedError):
        several[0].next_key(COLUMN)


def test_the_reserve_does_not_grow_without_end(tmp_path: Path) -> None:
    source = FailingSource()
    for _ in range(20):
        keys = allocator(source, KeyFile(tmp_path))
        fetched = source.fetches
        keys.next_key(COLUMN)
        wait_until(lambda fetched=fetched: source.fetches > fetched)  # type: ignore[misc]
        keys.close()
    assert KeyFile(tmp_path).count("thing.id") == 80


def test_whoever_needs_a_block_first_has_the_reserve(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    file.add("thing.id", [(1, 4), (11, 20)])
    assert KeyFile(tmp_path).take("thing.id", 6) == [(1, 4), (11, 12)]
    assert file.take("thing.id", 100) == [(13, 20)]
    assert file.take("thing.id", 100) == []
    assert file.count("thing.id") == 0
    assert file.take("other.id", 1) == []


def test_the_file_is_waited_for_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "_LOCK_TIMEOUT_S", 0.05)
    held = FileLock.acquire(str(tmp_path / "keys.lock"), 0)
    assert held is not None
    with pytest.raises(LogTimeoutError, match=r"keys\.lock"):
        KeyFile(tmp_path).add("thing.id", [(1, 2)])
    held.release()
    KeyFile(tmp_path).add("thing.id", [(1, 2)])


KEYS_PROGRAM = """
import sys
from pathlib import Path
from sqlalchemy import Column, Integer, MetaData, Table, create_engine
from walsync.journal import KeyAllocator, KeyConfig, close_before_fork, leave_to_parent
from walsync.journal.key_file import KeyFile
from walsync.journal.key_sources import TargetKeySource

column = Table("thing", MetaData(), Column("id", Integer, primary_key=True)).c.id
engine = create_engine(f"sqlite:///{sys.argv[1]}/t.sqlite", connect_args={"timeout": 60})
close_before_fork(engine, own=True)
keys = KeyAllocator(TargetKeySource(lambda: engine), KeyFile(sys.argv[1]), KeyConfig(block_keys=20))
"""


def test_processes_never_get_the_same_key_though_some_are_killed(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 't.sqlite'}")
    METADATA.create_all(engine)
    engine.dispose()
    program = (
        KEYS_PROGRAM
        + "file = open(sys.argv[2], 'w', buffering=1)\nwhile True: file.write(f'{keys.next_key(column)}\\n')"
    )
    seen: list[int] = []
    for round_ in range(2):
        files = [tmp_path / f"keys of {round_} {number}" for number in range(3)]
        with ExitStack() as stack:
            for file in files:
                file.touch()
                stack.callback(stack.enter_context(start_python("-c", program, str(tmp_path), str(file))).kill)
            wait_until(lambda files=files: all(file.stat().st_size > 500 for file in files), 60)  # type: ignore[misc]
        for file in files:
            # The last line may be cut in the middle.
            seen.extend(int(line) for line in file.read_text().split("\n")[:-1])
    assert len(set(seen)) == len(seen)


FORK_PROGRAM = (
    KEYS_PROGRAM
    + """
import os, threading
seen = [keys.next_key(column) for _ in range(5)]
(state,) = keys._columns.values()
in_it, go_on = threading.Event(), threading.Event()

def hold() -> None:
    # As if other threads were in the middle of everything when the process forks.
    with state.lock, keys._lock, keys._file._locked():
        in_it.set()
        go_on.wait(60)

holder = threading.Thread(target=hold)
holder.start()
in_it.wait(60)
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    leave_to_parent(engine)
    # The file's lock is the parent's until it lets go.
    found = [keys.reserved_key(column)]
    os.write(writing, b"here")
    found += [keys.next_key(column) for _ in range(50)]
    print("child", *found, flush=True)
    os._exit(0)
assert os.read(reading, 4) == b"here"
go_on.set()
holder.join(60)
seen += [keys.next_key(column) for _ in range(50)]
_, status = os.waitpid(child, 0)
print("parent", *seen, flush=True)
keys.close()
assert status == 0
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_blocks_of_its_own_whatever_threads_were_doing(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 't.sqlite'}")
    METADATA.create_all(engine)
    engine.dispose()
    output = run_python("-W", "ignore::DeprecationWarning", "-c", FORK_PROGRAM, str(tmp_path)).stdout
    found = {name: numbers for name, *numbers in map(str.split, output.splitlines())}
    assert found["child"][0] == "None", "its parent's block is its parent's"
    given = [*found["parent"], *found["child"][1:]]
    assert len(given) == 105
    assert len(set(given)) == len(given)


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

"""The features taken over from okaywal, one test named after each; run against a log in files and one in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.logs import all_of, contents, segments_of
from walsync.exceptions import (
    ConfigurationError,
    EntryNotFoundError,
    EntryTooLargeError,
    LogClosedError,
    LogTimeoutError,
    UsageError,
)
from walsync.wal import (
    Checkpointer,
    Entry,
    EntryId,
    FileStorage,
    LogConfig,
    LogPosition,
    MemoryStorage,
    Recovery,
    SegmentInfo,
    WriteAheadLog,
    read_log,
    verify_log,
)
from walsync.wal.segment import slot_name

SEGMENT_BYTES = 64 * 1024
Open = Callable[..., WriteAheadLog]


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return FileStorage(tmp_path / "log") if request.param == "file" else MemoryStorage()


@pytest.fixture
def open_log(storage: Any) -> Iterator[Open]:
    opened = []

    def open_it(checkpointer: Checkpointer | None = None, **settings: Any) -> WriteAheadLog:
        config = LogConfig(**{"segment_bytes": SEGMENT_BYTES, **settings})
        log = WriteAheadLog.recover(storage, checkpointer, config=config)
        opened.append(log)
        return log

    yield open_it
    for log in opened:
        log.close()


class Collector(Checkpointer):
    """Keeps what it is given."""

    def __init__(self, abandon: Callable[[SegmentInfo], bool] = lambda segment: False) -> None:
        self.recovered: dict[int, list[bytes]] = {}
        self.checkpointed: dict[int, list[bytes]] = {}
        self.asked: list[SegmentInfo] = []
        self._abandon = abandon

    def should_recover_segment(self, segment: SegmentInfo) -> Recovery:
        self.asked.append(segment)
        return Recovery.ABANDON if self._abandon(segment) else Recovery.RECOVER

    def recover(self, entry: Entry) -> None:
        self.recovered[entry.id] = list(entry.chunks())

    def checkpoint_to(self, last_id: EntryId, entries: Iterator[Entry], log: WriteAheadLog) -> None:
        self.checkpointed.update(contents(entries))
        assert max(self.checkpointed) == last_id


def test_atomic_and_durable_writes_from_many_threads(open_log: Open) -> None:
    log = open_log()
    written: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        for index in range(40):
            chunks = [b"%d" % number * (index % 7), b"%d" % index]
            written[log.append(*chunks)] = chunks

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == list(range(1, 321))
    assert log.durable_id == log.last_id == 320
    assert all_of(log) == written
    log.close()
    assert all_of(open_log()) == written


def test_a_checkpointer_that_does_not_want_the_entries_is_not_given_them_and_nothing_else_changes(
    open_log: Open,
) -> None:
    class Uninterested(Collector):
        recovers_entries = False

    log = open_log()
    log.append(b"one")
    log.close()
    checkpointer = Uninterested()
    log = open_log(checkpointer)
    assert checkpointer.recovered == {}
    assert len(checkpointer.asked) == 1
    assert all_of(log) == {1: [b"one"]}


def test_entries_of_one_or_more_chunks(open_log: Open) -> None:
    shapes = [[], [b""], [b"one"], [b"", b"two", b""], [b"x" * 5000] * 30, [b"y" * 400_000], [b"z" * 90_000, b"tail"]]
    log = open_log()
    for chunks in shapes:
        log.append(*chunks)
    for reopened in (log, None):
        if reopened is None:
            log.close()
            reopened = open_log()
        entries = list(reopened.entries())
        assert [list(entry.chunks()) for entry in entries] == shapes
        assert [entry.byte_length for entry in entries] == [sum(map(len, chunks)) for chunks in shapes]
        assert [entry.chunk_count for entry in entries] == [len(chunks) for chunks in shapes]


def test_any_bytes_like_chunk(open_log: Open) -> None:
    log = open_log()
    log.append(bytearray(b"a"), memoryview(b"xbx")[1:2])
    log.append(memoryview(bytearray(b"c")))
    assert all_of(log) == {1: [b"a", b"b"], 2: [b"c"]}
    for wrong in ("text", 5, None):
        with pytest.raises(UsageError, match="bytes"):
            log.append(wrong)  # type: ignore[arg-type]
    assert log.append(b"still well") == 3


def test_each_chunk_is_addressable_by_a_position(open_log: Open) -> None:
    log = open_log()
    with log.begin_entry() as entry:
        records = [entry.write_chunk(data) for data in (b"one", b"", b"three" * 60_000)]
        with pytest.raises(UsageError, match="commit"):
            _ = records[0].position
    assert [log.read_at(record.position) for record in records] == [b"one", b"", b"three" * 60_000]
    assert [record.length for record in records] == [3, 0, 300_000]
    assert [record.position for record in records] == next(log.entries()).chunk_positions


def test_random_access_to_written_data(open_log: Open) -> None:
    log = open_log()
    positions = []
    for index in range(200):
        with log.begin_entry() as entry:
            record = entry.write_chunk(b"%d" % index * 300)
        positions.append(record.position)
    log.close()
    log = open_log()
    for index in (199, 0, 100, 57, 198):
        assert log.read_at(positions[index]) == b"%d" % index * 300
    for wrong in (LogPosition(0, EntryId(1)), LogPosition(1 << 60, EntryId(1)), LogPosition(8193, EntryId(1))):
        with pytest.raises(EntryNotFoundError):
            log.read_at(wrong)


def test_automatic_checkpointing(open_log: Open) -> None:
    collector = Collector()
    log = open_log(collector, checkpoint_after_bytes=20_000)
    for index in range(60):
        log.append(b"%d" % index * 1000)
    wait_until(lambda: log.backlog_bytes < 20_000, message="the driver checkpoints")
    assert len(collector.checkpointed) >= 40
    assert list(collector.checkpointed) == list(range(1, log.checkpointed_id + 1))


def test_reuse_of_segment_files_so_that_the_log_does_not_grow(open_log: Open, storage: Any) -> None:
    # A log that looks idle for a moment, on a busy machine, would remove a spare file and make it again.
    log = open_log(idle_hint_s=None)
    for _ in range(60):
        for _ in range(6):
            log.append(b"x" * 10_000)
        log.checkpoint(log.durable_id)
    assert log._segments.readable_segments[-1].sequence > 50
    # A file that is made gets a number of its own. The fourth and fifth are made if a spare one was just taken when the
    # housekeeper looked.
    assert max(segments_of(storage)) <= slot_name(5)
    log.close()
    assert len(segments_of(storage)) <= 3


def test_interactive_recovery_segment_by_segment_with_version_info(open_log: Open, storage: Any) -> None:
    for version in (b"v1", b"v2", b"v3"):
        log = open_log(version_info=version)
        log.append(version)
        log.append(version * 2)
        log.close()
    collector = Collector(lambda segment: segment.version_info == b"v2")
    log = open_log(collector, version_info=b"v3")
    assert [(info.version_info, info.first_id, info.last_id) for info in collector.asked] == [
        (b"v1", 1, 2),
        (b"v2", 3, 4),
        (b"v3", 5, 6),
    ]
    assert collector.recovered == {1: [b"v1"], 2: [b"v1v1"], 5: [b"v3"], 6: [b"v3v3"]}
    assert log.append(b"next") == 7
    assert list(all_of(log)) == [1, 2, 5, 6, 7]
    log.close()
    assert list(all_of(open_log(version_info=b"v3"))) == [1, 2, 5, 6, 7]


@pytest.mark.parametrize("abandoned", [b"v1", b"v3"])
def test_an_abandoned_segment_is_moved_aside_and_never_deleted(open_log: Open, storage: Any, abandoned: bytes) -> None:
    for version in (b"v1", b"v2", b"v3"):
        log = open_log(version_info=version)
        log.append(version + b"-content")
        log.close()
    log = open_log(Collector(lambda segment: segment.version_info == abandoned), version_info=b"v3")
    assert abandoned + b"-content" not in [chunk for chunks in all_of(log).values() for chunk in chunks]
    assert log.append(b"goes on") == 4
    log.checkpoint(log.durable_id)
    if isinstance(storage, FileStorage):
        [aside] = os.listdir(os.path.join(storage.directory, "abandoned"))
        content = Path(storage.directory, "abandoned", aside).read_bytes()
    else:
        [aside] = [name for name in storage._files if name.startswith("abandoned/")]
        content = bytes(storage._files[aside])
    assert abandoned + b"-content" in content
    assert verify_log(storage).ok


def test_an_entry_goes_with_the_abandoned_segment_that_it_begins_in(open_log: Open, storage: Any) -> None:
    log = open_log(buffer_bytes=4096)
    for content in (b"1", b"2", b"3"):
        with log.begin_entry() as entry:
            for _ in range(11):
                entry.write_chunk(content * (SEGMENT_BYTES // 16))
            entry.commit()
    log.append(b"whole")
    log.close()
    # The second entry lies in the first and the second segment, the third in the second and the third.
    log = open_log(Collector(lambda segment: segment.first_id == 2))
    assert list(all_of(log)) == [1, 4]
    # The abandoned segment is recycled; the third entry's end is the first thing that the log still has.
    log.checkpoint(EntryId(2))
    assert not any(segment.abandoned for segment in log._segments.readable_segments)
    assert log.append(b"goes on") == 5
    log.close()
    assert all_of(open_log()) == {4: [b"whole"], 5: [b"goes on"]}
    assert verify_log(storage).ok


def test_version_info_of_at_most_255_bytes(open_log: Open) -> None:
    log = open_log(version_info=b"v" * 255)
    log.append(b"x")
    assert next(log.entries()).segment.version_info == b"v" * 255
    with pytest.raises(ConfigurationError, match="255"):
        LogConfig(version_info=b"v" * 256)


def test_rollback_of_an_entry(open_log: Open) -> None:
    log = open_log()
    entry = log.begin_entry()
    entry.write_chunk(b"never")
    entry.rollback()
    with pytest.raises(ZeroDivisionError), log.begin_entry() as entry:  # noqa: PT012
        entry.write_chunk(b"never either")
        raise ZeroDivisionError
    for call in (entry.commit, lambda: entry.write_chunk(b"late")):
        with pytest.raises(UsageError, match="rolled back"):
            call()
    assert log.append(b"first") == 1
    log.close()
    assert all_of(open_log()) == {1: [b"first"]}


def test_checkpoint_active(open_log: Open) -> None:
    collector = Collector()
    log = open_log(collector)
    for index in range(5):
        log.append(b"%d" % index)
    log.checkpoint_active()
    assert log.checkpointed_id == 5
    assert list(collector.checkpointed) == [1, 2, 3, 4, 5]
    assert log.backlog_bytes == log.backlog_entries == 0
    log.checkpoint_active()


def test_checkpoint_active_with_a_self_driven_checkpointer(open_log: Open) -> None:
    urged = threading.Event()

    class Own(Checkpointer):
        self_driven = True

        def urge(self, through: EntryId) -> None:
            urged.set()

    log = open_log(Own(), checkpoint_timeout_s=20.0)
    log.append(b"x")

    def drive() -> None:
        urged.wait(20)
        log.checkpoint(log.durable_id)

    thread = threading.Thread(target=drive)
    thread.start()
    log.checkpoint_active()
    thread.join()
    assert log.checkpointed_id == 1


def test_checkpoint_active_is_bounded(open_log: Open) -> None:
    class Idle(Checkpointer):
        self_driven = True

    log = open_log(Idle(), checkpoint_timeout_s=0.02)
    log.append(b"x")
    with pytest.raises(LogTimeoutError, match="checkpoint_timeout_s"):
        log.checkpoint_active()
    log.close()
    log = open_log()
    log.append(b"x")
    with pytest.raises(UsageError, match="without a checkpointer"):
        log.checkpoint_active()


def test_shutdown(open_log: Open) -> None:
    log = open_log()
    log.append(b"kept")
    log.shutdown()
    log.shutdown()
    for call in (lambda: log.append(b"x"), log.begin_entry, log.entries, lambda: log.wait_durable(EntryId(9), 1)):
        with pytest.raises(LogClosedError, match="closed"):
            call()
    assert all_of(open_log()) == {1: [b"kept"]}


def test_positions_that_can_be_serialised_in_16_bytes(open_log: Open) -> None:
    log = open_log()
    with log.begin_entry() as entry:
        record = entry.write_chunk(b"found again")
    data = record.position.to_bytes()
    assert len(data) == 16
    assert log.read_at(LogPosition.from_bytes(data)) == b"found again"
    assert LogPosition(1, EntryId(2)) < LogPosition(2, EntryId(1))
    with pytest.raises(UsageError, match="16 bytes"):
        LogPosition.from_bytes(data + b"x")


def test_pluggable_storage(open_log: Open, storage: Any) -> None:
    log = open_log()
    log.append(b"x")
    log.close()
    assert contents(read_log(storage)) == {1: [b"x"]}
    assert verify_log(storage).entries == 1


def test_streaming_of_large_chunks(open_log: Open) -> None:
    log = open_log(buffer_bytes=4096)
    with log.begin_entry() as entry:
        entry.write_chunk(b"before")
        with entry.open_chunk() as chunk:
            for index in range(300):
                chunk.write(b"%03d" % index * 400)
        entry.write_chunk(b"after")
    position = chunk.record.position
    stream = log.open_chunk(position)
    assert stream.read(1200) == b"000" * 400
    assert stream.read() == b"".join(b"%03d" % index * 400 for index in range(1, 300))
    assert stream.read() == b""
    [found] = log.entries()
    assert [len(data) for data in found.chunks()] == [6, 360_000, 5]
    assert found.chunk_positions[1] == position


def test_entries_in_commit_order(open_log: Open) -> None:
    log = open_log()
    first, second = log.begin_entry(), log.begin_entry()
    first.write_chunk(b"begun first")
    second.write_chunk(b"committed first")
    assert second.commit() == 1
    assert first.commit() == 2
    assert [entry.id for entry in log.entries()] == [1, 2]
    assert all_of(log) == {1: [b"committed first"], 2: [b"begun first"]}


def test_room_for_the_users_metadata(open_log: Open) -> None:
    """An entry's chunks are the user's own: the first may well describe the others."""
    log = open_log()
    log.append(b'{"origin": "gate 7"}', b"payload")
    head, payload = next(log.entries()).chunks()
    assert (head, payload) == (b'{"origin": "gate 7"}', b"payload")


def test_entries_larger_than_a_segment(open_log: Open) -> None:
    log = open_log()
    large = os.urandom(5 * SEGMENT_BYTES)
    log.append(b"small")
    assert log.append(large) == 2
    assert log.append(b"head", large, b"tail") == 3
    assert log.append(b"small again") == 4
    expected = {1: [b"small"], 2: [large], 3: [b"head", large, b"tail"], 4: [b"small again"]}
    assert all_of(log) == expected
    log.close()
    log = open_log()
    assert all_of(log) == expected
    log.checkpoint(EntryId(2))
    assert all_of(log) == {3: expected[3], 4: expected[4]}
    log.close()
    assert all_of(open_log()) == {3: expected[3], 4: expected[4]}
    assert log.config.max_entry_bytes > len(large)


def test_an_entry_past_its_bound_is_refused_and_the_log_is_unharmed(open_log: Open) -> None:
    log = open_log(max_entry_bytes=100)
    for call in (lambda: log.append(b"x" * 101), lambda: log.append(b"x" * 60, b"x" * 60)):
        with pytest.raises(EntryTooLargeError, match="max_entry_bytes"):
            call()
    with pytest.raises(EntryTooLargeError), log.begin_entry() as entry:  # noqa: PT012
        entry.write_chunk(b"x" * 60)
        entry.write_chunk(b"x" * 60)
    assert log.append(b"x" * 100) == 1


def test_configuration_of_every_bound() -> None:
    for wrong in (
        {"segment_bytes": 1000},
        {"segment_bytes": 32 * 1024 + 1},
        {"preallocated_segments": -1},
        {"checkpoint_after_bytes": 0},
        {"buffer_bytes": 0},
        {"max_entry_bytes": 0},
        {"checksum": "md5"},
        {"version_info": "text"},
        {"lock_timeout_s": -1},
        {"idle_hint_s": 0},
        {"max_log_bytes": 1},
        {"segment_timeout_s": float("nan")},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))) as caught:
            LogConfig(**wrong)  # type: ignore[arg-type]
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("checksum", ["crc32c", "crc32"])
def test_the_checksum_is_fixed_when_the_log_is_created(open_log: Open, checksum: str) -> None:
    log = open_log(checksum=checksum)
    log.append(b"x" * 100)
    log.close()
    other = "crc32" if checksum == "crc32c" else "crc32c"
    log = open_log(checksum=other)
    log.append(b"y")
    assert all_of(log) == {1: [b"x" * 100], 2: [b"y"]}
    kind = {"crc32c": 1, "crc32": 2}[checksum]
    assert {segment.header.checksum_kind for segment in log._segments.readable_segments} == {kind}

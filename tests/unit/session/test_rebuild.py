"""What a read waits for after a log with a backlog was opened: never too little, and soon no more than it must."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from walsync.changes import ChangeSet, RowChanges, TableName, encode_change_set
from walsync.exceptions import CorruptEntryError
from walsync.journal.marks import awaited_marks, marks_of
from walsync.session import rebuild
from walsync.session.rebuild import TableIndexer
from walsync.wal import EntryId, LogConfig, WriteAheadLog

ONE, OTHER, NEVER = (TableName(None, name) for name in ("one", "other", "never"))
ENTRIES = 1000
LAST_OF_OTHER = 700


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WriteAheadLog]:
    """Entries of the table `one`, and number 700 of the table `other`; opened anew."""
    config = LogConfig(durability="interval", segment_bytes=1 << 16)
    with WriteAheadLog.recover(tmp_path / "log", config=config) as made:
        for number in range(1, ENTRIES + 1):
            table = OTHER if number == LAST_OF_OTHER else ONE
            change = RowChanges("delete", table, (), (), ("id",), (("int",),), [[number]])  # type: ignore[arg-type]
            made.append(*encode_change_set(ChangeSet(number, "", {}, [change])))
    with WriteAheadLog.recover(tmp_path / "log", config=config) as opened:
        yield opened


def nothing_applied() -> EntryId:
    return EntryId(0)


def waits(log: WriteAheadLog) -> list[int]:
    return [log.control.last_marked(awaited_marks(frozenset({table}))) for table in (ONE, OTHER, NEVER)]


EXACT = [ENTRIES, LAST_OF_OTHER, 0]
EVERYTHING = [ENTRIES, ENTRIES, ENTRIES]


def test_a_short_backlog_is_known_when_the_journal_is_attached(log: WriteAheadLog) -> None:
    indexer = TableIndexer(log, nothing_applied, patience_s=60)
    indexer.start()
    assert indexer.is_done
    assert waits(log) == EXACT


def test_a_long_backlog_is_waited_for_whole_until_it_is_known(log: WriteAheadLog) -> None:
    go_on = threading.Event()
    main = threading.current_thread()

    def applied() -> EntryId:
        assert threading.current_thread() is main or go_on.wait(20)
        return EntryId(0)

    indexer = TableIndexer(log, applied, patience_s=0)
    indexer.start()
    assert not indexer.is_done
    assert waits(log) == EVERYTHING
    # What is committed meanwhile is known as ever.
    log.append(b"x", marks=marks_of({NEVER}))
    assert waits(log) == [ENTRIES, ENTRIES, ENTRIES + 1]
    go_on.set()
    wait_until(lambda: indexer.is_done)
    assert waits(log) == [ENTRIES, LAST_OF_OTHER, ENTRIES + 1]


def test_what_is_released_while_it_is_looked_at_need_not_be_known(log: WriteAheadLog) -> None:
    indexer: TableIndexer

    def applied() -> EntryId:
        # The segments that are read next are gone when it comes to them.
        if threading.current_thread().name == "walsync-tables":
            log.checkpoint(EntryId(LAST_OF_OTHER + 50))
        return EntryId(0)

    indexer = TableIndexer(log, applied, patience_s=0)
    indexer.start()
    wait_until(lambda: indexer.is_done)
    assert waits(log)[0] == ENTRIES
    assert waits(log)[1] <= LAST_OF_OTHER
    assert waits(log)[2] == 0


def test_it_ends_when_everything_is_applied(log: WriteAheadLog) -> None:
    indexer = TableIndexer(log, lambda: EntryId(ENTRIES), patience_s=0)
    indexer.start()
    assert indexer.is_done
    assert waits(log) == [0, 0, 0]


def test_an_entry_that_cannot_be_read_leaves_everything_to_be_waited_for(
    log: WriteAheadLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decode = rebuild.decode_tables

    def fail(entry_id: EntryId, chunks: object) -> object:
        if entry_id == 500:
            raise CorruptEntryError("entry 500 is of another world")
        return decode(entry_id, chunks)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "decode_tables", fail)
    indexer = TableIndexer(log, nothing_applied, patience_s=0)
    with caplog.at_level(logging.WARNING, "walsync.session"):
        indexer.start()
        wait_until(lambda: indexer.is_done)
    assert waits(log) == EVERYTHING
    assert "another world" in caplog.text


def test_one_that_joins_others_looks_at_nothing(log: WriteAheadLog) -> None:
    log.recovered_here = False
    indexer = TableIndexer(log, nothing_applied, patience_s=60)
    indexer.start()
    assert indexer.is_done
    assert waits(log) == EVERYTHING, "whoever recovered the log says what it has found"


def test_it_stops_when_it_is_told(log: WriteAheadLog) -> None:
    entered, go_on = threading.Event(), threading.Event()
    main = threading.current_thread()

    def applied() -> EntryId:
        if threading.current_thread() is not main:
            entered.set()
            go_on.wait(20)
        return EntryId(0)

    indexer = TableIndexer(log, applied, patience_s=0)
    indexer.start()
    assert entered.wait(20)
    stopping = threading.Thread(target=indexer.stop)
    stopping.start()
    wait_until(indexer._stop.is_set)
    go_on.set()
    stopping.join(20)
    assert indexer.is_done
    # Nothing is called known that was not looked at.
    assert waits(log) == EVERYTHING

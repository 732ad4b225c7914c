"""What becomes of a refused entry: the policy, a listener's verdict, the bounds, and the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy import delete as delete_from
from sqlalchemy import insert as insert_into
from sqlalchemy.exc import IntegrityError

from tests.support.waiting import wait_until
from tests.unit.checkpoint.entries import append, insert, items, open_log, statement, update
from walsync import Verdict
from walsync.checkpoint import FailureKind, SQLAlchemyCheckpointer
from walsync.checkpoint.quarantine.store import QuarantineStore
from walsync.exceptions import (
    CheckpointFailedError,
    ConfigurationError,
    DamagedLogError,
    EntryNotFoundError,
    EntryRejectedError,
    QuarantineFullError,
    UsageError,
)
from walsync.wal import WriteAheadLog
from walsync.wal.storage.file import FileStorage

WAIT_S = 20.0

Start = Callable[..., SQLAlchemyCheckpointer]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WriteAheadLog]:
    """In a directory, in place of the one in memory."""
    with WriteAheadLog.recover(tmp_path / "log") as log:
        yield log


@pytest.fixture
def taken(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert_into(items).values(id=100, name="taken"))


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(items.c.id, items.c.name).order_by(items.c.id))]


def free_the_name(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete_from(items).where(items.c.id == 100))


def poison(log: WriteAheadLog) -> None:
    """1 passes, 2 is refused, 3 touches its row and another, 4 touches that one, 5 passes."""
    append(log, insert((1, "a")))
    append(log, insert((2, "taken")))
    append(log, update(("b", 2)), update(("aa", 1)))
    append(log, update(("aaa", 1)))
    append(log, insert((5, "e")))


def listening(*answers: Any) -> Callable[[SQLAlchemyCheckpointer], None]:
    """Listeners that give these answers, one each."""

    def listen(checkpointer: SQLAlchemyCheckpointer) -> None:
        for answer in answers:
            event.listen(checkpointer, "rejected", lambda session, change_set, error, answer=answer: answer)

    return listen


# ------------------------------------------------------------------------------------------------- the policy


def test_dependents_join_with_all_that_they_touch(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    poison(log)
    checkpointer = start(on_reject="quarantine")
    checkpointer.wait_applied(log.last_id, WAIT_S)
    kinds = {entry.entry_id: (entry.kind, entry.depends_on) for entry in checkpointer.quarantine.list()}
    assert kinds == {2: ("rejected", ()), 3: ("depends", (2,)), 4: ("depends", (3,))}
    assert rows(engine) == [(1, "a"), (5, "e"), (100, "taken")]
    assert (checkpointer.status.state, checkpointer.status.quarantined_entries) == ("running", 3)
    assert log.checkpointed_id == 5
    assert "UNIQUE" in checkpointer.quarantine.show(2).reason


def test_halt_stops_before_the_first_and_names_it(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    poison(log)
    checkpointer = start()
    with pytest.raises(EntryRejectedError, match=r"refuses entry 2 \(IntegrityError: UNIQUE"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "a"), (100, "taken")]
    assert (checkpointer.status.state, checkpointer.status.rejected_entry_id) == ("halted", 2)
    assert checkpointer.quarantine.list() == []
    free_the_name(engine)
    checkpointer.resume()
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "aaa"), (2, "b"), (5, "e")]


def test_a_log_without_a_directory_has_no_quarantine(engine: Engine) -> None:
    from walsync.checkpoint import CheckpointConfig

    with open_log() as log:
        checkpointer = SQLAlchemyCheckpointer(engine, config=CheckpointConfig(on_reject="quarantine"))
        with pytest.raises(ConfigurationError, match="has none"):
            checkpointer.start(log)


def test_a_listener_cannot_ask_for_a_quarantine_that_is_not_there(engine: Engine, taken: None, start: Start) -> None:
    with open_log() as log:
        poison(log)
        checkpointer = start(log=log, listeners=listening(Verdict.QUARANTINE))
        with pytest.raises(EntryRejectedError, match="entry 2 .*no quarantine"):
            checkpointer.wait_applied(log.last_id, WAIT_S)
        with pytest.raises(UsageError, match="no directory"):
            _ = checkpointer.quarantine


def test_a_blocked_target_fills_no_quarantine(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    items.drop(engine)
    append(log, insert((1, "a")))
    checkpointer = start(on_reject="quarantine")
    wait_until(lambda: checkpointer.status.state == "blocked" and checkpointer.status.failures > 2)
    assert checkpointer.status.last_error_kind is FailureKind.BLOCKED
    assert checkpointer.quarantine.list() == []


def test_an_unknown_failure_fills_no_quarantine(engine: Engine, log: WriteAheadLog, start: Start) -> None:
    append(log, statement("SELECT RAISE(FAIL)", "sqlite"))
    checkpointer = start(on_reject="quarantine")
    wait_until(lambda: checkpointer.status.failures > 2)
    assert checkpointer.quarantine.list() == []


# -------------------------------------------------------------------------------------------------- verdicts


def test_a_listener_opts_in_by_error_or_table(engine: Engine, taken: None, log: WriteAheadLog, start: Start) -> None:
    def verdict(session: Any, change_set: Any, error: Any) -> Verdict | None:
        assert isinstance(error, EntryRejectedError)
        assert error.entry_id == change_set.entry_id
        return Verdict.QUARANTINE if isinstance(error.__cause__, IntegrityError) else None

    poison(log)
    append(log, update(("nobody", 77)))
    checkpointer = start(listeners=lambda made: event.listen(made, "rejected", verdict))
    with pytest.raises(EntryRejectedError, match="entry 6"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.ids() == [2, 3, 4]
    assert checkpointer.applied_id == 5


def test_the_first_answer_counts_and_the_policy_only_without_one(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    poison(log)
    checkpointer = start(on_reject="quarantine", listeners=listening(None, Verdict.HALT, Verdict.DISCARD))
    with pytest.raises(EntryRejectedError, match="kept in the log"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.list() == []


def test_discarded_by_a_listener_it_is_kept_for_the_record_and_holds_nothing_back(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    append(log, insert((1, "a")))
    append(log, insert((2, "taken")))
    append(log, insert((2, "b")))
    checkpointer = start(listeners=listening(Verdict.DISCARD))
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "a"), (2, "b"), (100, "taken")]
    assert checkpointer.quarantine.ids() == []
    [record] = checkpointer.quarantine.list(discarded=True)
    assert (record.entry_id, record.kind, record.discarded) == (2, "rejected", True)
    assert checkpointer.status.quarantined_entries == 0


def test_retry_waits_visibly_and_goes_on_when_the_cause_is_gone(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    poison(log)
    checkpointer = start(listeners=listening(Verdict.RETRY))
    wait_until(lambda: checkpointer.status.failures > 2)
    status = checkpointer.status
    assert (status.state, status.rejected_entry_id, status.last_error_kind) == ("retrying", 2, FailureKind.REJECTED)
    assert rows(engine) == [(1, "a"), (100, "taken")]
    free_the_name(engine)
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "aaa"), (2, "b"), (5, "e")]


@pytest.mark.parametrize("answer", ["quarantine", Verdict.SKIP, True])
def test_an_answer_without_meaning_is_the_listeners_fault(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start, answer: Any
) -> None:
    poison(log)
    checkpointer = start(listeners=listening(answer))
    with pytest.raises(CheckpointFailedError, match="must return None, or HALT"):
        checkpointer.wait_applied(log.last_id, WAIT_S)


# ----------------------------------------------------------------------------------------- bounds and the disk


@pytest.mark.parametrize("bound", ["max_quarantine_entries", "max_quarantine_bytes"])
def test_a_full_quarantine_halts_and_says_so(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start, bound: str
) -> None:
    poison(log)
    checkpointer = start(on_reject="quarantine", **{bound: 2 if bound.endswith("entries") else 1000})
    with pytest.raises(QuarantineFullError, match=rf"{bound} is \d+: entry 4 and everything after"):
        checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.ids() == [2, 3]
    assert rows(engine) == [(1, "a"), (100, "taken")]
    free_the_name(engine)
    assert checkpointer.quarantine.retry().complete
    checkpointer.resume()
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "aaa"), (2, "b"), (5, "e")]


def test_a_disk_that_takes_no_file_stops_everything_behind_it(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = FileStorage.create
    full = True

    def refuse(self: FileStorage, name: str) -> Any:
        if full and self.directory.endswith("quarantine"):
            raise OSError(28, "No space left on device")
        return create(self, name)

    monkeypatch.setattr(FileStorage, "create", refuse)
    poison(log)
    checkpointer = start(on_reject="quarantine")
    wait_until(lambda: checkpointer.status.failures > 2)
    assert checkpointer.status.state == "retrying"
    assert "No space left" in str(checkpointer.status.last_error)
    assert rows(engine) == [(1, "a"), (100, "taken")]
    assert checkpointer.applied_id == 1
    full = False
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.ids() == [2, 3, 4]


def test_somebody_who_keeps_the_lock_is_waited_for(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    assert log.directory is not None
    other = QuarantineStore.of_log(log.directory, log.uuid, max_entries=9, max_bytes=9)
    poison(log)
    with other.locked(0.0):
        checkpointer = start(on_reject="quarantine", quarantine_timeout_s=0.01)
        wait_until(lambda: checkpointer.status.failures > 1)
        assert "quarantine_timeout_s" in str(checkpointer.status.last_error)
        assert checkpointer.applied_id == 1
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.ids() == [2, 3, 4]


def test_stopping_does_not_wait_for_the_lock(engine: Engine, taken: None, log: WriteAheadLog, start: Start) -> None:
    assert log.directory is not None
    other = QuarantineStore.of_log(log.directory, log.uuid, max_entries=9, max_bytes=9)
    poison(log)
    with other.locked(0.0):
        checkpointer = start(on_reject="quarantine", quarantine_timeout_s=3600)
        wait_until(lambda: checkpointer.applied_id == 1)
        checkpointer.stop(timeout=WAIT_S)
        assert checkpointer.status.state == "stopped"


def test_a_damaged_file_halts_for_nobody_knows_what_it_holds_back(
    engine: Engine, taken: None, tmp_path: Path, start: Start
) -> None:
    with WriteAheadLog.recover(tmp_path / "other") as log:
        poison(log)
        first = start(log=log, on_reject="quarantine")
        first.wait_applied(log.last_id, WAIT_S)
        first.stop()
    path = tmp_path / "other" / "quarantine" / f"{2:020d}.entry"
    path.write_bytes(path.read_bytes()[:-1])
    with WriteAheadLog.recover(tmp_path / "other") as log:
        append(log, update(("x", 2)))
        checkpointer = start(log=log, on_reject="quarantine")
        with pytest.raises(CheckpointFailedError, match=rf"{path.name}.*discard"):
            checkpointer.wait_applied(log.last_id, WAIT_S)
        with pytest.raises(DamagedLogError, match="offset"):
            list(checkpointer.quarantine.changes(2))
        checkpointer.quarantine.discard([2])
        checkpointer.resume()
        checkpointer.wait_applied(log.last_id, WAIT_S)
        assert checkpointer.quarantine.ids() == [3, 4, 6]
        checkpointer.stop()


# --------------------------------------------------------------------------------------------- taking it out


def test_later_entries_wait_for_the_retry_and_go_on_after_it(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    poison(log)
    checkpointer = start(on_reject="quarantine")
    checkpointer.wait_applied(log.last_id, WAIT_S)
    again = checkpointer.quarantine.retry()
    assert (again.applied, list(again.refused), list(again.waiting)) == ((), [2], [3, 4])
    free_the_name(engine)
    some = checkpointer.quarantine.retry([3])
    assert "entry 2" in some.waiting[3]
    assert not some.complete
    append(log, update(("late", 1)))
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.ids() == [2, 3, 4, 6]
    done = checkpointer.quarantine.retry([2, 3])
    assert (done.applied, done.complete) == ((2, 3), True)
    assert checkpointer.quarantine.retry().applied == (4, 6)
    append(log, update(("last", 1)))
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert rows(engine) == [(1, "last"), (2, "b"), (5, "e")]
    assert checkpointer.quarantine.ids() == []


def test_discarding_tells_what_depended_on_it(engine: Engine, taken: None, log: WriteAheadLog, start: Start) -> None:
    poison(log)
    checkpointer = start(on_reject="quarantine")
    checkpointer.wait_applied(log.last_id, WAIT_S)
    with pytest.raises(EntryNotFoundError, match="entry 99 is not in"):
        checkpointer.quarantine.discard([2, 99])
    with pytest.raises(EntryNotFoundError, match="nothing was done"):
        checkpointer.quarantine.retry([98, 2])
    assert checkpointer.quarantine.discard([2]) == {2: (3,)}
    assert checkpointer.quarantine.ids(discarded=True) == [2]
    retry = checkpointer.quarantine.retry()
    # The row of entry 2 is not there.
    assert (list(retry.refused), list(retry.waiting)) == ([3], [4])
    checkpointer.quarantine.discard([3])
    assert checkpointer.quarantine.retry().applied == (4,)
    assert rows(engine) == [(1, "aaa"), (5, "e"), (100, "taken")]


def test_a_listener_may_mend_what_is_retried_or_leave_it_out(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    from dataclasses import replace

    import walsync

    retrying = False

    def mend(session: Any, change_set: Any) -> Any:
        if not retrying:
            return None
        if change_set.entry_id == 2:
            return replace(change_set, changes=[insert((2, "free"))])
        return walsync.SKIP if change_set.entry_id == 4 else None

    poison(log)
    checkpointer = start(on_reject="quarantine", listeners=lambda made: event.listen(made, "before_replay", mend))
    checkpointer.wait_applied(log.last_id, WAIT_S)
    retrying = True
    retry = checkpointer.quarantine.retry()
    assert (retry.applied, retry.left_out, retry.complete) == ((2, 3), (4,), True)
    assert rows(engine) == [(1, "aa"), (2, "b"), (5, "e"), (100, "taken")]
    assert checkpointer.quarantine.ids(discarded=True) == [4]


def test_what_is_held_is_known_after_a_restart_and_under_another_policy(
    engine: Engine, taken: None, tmp_path: Path, start: Start
) -> None:
    with WriteAheadLog.recover(tmp_path / "other") as log:
        poison(log)
        first = start(log=log, on_reject="quarantine")
        first.wait_applied(log.last_id, WAIT_S)
        first.stop()
    with WriteAheadLog.recover(tmp_path / "other") as log:
        append(log, update(("late", 1)))
        second = start(log=log, on_reject="halt")
        second.wait_applied(log.last_id, WAIT_S)
        assert second.quarantine.ids() == [2, 3, 4, 6]
        assert second.status.quarantined_entries == 4
        second.stop()


def test_a_statement_waits_for_the_rows_of_its_tables_and_holds_them_whole(
    engine: Engine, taken: None, log: WriteAheadLog, start: Start
) -> None:
    poison(log)
    append(log, statement("UPDATE items SET version = 1", "sqlite"))
    append(log, insert((8, "h")))
    checkpointer = start(on_reject="quarantine")
    checkpointer.wait_applied(log.last_id, WAIT_S)
    assert checkpointer.quarantine.ids() == [2, 3, 4, 6, 7]
    free_the_name(engine)
    assert checkpointer.quarantine.retry().applied == (2, 3, 4, 6, 7)
    with engine.connect() as connection:
        versions = connection.execute(select(items.c.id, items.c.version).order_by(items.c.id)).all()
    assert [tuple(row) for row in versions] == [(1, 1), (2, 1), (5, 1), (8, None)]

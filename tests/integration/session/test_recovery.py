"""What is in the log and not in the target is replayed when the log is attached again; what does not fit is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, event, func, select, text, update
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session.conftest import Attach
from tests.integration.session.models import Author, Base, Book
from tests.support.waiting import wait_until
from walsync.changes import RowChanges

Factory = sessionmaker[Session]
PAUSED = walsync.CheckpointConfig(paused=True)


def commit(factory: Factory, *names: str) -> None:
    with factory() as session:
        for name in names:
            session.add(Author(name=name))
        session.commit()


def names(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Author.name).order_by(Author.id)))


def test_entries_that_were_not_applied_are_replayed_in_order(attach: Attach, factory: Factory, engine: Engine) -> None:
    journal = attach(checkpoint=PAUSED)
    commit(factory, "a", "b")
    with factory() as session:
        session.execute(update(Author).values(visits=Author.visits + 1))
        session.commit()
    commit(factory, "c")
    journal.close(drain=False)
    assert names(engine) == []
    journal = attach()
    journal.wait_applied(timeout=30)
    assert names(engine) == ["a", "b", "c"]
    with engine.connect() as connection:
        assert connection.scalars(select(Author.visits).order_by(Author.id)).all() == [1, 1, 0]


def test_a_read_right_after_attaching_waits_for_the_replay(attach: Attach, factory: Factory) -> None:
    attach(checkpoint=PAUSED).close(drain=False)
    journal = attach(checkpoint=PAUSED)
    commit(factory, "a")
    journal.close(drain=False)
    attach()
    with factory() as session:
        assert session.scalars(select(Author.name)).all() == ["a"]


def test_nothing_is_applied_twice_however_often_it_is_opened(attach: Attach, factory: Factory, engine: Engine) -> None:
    for step in range(5):
        journal = attach(checkpoint=walsync.CheckpointConfig(paused=step % 2 == 0))
        commit(factory, str(step))
        if step % 2:
            journal.wait_applied(timeout=30)
        journal.close(drain=False)
    attach().wait_applied(timeout=30)
    assert names(engine) == ["0", "1", "2", "3", "4"]


def test_keys_go_on_after_a_restart(attach: Attach, factory: Factory, engine: Engine) -> None:
    for _ in range(3):
        journal = attach(checkpoint=PAUSED)
        commit(factory, *"abc")
        journal.close(drain=False)
    attach().wait_applied(timeout=30)
    assert len(names(engine)) == 9


def test_a_target_with_another_history_is_refused(
    attach: Attach, factory: Factory, engine: Engine, tmp_path: Path
) -> None:
    journal = attach()
    commit(factory, "a")
    journal.wait_applied(timeout=30)
    journal.close()
    with engine.begin() as connection:
        connection.execute(text("UPDATE walsync_checkpoint SET last_entry_id = 99"))
    with pytest.raises(walsync.WatermarkGapError, match="99"):
        attach()
    # Nothing stays locked or attached after the refusal.
    with engine.begin() as connection:
        connection.execute(text("UPDATE walsync_checkpoint SET last_entry_id = 1"))
    attach().close()
    assert names(engine) == ["a"]


def test_a_rejected_entry_halts_and_says_which_and_commits_go_on(
    attach: Attach, factory: Factory, engine: Engine
) -> None:
    journal = attach()
    halted: list[Any] = []
    event.listen(journal, "halted", lambda source, error: halted.append(error))
    commit(factory, "a")
    journal.wait_applied(timeout=30)
    with engine.begin() as connection:
        connection.execute(delete(Author))
    with factory() as session:
        session.execute(update(Author.__table__).values(visits=0).where(Author.id == 1))
        session.commit()
    with factory() as session:
        author = Author(name="gone")
        session.add(author)
        session.commit()
    journal.wait_applied(timeout=30)
    with engine.begin() as connection:
        connection.execute(delete(Author))
    with factory() as session:
        session.add(author)
        author.name = "changed"
        session.commit()
        token = journal.last_entry(session)
    with pytest.raises(walsync.EntryRejectedError) as caught:
        journal.wait_applied(timeout=30)
    assert caught.value.entry_id == token
    assert journal.stats().state == "halted"
    assert "author" in (journal.stats().last_error or "")
    commit(factory, "still committing")
    assert journal.stats().backlog_entries == 2
    wait_until(lambda: len(halted) == 1)


def test_a_direct_transaction_waits_for_a_halted_log_no_longer_than_it_must(
    attach: Attach, factory: Factory, engine: Engine
) -> None:
    attach(checkpoint=PAUSED, session=walsync.SessionConfig(read_timeout_s=0.2))
    commit(factory, "a")
    with factory() as session:
        session.add(Author(name="b"))
        session.flush()
        with pytest.raises(walsync.ReadTimeoutError):
            session.scalars(select(Author)).all()
        # The transaction is still whole and still buffered.
        session.commit()
    with factory() as session:
        stale = session.scalars(select(func.count()).select_from(Author), execution_options={"walsync_read": "stale"})
        assert stale.all() == [0]


class _Dying:
    """Makes the COMMIT of a connection that was only read through fail, as a target that has gone away does."""

    def __init__(self, engine: Engine) -> None:
        self.armed = False
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            if self.armed:
                raise ConnectionResetError("the target is gone")
            commit(connection)

        engine.dialect.do_commit = do_commit  # type: ignore[method-assign]


def test_a_target_that_dies_after_a_read_does_not_fail_the_logged_transaction(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    dying = _Dying(engine)
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log", checkpoint=PAUSED) as journal:
        with factory() as session:
            session.scalars(select(Book)).all()
            session.add(Author(name="Ada"))
            session.flush()
            dying.armed = True
            with caplog.at_level(logging.WARNING, "walsync.session"):
                session.commit()
            dying.armed = False
            assert journal.last_entry(session) == 1
        assert "only read from it" in caplog.text
        journal.resume()
        journal.wait_applied(timeout=30)
        assert names(engine) == ["Ada"]
    engine.dispose()


def test_replay_listeners_rewrite_and_leave_out_entries(tmp_path: Path, sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with walsync.attach(factory, tmp_path / "log", checkpoint=PAUSED) as journal:
        commit(factory, "old")
        commit(factory, "vetoed")
        journal.close(drain=False)
    seen: list[str] = []
    recovered: list[int] = []

    def before(session: Session, change_set: walsync.ChangeSet) -> Any:
        (change,) = change_set.changes
        assert isinstance(change, RowChanges)
        place = change.columns.index("name")
        if change.rows[0][place] == "vetoed":
            return walsync.SKIP
        change.rows[0][place] = "new"
        return change_set

    with walsync.attach(factory, tmp_path / "log", checkpoint=PAUSED) as journal:
        event.listen(journal, "before_replay", before)
        event.listen(journal, "after_replay", lambda session, change_set: seen.append(str(change_set.entry_id)))
        event.listen(journal, "recovered", lambda source, count: recovered.append(count))
        journal.resume()
        commit(factory, "not a replay")
        journal.wait_applied(timeout=30)
    assert names(engine) == ["new", "not a replay"]
    assert seen == ["1"]
    assert recovered == [2]
    engine.dispose()


def test_the_applications_own_session_events_fire_when_entries_are_applied(tmp_path: Path, sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    fired: list[str] = []
    event.listen(factory, "after_commit", lambda session: fired.append(session.get_bind().dialect.name))
    with walsync.attach(factory, tmp_path / "log") as journal:
        commit(factory, "a")
        journal.wait_applied(timeout=30)
        assert len(fired) == 2, "once when it is durable, once when it is applied"
    engine.dispose()

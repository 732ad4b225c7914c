"""Listeners that raise, that read, and that were there before the log was attached; and what differs for listeners."""

from __future__ import annotations

import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

import walsync
from tests.integration.session.event_recorder import MAPPER_EVENTS, SESSION_EVENTS
from tests.support.databases import without_syncs
from tests.support.waiting import wait_until

SLOWLY = walsync.CheckpointConfig(batch_delay_s=3600)
"""What is committed is applied when somebody waits for it, and not before."""


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    stamp: Mapped[str] = mapped_column(server_default=text("'by the database'"))


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


class BoomError(Exception):
    """A listener's own."""


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = without_syncs(create_engine(f"sqlite:///{tmp_path / 'target.sqlite'}"))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def bodies(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Note.body).order_by(Note.body)))


# ------------------------------------------------------------------------------------------------ that raise

_STEPS = ("add", "flush", "savepoint", "change", "commit", "read", "bulk", "roll back", "delete", "expunge", "close")


def _step(session: Session, step: str) -> None:
    if step == "add":
        session.add(Note(body="first"))
    elif step == "flush":
        session.flush()
    elif step == "savepoint":
        with session.begin_nested():
            session.add(Note(body="nested"))
    elif step == "change":
        for note in list(session.identity_map.values()):
            note.body = f"{note.body}, changed"
    elif step == "commit":
        session.commit()
    elif step == "read":
        session.expire_all()
        session.scalars(select(Note)).all()
    elif step == "bulk":
        session.query(Note).update({"body": Note.body + "!"}, synchronize_session=False)
        session.query(Note).filter_by(id=0).delete(synchronize_session=False)
        session.commit()
    elif step == "roll back":
        session.add(Note(body="never"))
        session.flush()
        session.rollback()
    elif step == "delete":
        note = session.scalars(select(Note).order_by(Note.id)).first()
        if note is not None:
            session.delete(note)
            session.flush()
            session.commit()
    elif step == "expunge":
        session.expunge_all()
    else:
        session.close()


def _outcome(sessions: sessionmaker[Session], name: str) -> list[str]:
    """Which steps raised what, when each `name` event's first listener does so at its `n`-th call, n = 1, 2, 3."""
    outcome: list[str] = []
    here = threading.get_ident()
    for call in (1, 2, 3):
        calls = 0

        def boom(*_: Any, call: int = call) -> None:
            nonlocal calls
            if threading.get_ident() != here:
                return  # the checkpointer's session, of the same class
            calls += 1
            if calls == call:
                raise BoomError

        target: Any = sessions.class_ if name in SESSION_EVENTS else Note
        event.listen(target, name, boom)
        session = sessions()
        try:
            for step in _STEPS:
                try:
                    _step(session, step)
                except (BoomError, SQLAlchemyError) as error:
                    outcome.append(f"{call}: {step}: {type(error).__name__}")
                    with suppress(SQLAlchemyError, BoomError):
                        session.rollback()
        finally:
            event.remove(target, name, boom)
            with suppress(SQLAlchemyError):
                session.close()
        with sessions() as session:
            outcome.append(f"{call}: {sorted(session.scalars(select(Note.body)))}")
    return outcome


_IN_DEFAULT_RUN = {"after_begin", "after_commit", "after_transaction_end", "before_commit", "before_insert"}
# An exception in the middle of making objects persistent leaves a Session itself, attached or not, in pieces.
_EVENTS = [*sorted({*SESSION_EVENTS} - {"pending_to_persistent"}), *MAPPER_EVENTS]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _IN_DEFAULT_RUN else [pytest.mark.slow]) for name in _EVENTS]
)
def test_an_exception_of_a_listener_does_what_it_does_without_the_log(name: str, tmp_path: Path) -> None:
    outcomes = []
    for attached in (False, True):
        engine = without_syncs(create_engine(f"sqlite:///{tmp_path / f'{attached}.sqlite'}"))
        Base.metadata.create_all(engine)
        sessions = sessionmaker(engine, expire_on_commit=False)
        journal = walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY) if attached else None
        outcomes.append(_outcome(sessions, name))
        if journal is not None:
            journal.close()
        engine.dispose()
    assert outcomes[1] == outcomes[0]


def test_a_refusal_before_the_commit_records_nothing_and_one_after_it_undoes_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY) as journal:
        for name in ("before_commit", "after_commit"):
            with sessions() as session:

                @event.listens_for(session, name)
                def boom(_: Session) -> None:
                    raise BoomError

                session.add(Note(body=name))
                with pytest.raises(BoomError):
                    session.commit()
                assert (journal.last_entry(session) is None) == (name == "before_commit")
        assert journal.stats().durable_entry_id == 1
    assert bodies(engine) == ["after_commit"]


# ------------------------------------------------------------------------------- that were there before the log


def test_a_listener_that_was_there_before_the_log_reads_what_is_committed(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    found: list[int] = []

    @event.listens_for(sessions, "after_begin")
    def count(session: Session, _: Any, connection: Connection) -> None:
        if threading.get_ident() == here and connection.dialect.name != "walsync":
            found.append(connection.scalar(select(func.count(Note.id))) or 0)

    here = threading.get_ident()
    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY):
        with sessions() as session:
            session.add(Note(body="one"))
            session.commit()
        with sessions() as session:
            session.connection()
    assert found == [1]


def test_a_listener_at_the_end_that_raises_leaves_nothing_to_the_next_transaction(
    engine: Engine, tmp_path: Path
) -> None:
    """Not even that the transaction was direct: the next would not wait for what it has to see."""
    sessions = sessionmaker(engine)

    @event.listens_for(sessions, "after_transaction_end")
    def boom(session: Session, transaction: Any) -> None:
        if session.info.pop("raise", False):
            raise BoomError

    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY) as journal, sessions() as session:
        with walsync.direct(session):
            session.add(Note(body="direct"))
            session.flush()
            session.info["raise"] = True
            with pytest.raises(BoomError):
                session.commit()
        session.rollback()
        session.add(Note(body="buffered"))
        session.commit()
        assert journal.stats().buffered_transactions == 1
        assert len(session.scalars(select(Note)).all()) == 2


def test_rows_that_a_listener_adds_to_a_flush_get_their_keys(engine: Engine, tmp_path: Path) -> None:
    """Whether it was there before the log, whose own listener gives keys to new objects, or came after it."""
    sessions = sessionmaker(engine)

    def add(session: Session, *_: Any) -> None:
        if len(session.new) < 4:
            session.add(Note(body=f"by listener {len(session.new)}"))

    event.listen(sessions, "before_flush", add)
    with walsync.attach(sessions, tmp_path / "log") as journal:
        event.listen(sessions, "before_flush", lambda *arguments: add(*arguments))
        with sessions() as session:
            session.add(Note(body="own"))
            session.commit()
            assert journal.last_entry(session) == 1
            assert None not in {note.id for note in session.scalars(select(Note))}
    assert bodies(engine) == ["by listener 1", "by listener 2", "own"]


@pytest.mark.parametrize("name", ["before_flush", "after_flush", "after_flush_postexec"])
def test_a_listener_works_on_the_sessions_connection(engine: Engine, tmp_path: Path, name: str) -> None:
    """With a session of its own that is bound to it, as extensions that keep versions of rows do."""
    seen: list[Any] = []

    def keep(session: Session, *_: Any) -> None:
        if not session.info.get("kept"):
            session.info["kept"] = True
            with Session(session.connection()) as other:
                seen.append(other.scalars(select(Note.body).order_by(Note.body)).all())
                other.add(Counter())
                other.flush()
            seen.append(session.connection().scalar(select(func.count()).select_from(Note)))

    results = []
    for attached in (False, True):
        sessions = sessionmaker(engine)
        event.listen(sessions, name, keep)
        with walsync.attach(sessions, tmp_path / "log") if attached else nullcontext():
            with sessions() as session:
                session.add(Note(body="own"))
                session.commit()
            with sessions(info={"kept": True}) as session:
                results.append((list(seen), session.scalar(select(func.count()).select_from(Counter))))
                session.query(Note).delete()
                session.query(Counter).delete()
                session.commit()
        seen.clear()
    assert results[0] == results[1]
    assert results[0][0]


# ------------------------------------------------------------------------------ the sessions of the checkpointer


@pytest.mark.parametrize("applying", [sessionmaker(), Session], ids=["sessionmaker", "class"])
def test_entries_are_applied_by_other_sessions_where_listeners_must_not_hear_of_it(
    engine: Engine, tmp_path: Path, applying: Any
) -> None:
    sessions = sessionmaker(engine)

    def only_by_hand(session: Session) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise BoomError

    event.listen(sessions, "before_commit", only_by_hand)
    with walsync.attach(sessions, tmp_path / "log", checkpoint=walsync.CheckpointConfig(paused=True)) as journal:
        with sessions() as session:
            session.add(Note(body="replayed"))
            session.commit()
        journal.close(drain=False)
    replayed: list[Any] = []

    def replay(session: Session, change_set: Any) -> None:
        replayed.append((type(session), change_set.entry_id))

    event.listen(walsync.Journal, "after_replay", replay)
    try:
        with walsync.attach(sessions, tmp_path / "log", applying=applying) as journal:
            with sessions() as session:
                session.add(Note(body="applied"))
                session.commit()
            journal.wait_applied(timeout=30)
    finally:
        event.remove(walsync.Journal, "after_replay", replay)
    assert bodies(engine) == ["applied", "replayed"]
    assert replayed == [(type(applying()), 1)]


def test_what_makes_applying_sessions_is_examined(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    for applying in (engine, Session(), "sessions", async_sessionmaker()):
        with pytest.raises(walsync.AttachError, match="applying= takes a sessionmaker"):
            walsync.attach(sessions, tmp_path / "log", applying=applying)
    assert not (tmp_path / "log").exists()


def test_listeners_can_tell_a_session_that_applies_entries(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    told: list[tuple[str, bool]] = []
    for name in ("after_transaction_create", "before_commit", "after_commit"):
        event.listen(
            sessions, name, lambda session, *_, name=name: told.append((name, "walsync.applying" in session.info))
        )
    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY) as journal:
        with sessions() as session:
            session.add(Note(body="one"))
            session.commit()
            assert {applying for _, applying in told} == {False}
            told.clear()
        told.clear()
        journal.wait_applied(timeout=30)
    assert told[:3] == [("after_transaction_create", True), ("before_commit", True), ("after_commit", True)]


def test_a_session_that_applies_works_on_the_checkpointers_connection(engine: Engine, tmp_path: Path) -> None:
    """Also if its class looks up engines itself, and needs for that what only the application's threads have."""

    class Routed(Session):
        def get_bind(self, *arguments: Any, bind: Any = None, **keywords: Any) -> Any:
            assert threading.get_ident() == here
            return engine if bind is None else bind

    here = threading.get_ident()
    sessions = sessionmaker(class_=Routed)
    with walsync.attach(sessions, tmp_path / "log", target=engine, checkpoint=SLOWLY) as journal:

        @event.listens_for(journal, "before_checkpoint")
        def write(session: Session, *_: Any) -> None:
            session.add(Note(id=-1, body="with the batch"))
            session.flush()
            assert session.scalars(select(Note.body)).all() == ["with the batch"]

        with sessions() as session:
            session.add(Note(body="one"))
            session.commit()
        journal.wait_applied(timeout=30)
        assert journal.stats().durable_entry_id == 1
    assert bodies(engine) == ["one", "with the batch"]


def test_a_factory_whose_class_wants_arguments_is_asked_for_the_checkpointers_sessions(
    engine: Engine, tmp_path: Path
) -> None:
    class Named(Session):
        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(**options)
            self.name = name

    sessions = sessionmaker(engine, class_=Named, name="shop")
    with walsync.attach(sessions, tmp_path / "log"):
        with sessions() as session:
            session.add(Note(body="one"))
            session.commit()
    assert bodies(engine) == ["one"]


# -------------------------------------------------------------------------------------------- what is different


def test_a_transaction_that_reads_and_writes_begins_on_two_connections(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    begun: list[str] = []
    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY) as journal, sessions() as session:
        event.listen(session, "after_begin", lambda *arguments: begun.append(arguments[2].dialect.name))
        session.scalars(select(Counter)).all()
        session.add(Note(body="one"))
        session.commit()
        assert begun == ["sqlite", "walsync"]
        assert journal.stats().buffered_transactions == 1


def test_text_on_the_logs_connection_in_after_begin_is_an_error(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY), sessions() as session:
        event.listen(session, "after_begin", lambda *arguments: arguments[2].execute(text("SELECT 1")))
        session.add(Note(body="one"))
        with pytest.raises(walsync.NotCapturedError):
            session.commit()
    assert bodies(engine) == []


def test_keys_are_there_before_the_insert_and_server_defaults_are_read_when_they_are_wanted(
    engine: Engine, tmp_path: Path
) -> None:
    sessions = sessionmaker(engine)
    keys: list[int] = []
    event.listen(Note, "before_insert", lambda mapper, connection, note: keys.append(note.id))
    with walsync.attach(sessions, tmp_path / "log") as journal, sessions() as session:
        note = Note(body="one")
        session.add(note)
        session.commit()
        assert keys == [1]
        assert journal.stats().buffered_transactions == 1
        assert "stamp" not in note.__dict__
        assert note.stamp == "by the database"


def test_the_row_count_of_a_bulk_update_is_not_known(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    counts: list[int] = []
    event.listen(sessions, "after_bulk_update", lambda context: counts.append(context.result.rowcount))
    with walsync.attach(sessions, tmp_path / "log"), sessions() as session:
        session.query(Note).filter(Note.body != "x").update({"body": "y"})
        session.commit()
    assert counts == [-1]


def test_a_version_conflict_is_told_at_the_commit_and_not_at_the_flush(engine: Engine, tmp_path: Path) -> None:
    sessions = sessionmaker(engine)
    told: list[str] = []
    with walsync.attach(sessions, tmp_path / "log"), sessions() as one, sessions() as other:
        one.add(Counter(id=1))
        one.commit()
        late = other.get_one(Counter, 1)
        other.commit()
        one.get_one(Counter, 1).n = 1
        one.commit()
        for name in ("after_flush", "before_commit", "after_commit", "after_rollback"):
            event.listen(other, name, lambda *_, name=name: told.append(name))
        late.n = 2
        with pytest.raises(StaleDataError):
            other.commit()
        other.rollback()
    assert told == ["before_commit", "after_flush", "after_rollback"]


def test_events_of_the_targets_engine_tell_of_reads_and_of_what_the_checkpointer_does(
    engine: Engine, tmp_path: Path
) -> None:
    sessions = sessionmaker(engine)
    statements: list[tuple[bool, str]] = []
    here = threading.get_ident()

    @event.listens_for(engine, "before_cursor_execute")
    def before(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if "note" in statement:
            statements.append((threading.get_ident() == here, statement.split(maxsplit=1)[0]))

    with walsync.attach(sessions, tmp_path / "log", checkpoint=SLOWLY) as journal:
        with sessions() as session:
            session.add(Note(id=7, body="one"))
            statements.clear()
            session.commit()
        assert (True, "SELECT") not in statements
        assert (False, "INSERT") not in statements
        with sessions() as session:
            assert session.get(Note, 7) is not None
        wait_until(lambda: journal.stats().applied_entry_id == 1)
    assert (True, "SELECT") in statements
    assert (False, "INSERT") in statements


def test_what_every_engine_does_with_a_new_connection_is_not_done_with_the_logs(engine: Engine, tmp_path: Path) -> None:
    """SQLAlchemy's own recipe for SQLite's foreign keys listens to all engines of the process."""

    def enforce_foreign_keys(dbapi_connection: Any, _: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    event.listen(Engine, "connect", enforce_foreign_keys)
    engine.dispose()
    try:
        sessions = sessionmaker(engine)
        with walsync.attach(sessions, tmp_path / "log") as journal, sessions() as session:
            session.add(Note(body="one"))
            session.commit()
            assert session.scalar(text("PRAGMA foreign_keys")) == 1
            assert journal.stats().buffered_transactions == 1
    finally:
        event.remove(Engine, "connect", enforce_foreign_keys)
    assert bodies(engine) == ["one"]

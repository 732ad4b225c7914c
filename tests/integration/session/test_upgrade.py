"""From buffered to direct: always right, simply not buffered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, delete, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session import models
from tests.integration.session.conftest import Attach
from tests.integration.session.models import Audit, Author, Book, Tag, book_tag
from tests.support.databases import make_transactions_real
from walsync.session.upgrade import refuse_commit

Factory = sessionmaker[Session]


def names(factory: Factory) -> list[str]:
    with factory() as session:
        return list(session.scalars(select(Author.name).order_by(Author.name)))


def titles(factory: Factory) -> list[str]:
    with factory() as session:
        return list(session.scalars(select(Book.title).order_by(Book.title)))


def reasons(journal: walsync.Journal) -> set[str]:
    return set(journal.stats().direct_reasons)


def test_a_read_of_own_writes_upgrades_and_commits_on_the_target(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        session.add(Author(name="Ada"))
        assert session.scalar(select(func.count()).select_from(Author)) == 1
        session.add(Author(name="Eve"))
        session.commit()
    assert reasons(journal) == {"read of its own uncommitted writes"}
    assert journal.stats().durable_entry_id == 0, "a direct transaction is not in the log as well"
    assert names(factory) == ["Ada", "Eve"]


def test_a_rollback_after_an_upgrade_takes_everything_back(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        session.add(Author(name="Ada"))
        session.scalars(select(Author)).all()
        session.add(Author(name="Eve"))
        session.flush()
        session.rollback()
        session.add(Author(name="Joe"))
        session.commit()
    assert names(factory) == ["Joe"]
    assert journal.stats().buffered_transactions == 1


def test_an_upgrade_comes_after_everything_that_was_committed_before(attach: Attach, factory: Factory) -> None:
    attach(checkpoint=walsync.CheckpointConfig(batch_delay_s=5.0))
    with factory() as session:
        session.add(Author(name="Ada"))
        session.commit()
    with factory() as session:
        session.execute(text("UPDATE author SET name = 'Eve' WHERE name = 'Ada'"))
        session.commit()
    assert names(factory) == ["Eve"]


DIRECT: dict[str, Callable[[Session], object]] = {
    "SQL text": lambda session: session.execute(text("INSERT INTO tag (name) VALUES ('x')")),
    "SELECT ... FOR UPDATE": lambda session: session.scalars(select(Tag).with_for_update()).all(),
    "asked for": lambda session: session.info.update({"walsync.mode": "direct"}),
}


@pytest.mark.parametrize("reason", DIRECT)
def test_what_cannot_be_buffered_runs_directly(journal: walsync.Journal, factory: Factory, reason: str) -> None:
    with factory() as session:
        session.add(Author(name="Ada"))
        session.flush()
        DIRECT[reason](session)
        session.add(Author(name="Eve"))
        session.commit()
    assert reasons(journal) == {reason}
    assert names(factory) == ["Ada", "Eve"]


def test_returning_runs_directly_where_the_target_has_it(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        assert session.scalars(insert(Tag).values(name="x").returning(Tag.name)).all() == ["x"]
        session.commit()
    assert reasons(journal) == {"RETURNING"}
    with factory() as session:
        assert session.scalars(select(Tag.name)).all() == ["x"]


def test_the_direct_block_and_the_mode_are_refused_when_misspelt(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        with walsync.direct(session):
            session.add(Author(name="Ada"))
            session.commit()
        session.add(Author(name="Eve"))
        session.commit()
        assert (journal.stats().buffered_transactions, journal.stats().direct_transactions) == (1, 1)
        session.info["walsync.mode"] = "directly"
        session.add(Author(name="Joe"))
        with pytest.raises(walsync.UsageError, match="directly"):
            session.commit()
        session.rollback()
    assert names(factory) == ["Ada", "Eve"]


def test_direct_and_buffered_keys_do_not_collide(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        for step in range(30):
            session.add(Author(name=f"{step:02}"))
            if step % 3 == 0:
                session.scalars(select(Author)).all()
            session.commit()
    assert len(names(factory)) == 30


def test_a_class_that_is_not_journaled_makes_the_transaction_direct(attach: Attach, factory: Factory) -> None:
    journal = attach(exclude=[Audit])
    with factory() as session:
        session.add(Author(name="Ada"))
        session.add(Audit(what="added Ada"))
        session.commit()
    with factory() as session:
        session.add(Author(name="Eve"))
        session.commit()
        assert [row.what for row in session.scalars(select(Audit))] == ["added Ada"]
    assert journal.stats().buffered_transactions == 1
    assert reasons(journal) == {"class that is not journaled"}
    assert names(factory) == ["Ada", "Eve"]


def test_include_takes_the_association_tables_of_its_classes_along(attach: Attach, factory: Factory) -> None:
    journal = attach(include=[Author, Book, Tag])
    with factory() as session:
        session.add(Author(name="Ada", books=[Book(title="One", tags=[Tag(name="red")])]))
        session.commit()
        session.execute(delete(book_tag))
        session.commit()
    assert journal.stats().direct_transactions == 0
    with factory() as session:
        session.add(Audit(what="x"))
        session.commit()
    assert journal.stats().direct_transactions == 1


# --------------------------------------------------------------------------------------------- savepoints


@pytest.mark.parametrize("outer_first", [True, False])
def test_a_savepoint_rolled_back_after_an_upgrade_keeps_what_came_before_it(
    journal: walsync.Journal, factory: Factory, outer_first: bool
) -> None:
    with factory() as session:
        if outer_first:
            session.scalars(select(Tag)).all()
        session.add(Author(name="before"))
        session.flush()
        savepoint = session.begin_nested()
        session.add(Author(name="inside"))
        session.flush()
        assert session.scalar(select(func.count()).select_from(Author)) == 2
        savepoint.rollback()
        session.add(Author(name="after"))
        session.commit()
    assert names(factory) == ["after", "before"]
    assert journal.stats().durable_entry_id == 0


def test_savepoints_in_savepoints_upgraded_at_the_bottom(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        session.add(Author(name="0"))
        one = session.begin_nested()
        session.add(Author(name="1"))
        two = session.begin_nested()
        session.add(Author(name="2"))
        three = session.begin_nested()
        session.add(Author(name="3"))
        session.flush()
        assert session.scalars(select(Author.name).order_by(Author.name)).all() == ["0", "1", "2", "3"]
        three.rollback()
        assert session.scalars(select(Author.name).order_by(Author.name)).all() == ["0", "1", "2"]
        two.commit()
        one.rollback()
        assert session.scalars(select(Author.name).order_by(Author.name)).all() == ["0"]
        session.add(Author(name="4"))
        session.commit()
    assert names(factory) == ["0", "4"]


def test_a_read_in_a_savepoint_before_its_writes(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        session.add(Author(name="before"))
        session.flush()
        savepoint = session.begin_nested()
        assert session.scalars(select(Tag)).all() == []
        session.add(Book(title="inside"))
        session.flush()
        assert session.scalars(select(Book.title)).all() == ["inside"]
        savepoint.rollback()
        session.commit()
    assert names(factory) == ["before"]
    assert titles(factory) == []


def test_a_savepoint_after_an_upgrade(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        session.add(Author(name="a"))
        session.scalars(select(Author)).all()
        savepoint = session.begin_nested()
        session.add(Author(name="b"))
        session.flush()
        savepoint.rollback()
        kept = session.begin_nested()
        session.add(Author(name="c"))
        kept.commit()
        session.commit()
    assert names(factory) == ["a", "c"]


def test_an_upgrade_does_not_wait_for_what_its_own_reads_hold_up(attach: Attach, factory: Factory) -> None:
    """On SQLite with its usual journal, who has read in a transaction keeps every writer from committing."""
    journal = attach(
        checkpoint=walsync.CheckpointConfig(paused=True), session=walsync.SessionConfig(read_timeout_s=10.0)
    )
    with factory() as session:
        session.add(Author(name="Ada"))
        session.commit()
    with factory() as session:
        # In a savepoint: Python's driver begins no transaction for a read alone.
        session.begin_nested()
        session.execute(select(Tag), execution_options={"walsync_read": "stale"}).all()
        session.add(Author(name="Eve"))
        session.flush()
        journal.resume()
        assert session.scalar(select(func.count()).select_from(Author)) == 2
        session.commit()
    assert names(factory) == ["Ada", "Eve"]


@pytest.mark.parametrize("first", ["buffered", "read", "direct", "asked for"])
def test_a_savepoint_that_is_released_is_rolled_back_with_its_transaction(
    journal: walsync.Journal, factory: Factory, first: str
) -> None:
    """Also where it is the first that the transaction does on the target: SQLite's RELEASE may be a COMMIT."""
    with factory() as session:
        if first == "read":
            session.scalars(select(Tag)).all()
        elif first == "direct":
            session.execute(text("SELECT 1"))
        savepoint = session.begin_nested()
        session.add(Author(name="Ada"))
        session.flush()
        if first == "asked for":
            with walsync.direct(session):
                session.scalars(select(Tag)).all()
        assert session.scalars(select(Author.name)).all() == ["Ada"]
        session.add(Author(name="Eve"))
        savepoint.commit()
        session.rollback()
    assert names(factory) == []


def test_savepoints_of_a_buffered_transaction_stay_in_the_log(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        session.add(Author(name="a"))
        savepoint = session.begin_nested()
        session.add(Author(name="b"))
        session.flush()
        savepoint.rollback()
        with session.begin_nested():
            session.add(Author(name="c"))
        session.commit()
    assert journal.stats().direct_transactions == 0
    assert names(factory) == ["a", "c"]


# ----------------------------------------------------------------------------------------------- failures


def test_an_upgrade_that_the_target_refuses_cannot_be_committed_in_part(
    journal: walsync.Journal, factory: Factory
) -> None:
    with factory() as session:
        session.add(Tag(name="taken"))
        session.commit()
    with factory() as session:
        session.add(Author(name="first"))
        session.flush()
        session.execute(insert(Tag).values(name="taken"))
        with pytest.raises(IntegrityError):
            session.scalars(select(Tag)).all()
        with pytest.raises(walsync.UsageError, match="rolled back"):
            session.commit()
        session.rollback()
        session.add(Author(name="second"))
        session.commit()
    assert names(factory) == ["second"]


def test_an_upgrade_that_finds_the_target_away_cannot_be_committed_either(
    journal: walsync.Journal, factory: Factory, engine: Engine
) -> None:
    """No connection belongs to the transaction then that could refuse."""

    def refuse(*_: object) -> None:
        raise ConnectionError("the target is away")

    with factory() as session:
        session.add(Author(name="lost"))
        session.flush()
        engine.dispose()
        event.listen(engine, "do_connect", refuse)
        with walsync.direct(session), pytest.raises(ConnectionError):
            session.scalars(select(Author)).all()
        with pytest.raises(walsync.UsageError, match="rolled back"):
            session.commit()
        event.remove(engine, "do_connect", refuse)
        session.rollback()
        session.add(Author(name="first"))
        session.commit()
        session.add(Author(name="second"))
        session.commit()
    assert names(factory) == ["first", "second"]
    assert not event.contains(session, "before_commit", refuse_commit)


def test_a_session_that_failed_at_an_upgrade_works_when_its_journal_is_closed(attach: Attach, factory: Factory) -> None:
    journal = attach()
    with factory() as session:
        session.add(Tag(name="taken"))
        session.commit()
        session.add(Tag(name="other"))
        session.flush()
        session.execute(insert(Tag).values(name="taken"))
        with pytest.raises(IntegrityError):
            session.scalars(select(Tag)).all()
        journal.close()
        session.rollback()
        session.add(Author(name="second"))
        session.commit()
    assert names(factory) == ["second"]


def test_an_update_of_a_row_that_is_gone_is_stale_at_the_upgrade(journal: walsync.Journal, factory: Factory) -> None:
    from sqlalchemy.orm.exc import StaleDataError

    with factory() as session:
        session.add(Author(name="Ada"))
        session.commit()
    with factory() as session, factory() as other:
        author = session.scalars(select(Author)).one()
        session.commit()
        other.execute(delete(Author))
        other.commit()
        author.name = "Eve"
        session.flush()
        with pytest.raises(StaleDataError):
            session.scalars(select(Author)).all()
        session.rollback()


def test_orm_update_with_each_way_of_synchronising(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        author = Author(name="Ada")
        session.add(author)
        session.commit()
        for step, way in enumerate(("evaluate", "fetch", False, "auto"), start=1):
            session.execute(
                update(Author).where(Author.name == "Ada").values(visits=Author.visits + 1),
                execution_options={"synchronize_session": way},
            )
            assert (author.visits == step) is (way is not False), "what is in the session is synchronised"
            session.commit()
            session.refresh(author)
            assert author.visits == step
    assert journal.stats().direct_transactions == 0
    with factory() as session:
        author = session.scalars(select(Author)).one()
        session.execute(delete(Author).where(Author.visits > 0), execution_options={"synchronize_session": "fetch"})
        assert author not in session
        session.commit()
    assert names(factory) == []


def test_update_and_delete_with_returning_run_directly(journal: walsync.Journal, factory: Factory) -> None:
    with factory() as session:
        dialect = session.get_bind().dialect.name
        session.add_all([Tag(name="a"), Tag(name="b")])
        session.commit()
        if dialect not in ("mysql", "mariadb"):
            assert session.scalars(update(Tag).where(Tag.name == "a").values(name="c").returning(Tag.name)).all() == [
                "c"
            ]
        assert session.scalars(delete(Tag.__table__).where(Tag.name == "b").returning(Tag.name)).all() == ["b"]
        session.commit()
        assert len(session.scalars(select(Tag)).all()) == 1
    assert reasons(journal) == {"RETURNING"}


# --------------------------------------------------------------------------------------------------- keys


def test_keys_that_the_database_would_make_do_not_collide_with_reserved_ones(
    journal: walsync.Journal, factory: Factory
) -> None:
    with factory() as session:
        session.add(Author(name="reserved"))
        session.commit()
        session.execute(insert(Author).from_select(["name", "visits", "version"], select(Author.name + "!", 1, 1)))
        session.add(Author(name="after select"))
        session.commit()
        session.execute(text("INSERT INTO author (name, visits, version) VALUES ('text', 0, 1)"))
        session.add(Author(name="after text"))
        session.commit()
        assert session.scalar(insert(Author).values(name="returned", visits=0, version=1).returning(Author.id))
        session.add(Author(name="after returning"))
        session.commit()
        with walsync.direct(session):
            session.execute(insert(Author), [{"name": "many"}, {"name": "more"}])
            session.execute(insert(Author.__table__).values([{"name": "x", "visits": 0, "version": 1}]))
            session.commit()
        session.execute(insert(Author).values([{"name": "y"}, {"name": "z"}]))
        session.commit()
        session.add(Author(name="last"))
        session.commit()
    assert len(names(factory)) == 13


# --------------------------------------------------------------------------------------- real transactions


@pytest.fixture
def recipe(sqlite_url: str) -> Iterator[Engine]:
    """SQLite with real transactions: the listeners that SQLAlchemy's documentation recommends, in WAL mode or not."""
    engine = create_engine(sqlite_url)
    make_transactions_real(engine)
    models.create(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("nested", [False, True])
def test_a_direct_transaction_does_not_wait_with_the_lock_of_the_writer(
    recipe: Engine, tmp_path: Path, nested: bool
) -> None:
    """It has not written yet, and reads what others have committed since it began."""
    own: Factory = sessionmaker(recipe)
    config = walsync.SessionConfig(read_timeout_s=10.0)
    with walsync.attach(own, tmp_path / "log", session=config, keys=walsync.KeyConfig(block_keys=5)):
        with own() as first:
            first.add(Author(name="first"))  # so that there are keys for the next one
            first.commit()
        with own() as session, walsync.direct(session):
            session.connection()
            savepoint = session.begin_nested() if nested else None
            with own() as other:
                other.add(Author(name="other"))
                other.commit()
            assert session.scalars(select(Author.name)).all() == ["first", "other"]
            session.add(Author(name="own"))
            session.flush()
            if savepoint is not None:
                savepoint.rollback()
            session.commit()
    with recipe.connect() as connection:
        found = connection.scalars(select(Author.name)).all()
        assert found == (["first", "other"] if nested else ["first", "other", "own"])


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_with_real_transactions(recipe: Engine, tmp_path: Path, mode: str) -> None:
    with recipe.connect() as connection:
        connection.connection.dbapi_connection.execute(f"PRAGMA journal_mode = {mode}")  # type: ignore[union-attr]
    own: Factory = sessionmaker(recipe)
    with walsync.attach(own, tmp_path / "log", keys=walsync.KeyConfig(block_keys=5)):
        with own() as session:
            session.add(Author(name="a"))
            session.commit()
            # A snapshot, which is older than what is applied next.
            assert session.scalars(select(Author.name)).all() == ["a"]
            with own() as other:
                other.add(Author(name="b"))
                other.commit()
            session.add(Author(name="c"))
            savepoint = session.begin_nested()
            session.add(Book(title="gone"))
            session.flush()
            assert session.scalars(select(Author.name).order_by(Author.name)).all() == ["a", "b", "c"]
            assert session.scalars(select(Book.title)).all() == ["gone"]
            savepoint.rollback()
            session.commit()
        with own() as session:
            # The first read takes the snapshot, so it waits for everything that was committed before.
            session.add(Tag(name="red"))
            session.commit()
            assert session.scalars(select(Book)).all() == []
            assert session.scalars(select(Tag.name)).all() == ["red"]
            for step in range(12):
                session.scalars(select(Book)).all()
                session.add(Author(name=f"key {step}"))
                session.commit()
        assert len(names(own)) == 15


def test_a_bulk_insert_after_a_read_gets_its_keys(recipe: Engine, tmp_path: Path) -> None:
    """What the transaction holds on SQLite by having read must not keep its own keys from being reserved."""
    own: Factory = sessionmaker(recipe)
    with walsync.attach(own, tmp_path / "log", keys=walsync.KeyConfig(block_keys=2)):
        with own() as session:
            assert session.scalars(select(Author)).all() == []
            session.execute(insert(Author), [{"name": "a"}, {"name": "b"}, {"name": "c"}])
            session.commit()
        with own() as session:
            assert len(session.scalars(select(Author)).all()) == 3
            session.execute(insert(Book).values([{"title": "a"}, {"title": "b"}, {"title": "c"}]))
            session.commit()
        assert names(own) == ["a", "b", "c"]

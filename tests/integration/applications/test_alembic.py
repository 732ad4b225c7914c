"""Alembic: the migrations that docs/how-to/use-with-alembic.md shows make walsync's tables and leave them alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, MetaData, String, create_engine, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import walsync
from tests.docs.pages import saved_files
from tests.support.processes import REPOSITORY
from walsync.checkpoint.watermark import watermark_table
from walsync.journal.key_sources import KEYS_TABLE

FILES = saved_files(REPOSITORY / "docs" / "how-to" / "use-with-alembic.md")


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


@pytest.fixture
def engine(target_url: str) -> Iterator[Engine]:
    engine = create_engine(target_url)
    yield engine
    engine.dispose()


@contextmanager
def migrating(engine: Engine, **options: Any) -> Iterator[MigrationContext]:
    with engine.begin() as connection:
        yield MigrationContext.configure(connection, opts=options)


def upgrade(engine: Engine, file: str) -> None:
    with migrating(engine) as context, Operations.context(context):
        namespace: dict[str, Any] = {}
        exec(FILES[file], namespace)
        namespace["upgrade"]()


def of_the_environment(name: str) -> Any:
    """A function of the page's env.py, whose last lines would run migrations."""
    namespace: dict[str, Any] = {}
    text = FILES["migrations/env.py"]
    exec(text[text.index("def include_name") : text.index("engine =")], namespace)
    return namespace[name]


def test_the_migration_makes_the_tables_as_walsync_does(engine: Engine) -> None:
    upgrade(engine, "migrations/versions/a1_first.py")
    own = MetaData()
    watermark_table().to_metadata(own)
    KEYS_TABLE.to_metadata(own)
    with migrating(engine, compare_type=True, include_name=lambda name, kind, _: name != "customer") as context:
        assert compare_metadata(context, own) == []


def test_a_log_works_with_the_tables_of_the_migration(engine: Engine, tmp_path: Path) -> None:
    upgrade(engine, "migrations/versions/a1_first.py")
    sessions = sessionmaker(engine)
    with walsync.attach(sessions, tmp_path / "log") as journal:
        with sessions() as session:
            session.add(Customer(name="Ada"))
            session.commit()
        journal.wait_applied(timeout=30)
    assert set(inspect(engine).get_table_names()) == {"customer", "walsync_checkpoint", "walsync_keys"}


def test_autogenerate_drops_walsyncs_tables_unless_they_are_left_out(engine: Engine) -> None:
    upgrade(engine, "migrations/versions/a1_first.py")
    with migrating(engine) as context:
        dropped = {change[1].name for change in compare_metadata(context, Base.metadata) if change[0] == "remove_table"}
    assert dropped == {"walsync_checkpoint", "walsync_keys"}
    with migrating(engine, include_name=of_the_environment("include_name")) as context:
        assert compare_metadata(context, Base.metadata) == []


def test_segments_of_a_withdrawn_revision_are_put_aside(engine: Engine, tmp_path: Path) -> None:
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    for revision in (b"b6", b"b7", b"b8"):
        with walsync.attach(
            sessions,
            tmp_path / "log",
            log=walsync.LogConfig(version_info=revision),
            checkpoint=walsync.CheckpointConfig(paused=True),
        ) as journal:
            with sessions() as session:
                session.add(Customer(name=revision.decode()))
                session.commit()
            journal.close(drain=False)

    class Withdrawn(walsync.SQLAlchemyCheckpointer):
        def should_recover_segment(self, segment: walsync.SegmentInfo) -> walsync.Recovery:
            return walsync.Recovery.ABANDON if segment.version_info == b"b7" else walsync.Recovery.RECOVER

    checkpointer = Withdrawn(engine)
    with walsync.WriteAheadLog.recover(tmp_path / "log", checkpointer) as log:
        checkpointer.start(log)
        checkpointer.stop(drain=True, timeout=30)
    with engine.connect() as connection:
        assert connection.scalars(Customer.__table__.select().with_only_columns(Customer.name)).all() == ["b6", "b8"]
    assert len(list((tmp_path / "log" / "abandoned").iterdir())) == 1

"""With the target stopped commits go on; with the target back all of it arrives, without a restart of the application.

The servers are private ones that are really stopped: cut down without tidying up, or in order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, ForeignKey, String, create_engine, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import NullPool

import walsync
from tests.support.databases import fresh_database
from tests.support.servers import PrivateServer
from tests.support.waiting import wait_until

WAIT_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5

# A server that is away is asked again soon: the tests do not wait for the patience of production.
CHECKPOINT = walsync.CheckpointConfig(retry_initial_s=0.02, retry_max_s=0.2, batch_delay_s=0.01)


class Base(DeclarativeBase):
    pass


class Station(Base):
    __tablename__ = "station"

    name: Mapped[str] = mapped_column(String(30), primary_key=True)
    total: Mapped[int] = mapped_column(default=0)
    readings: Mapped[list[Reading]] = relationship(back_populates="station")


class Reading(Base):
    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    station_name: Mapped[str] = mapped_column(ForeignKey("station.name"))
    number: Mapped[int]
    station: Mapped[Station] = relationship(back_populates="readings")


@pytest.fixture(
    params=[
        pytest.param("private_postgresql", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("private_mariadb", id="mariadb", marks=[pytest.mark.mariadb, pytest.mark.slow]),
    ]
)
def server(request: pytest.FixtureRequest) -> PrivateServer:
    found: PrivateServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def target(server: PrivateServer) -> Iterator[Engine]:
    with fresh_database(server.url) as url:
        engine = create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}, pool_pre_ping=True)
        Base.metadata.create_all(engine)
        try:
            yield engine
        finally:
            engine.dispose()
            server.start()


@contextmanager
def attached(
    target: Engine, directory: Path, session: walsync.SessionConfig | None = None
) -> Iterator[tuple[sessionmaker[Session], walsync.Journal]]:
    factory = sessionmaker(target)
    journal = walsync.attach(factory, directory, checkpoint=CHECKPOINT, session=session)
    try:
        yield factory, journal
    finally:
        journal.close(drain=False)


def write(factory: sessionmaker[Session], station: str, numbers: range) -> None:
    """One transaction for each number: a reading, and the total by an SQL expression, which must not count twice."""
    with factory() as session:
        for number in numbers:
            session.add(Reading(station_name=station, number=number))
            session.execute(
                update(Station).where(Station.name == station).values(total=Station.total + 1),
                execution_options={"synchronize_session": False},
            )
            session.commit()


def add_station(factory: sessionmaker[Session], name: str) -> None:
    with factory() as session:
        session.add(Station(name=name))
        session.commit()


@contextmanager
def looking_at(target: Engine) -> Iterator[Session]:
    """A session on a connection of its own: the pool may still hold some that broke."""
    engine = create_engine(target.url, poolclass=NullPool)
    with Session(engine) as session:
        yield session


def check(target: Engine, station: str, count: int) -> None:
    """The database itself, without walsync, has this many readings of the station, in order, each counted once."""
    with looking_at(target) as session:
        numbers = session.scalars(select(Reading.number).where(Reading.station_name == station).order_by(Reading.id))
        assert list(numbers) == list(range(count))
        assert session.scalar(select(Station.total).where(Station.name == station)) == count


@pytest.mark.parametrize("immediate", [pytest.param(True, id="cut down"), pytest.param(False, id="stopped in order")])
def test_commits_go_on_without_the_target_and_arrive_when_it_is_back(
    server: PrivateServer, target: Engine, tmp_path: Path, immediate: bool
) -> None:
    with attached(target, tmp_path / "log") as (factory, journal):
        add_station(factory, "roof")
        write(factory, "roof", range(20))
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        server.stop(immediate=immediate)
        write(factory, "roof", range(20, 220))
        assert journal.stats().backlog_entries == 200
        wait_until(lambda: journal.stats().state == "retrying", WAIT_TIMEOUT_S, "the checkpointer notices the outage")
        assert journal.stats().last_error
        write(factory, "roof", range(220, 230))
        server.start()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        check(target, "roof", 230)
        assert journal.stats().state == "running"
        assert journal.stats().last_error is None
        # The same sessions read and write on.
        with factory() as session:
            assert session.scalar(select(func.count(Reading.id))) == 230
        write(factory, "roof", range(230, 240))
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        check(target, "roof", 240)


def test_a_server_that_goes_down_while_entries_are_applied_gets_each_once(
    server: PrivateServer, target: Engine, tmp_path: Path
) -> None:
    errors: list[BaseException] = []

    def run(station: str) -> None:
        try:
            for start in range(0, 600, 20):
                write(factory, station, range(start, start + 20))
                ready[station].set()
        except BaseException as error:
            errors.append(error)
            raise

    with attached(target, tmp_path / "log") as (factory, journal):
        stations = ["north", "south", "west"]
        ready = {station: threading.Event() for station in stations}
        for station in stations:
            add_station(factory, station)
        threads = [threading.Thread(target=run, args=(station,)) for station in stations]
        for thread in threads:
            thread.start()
        for event in ready.values():
            assert event.wait(WAIT_TIMEOUT_S)
        for round_number in range(4):
            applied = journal.stats().applied_entry_id
            server.restart(immediate=round_number % 2 == 0)
            wait_until(
                lambda applied=applied: (  # type: ignore[misc]
                    journal.stats().applied_entry_id > applied or not journal.stats().backlog_entries
                ),
                WAIT_TIMEOUT_S,
                "something is applied after the restart",
            )
        for thread in threads:
            thread.join(WAIT_TIMEOUT_S)
            assert not thread.is_alive()
        assert errors == []
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        for station in stations:
            check(target, station, 600)


def test_attaching_without_the_target_works_and_all_arrives_later(
    server: PrivateServer, target: Engine, tmp_path: Path
) -> None:
    with attached(target, tmp_path / "log") as (factory, journal):
        add_station(factory, "roof")
        write(factory, "roof", range(5))
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        journal.pause()
        write(factory, "roof", range(5, 10))
    target.dispose()
    server.stop(immediate=True)
    # Entries wait in the log, keys are in reserve, and nobody can be asked for the watermark.
    with attached(target, tmp_path / "log") as (factory, journal):
        write(factory, "roof", range(10, 60))
        assert journal.stats().durable_entry_id == 1 + 60
        server.start()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        check(target, "roof", 60)


def test_the_first_attach_ever_works_without_the_target(server: PrivateServer, target: Engine, tmp_path: Path) -> None:
    target.dispose()
    server.stop()
    with attached(target, tmp_path / "log") as (factory, journal):
        for number in range(30):
            add_station(factory, f"station {number}")
        assert journal.stats().backlog_entries == 30
        # A key that the database makes was never reserved: the error says so, and nothing of it is in the log.
        with factory() as session:
            session.add(Reading(station_name="station 0", number=0))
            with pytest.raises(walsync.KeysExhaustedError):
                session.commit()
        assert journal.stats().backlog_entries == 30
        server.start()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        write(factory, "station 0", range(3))
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        check(target, "station 0", 3)
        with looking_at(target) as session:
            assert session.scalar(select(func.count(Station.name))) == 30


def test_a_read_without_the_target_raises_within_its_bound_and_harms_no_commit(
    server: PrivateServer, target: Engine, tmp_path: Path
) -> None:
    with attached(target, tmp_path / "log", session=walsync.SessionConfig(read_timeout_s=0.3)) as (factory, journal):
        add_station(factory, "roof")
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        server.stop(immediate=True)
        add_station(factory, "cellar")
        with factory() as session:
            # The barrier's bound, or the driver's refusal to connect: whichever comes first.
            with pytest.raises((walsync.TargetError, DBAPIError)):
                session.scalars(select(Station)).all()
            session.rollback()
            session.add(Station(name="garden"))
            session.commit()
        server.start()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        with factory() as session:
            assert set(session.scalars(select(Station.name))) == {"roof", "cellar", "garden"}


def test_a_transaction_that_read_before_the_outage_still_commits(
    server: PrivateServer, target: Engine, tmp_path: Path
) -> None:
    """The target's read transaction broke: that can neither undo nor falsely fail the logged one."""
    with attached(target, tmp_path / "log") as (factory, journal):
        add_station(factory, "roof")
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        with factory() as session:
            station = session.scalars(select(Station)).one()
            station.total = 7
            server.stop(immediate=True)
            session.commit()
            station.total = 8
            session.commit()
        server.start()
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        with looking_at(target) as session:
            assert session.scalars(select(Station.total)).all() == [8]


def test_closing_without_the_target_keeps_the_backlog_for_the_next_time(
    server: PrivateServer, target: Engine, tmp_path: Path
) -> None:
    with attached(target, tmp_path / "log") as (factory, journal):
        add_station(factory, "roof")
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        server.stop(immediate=True)
        for number in range(25):
            add_station(factory, f"station {number}")
        journal.close(timeout=0.5)
    server.start()
    with attached(target, tmp_path / "log") as (factory, journal):
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        with looking_at(target) as session:
            assert session.scalar(select(func.count(Station.name))) == 26

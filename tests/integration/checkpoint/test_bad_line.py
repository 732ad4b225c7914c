"""Writers on a line that is cut, stalled, refused and slow at random, to a server that is restarted, or killed and
started, in between: no commit fails, and the target ends up exact.

Each thread has rows of its own, so what must be in the end is known to the last value. A read may fail on such a line;
one that answers must be right. `WALSYNC_BAD_LINE_S` is how long the line is bad, in seconds; `WALSYNC_SEED` repeats a
run's choices, though not the moments at which the threads make them.

What such a run finds is tested as well, with a product that is broken on purpose: without the watermark's compare, and
with a COMMIT that is repeated blindly when its answer was lost. A COMMIT that arrives late, after the checkpointer has
asked where the target stands, is what tells them from the right one, so that is what the line then does most.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, ForeignKey, String, create_engine, event, func, make_url, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import walsync
from tests.support.databases import fresh_database
from tests.support.proxy import Direction, TcpProxy, Verdict
from tests.support.servers import PrivateServer
from walsync.checkpoint.applier import Applier
from walsync.checkpoint.watermark import Watermark

THREADS = 4
BAD_LINE_S = 20.0
WAIT_TIMEOUT_S = 90.0
LONGEST_PAUSE_S = 0.02  # between two transactions of a thread
DRIVER_TIMEOUT_S = 1
READ_TIMEOUT_S = 3.0
SHORT_STALL_S = (0.02, 0.5 * DRIVER_TIMEOUT_S)
LATE_S = (0.05, 0.1, 0.3, 0.6 * DRIVER_TIMEOUT_S)
CUT_AT_COMMIT = 0.15
CUT_ELSEWHERE = 0.005
LONG_STALL_S = (1.2 * DRIVER_TIMEOUT_S, 3.0 * DRIVER_TIMEOUT_S)

CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    # psycopg has no time limit for reading, and the proxy's kernel acknowledges what a stalled line swallows: what the
    # client can do against a silent line is to bound connecting. The server ends transactions that were left to it.
    "postgresql": {
        "connect_timeout": 2,  # libpq takes less for 2
        "keepalives_idle": 1,
        "tcp_user_timeout": DRIVER_TIMEOUT_S * 1000,
        "options": "-c statement_timeout=3000 -c idle_in_transaction_session_timeout=3000",
    },
    "mariadb": {
        "connect_timeout": DRIVER_TIMEOUT_S,
        "read_timeout": DRIVER_TIMEOUT_S,
        "write_timeout": DRIVER_TIMEOUT_S,
    },
}

CHECKPOINT = walsync.CheckpointConfig(
    retry_initial_s=0.01,
    retry_max_s=0.2,
    batch_changes=50,
    batch_delay_s=0.005,
    # Low, so that commits meet it during the longer outages and wait; never so long that they raise.
    max_backlog_entries=400,
    backlog_timeout_s=60.0,
)


class Base(DeclarativeBase):
    pass


class Station(Base):
    __tablename__ = "station"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(40))
    total: Mapped[int]


class Reading(Base):
    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    station_id: Mapped[int] = mapped_column(ForeignKey("station.id"))
    value: Mapped[int]
    station: Mapped[Station] = relationship(lazy="raise")  # one way: deleting a station loads nothing


class Remark(Base):
    __tablename__ = "remark"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reading_id: Mapped[int] = mapped_column(ForeignKey("reading.id"))
    words: Mapped[str | None] = mapped_column(String(40))
    reading: Mapped[Reading] = relationship(lazy="raise")


Model = dict[str, dict[int, tuple[Any, ...]]]
"""Table, key, and the other columns."""


class Writer:
    """A thread with rows of its own: one session that keeps its objects, and the model of what it has committed."""

    def __init__(self, number: int, factory: sessionmaker[Session], seed: int, stop: threading.Event) -> None:
        self.model: Model = {"station": {}, "reading": {}, "remark": {}}
        self.commits = 0
        self.reads: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"writer {number}")
        self._factory = factory
        self._random = random.Random(f"{seed} {number}")
        self._stop = stop
        self._first_key = number * 1_000_000
        self._next_key = self._first_key
        self._stations: dict[int, Station] = {}
        self._readings: dict[int, Reading] = {}
        self._remarks: dict[int, Remark] = {}

    def _run(self) -> None:
        try:
            with self._factory() as session:
                while not self._stop.wait(self._random.uniform(0, LONGEST_PAUSE_S)):
                    self._transaction(session)
                    if self._random.random() < 0.01:
                        self.read()
        except BaseException as error:  # noqa: BLE001  The test raises it.
            self.error = error
            self._stop.set()

    def _transaction(self, session: Session) -> None:
        model: Model = {name: dict(rows) for name, rows in self.model.items()}
        for _ in range(self._random.randint(1, 3)):
            choices = [self._add_station, self._add_reading, self._add_remark, self._change, self._count, self._delete]
            self._random.choices(choices, (1, 4, 3, 5, 4, 4))[0](session, model)
        session.commit()
        self.model = model
        self.commits += 1

    def _key(self) -> int:
        self._next_key += 1
        return self._next_key

    def _words(self) -> str:
        return self._random.choice(("", "é", "'; --", "%s %(x)s :x", "\\", "twenty letters, or so"))

    def _add_station(self, session: Session, model: Model) -> Station:
        key = self._key()
        station = Station(id=key, name=self._words(), total=0)
        session.add(station)
        self._stations[key] = station
        model["station"][key] = (station.name, 0)
        return station

    def _add_reading(self, session: Session, model: Model) -> Reading:
        key = self._key()
        station = self._one(self._stations) or self._add_station(session, model)
        reading = Reading(id=key, station=station, value=self._random.randrange(1000))
        session.add(reading)
        self._readings[key] = reading
        model["reading"][key] = (station.id, reading.value)
        return reading

    def _add_remark(self, session: Session, model: Model) -> None:
        key = self._key()
        reading = self._one(self._readings) or self._add_reading(session, model)
        remark = Remark(id=key, reading=reading, words=self._random.choice((None, self._words())))
        session.add(remark)
        self._remarks[key] = remark
        model["remark"][key] = (reading.id, remark.words)

    def _change(self, session: Session, model: Model) -> None:
        if reading := self._one(self._readings):
            reading.value = self._random.randrange(1000)
            model["reading"][reading.id] = (model["reading"][reading.id][0], reading.value)
        if remark := self._one(self._remarks):
            remark.words = self._words()
            model["remark"][remark.id] = (model["remark"][remark.id][0], remark.words)

    def _count(self, session: Session, model: Model) -> None:
        """By an expression of SQL, which shows when it is applied twice."""
        if station := self._one(self._stations):
            session.execute(
                update(Station).where(Station.id == station.id).values(total=Station.total + 1),
                execution_options={"synchronize_session": False},
            )
            name, total = model["station"][station.id]
            model["station"][station.id] = (name, total + 1)

    def _delete(self, session: Session, model: Model) -> None:
        """A reading with its remarks; seldom a station with everything."""
        session.flush()  # what was added in this transaction can be deleted in it
        if self._random.random() < 0.1 and (station := self._one(self._stations)):
            for key in [key for key, row in model["reading"].items() if row[0] == station.id]:
                self._delete_reading(session, model, self._readings[key])
            session.delete(station)
            del self._stations[station.id], model["station"][station.id]
        elif reading := self._one(self._readings):
            self._delete_reading(session, model, reading)

    def _delete_reading(self, session: Session, model: Model, reading: Reading) -> None:
        for key in [key for key, row in model["remark"].items() if row[0] == reading.id]:
            session.delete(self._remarks.pop(key))
            del model["remark"][key]
        session.delete(reading)
        del self._readings[reading.id], model["reading"][reading.id]

    def _one(self, rows: dict[int, Any]) -> Any:
        return rows[self._random.choice(list(rows))] if rows else None

    def read(self) -> None:
        """All of the thread's readings, as another session sees them: if it sees anything, then every commit."""
        last_key = self._first_key + 999_999
        statement = select(Reading.id, Reading.station_id, Reading.value).where(
            Reading.id.between(self._first_key, last_key)
        )
        try:
            # The end of the session is part of it: SQLAlchemy raises when the rollback of a read fails.
            with self._factory() as session:
                rows = session.execute(statement).all()
        except (walsync.TargetError, DBAPIError):
            self.reads["failed"] += 1
            return
        self.reads["answered"] += 1
        assert {row.id: (row.station_id, row.value) for row in rows} == self.model["reading"]


class BadLine:
    """Spoils the proxy's line in a random way for a while, again and again, and restarts the server behind it.

    With `late_chance` it does nothing but let COMMITs arrive late, each with this chance.
    """

    def __init__(
        self,
        proxy: TcpProxy,
        server: PrivateServer,
        seed: int,
        stop: threading.Event,
        late_chance: float | None = None,
    ) -> None:
        self.done: Counter[str] = Counter()
        self._proxy = proxy
        self._server = server
        self._late_chance = late_chance
        self._random = random.Random(f"{seed} line")
        self._watch_random = random.Random(f"{seed} watch")
        self._stop = stop

    def spoil(self, until: float) -> None:
        self._proxy.watch = self._watch
        ways = [self._cut, self._short_stall, self._long_stall, self._refuse, self._slow, self._restart, self._kill]
        weights = (60, 40, 10, 30, 20, 5, 5)
        while time.monotonic() < until and not self._stop.is_set():
            way = self._leave_alone if self._late_chance else self._random.choices(ways, weights)[0]
            self.done[way.__name__.strip("_")] += 1
            way()
            self._last(0.05, 0.4)
        self._proxy.watch = None
        self._proxy.latency_s = 0.0
        self._proxy.bandwidth_bytes_per_s = None

    def _last(self, shortest_s: float, longest_s: float) -> None:
        """Leave the line as it is for a while; a writer that failed ends it."""
        self._stop.wait(self._random.uniform(shortest_s, longest_s))

    def _watch(self, connection: int, direction: Direction, data: bytes) -> Verdict:
        if direction is Direction.TO_CLIENT:
            return Verdict.DELIVER
        if self._late_chance is not None:
            late = b"COMMIT" in data and self._watch_random.random() < self._late_chance
            self.done["late"] += late
            return Verdict.DELIVER_LATE if late else Verdict.DELIVER
        # A COMMIT is where it matters most; and it is a small part of what goes over the line.
        chance = CUT_AT_COMMIT if b"COMMIT" in data else CUT_ELSEWHERE
        if self._watch_random.random() > chance:
            return Verdict.DELIVER
        verdict = self._watch_random.choice([verdict for verdict in Verdict if verdict is not Verdict.DELIVER])
        self.done[verdict.value] += 1
        return verdict

    def _cut(self) -> None:
        self._proxy.cut()

    def _short_stall(self) -> None:
        self._stall(SHORT_STALL_S)

    def _long_stall(self) -> None:
        self._stall(LONG_STALL_S)

    def _stall(self, length_s: tuple[float, float]) -> None:
        self._proxy.stall()
        self._last(*length_s)
        if self._random.random() < 0.3:
            self._proxy.cut()
        self._proxy.resume()

    def _refuse(self) -> None:
        self._proxy.refuse()
        self._proxy.cut()
        self._last(0.05, 0.5)
        self._proxy.accept()

    def _restart(self) -> None:
        """In order: the server ends its sessions, and lets nobody in meanwhile."""
        self._server.restart()

    def _kill(self) -> None:
        self._server.stop(immediate=True)
        self._last(0.0, 1.0)
        self._server.start()

    def _leave_alone(self) -> None:
        # Some come after the client is back, asks how far the target is, and applies it again, however slow it is.
        self._proxy.late_s = self._random.choice(LATE_S)

    def _slow(self) -> None:
        # Not slower: connecting takes some ten round trips, and on a line that is cut before, nobody gets anywhere.
        self._proxy.latency_s = self._random.choice((0.0, 0.001, 0.01))
        self._proxy.bandwidth_bytes_per_s = self._random.choice((None, 100_000.0, 1_000_000.0))


@pytest.fixture(
    params=[
        pytest.param("private_postgresql", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("private_mariadb", id="mariadb", marks=pytest.mark.mariadb),
    ]
)
def server(request: pytest.FixtureRequest) -> PrivateServer:
    found: PrivateServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def target(server: PrivateServer) -> Iterator[Engine]:
    """Without the proxy."""
    with fresh_database(server.url) as url:
        engine = create_engine(url, pool_pre_ping=True)
        Base.metadata.create_all(engine)
        try:
            yield engine
        finally:
            engine.dispose()
            server.start()


def rows_by_key(target: Engine) -> Model:
    found: Model = {}
    with target.connect() as connection:
        for table in Base.metadata.sorted_tables:
            found[table.name] = {row[0]: tuple(row[1:]) for row in connection.execute(select(table))}
    return found


def run_writers(
    server: PrivateServer, target: Engine, directory: Path, length_s: float, late_chance: float | None = None
) -> None:
    """Writes for so long on a bad line, and compares the target with what the writers committed."""
    seed = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    print(f"WALSYNC_SEED={seed}")
    backend = make_url(target.url).get_backend_name()
    stop = threading.Event()
    with TcpProxy("127.0.0.1", target.url.port or 0) as proxy:
        line = create_engine(
            target.url.set(host="127.0.0.1", port=proxy.port),
            connect_args=CONNECT_ARGUMENTS[backend],
            pool_pre_ping=True,
        )
        factory = sessionmaker(line)
        journal = walsync.attach(
            factory,
            directory / "log",
            checkpoint=CHECKPOINT,
            session=walsync.SessionConfig(read_timeout_s=READ_TIMEOUT_S),
        )
        writers = [Writer(number, factory, seed, stop) for number in range(1, THREADS + 1)]
        bad_line = BadLine(proxy, server, seed, stop, late_chance)

        def halted(*arguments: Any) -> None:
            # Nothing more will be learned.
            stop.set()

        event.listen(journal, "halted", halted)
        try:
            for writer in writers:
                writer.thread.start()
            bad_line.spoil(time.monotonic() + length_s)
            # A bad line is no reason to refuse an entry: one applied twice would be.
            assert journal.stats().state != "halted", journal.stats().last_error
            stop.set()
            for writer in writers:
                writer.thread.join(WAIT_TIMEOUT_S)
                assert not writer.thread.is_alive()
            for writer in writers:
                if writer.error is not None:
                    raise writer.error
            commits = sum(writer.commits for writer in writers)
            reads = sum((writer.reads for writer in writers), Counter[str]())
            print(f"{commits} commits, reads {dict(reads)}, {proxy.opened_connections} connections: {bad_line.done}")
            journal.wait_applied(timeout=WAIT_TIMEOUT_S)
            for writer in writers:
                writer.read()  # on a line that is well again
            # A transaction that opened with nothing to do is no entry.
            assert 0 < journal.stats().applied_entry_id <= commits
        finally:
            stop.set()
            proxy.resume()
            proxy.accept()
            journal.close(drain=False)
            line.dispose()
    expected: Model = {name: {} for name in Base.metadata.tables}
    for writer in writers:
        for name, rows in writer.model.items():
            expected[name] |= rows
    found = rows_by_key(target)
    for name, rows in expected.items():
        assert found[name] == rows, name
    if late_chance is None:
        # The line was as bad as it was meant to be, and the writers wrote: otherwise this proves nothing.
        assert commits > length_s
        assert proxy.opened_connections > length_s
    else:
        assert bad_line.done["late"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_writers_on_a_bad_line_lose_nothing_and_repeat_nothing(
    server: PrivateServer, target: Engine, tmp_path: Path
) -> None:
    run_writers(server, target, tmp_path, float(os.environ.get("WALSYNC_BAD_LINE_S", BAD_LINE_S)))


LATE_LINE_S = 15.0
LATE_CHANCE = 0.3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commits_that_arrive_late_are_not_repeated(server: PrivateServer, target: Engine, tmp_path: Path) -> None:
    """The right product on the line on which the broken ones below are found."""
    run_writers(server, target, tmp_path, LATE_LINE_S / 3, LATE_CHANCE)


def without_compare(watermark: Watermark, connection: Connection, expected: int, through: int) -> bool:
    """Sets, and does not compare."""
    row = watermark.table.c
    changed = (
        update(watermark.table)
        .where(row.log_uuid == watermark._key)
        .values(last_entry_id=through, applied_at=func.current_timestamp(), origin="")
    )
    return connection.execute(changed).rowcount == 1


def blind(synchronise: Callable[[Applier], None]) -> Callable[[Applier], None]:
    """Asks the target where it stands when it starts, and never again."""

    def once(applier: Applier) -> None:
        if not applier._progress.applied_id:
            synchronise(applier)

    return once


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["no compare", "commits repeated blindly"])
def test_a_product_that_repeats_a_commit_is_found(
    server: PrivateServer, target: Engine, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watermark, "advance", without_compare)
    if fault == "commits repeated blindly":
        monkeypatch.setattr(Applier, "_synchronise", blind(Applier._synchronise))
    with pytest.raises((AssertionError, walsync.TargetError)) as found:
        run_writers(server, target, tmp_path, LATE_LINE_S, LATE_CHANCE)
    print(f"found: {found.value}")

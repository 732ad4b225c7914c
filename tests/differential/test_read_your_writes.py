"""Read your writes: random programs of writes, commits, rollbacks, savepoints and every kind of read, against a model.

Alone, each read of a program must show exactly what the model says. With several threads at once, each on rows of its
own, a read of another thread's rows must show what that thread had committed when the read began, or something newer
that it committed, and nothing that it rolled back; and a transaction is seen whole or not at all. Meanwhile the
checkpointer is paused and resumed, and applies in batches of every size.

The default run is a small slice on SQLite; `-m slow` runs many, on the servers as well.
`WALSYNC_READ_PROGRAMS=N` sets the number of programs of each test, `WALSYNC_SEED=N` repeats a run as far as threads can
be repeated.

Last come the tests of the tests: barriers that are left out, and tables that are forgotten, must be found.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, Table, create_engine, event
from sqlalchemy.orm import sessionmaker

import walsync
from tests.differential.reading_kinds import KINDS
from tests.differential.reading_model import Registry, WrongReadError
from tests.differential.reading_programs import Worker, fill
from tests.differential.reading_schema import Reading, link
from tests.differential.sides import database
from tests.support.databases import fresh_database
from walsync.changes import TableName
from walsync.journal import StatementTables, TransactionBuffer, table_name, tables_of
from walsync.session import reads

QUICK = 16
LARGE = 400
THREADS = 4
READ_TIMEOUT_S = 60.0


class Setting(NamedTuple):
    """How the target is used. `begins`: SQLite with transactions that SQLAlchemy begins, and its own log."""

    name: str
    batch_changes: int = 1000
    batch_delay_s: float = 0.0
    isolation_level: str | None = None
    begins: bool = False
    slow: bool = False


SQLITE = [
    Setting("plain"),
    Setting("plain, single changes, slow", batch_changes=1, slow=True),
    Setting("begins", batch_delay_s=0.003, begins=True),
    Setting("begins, small batches, slow", batch_changes=3, begins=True, slow=True),
]
SERVERS = [
    Setting("default"),
    Setting("default, single changes, slow", batch_changes=1, slow=True),
    Setting("repeatable read, delayed", batch_delay_s=0.003, isolation_level="REPEATABLE READ"),
    Setting("read committed, small batches", batch_changes=3, isolation_level="READ COMMITTED", slow=True),
]


@contextmanager
def engine_on(server: str | Path, setting: Setting) -> Iterator[Engine]:
    """An engine on an empty database with the tables of the schema."""
    if isinstance(server, Path):
        url = f"sqlite:///{server / 'target.sqlite'}"
        if setting.begins:
            with database(url, Reading.metadata) as engine:
                yield engine
            return
        engine = create_engine(url, connect_args={"timeout": 30})

        @event.listens_for(engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        Reading.metadata.create_all(engine)
        yield engine
        engine.dispose()
        return
    options = {} if setting.isolation_level is None else {"isolation_level": setting.isolation_level}
    with fresh_database(server) as url:
        engine = create_engine(url, pool_size=2 * THREADS + 2, **options)
        Reading.metadata.create_all(engine)
        yield engine
        engine.dispose()


@contextmanager
def unquiet(journal: walsync.Journal, seed: int) -> Iterator[None]:
    """The checkpointer is paused and resumed all the time."""
    chance, over = random.Random(seed), threading.Event()

    def disturb() -> None:
        while not over.wait(chance.random() * 0.02):
            journal.pause()
            over.wait(chance.random() * 0.005)
            journal.resume()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        journal.resume()


def run(
    server: str | Path,
    directory: Path,
    setting: Setting,
    *,
    threads: int,
    programs: int,
    seed: int,
    mutate: Callable[[walsync.Journal], None] = lambda journal: None,
    kinds: list[str] | None = None,
) -> Counter[str]:
    """So many programs, shared between the threads. Raises the first failure."""
    print(f"{setting}, {threads} threads: WALSYNC_SEED={seed} WALSYNC_READ_PROGRAMS={programs}")
    counts: Counter[str] = Counter()
    failures: list[BaseException] = []
    registry = Registry()
    with engine_on(server, setting) as engine:
        with engine.begin() as connection:
            quote = engine.dialect.identifier_preparer.quote
            columns = ", ".join(quote(name) for name in ("key", "owner", "value"))
            connection.exec_driver_sql(f"CREATE VIEW reading_view AS SELECT {columns} FROM reading_leaf")
        fill(engine, registry, threads)
        dialect = engine.dialect.name
        factory = sessionmaker(engine)
        with walsync.attach(
            factory,
            directory / f"log {setting.name}",
            log=walsync.LogConfig(segment_bytes=1 << 18),
            checkpoint=walsync.CheckpointConfig(
                batch_changes=setting.batch_changes, batch_delay_s=setting.batch_delay_s
            ),
            session=walsync.SessionConfig(read_timeout_s=READ_TIMEOUT_S),
        ) as journal:
            if setting.slow:
                pause = threading.Event()
                event.listen(journal, "before_checkpoint", lambda *arguments: pause.wait(0.002))
            mutate(journal)
            snapshots = (dialect == "sqlite" and setting.begins) or (
                dialect in ("mysql", "mariadb") and setting.isolation_level is None
            )

            def work(owner: int) -> None:
                worker = Worker(
                    factory,
                    journal,
                    registry,
                    owner,
                    threads,
                    seed + owner,
                    kinds=[kind for kind in KINDS if kinds is None or kind.name in kinds],
                    keeps_snapshots=snapshots or setting.isolation_level == "REPEATABLE READ",
                    counts=counts,
                )
                try:
                    for _ in range(max(1, programs // threads)):
                        if failures:
                            return
                        worker.run_program()
                except BaseException as error:  # noqa: BLE001 - handed to the test
                    print(f"{setting}, thread {owner}, WALSYNC_SEED={seed}: {error!r}\n  " + "\n  ".join(worker.done))
                    failures.append(error)

            with unquiet(journal, seed):
                workers = [threading.Thread(target=work, args=(owner,)) for owner in range(threads)]
                for thread in workers:
                    thread.start()
                for thread in workers:
                    thread.join()
            reasons = journal.stats().direct_reasons
            stats = journal.stats()
            if failures:
                journal.close(drain=False)
                raise failures[0]
    print(f"{dict(counts)}; {stats.buffered_transactions} buffered, direct: {reasons}")
    return counts


def run_settings(server: str | Path, tmp_path: Path, settings: list[Setting], threads: int, programs: int) -> None:
    programs = int(os.environ.get("WALSYNC_READ_PROGRAMS", programs))
    seed = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    for number, setting in enumerate(settings):
        folder = tmp_path / str(number)
        folder.mkdir()
        place = folder if isinstance(server, Path) else server
        counts = run(place, folder, setting, threads=threads, programs=programs // len(settings), seed=seed)
        # A run without buffered commits, or without reads, would prove nothing.
        assert counts["reads"] > counts["commits"] > 0


def test_a_thread_reads_exactly_what_it_wrote(tmp_path: Path) -> None:
    run_settings(tmp_path, tmp_path, SQLITE, 1, QUICK)


def test_threads_read_what_others_have_committed(tmp_path: Path) -> None:
    run_settings(tmp_path, tmp_path, SQLITE, THREADS, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("threads", [1, THREADS])
def test_many_programs_on_sqlite(tmp_path: Path, threads: int) -> None:
    run_settings(tmp_path, tmp_path, SQLITE, threads, LARGE)


@pytest.mark.postgresql
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("threads", [1, THREADS])
def test_many_programs_on_postgresql(postgres_server_url: str, tmp_path: Path, threads: int) -> None:
    run_settings(postgres_server_url, tmp_path, SERVERS, threads, LARGE)


@pytest.mark.mariadb
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("threads", [1, THREADS])
def test_many_programs_on_mariadb(mariadb_server_url: str, tmp_path: Path, threads: int) -> None:
    run_settings(mariadb_server_url, tmp_path, SERVERS, threads, LARGE)


# ------------------------------------------------------------------------------------------- tests of the tests


def _no_barrier(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal, "barrier", lambda tables: None)


def _a_barrier_that_is_one_entry_short(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    last = journal._last_entry
    patch.setattr(journal, "_last_entry", lambda tables: last(tables) - 1)


def _subqueries_are_not_looked_into(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    def shallow(compiled: Any) -> StatementTables:
        found = tables_of(compiled)
        froms = getattr(getattr(compiled, "statement", None), "columns_clause_froms", None)
        if froms is None or found.reads is None:
            return found
        return StatementTables(frozenset(table_name(part) for part in froms if isinstance(part, Table)), True)

    patch.setattr(reads, "tables_of", shallow)


def _the_catalogue_is_not_asked(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal, "sources", lambda tables: tables)


def _own_writes_to_association_tables_are_forgotten(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    touches = TransactionBuffer.touches

    def forgetful(buffer: TransactionBuffer, tables: frozenset[TableName] | None) -> bool:
        return touches(buffer, tables and tables - {table_name(link)})

    patch.setattr(TransactionBuffer, "touches", forgetful)


def _savepoints_are_rolled_back_in_name_only(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TransactionBuffer, "rollback_to_savepoint", lambda buffer, name: None)


def _a_first_read_that_waits_for_its_own_tables_only(journal: walsync.Journal, patch: pytest.MonkeyPatch) -> None:
    """Where a transaction keeps the snapshot of that read."""
    patch.setattr(reads, "keeps_snapshot", lambda connection: False)


MUTATIONS = [
    (_no_barrier, SQLITE[1], 1),
    (_no_barrier, SQLITE[2], THREADS),
    (_a_barrier_that_is_one_entry_short, SQLITE[1], 1),
    (_subqueries_are_not_looked_into, SQLITE[1], 1),
    (_the_catalogue_is_not_asked, SQLITE[1], 1),
    (_own_writes_to_association_tables_are_forgotten, SQLITE[2], 1),
    (_savepoints_are_rolled_back_in_name_only, SQLITE[0], 1),
    (_a_first_read_that_waits_for_its_own_tables_only, SQLITE[3], THREADS),
]


KINDS_TO_SEE = {_own_writes_to_association_tables_are_forgotten: ["association"], _the_catalogue_is_not_asked: ["view"]}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mutation", "setting", "threads"), MUTATIONS)
def test_a_wrong_read_is_found(
    mutation: Callable[[walsync.Journal, pytest.MonkeyPatch], None],
    setting: Setting,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def attempts() -> None:
        for seed in range(10):
            folder = tmp_path / str(seed)
            folder.mkdir()
            run(
                folder,
                folder,
                setting,
                threads=threads,
                programs=60,
                seed=seed,
                mutate=lambda journal: mutation(journal, monkeypatch),
                kinds=KINDS_TO_SEE.get(mutation),
            )

    with pytest.raises(WrongReadError):
        attempts()

"""COMMITs whose answer never comes back, on a real line: each entry counts once, whatever the checkpointer was told.

The target is reached through a proxy that finds the COMMIT of each batch on the wire and cuts the connection at that
moment: before it reaches the server, just after, or when the server has done it and says so. Others reach the server
late, when the checkpointer is back on a new connection and at work on the same entries.

`WALSYNC_LOST_ANSWERS=N` loses that many answers in place of the usual number.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Identity,
    Integer,
    MetaData,
    Table,
    create_engine,
    func,
    make_url,
    select,
    text,
)

from tests.support.proxy import Direction, TcpProxy, Verdict
from tests.unit.checkpoint.entries import INTEGER, append, open_log
from walsync.changes import RowChanges, StatementChange, TableName
from walsync.checkpoint import CheckpointConfig, SQLAlchemyCheckpointer
from walsync.checkpoint.watermark import TABLE_NAME
from walsync.wal import WriteAheadLog

FEW = 25
MANY = 1000
WAIT_PER_ANSWER_S = 2.0  # a failing test's bound: some ten times of what it takes

ENTRIES_PER_BATCH = 2
CHANGES_PER_ENTRY = 2
LOSE_EVERY = 3
NEVER_ARRIVES_EVERY = 5
LATE_EVERY = 7
LATE_S = 0.03  # time enough to come back, ask for the watermark, and wait for its row

# The connections are read on the wire, so they are not encrypted; and a prepared statement is sent by its number alone,
# by which the moving of the watermark would not be known.
CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "postgresql": {"sslmode": "disable", "prepare_threshold": None, "connect_timeout": 5},
    "mariadb": {"ssl_disabled": True, "connect_timeout": 5, "read_timeout": 10},
}

COMMIT = {
    # A simple query; or the parsing of one, which its execution follows in the same packet.
    "postgresql": re.compile(rb"Q.{4}\s*COMMIT\s*;?\s*\0|P.{4}[^\0]*\0\s*COMMIT\s*;?\s*\0", re.IGNORECASE | re.DOTALL),
    # Length, number of the packet, COM_QUERY.
    "mariadb": re.compile(rb"\A.{3}\0\x03\s*COMMIT\s*;?\s*\Z", re.IGNORECASE | re.DOTALL),
}

metadata = MetaData()
arrivals = Table(
    "arrivals",
    metadata,
    # The database numbers the rows as they arrive; and nothing hinders one from arriving twice.
    Column("arrival", BigInteger, Identity(), primary_key=True),
    Column("number", Integer, nullable=False),
)
counter = Table("counter", metadata, Column("n", Integer, nullable=False))


class BadCommits:
    """The proxy's `watch`: decides by its number what becomes of each COMMIT of a batch, until enough answers are lost.

    Counts only transactions that move the watermark: losing others proves nothing.
    """

    def __init__(self, backend: str, answers_to_lose: int) -> None:
        self.answers_to_lose = answers_to_lose
        self.verdicts: Counter[Verdict] = Counter()
        self._commit = COMMIT[backend]
        self._moving: set[int] = set()

    @property
    def lost_answers(self) -> int:
        return self.verdicts[Verdict.LOSE_ANSWER] + self.verdicts[Verdict.CUT_AFTER]

    def __call__(self, connection: int, direction: Direction, data: bytes) -> Verdict:
        if direction is Direction.TO_CLIENT:
            return Verdict.DELIVER
        if any(f"{verb} {TABLE_NAME}".encode() in data for verb in ("UPDATE", "INSERT INTO")):
            self._moving.add(connection)
        if not self._commit.search(data) or connection not in self._moving:
            return Verdict.DELIVER
        self._moving.discard(connection)
        verdict = self._decide(self.verdicts.total() + 1)
        self.verdicts[verdict] += 1
        return verdict

    def _decide(self, number: int) -> Verdict:
        if self.lost_answers >= self.answers_to_lose:
            return Verdict.DELIVER
        if number % LOSE_EVERY == 0:
            return Verdict.CUT_AFTER if number % 2 else Verdict.LOSE_ANSWER
        if number % NEVER_ARRIVES_EVERY == 0:
            return Verdict.CUT_BEFORE
        if number % LATE_EVERY == 0:
            return Verdict.DELIVER_LATE
        return Verdict.DELIVER


@pytest.fixture(
    params=[
        pytest.param("empty_postgres_url", id="postgresql", marks=pytest.mark.postgresql),
        pytest.param("empty_mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
    ]
)
def target(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Without the proxy."""
    engine = create_engine(request.getfixturevalue(request.param))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(counter.insert().values(n=0))
    yield engine
    engine.dispose()


def append_entries(log: WriteAheadLog, count: int, dialect: str) -> None:
    add_one = StatementChange("UPDATE counter SET n = n + 1", {}, {}, [TableName(None, "counter")], [], dialect)
    for number in range(1, count + 1):
        row = RowChanges("insert", TableName(None, "arrivals"), ("number",), (INTEGER,), (), (), [[number]])
        append(log, row, add_one)


def lose_answers(target: Engine, count: int) -> BadCommits:
    """Apply entries until `count` answers are lost, and some more; each must be in the target once, in order."""
    backend = make_url(target.url).get_backend_name()
    commits = BadCommits(backend, count)
    # At most LOSE_EVERY batches are applied for each answer that is lost.
    entries = (count * LOSE_EVERY + 20) * ENTRIES_PER_BATCH
    assert target.url.host is not None
    with open_log() as log, TcpProxy(target.url.host, target.url.port or 0, watch=commits) as proxy:
        proxy.late_s = LATE_S
        append_entries(log, entries, target.dialect.name)
        line = create_engine(target.url.set(host="127.0.0.1", port=proxy.port), connect_args=CONNECT_ARGUMENTS[backend])
        checkpointer = SQLAlchemyCheckpointer(
            line,
            config=CheckpointConfig(
                batch_changes=ENTRIES_PER_BATCH * CHANGES_PER_ENTRY,
                batch_delay_s=0.0,
                retry_initial_s=0.001,
                retry_max_s=0.01,
            ),
        )
        checkpointer.start(log)
        try:
            checkpointer.wait_applied(log.last_id, 20.0 + count * WAIT_PER_ANSWER_S)
            assert checkpointer.status.state == "running"
        finally:
            checkpointer.stop()
            line.dispose()
        last_id = log.last_id
    with target.connect() as connection:
        arrived = connection.scalars(select(arrivals.c.number).order_by(arrivals.c.arrival)).all()
        assert arrived == list(range(1, entries + 1))
        assert connection.scalar(select(counter.c.n)) == entries
        assert connection.scalar(select(func.count()).select_from(arrivals)) == entries
        assert connection.scalar(text(f"SELECT last_entry_id FROM {TABLE_NAME}")) == last_id == entries
    return commits


def answers_to_lose(default: int) -> int:
    return int(os.environ.get("WALSYNC_LOST_ANSWERS", default))


def check_lost(commits: BadCommits, count: int) -> None:
    """That the test did what it is there for: a wire on which no COMMIT was recognised would prove nothing."""
    print(f"COMMITs: {', '.join(f'{number} {verdict.value}' for verdict, number in commits.verdicts.items())}")
    assert commits.lost_answers == count
    assert commits.verdicts[Verdict.LOSE_ANSWER] >= count // 2
    assert commits.verdicts[Verdict.CUT_AFTER] >= count // 2
    assert commits.verdicts[Verdict.CUT_BEFORE] >= count // 3
    assert commits.verdicts[Verdict.DELIVER_LATE] >= count // 8


def test_lost_answers_to_commit_count_once(target: Engine) -> None:
    count = answers_to_lose(FEW)
    check_lost(lose_answers(target, count), count)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_lost_answers_to_commit_count_once(target: Engine) -> None:
    count = answers_to_lose(MANY)
    check_lost(lose_answers(target, count), count)

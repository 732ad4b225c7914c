"""The rows of captured.md that say "the commit's time": an outage of the target does not move it."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.contract.captured.case_unit_of_work import one
from tests.contract.captured.model import Stamped, Touched

LONG_AGO = datetime.datetime(2001, 2, 3, 12, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    "pair",
    [
        "sqlite_pair",
        pytest.param("postgresql_pair", marks=[pytest.mark.postgresql, pytest.mark.slow]),
        pytest.param("mariadb_pair", marks=[pytest.mark.mariadb, pytest.mark.slow]),
    ],
)
def test_the_time_is_that_of_the_commit(
    pair: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Engine = request.getfixturevalue(pair)[1]
    factory = sessionmaker(target)
    with walsync.attach(factory, tmp_path / "log") as journal:
        clock: Any = lambda: int(LONG_AGO.timestamp()) * 10**9  # noqa: E731
        monkeypatch.setattr(journal._committer, "_clock_ns", clock)
        with factory() as session:
            one(session, Stamped, label="old").given = func.now()
            one(session, Touched, label="old").label = "changed"
            session.add_all([Stamped(label="new", given=func.current_timestamp()), Touched(label="new")])
            session.execute(insert(Stamped), [{"label": "bulk"}])
            session.commit()
        journal.wait_applied(timeout=20)
        with Session(target) as session:
            assert abs(time.time() - LONG_AGO.timestamp()) > 86_400
            rows = {row.label: row for row in session.scalars(select(Stamped))}
            touched = {row.label: row.touched for row in session.scalars(select(Touched))}
    moments = [
        *(getattr(rows["new"], name) for name in ("given", "made", "created")),
        *(getattr(rows["old"], name) for name in ("given", "changed")),
        *(getattr(rows["bulk"], name) for name in ("made", "created")),
        *touched.values(),
    ]
    # The database's own zone may be another one.
    assert [moment.date().replace(day=3) for moment in moments] == [LONG_AGO.date()] * 9

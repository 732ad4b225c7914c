"""The audit finds what it is there to find: a check that can never fail would prove nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests.crash.child import commit_one
from tests.crash.ledger import Ledger, Writer, audit, engine_of


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = engine_of(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    Ledger.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session:
        session.add_all([Writer(name="one", counter=0, added=0), Writer(name="two", counter=0, added=0)])
        session.commit()
        for number in range(1, 11):
            for name in ("one", "two"):
                commit_one(session, session.get_one(Writer, name), number, random.Random(number))
    yield engine
    engine.dispose()


def test_what_was_written_in_order_has_no_faults(engine: Engine) -> None:
    found = audit(engine, every_row=True)
    assert found.faults == []
    assert found.counters == {"one": 10, "two": 10}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("UPDATE writer SET counter = 9 WHERE name = 'one'", id="older row change applied last"),
        pytest.param("UPDATE writer SET added = added + 1 WHERE name = 'one'", id="statement applied twice"),
        pytest.param("UPDATE writer SET counter = 11, added = 11 WHERE name = 'one'", id="parcel missing"),
        pytest.param("DELETE FROM item WHERE place = 2 AND id % 2 = 0", id="item missing"),
        pytest.param("INSERT INTO item (parcel_id, place) SELECT parcel_id, place FROM item LIMIT 1", id="item twice"),
        pytest.param("DELETE FROM marker WHERE number = 9", id="marker missing"),
        pytest.param("INSERT INTO marker VALUES ('two', 2)", id="deletion lost"),
        pytest.param("INSERT INTO marker VALUES ('two', -5)", id="rolled back savepoint kept"),
        pytest.param("UPDATE parcel SET number = 99 WHERE number = 5", id="gap in the numbers"),
        pytest.param("UPDATE parcel SET content = 'x' WHERE number = 5", id="content changed"),
        pytest.param(
            "UPDATE item SET parcel_id = (SELECT max(id) FROM parcel) WHERE id = (SELECT min(id) FROM item)",
            id="item under another parcel",
        ),
    ],
)
def test_a_fault_is_found(engine: Engine, damage: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(damage))
    assert audit(engine, every_row=True).faults != []

"""The audit finds what it is there to find: a check that can never fail would prove nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from tests.crash.ledger import audit


def test_what_was_written_in_order_has_no_faults(ledger_engine: Engine) -> None:
    found = audit(ledger_engine, every_row=True)
    assert found.faults == []
    assert found.counters == {"one": 10, "two": 10}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("UPDATE writer SET counter = 9 WHERE name = 'one'", id="older row change applied last"),
        pytest.param("UPDATE writer SET added = added + 1 WHERE name = 'one'", id="statement applied twice"),
        pytest.param("UPDATE writer SET mixed = mixed + 1 WHERE name = 'one'", id="statements in another order"),
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
def test_a_fault_is_found(ledger_engine: Engine, damage: str) -> None:
    with ledger_engine.begin() as connection:
        connection.execute(text(damage))
    assert audit(ledger_engine, every_row=True).faults != []

"""Times, defaults and keys; and values that have no exact plain form."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from tests.contract.captured.case_unit_of_work import one
from tests.contract.captured.model import Author, Invoice, Ledger, Made, Stamped, Tag, Touched
from tests.contract.captured.registry import buffered, error
from walsync import NotCapturedError

NOW = "`func.now()`, `CURRENT_TIMESTAMP` as the value or default of a column in an INSERT or row UPDATE"


@buffered(NOW)
def the_time_is_a_value_or_a_default(session: Session) -> None:
    one(session, Stamped, label="old").given = func.current_timestamp()
    session.add(Stamped(label="new", given=func.now()))
    session.execute(insert(Stamped), [{"label": "bulk"}])


@buffered("the same anywhere in a recorded statement")
def the_time_is_in_a_statement(session: Session) -> None:
    session.execute(
        update(Stamped)
        .where(Stamped.created <= func.now())
        .values(given=func.now(), label=func.upper(Stamped.label))
        .execution_options(synchronize_session=False)
    )


@buffered("`server_default` that is the current time (`DateTime` columns)")
def the_time_is_the_default_of_the_server(session: Session) -> Any:
    row = Stamped(label="new")
    session.add(row)
    session.commit()
    return type(row.created) is datetime.datetime


@buffered("`server_onupdate` that is the current time (`DateTime` columns), in a row UPDATE")
def the_server_changes_the_time(session: Session) -> Any:
    row = one(session, Touched, label="old")
    row.label = "changed"
    session.commit()
    return type(row.touched) is datetime.datetime


KEYS = "autoincrement, Identity and Sequence keys"


@buffered(KEYS)
def keys_that_the_database_would_give(session: Session) -> Any:
    new = Ledger(label="one"), Invoice(label="one"), Author(label="new")
    session.add_all(new)
    session.flush()
    assert all(type(row.id) is int for row in new)
    session.execute(insert(Ledger), [{"label": "two"}, {"label": "three"}])
    session.execute(insert(Invoice), [{"label": "two"}, {"label": "three"}])
    session.commit()
    return session.scalars(select(Ledger.label).order_by(Ledger.id)).all()


@buffered(KEYS)
def keys_that_the_application_gives(session: Session) -> None:
    session.add(Author(id=1000, label="a thousand"))
    session.flush()
    session.add(Author(label="next"))


@error("NOT NULL column without a value", IntegrityError, "author.label must not be NULL|author.label has no value")
def a_value_is_missing(session: Session) -> None:
    session.add(Author())
    session.flush()


@error(
    "primary key that the target makes (`server_default`)",
    NotCapturedError,
    r"Python-side default.*directly on the target",
)
def a_key_is_missing(session: Session) -> None:
    session.add(Made(note="x"))
    session.flush()


class Odd:
    """Nothing that a database knows."""


@error("value without an exact plain form", StatementError, "NotCapturedError.*TypeDecorator")
def a_value_of_no_type(session: Session) -> None:
    session.execute(insert(Tag).values(name="odd", weight=Odd()))  # type: ignore[arg-type]

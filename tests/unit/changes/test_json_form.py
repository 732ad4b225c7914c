"""The JSON form of changes: every value that a log can hold goes to JSON text and comes back the same."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName, decode_change_set, encode_change_set
from walsync.changes.json_form import change_to_json, value_from_json, value_to_json

ZONES = st.none() | st.integers(-1439, 1439).map(lambda m: datetime.timezone(datetime.timedelta(minutes=m)))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(),
    st.decimals(),
    st.dates(),
    st.datetimes(timezones=ZONES),
    st.times(timezones=ZONES),
    st.timedeltas(),
    st.uuids(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equal, of the same type, and not a number; and what equality overlooks: -0.0, trailing zeros, fold, offsets."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float):
        both_nan = math.isnan(left) and math.isnan(right)
        return both_nan or (left, math.copysign(1, left)) == (right, math.copysign(1, right))
    if isinstance(left, (datetime.datetime, datetime.time)):
        return (left.isoformat(), left.fold) == (right.isoformat(), right.fold)
    return bool(str(left) == str(right))


@given(VALUES)
def test_every_value_survives_its_json_form(value: Any) -> None:
    assert same(value_from_json(json.loads(json.dumps(value_to_json(value), allow_nan=False))), value)


@pytest.mark.parametrize(
    "value, form",
    [
        (2**53, {"int": "9007199254740992"}),
        (float("-inf"), {"float": "-inf"}),
        (b"\x00\x01\x02", {"bytes": "AAEC"}),
        (decimal.Decimal("1.50"), {"decimal": "1.50"}),
        (datetime.date(2026, 1, 31), {"date": "2026-01-31"}),
        (datetime.datetime(2026, 1, 31, 12, fold=1), {"datetime": "2026-01-31T12:00:00", "fold": 1}),
        (datetime.timedelta(seconds=-1), {"timedelta": [-1, 86399, 0]}),
        (uuid.UUID(int=1), {"uuid": "00000000-0000-0000-0000-000000000001"}),
        ((1, 2), {"tuple": [1, 2]}),
        ({"key": b""}, {"dict": [["key", {"bytes": ""}]]}),
    ],
)
def test_forms_are_those_of_the_documentation(value: Any, form: Any) -> None:
    assert value_to_json(value) == form
    assert same(value_from_json(form), value)


@pytest.mark.parametrize("text", ["{}", '{"what": 1}', '{"int": "1", "float": "1"}'])
def test_other_objects_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON form"):
        value_from_json(json.loads(text))


def test_changes_have_all_that_the_log_holds() -> None:
    rows = RowChanges(
        "update",
        TableName("sales", "orders"),
        ("total",),
        (("numeric", 10, 2),),
        ("id",),
        (("integer",),),
        [[decimal.Decimal("1.50"), 7]],
        must_match=True,
        commit_times=("changed",),
    )
    statement = StatementChange(
        "DELETE FROM orders WHERE id = %(id)s",
        {"id": 7},
        {"id": ("integer",)},
        [TableName(None, "orders")],
        [TableName(None, "lines")],
        "sqlite",
        expected_rows=1,
    )
    change_set = decode_change_set(None, encode_change_set(ChangeSet(1, "here", {}, [rows, statement])))
    assert json.loads(json.dumps([change_to_json(change) for change in change_set.changes])) == [
        {
            "kind": "update",
            "schema": "sales",
            "table": "orders",
            "types": {"total": ["numeric", 10, 2]},
            "key_types": {"id": ["integer"]},
            "must_match": True,
            "commit_times": ["changed"],
            "acts_on": [],
            "rows": [{"values": {"total": {"decimal": "1.50"}}, "keys": {"id": 7}}],
        },
        {
            "kind": "statement",
            "sql": "DELETE FROM orders WHERE id = %(id)s",
            "parameters": {"id": 7},
            "types": {"id": ["integer"]},
            "tables": [[None, "orders"]],
            "read_tables": [[None, "lines"]],
            "dialect": "sqlite",
            "expected_rows": 1,
        },
    ]

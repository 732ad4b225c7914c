"""The codec: every value comes back exactly, and bytes that are not a change set are refused, whatever they are."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import math
import uuid
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walsync.changes import ChangeSet, RowChanges, StatementChange, TableName, decode_change_set, encode_change_set
from walsync.changes.codec import CHUNK_ROWS, decode_tables
from walsync.exceptions import CorruptEntryError, NotCapturedError
from walsync.wal import EntryId

ZONES = st.builds(lambda seconds: datetime.timezone(datetime.timedelta(seconds=seconds)), st.integers(-86_000, 86_000))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(allow_nan=False),
    st.text(st.characters()),
    st.binary(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=ZONES),
    st.times(),
    st.times(timezones=ZONES),
    st.timedeltas(),
    st.uuids(),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple))


def change_set(*changes: Any, metadata: dict[str, Any] | None = None) -> ChangeSet:
    return ChangeSet(1_700_000_000_000_000_001, "host/1/ab", metadata or {}, list(changes))


def rows(values: list[Any], kind: str = "insert") -> RowChanges:
    return RowChanges(kind, TableName("s", "t"), ("x",), (("integer",),), (), (), [[value] for value in values])  # type: ignore[arg-type]


def round_trip(value: Any) -> Any:
    decoded = decode_change_set(EntryId(1), encode_change_set(change_set(rows([value]))))
    change = decoded.changes[0]
    assert isinstance(change, RowChanges)
    return change.rows[0][0]


@given(VALUES)
def test_every_value_comes_back_exactly(value: Any) -> None:
    result = round_trip(value)
    assert result == value
    assert type(result) is type(value)
    assert repr(result) == repr(value), "equal is not enough: 1.0 == 1, and 1.50 == 1.5"


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
        -(2**63) - 1,
        decimal.Decimal("-0E+3"),
        decimal.Decimal("NaN"),
        datetime.datetime.max,
        datetime.datetime.min,
        datetime.datetime(2026, 10, 25, 2, 30, fold=1),
        datetime.time(1, 2, 3, 4, fold=1),
        datetime.timedelta.max,
        datetime.timedelta.min,
        "a\x00b",
        "lone \ud800 surrogate",
        ["lone \udfff surrogate", ("in a tuple \ud800",)],
        (),
        [],
        b"",
        "",
        -0.0,
        float("inf"),
        uuid.UUID(int=0),
    ],
)
def test_edge_values_come_back_exactly(value: Any) -> None:
    assert repr(round_trip(value)) == repr(value)


def test_nan_comes_back() -> None:
    assert math.isnan(round_trip(float("nan")))


def test_a_named_zone_comes_back_as_its_offset() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2), "CEST")
    value = datetime.datetime(2026, 7, 1, 12, tzinfo=zone)
    result = round_trip(value)
    assert result == value
    assert result.utcoffset() == datetime.timedelta(hours=2)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("value", [object(), Colour.RED, {1, 2}, 1j])
def test_a_value_without_an_exact_form_is_refused(value: Any) -> None:
    with pytest.raises(NotCapturedError):
        encode_change_set(change_set(rows([value])))


def test_headers_and_statements_come_back() -> None:
    statement = StatementChange(
        "UPDATE t SET x=x + %(n)s WHERE y LIKE 'a%%'",
        {"n": decimal.Decimal("1.5")},
        {"n": ("numeric", 10, 2)},
        [TableName(None, "t")],
        [TableName("s", "u")],
        "postgresql",
        1,
    )
    row = RowChanges(
        "update",
        TableName(None, "t"),
        ("x",),
        (("array", ("enum", "colour", None, ("a", "b"), True), None),),
        ("id", "version"),
        (("integer",), ("integer",)),
        [[["a"], 1, 2]],
        True,
        ("changed",),
    )
    original = change_set(statement, row, metadata={"request": "abc", "tags": [1, 2]})
    decoded = decode_change_set(EntryId(7), encode_change_set(original))
    original.entry_id = EntryId(7)
    assert decoded == original
    assert decoded.tables == {TableName(None, "t")}
    assert decode_tables(EntryId(7), encode_change_set(original)) == decoded.tables
    assert decoded.change_count == 2


@pytest.mark.parametrize("count", [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 5])
def test_a_large_entry_is_split_into_chunks_and_keeps_its_rows_in_order(count: int) -> None:
    original = change_set(rows(list(range(count))), rows(["last"]))
    chunks = encode_change_set(original)
    assert len(chunks) == (count + 1 + CHUNK_ROWS - 1) // CHUNK_ROWS
    decoded = decode_change_set(EntryId(1), chunks)
    found = [row[0] for change in decoded.changes if isinstance(change, RowChanges) for row in change.rows]
    assert found == [*range(count), "last"]


def shape(*parts: Any) -> bytes:
    return ormsgpack.packb(list(parts))


WHOLE = encode_change_set(change_set(rows([1, "x", decimal.Decimal("2.5")])))[0]


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_an_error_or_another_well_formed_change_set(place: int, byte: int) -> None:
    damaged = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    # Most changes are errors; one inside of a value is another value, which the log's own checksums would have found.
    with contextlib.suppress(CorruptEntryError):
        assert isinstance(decode_change_set(EntryId(3), [damaged]), ChangeSet)


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_random_bytes_are_refused(chunks: list[bytes]) -> None:
    with pytest.raises(CorruptEntryError):
        decode_change_set(EntryId(3), chunks)


@pytest.mark.parametrize(
    "document",
    [
        [2, 0, "o", {}, []],
        [1, "0", "o", {}, []],
        [1, 0, 5, {}, []],
        [1, 0, "o", [], []],
        [1, 0, "o", {}, [[shape("insert", None, "t", ["x"], [["integer"]], [], [], []), False, [[1, 2]]]]],
        [1, 0, "o", {}, [[shape("insert", None, "t", ["x"], [["integer"]], [], [], []), 0, [[1]]]]],
        [1, 0, "o", {}, [[shape("insert", None, "t", ["x"], [["integer"]], [], [], []), False, [1]]]],
        [1, 0, "o", {}, [[shape("upsert", None, "t", ["x"], [["integer"]], [], [], []), False, [[1]]]]],
        [1, 0, "o", {}, [[shape("insert", None, "t", ["x"], [], [], [], []), False, [[1]]]]],
        [1, 0, "o", {}, [[shape("insert", 4, "t", ["x"], [["integer"]], [], [], []), False, [[1]]]]],
        [1, 0, "o", {}, [[shape("insert", None, "t", [5], [["integer"]], [], [], []), False, [[1]]]]],
        [1, 0, "o", {}, [[shape("insert"), False, [[1]]]]],
        [1, 0, "o", {}, [[b"\xc1", False, [[1]]]]],
        [1, 0, "o", {}, [["insert", False, [[1]]]]],
        [1, 0, "o", {}, [["statement", "sql", [], {}, [], [], "x", None]]],
        [1, 0, "o", {}, [["statement", "sql", {}, {}, [], [], "x", "1"]]],
        [1, 0, "o", {}, [7]],
        [1, 0, "o", {}, ormsgpack.Ext(99, b"")],
    ],
)
def test_a_malformed_document_is_refused(document: list[Any]) -> None:
    with pytest.raises(CorruptEntryError):
        decode_change_set(EntryId(3), [ormsgpack.packb(document, option=ormsgpack.OPT_PASSTHROUGH_TUPLE)])

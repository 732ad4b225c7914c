"""Types: a value recorded and bound again is what the driver would have been given directly."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import pickle
import uuid
from typing import Any

import pytest
from psycopg.types.range import Range
from sqlalchemy import cast, literal
from sqlalchemy import types as t
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.types import TypeEngine

from walsync.changes import describe_type, restore_type
from walsync.exceptions import CorruptEntryError, NotCapturedError


def dialect(url: str) -> Dialect:
    """A dialect as an Engine has it, with its driver's module."""
    kind = make_url(url).get_dialect()
    made: Dialect = kind(dbapi=kind.import_dbapi())
    return made


DIALECTS = {name: dialect(url) for name, url in (
    ("sqlite", "sqlite://"),
    ("postgresql", "postgresql+psycopg://"),
    ("mariadb", "mariadb+pymysql://"),
)}  # fmt: skip


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Doubled(t.TypeDecorator[int]):
    impl = t.Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        return None if value is None else value * 2


class Json(t.TypeDecorator[Any]):
    impl = t.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else t.JSON())


class Money(t.UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "MONEY"

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: None if value is None else f"{value}.00"


UTC = datetime.timezone.utc
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
CASES: list[tuple[TypeEngine[Any], Any]] = [
    (t.Integer(), 5),
    (t.SmallInteger(), -1),
    (t.BigInteger(), 2**62),
    (t.Boolean(), True),
    (t.String(5), "äb"),
    (t.Text(), "x" * 1000),
    (t.Unicode(5), "ß"),
    (t.UnicodeText(), ""),
    (t.Float(), 1.5),
    (t.Double(), -0.0),
    (t.Numeric(10, 2), decimal.Decimal("1.50")),
    (t.Numeric(10, 2, asdecimal=False), 2.5),
    (t.DateTime(), MOMENT),
    (t.DateTime(timezone=True), MOMENT.replace(tzinfo=UTC)),
    (t.TIMESTAMP(), MOMENT),
    (t.Date(), MOMENT.date()),
    (t.Time(), MOMENT.time()),
    (t.Interval(), datetime.timedelta(days=-1, microseconds=1)),
    (t.Interval(native=False), datetime.timedelta(days=3)),
    (t.LargeBinary(), b"\x00\xff"),
    (t.VARBINARY(5), b"x"),
    (t.Uuid(), uuid.UUID(int=5)),
    (t.Uuid(as_uuid=False), "00000000-0000-0000-0000-000000000005"),
    (t.Uuid(native_uuid=False), uuid.UUID(int=6)),
    (t.Enum(Colour), Colour.GREEN),
    (t.Enum(Colour, values_callable=lambda kind: [item.value for item in kind]), Colour.GREEN),
    (t.Enum("a", "b", name="letters", native_enum=False), "b"),
    (t.PickleType(), {"x": [1]}),
    (Doubled(), 21),
    (Money(), 3),
    (t.String().with_variant(t.Text(), "sqlite"), "x"),
]


def bound(type_: TypeEngine[Any], dialect: Dialect, value: Any) -> Any:
    processor = type_.dialect_impl(dialect).bind_processor(dialect)
    result = value if processor is None else processor(value)
    return getattr(result, "obj", result)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(("type_", "value"), CASES, ids=[repr(case) for case, _ in CASES])
@pytest.mark.parametrize("given", ["value", "none"])
def test_a_recorded_value_binds_as_it_would_have_directly(
    name: str, type_: TypeEngine[Any], value: Any, given: str
) -> None:
    target = DIALECTS[name]
    value = value if given == "value" else None
    spec, record = describe_type(type_, target)
    recorded = record(value)
    direct, replayed = bound(type_, target, value), bound(restore_type(spec), target, recorded)
    assert replayed == direct
    assert type(replayed) is type(direct)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("type_", [t.JSON(), Json()], ids=["JSON", "decorated"])
def test_json_is_recorded_as_the_text_that_the_target_stores(name: str, type_: TypeEngine[Any]) -> None:
    spec, record = describe_type(type_, DIALECTS[name])
    assert spec == ("json",)
    document = {"a": [1, None, "ä"]}
    text = record(document)
    document["a"] = []
    assert text == '{"a": [1, null, "\\u00e4"]}'
    assert record(None) == "null"
    assert record(t.JSON.NULL) == "null"
    assert describe_type(t.JSON(none_as_null=True), DIALECTS[name])[1](None) is None


def test_an_array_is_copied_and_its_items_recorded() -> None:
    spec, record = describe_type(postgresql.ARRAY(t.Enum(Colour)), DIALECTS["postgresql"])
    value = [[Colour.RED], [None, Colour.GREEN]]
    recorded = record(value)
    value.clear()
    assert recorded == [["RED"], [None, "GREEN"]]
    assert spec[0] == "array"
    assert isinstance(restore_type(spec), postgresql.ARRAY)


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (postgresql.INT4RANGE(), postgresql.Range(1, None, bounds="()"), '("1",)'),
        (postgresql.INT4RANGE(), postgresql.Range(empty=True), "empty"),
        (postgresql.INT4RANGE(), "[1,2)", "[1,2)"),
        (postgresql.NUMRANGE(), Range(decimal.Decimal("1.50"), None, "[]"), '["1.50",)'),
        (postgresql.DATERANGE(), postgresql.Range(None, MOMENT.date()), '[,"2026-01-02")'),
        (postgresql.TSTZRANGE(), postgresql.Range(MOMENT.replace(tzinfo=UTC)), '["2026-01-02T03:04:05.678901+00:00",)'),
        (postgresql.INT4MULTIRANGE(), [postgresql.Range(1, 2), postgresql.Range(5)], '{["1","2"),["5",)}'),
        (postgresql.INT4MULTIRANGE(), [], "{}"),
        (postgresql.INET(), ipaddress.ip_address("::1"), "::1"),
        (postgresql.CIDR(), ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        (postgresql.INET(), None, None),
        (postgresql.INT4RANGE(), None, None),
    ],
)
def test_objects_of_postgresql_are_recorded_as_its_text(type_: TypeEngine[Any], value: Any, expected: Any) -> None:
    spec, record = describe_type(type_, DIALECTS["postgresql"])
    assert (spec, record(value)) == (("driver",), expected)


def test_a_range_is_refused_at_the_flush_for_a_driver_that_does_not_take_its_text() -> None:
    known: Any = type(DIALECTS["postgresql"])

    class Other(known):  # type: ignore[misc]
        driver = "other"
        supports_statement_cache = True

    _, record = describe_type(postgresql.INT4RANGE(), Other(dbapi=known.import_dbapi()))
    with pytest.raises(NotCapturedError):
        record(postgresql.Range(1, 2))


def test_the_items_of_an_array_that_is_cast_name_their_type() -> None:
    spec, record = describe_type(postgresql.ARRAY(postgresql.INET), DIALECTS["postgresql"])
    assert spec == ("array", ("named", "INET"), None)
    assert record([ipaddress.ip_address("::1"), None]) == ["::1", None]
    compiled = cast(literal(1), restore_type(spec)).compile(dialect=DIALECTS["postgresql"])
    assert "INET[]" in str(compiled)


def test_a_set_of_mysql_is_recorded_as_its_text_or_its_number() -> None:
    assert describe_type(mysql.SET("a", "b"), DIALECTS["mariadb"])[1]({"b"}) == "b"
    assert describe_type(mysql.SET("a", "b", retrieve_as_bitwise=True), DIALECTS["mariadb"])[1]({"a", "b"}) == 3


class Name(str):
    __slots__ = ()


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (t.String(), Name("x"), "x"),
        (t.Integer(), Level.HIGH, 3),
        (t.Integer(), True, True),
        (t.LargeBinary(), bytearray(b"x"), b"x"),
        (t.LargeBinary(), memoryview(b"x"), b"x"),
        (t.NullType(), [1, (2, Name("y"))], [1, (2, "y")]),
    ],
)
def test_subclasses_become_the_plain_type(type_: TypeEngine[Any], value: Any, expected: Any) -> None:
    recorded = describe_type(type_, DIALECTS["sqlite"])[1](value)
    assert recorded == expected
    assert type(recorded) is type(expected)


def test_what_the_target_would_refuse_to_bind_is_refused_with_its_own_error() -> None:
    with pytest.raises(TypeError, match="datetime"):
        describe_type(t.DateTime(), DIALECTS["sqlite"])[1]("yesterday")
    with pytest.raises(LookupError, match="purple"):
        describe_type(t.Enum(Colour, validate_strings=True), DIALECTS["sqlite"])[1]("purple")
    with pytest.raises(NotCapturedError, match="TypeDecorator"):
        describe_type(t.NullType(), DIALECTS["sqlite"])[1](object())


@pytest.mark.parametrize("spec", [(), ("unknown",), ("numeric", 1, 2, 3), ("enum",), (7,)])
def test_an_unknown_description_is_refused(spec: Any) -> None:
    with pytest.raises(CorruptEntryError):
        restore_type(spec)


def test_pickles_are_recorded_as_bytes_and_never_loaded() -> None:
    spec, record = describe_type(t.PickleType(), DIALECTS["sqlite"])
    assert spec == ("largebinary",)
    assert pickle.loads(record([1])) == [1]


@pytest.mark.parametrize(
    ("name", "module"), [("sqlite", sqlite), ("postgresql", postgresql), ("mariadb", mysql)], ids=DIALECTS
)
def test_every_type_that_a_dialect_exports_can_be_described(name: str, module: Any) -> None:
    made = 0
    target = DIALECTS[name]
    for exported in module.__all__:
        kind = getattr(module, exported)
        if not (isinstance(kind, type) and issubclass(kind, TypeEngine)):
            continue
        try:
            instance = kind()
        except TypeError:
            # ARRAY, DOMAIN, ENUM: these need arguments.
            continue
        spec, record = describe_type(instance, target)
        restore_type(spec)
        assert record(None) is None or spec[0] in ("json", "driver")
        made += 1
    assert made > 10

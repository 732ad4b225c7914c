"""Column types: from a SQLAlchemy type to a plain description (`TypeSpec`), and back; and the recording of values.

An entry carries a description of each column's type, so that it can be applied without the application's `Table`
objects and without asking the target. A value is recorded *after* the application's own processing
(`TypeDecorator.process_bind_param` for the target's dialect, Enum to its stored string, PickleType to its bytes) and
*before* the driver's (a UUID stays a UUID, a Decimal a Decimal), so that any driver can take it from there.

Recording also snapshots: a list, a JSON document or a bytearray that the application changes after the flush must not
change what was flushed. A value that the target's own bind processing would refuse is refused at the flush, with the
same error, and not hours later by the target.

Four kinds of spec deserve a word:

- ``("json",)``: the value is the document's text, made by the target engine's own JSON serializer; drivers take it
  as it is.
- ``("driver",)``: the value has gone through the whole of the target dialect's bind processing and is passed as it is.
  This is what dialect-specific types without a description of their own use (INET, TSVECTOR, SET ...).
- ``("null",)``: no type is known; the value is passed as it is.
- ``("named", "INET")``: the items of an array that are passed as they are, with the name that the array is cast to.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from walsync.changes.postgresql_types import NamedType, array_item, as_text, is_text_type
from walsync.exceptions import CorruptEntryError, NotCapturedError

__all__ = ["PLAIN_TYPES", "Recorder", "TypeSpec", "describe_type", "restore_type"]

# A name, then the name's parameters: ("numeric", 10, 2). Only str, int, bool, None and nested tuples.
TypeSpec: TypeAlias = tuple[Any, ...]
Recorder: TypeAlias = Callable[[Any], Any]

PLAIN_TYPES: Final = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        str,
        bytes,
        decimal.Decimal,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        uuid.UUID,
    }
)
"""The exact types whose values the codec keeps; lists and tuples of them as well."""

_NUMBERS: Final = frozenset({type(None), int, float, decimal.Decimal, bool})


# ------------------------------------------------------------------------------------------------- values


def _plain(value: Any) -> Any:
    """The value as one of the plain types, or NotCapturedError. Subclasses (quoted_name, IntEnum) lose their class."""
    kind = type(value)
    if kind in PLAIN_TYPES:
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if kind.__name__ == "Binary" and hasattr(value, "obj"):
        # PEP 249's Binary as psycopg has it: a wrapper that tells its driver what the bytes are.
        return _plain(value.obj)
    if kind is list:
        return [_plain(item) for item in value]
    if kind is tuple:
        return tuple(_plain(item) for item in value)
    # datetime before date, bool is final: the order matters only for datetime, a subclass of date.
    for base, convert in _SUBCLASS_CONVERSIONS:
        if isinstance(value, base):
            return convert(value)
    raise NotCapturedError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be recorded in the log: {value!r:.200}. "
        "Give the column a TypeDecorator that turns it into a plain value, or run this transaction directly on the "
        "target (session.info['walsync.mode'] = 'direct')."
    )


_SUBCLASS_CONVERSIONS: Final[tuple[tuple[type, Recorder], ...]] = (
    (str, lambda value: str.__str__(value)),
    (int, int),
    (float, float),
    (bytes, bytes),
    (decimal.Decimal, decimal.Decimal),
    (
        datetime.datetime,
        lambda v: datetime.datetime(
            v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo, fold=v.fold
        ),
    ),
    (datetime.date, lambda v: datetime.date(v.year, v.month, v.day)),
    (datetime.time, lambda v: datetime.time(v.hour, v.minute, v.second, v.microsecond, v.tzinfo, fold=v.fold)),
    (datetime.timedelta, lambda v: datetime.timedelta(v.days, v.seconds, v.microseconds)),
    (uuid.UUID, lambda v: uuid.UUID(int=v.int)),
)


def _recorder(expected: frozenset[type], check: Recorder | None) -> Recorder:
    """A recorder that passes `expected` types at once; others are shown to the target's own processing first."""

    def record(value: Any) -> Any:
        if type(value) in expected:
            return value
        if check is not None:
            check(value)
        return _plain(value)

    return record


def _expected(*types: type) -> frozenset[type]:
    return frozenset({type(None), *types})


# ---------------------------------------------------------------------------------------------- describing


def describe_type(type_: TypeEngine[Any], dialect: Dialect) -> tuple[TypeSpec, Recorder]:
    """The description of a column's type on the target's dialect, and the function that records its values.

    Thread-safe, does no I/O. The recorder raises what the type's own bind processing raises, or `NotCapturedError`.
    """
    impl = type_.dialect_impl(dialect)
    if isinstance(type_, sqltypes.Interval) or isinstance(impl, sqltypes.Interval):
        interval = type_ if isinstance(type_, sqltypes.Interval) else impl
        assert isinstance(interval, sqltypes.Interval)
        spec = ("interval", bool(interval.native), interval.second_precision, interval.day_precision)
        check: Recorder | None = interval.bind_processor(dialect)
        return spec, _recorder(_expected(datetime.timedelta), check)
    if isinstance(impl, TypeDecorator):
        return _describe_decorated(impl, dialect)
    return _describe_plain(type_ if type_.__class__ is impl.__class__ else _generic(type_, impl, dialect), dialect)


def _generic(type_: TypeEngine[Any], impl: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """The type as the application wrote it, unless it has a variant for this dialect: then the variant."""
    variant = type_._variant_mapping.get(dialect.name)
    return impl if variant is not None else type_


def _describe_decorated(decorated: TypeDecorator[Any], dialect: Dialect) -> tuple[TypeSpec, Recorder]:
    """A TypeDecorator, already adapted to the dialect: the user's own processing first, then that of what it wraps."""
    if type(decorated).bind_processor is not TypeDecorator.bind_processor:
        # PickleType and others that replace the whole processing: only its result is known.
        processor = decorated.bind_processor(dialect)
        inner, _ = _describe_plain(decorated.impl_instance, dialect)
        spec: TypeSpec = inner if inner[0] == "largebinary" else ("driver",)
        if processor is None:
            return spec, _plain
        return spec, lambda value: _plain(processor(value))
    spec, record = describe_type(decorated.impl_instance, dialect)
    if type(decorated).process_bind_param is TypeDecorator.process_bind_param:
        return spec, record
    process = decorated.process_bind_param
    return spec, lambda value: record(process(value, dialect))


def _describe_plain(type_: TypeEngine[Any], dialect: Dialect) -> tuple[TypeSpec, Recorder]:
    if isinstance(type_, sqltypes.JSON):
        return ("json",), _json_recorder(type_, dialect)
    if isinstance(type_, sqltypes.Enum):
        return _describe_enum(type_, dialect)
    if isinstance(type_, sqltypes.ARRAY):
        return _describe_array(type_, dialect)
    if is_text_type(type_, dialect):
        return ("driver",), lambda value: _plain(as_text(value))
    check = type_.dialect_impl(dialect).bind_processor(dialect)
    for base, expected, describe in _DESCRIPTIONS:
        # MySQL's SET is a string that takes sets of strings.
        if isinstance(type_, base) and not isinstance(type_, mysql.SET):
            return describe(type_), _recorder(expected, check)
    if isinstance(type_, sqltypes.NullType):
        return ("null",), _plain
    if check is None:
        return ("driver",), _plain
    return ("driver",), lambda value: _plain(check(value))


def _describe_enum(type_: sqltypes.Enum, dialect: Dialect) -> tuple[TypeSpec, Recorder]:
    spec = (
        "enum",
        None if type_.name is None else str.__str__(type_.name),
        None if type_.schema is None else str.__str__(type_.schema),
        tuple(str.__str__(value) for value in type_.enums),
        bool(type_.native_enum),
    )
    # Enum's own bind processing gives the stored string, and the error of an unknown member.
    processor = sqltypes.Enum.bind_processor(type_, dialect)  # type: ignore[no-untyped-call]
    assert processor is not None
    return spec, lambda value: _plain(processor(value))


def _describe_array(type_: sqltypes.ARRAY[Any], dialect: Dialect) -> tuple[TypeSpec, Recorder]:
    item_spec, item_record = describe_type(type_.item_type, dialect)
    if item_spec[0] in ("driver", "json"):
        item_spec = array_item(type_.item_type.dialect_impl(dialect), dialect)

    def record(value: Any) -> Any:
        if isinstance(value, (list, tuple, set, frozenset)):
            return [record(item) for item in value]
        if value is None:
            return None
        return item_record(value)

    return ("array", item_spec, type_.dimensions), record


def _json_recorder(type_: sqltypes.JSON, dialect: Dialect) -> Recorder:
    import json

    serialize: Callable[[Any], str | bytes] = getattr(dialect, "_json_serializer", None) or json.dumps
    none_as_null = type_.none_as_null

    def record(value: Any) -> Any:
        if value is sqltypes.JSON.NULL:
            value = None
        elif value is None and none_as_null:
            return None
        text = serialize(value)
        # Serializers of other libraries (orjson) answer with bytes.
        return text.decode("utf-8") if isinstance(text, bytes) else text

    return record


def _name_only(name: str) -> Callable[[Any], TypeSpec]:
    spec = (name,)
    return lambda type_: spec


# Most specific first: Float is a Numeric, Text a String, BigInteger an Integer, UnicodeText a Text.
_DESCRIPTIONS: Final[tuple[tuple[Any, frozenset[type], Callable[[Any], TypeSpec]], ...]] = (
    (sqltypes.BigInteger, _expected(int), _name_only("biginteger")),
    (sqltypes.SmallInteger, _expected(int), _name_only("smallinteger")),
    (sqltypes.Integer, _expected(int), _name_only("integer")),
    (sqltypes.Boolean, _expected(bool), _name_only("boolean")),
    (sqltypes.UnicodeText, _expected(str), _name_only("unicodetext")),
    (sqltypes.Unicode, _expected(str), _name_only("unicode")),
    (sqltypes.Text, _expected(str), _name_only("text")),
    (sqltypes.String, _expected(str), _name_only("string")),
    (sqltypes.Double, _NUMBERS, _name_only("double")),
    (sqltypes.Float, _NUMBERS, lambda type_: ("float", type_.precision)),
    (sqltypes.Numeric, _NUMBERS, lambda type_: ("numeric", type_.precision, type_.scale)),
    (sqltypes.DateTime, _expected(datetime.datetime), lambda type_: ("datetime", bool(type_.timezone))),
    (sqltypes.Date, _expected(datetime.date), _name_only("date")),
    (sqltypes.Time, _expected(datetime.time), lambda type_: ("time", bool(type_.timezone))),
    (postgresql.INTERVAL, _expected(datetime.timedelta), lambda type_: ("interval", True, None, None)),
    (
        sqltypes.Uuid,
        _expected(uuid.UUID),
        lambda type_: ("uuid", bool(type_.as_uuid), bool(type_.native_uuid)),
    ),
    (sqltypes.LargeBinary, _expected(bytes), _name_only("largebinary")),
    (sqltypes._Binary, _expected(bytes), _name_only("largebinary")),
)


# ----------------------------------------------------------------------------------------------- restoring


def _restore_enum(name: Any, schema: Any, values: Any, native: Any) -> TypeEngine[Any]:
    return sqltypes.Enum(
        *values, name=name, schema=schema, native_enum=native, create_constraint=False, validate_strings=False
    )


def _restore_array(item: Any, dimensions: Any) -> TypeEngine[Any]:
    # PostgreSQL's own ARRAY: the generic one has no bind processing, and no other target has arrays.
    item_type: TypeEngine[Any] = restore_type(item)
    return postgresql.ARRAY(item_type, dimensions=dimensions)


_RESTORERS: Final[Mapping[str, Callable[..., TypeEngine[Any]]]] = {
    "biginteger": sqltypes.BigInteger,
    "smallinteger": sqltypes.SmallInteger,
    "integer": sqltypes.Integer,
    "boolean": sqltypes.Boolean,
    "unicodetext": sqltypes.UnicodeText,
    "unicode": sqltypes.Unicode,
    "text": sqltypes.Text,
    "string": sqltypes.String,
    "double": sqltypes.Double,
    "float": lambda precision: sqltypes.Float(precision),
    "numeric": lambda precision, scale: sqltypes.Numeric(precision, scale),
    "datetime": lambda timezone: sqltypes.DateTime(timezone=timezone),
    "date": sqltypes.Date,
    "time": lambda timezone: sqltypes.Time(timezone=timezone),
    "interval": lambda native, second, day: sqltypes.Interval(
        native=native, second_precision=second, day_precision=day
    ),
    "uuid": lambda as_uuid, native: sqltypes.Uuid(as_uuid=as_uuid, native_uuid=native),
    "largebinary": sqltypes.LargeBinary,
    "json": sqltypes.NullType,
    "driver": sqltypes.NullType,
    "null": sqltypes.NullType,
    "named": NamedType,
    "enum": _restore_enum,
    "array": _restore_array,
}


@lru_cache(maxsize=4096)
def restore_type(spec: TypeSpec) -> TypeEngine[Any]:
    """The SQLAlchemy type that binds the recorded values of this description. The instance is shared; do not change it.

    Raises `CorruptEntryError` for a description that this version does not know.
    """
    try:
        return _RESTORERS[spec[0]](*spec[1:])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptEntryError(
            f"column type {spec!r:.200} is not known to this version of walsync; the entry was written by a newer one, "
            "or is damaged"
        ) from error

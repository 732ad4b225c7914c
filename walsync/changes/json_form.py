"""Change sets as JSON, without loss: what `walsync inspect --json` prints. Pure; knows nothing of files.

null, true, false, strings, whole numbers of at most 53 bits, finite floats and lists are themselves. A float always has
a point or an exponent, so that it is not taken for a whole number. Every other value is an object of one member, whose
name says what it is (two with `fold`):

    {"int": "9007199254740993"}             a whole number past 53 bits, which JSON readers may round
    {"float": "nan"}                        nan, inf, -inf
    {"bytes": "AAEC"}                       base64
    {"decimal": "1.50"}                     its text, trailing zeros kept
    {"date": "2026-01-31"}                  ISO 8601, as the next two
    {"datetime": "2026-01-31T12:00:00"}     with the offset if it has one; and "fold": 1 where that is set
    {"time": "12:00:00.000001"}             the same
    {"timedelta": [-1, 86399, 0]}           days, seconds, microseconds, as Python keeps them
    {"uuid": "171d0072-3ad4-4826-be7b-ec1419742109"}
    {"tuple": [1, 2]}
    {"dict": [["key", 1], ["other", 2]]}    pairs, in order

`value_from_json` goes back.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import uuid
from collections.abc import Callable
from typing import Any, Final

from walsync.changes.model import Change, StatementChange

__all__ = ["change_to_json", "value_from_json", "value_to_json"]

_SAFE_INTEGER: Final = 2**53 - 1


def _datetime(name: str) -> Callable[[Any], dict[str, Any]]:
    def encode(value: Any) -> dict[str, Any]:
        return {name: value.isoformat(), **({"fold": 1} if value.fold else {})}

    return encode


def _integer(value: int) -> Any:
    return value if -_SAFE_INTEGER <= value <= _SAFE_INTEGER else {"int": str(value)}


def _float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": str(value)}


_ENCODERS: Final[dict[type, Callable[[Any], Any]]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: lambda value: value,
    int: _integer,
    float: _float,
    bytes: lambda value: {"bytes": base64.b64encode(value).decode("ascii")},
    decimal.Decimal: lambda value: {"decimal": str(value)},
    datetime.datetime: _datetime("datetime"),
    datetime.date: lambda value: {"date": value.isoformat()},
    datetime.time: _datetime("time"),
    datetime.timedelta: lambda value: {"timedelta": [value.days, value.seconds, value.microseconds]},
    uuid.UUID: lambda value: {"uuid": str(value)},
    list: lambda value: [value_to_json(item) for item in value],
    tuple: lambda value: {"tuple": [value_to_json(item) for item in value]},
    dict: lambda value: {"dict": [[value_to_json(key), value_to_json(item)] for key, item in value.items()]},
}

_DECODERS: Final[dict[str, Callable[[Any], Any]]] = {
    "int": int,
    "float": float,
    "bytes": base64.b64decode,
    "decimal": decimal.Decimal,
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda value: datetime.timedelta(*value),
    "uuid": uuid.UUID,
    "tuple": lambda value: tuple(value_from_json(item) for item in value),
    "dict": lambda value: {value_from_json(key): value_from_json(item) for key, item in value},
}


def value_to_json(value: Any) -> Any:
    """The form above. The value is one that the log can hold; any other raises `TypeError`."""
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise TypeError(f"a log holds no value of type {type(value).__qualname__}")
    return encoder(value)


def value_from_json(value: Any) -> Any:
    """The value that `value_to_json` was given. `ValueError` for an object that is none of its forms."""
    if isinstance(value, list):
        return [value_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    members = dict(value)
    fold = members.pop("fold", 0)
    if len(members) == 1:
        [(name, content)] = members.items()
        if name in _DECODERS:
            found = _DECODERS[name](content)
            return found.replace(fold=1) if fold else found
    raise ValueError(f"{value!r:.200} is not the JSON form of a value")


def _spec(value: Any) -> Any:
    return [_spec(part) for part in value] if isinstance(value, tuple) else value


def change_to_json(change: Change) -> dict[str, Any]:
    """A change as an object; see `docs/reference/cli.md`."""
    if isinstance(change, StatementChange):
        return {
            "kind": "statement",
            "sql": change.sql,
            "parameters": {name: value_to_json(value) for name, value in change.parameters.items()},
            "types": {name: _spec(spec) for name, spec in change.types.items()},
            "tables": [list(table) for table in change.tables],
            "read_tables": [list(table) for table in change.read_tables],
            "dialect": change.dialect,
            "expected_rows": change.expected_rows,
        }
    rows = [
        {
            "values": {name: value_to_json(value) for name, value in values.items()},
            "keys": {name: value_to_json(value) for name, value in keys.items()},
        }
        for values, keys in change.row_dicts()
    ]
    return {
        "kind": change.kind,
        "schema": change.table.schema,
        "table": change.table.name,
        "types": dict(zip(change.columns, map(_spec, change.types), strict=True)),
        "key_types": dict(zip(change.keys, map(_spec, change.key_types), strict=True)),
        "must_match": change.must_match,
        "commit_times": list(change.commit_times),
        "acts_on": [list(table) for table in change.acts_on],
        "rows": rows,
    }

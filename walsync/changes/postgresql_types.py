"""PostgreSQL's types whose values are objects: ranges, multiranges and addresses are recorded as PostgreSQL's own text.

The server reads a text of no declared type as whatever the column is, so that the text stands for the value, where the
driver leaves that to the server. asyncpg does not: it wants the objects. There they are not recorded, and refused.

An array of such values must say what it is an array of: see `array_item`.
"""

from __future__ import annotations

import datetime
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Final

from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.ranges import AbstractRange
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine, UserDefinedType

__all__ = ["NamedType", "array_item", "as_text", "is_text_type"]

_ADDRESSES: Final = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)


_TAKE_TEXT: Final = ("psycopg", "psycopg_async", "psycopg2")
"""The drivers that hand text to the server as it is."""


def is_text_type(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether values of this type may be objects that `as_text` knows, and the driver takes the text."""
    return isinstance(type_, (AbstractRange, postgresql.INET, postgresql.CIDR)) and dialect.driver in _TAKE_TEXT


def as_text(value: Any) -> Any:
    """A range (SQLAlchemy's, or the driver's), a list of ranges, or an address as text; anything else as it is."""
    if isinstance(value, _ADDRESSES):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "{" + ",".join(str(as_text(item)) for item in value) + "}"
    if not hasattr(value, "isempty"):
        return value
    if value.isempty:
        return "empty"
    bounds = value.bounds
    return f"{bounds[0]}{_bound(value.lower)},{_bound(value.upper)}{bounds[1]}"


def _bound(value: Any) -> str:
    if value is None:
        return ""
    text = value.isoformat() if isinstance(value, datetime.date) else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class NamedType(UserDefinedType[Any]):
    """A type of which nothing is known but its name. Its values are passed as they are."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **kw: Any) -> str:
        return self.name


def array_item(type_: TypeEngine[Any], dialect: Dialect) -> tuple[Any, ...]:
    """The description of an array's items whose values are passed as they are: a name that the array can be cast to."""
    return ("named", str.__str__(type_.compile(dialect=dialect)))

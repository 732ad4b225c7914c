"""The mapped classes of the tests of order: tables on which it shows in which order changes were made.

Unique columns beside the key, natural keys that change, references with every action, trees, triggers that write down
what happens, numbers that the database gives out by itself. Values are few (`POOLS`), so that they collide often.

There are no relationships: which statement comes when is the program's own doing, one step after the other.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    DDL,
    CheckConstraint,
    DateTime,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    UniqueConstraint,
    event,
    func,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["KINDS", "Kind", "Ordered", "kind_of"]

_MYSQL: Any = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}
_ANY_CASE = (
    String(20)
    .with_variant(String(20, collation="utf8mb4_general_ci"), "mysql", "mariadb")
    .with_variant(String(20, collation="NOCASE"), "sqlite")
)


class Ordered(DeclarativeBase):
    __table_args__: Any = _MYSQL


def _key() -> Any:
    """An integer key that the application gives."""
    return mapped_column(Integer, primary_key=True, autoincrement=False)


class Seat(Ordered):
    """Three secondary unique keys: one column, two columns, a nullable one."""

    __tablename__ = "seat"
    __table_args__ = (UniqueConstraint("rank", "place"), _MYSQL)
    id: Mapped[int] = _key()
    code: Mapped[str] = mapped_column(String(20), unique=True)
    rank: Mapped[int] = mapped_column(Integer)
    place: Mapped[int] = mapped_column(Integer)
    tag: Mapped[str | None] = mapped_column(String(20), unique=True)
    note: Mapped[str | None] = mapped_column(String(20))


class Nick(Ordered):
    """Unique whatever the case is, on MariaDB and SQLite."""

    __tablename__ = "nick"
    id: Mapped[int] = _key()
    name: Mapped[str] = mapped_column(_ANY_CASE, unique=True)


class Node(Ordered):
    """A tree that keeps a parent that has children."""

    __tablename__ = "node"
    id: Mapped[int] = _key()
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    name: Mapped[str | None] = mapped_column(String(20))


class Twig(Ordered):
    """A tree whose branches go with their parent."""

    __tablename__ = "twig"
    id: Mapped[int] = _key()
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("twig.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(20), unique=True)


class Country(Ordered):
    """A natural key whose changes follow its references, on all levels."""

    __tablename__ = "country"
    code: Mapped[str] = mapped_column(String(20), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(20), unique=True)


class City(Ordered):
    __tablename__ = "city"
    __table_args__ = (UniqueConstraint("country_code", "name"), _MYSQL)
    id: Mapped[int] = _key()
    country_code: Mapped[str | None] = mapped_column(ForeignKey("country.code", onupdate="CASCADE", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(20))


class Currency(Ordered):
    """A natural key that its references hold fast."""

    __tablename__ = "currency"
    code: Mapped[str] = mapped_column(String(20), primary_key=True)
    rate: Mapped[int] = mapped_column(Integer)


class Quote(Ordered):
    """A composite key, one half of it a reference."""

    __tablename__ = "quote"
    currency_code: Mapped[str] = mapped_column(ForeignKey("currency.code"), primary_key=True)
    day: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    price: Mapped[int] = mapped_column(Integer)


class Remark(Ordered):
    """A reference to a composite key."""

    __tablename__ = "remark"
    __table_args__ = (
        ForeignKeyConstraint(
            ["currency_code", "day"], ["quote.currency_code", "quote.day"], onupdate="CASCADE", ondelete="CASCADE"
        ),
        _MYSQL,
    )
    id: Mapped[int] = _key()
    currency_code: Mapped[str | None] = mapped_column(String(20))
    day: Mapped[int | None] = mapped_column(Integer)


class Owner(Ordered):
    __tablename__ = "owner"
    id: Mapped[int] = _key()
    name: Mapped[str] = mapped_column(String(20), unique=True)


class Pet(Ordered):
    __tablename__ = "pet"
    id: Mapped[int] = _key()
    owner_id: Mapped[int] = mapped_column(ForeignKey("owner.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(20), unique=True)


class Loan(Ordered):
    """One reference is emptied, the other one refuses."""

    __tablename__ = "loan"
    id: Mapped[int] = _key()
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id", ondelete="SET NULL"))
    pet_id: Mapped[int | None] = mapped_column(ForeignKey("pet.id", ondelete="RESTRICT"))


class Draft(Ordered):
    """Counts its versions."""

    __tablename__ = "draft"
    id: Mapped[int] = _key()
    title: Mapped[str | None] = mapped_column(String(20), unique=True)
    n: Mapped[int] = mapped_column(Integer)
    version: Mapped[int] = mapped_column(Integer)
    __mapper_args__: Any = {"version_id_col": version}


class Level(Ordered):
    """Two columns that a check ties together."""

    __tablename__ = "level"
    __table_args__ = (CheckConstraint("low <= high", name="low_is_below_high"), _MYSQL)
    id: Mapped[int] = _key()
    low: Mapped[int] = mapped_column(Integer)
    high: Mapped[int] = mapped_column(Integer)


class Cell(Ordered):
    """A composite key that changes."""

    __tablename__ = "cell"
    x: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    y: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    value: Mapped[str | None] = mapped_column(String(20))


class Tally(Ordered):
    """What recorded statements compute with."""

    __tablename__ = "tally"
    id: Mapped[int] = _key()
    n: Mapped[int] = mapped_column(Integer)
    word: Mapped[str | None] = mapped_column(String(20))
    made_at: Mapped[dt.datetime | None] = mapped_column(DateTime, server_default=func.now())


class Copy(Ordered):
    """What recorded statements fill."""

    __tablename__ = "copy"
    id: Mapped[int] = _key()
    n: Mapped[int | None] = mapped_column(Integer)


class Auto(Ordered):
    """A key that is generated."""

    __tablename__ = "auto"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(20), unique=True)
    n: Mapped[int | None] = mapped_column(Integer)


class Animal(Ordered):
    __tablename__ = "animal"
    id: Mapped[int] = _key()
    species: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(20), unique=True)
    __mapper_args__: Any = {"polymorphic_on": species, "polymorphic_identity": "animal"}


class Dog(Animal):
    """Joined inheritance: two tables for one object."""

    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True, autoincrement=False)
    trick: Mapped[str | None] = mapped_column(String(20), unique=True)
    __mapper_args__: Any = {"polymorphic_identity": "dog"}


class Watched(Ordered):
    """Triggers write down what happens to it."""

    __tablename__ = "watched"
    id: Mapped[int] = _key()
    value: Mapped[str | None] = mapped_column(String(20), unique=True)


class Witnessed(Ordered):
    """So do triggers here, into the same table: the order between the two shows."""

    __tablename__ = "witnessed"
    id: Mapped[int] = _key()
    value: Mapped[str | None] = mapped_column(String(20))


class Audit(Ordered):
    """What the triggers wrote. The application never does."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str] = mapped_column(String(100))


class Ticket(Ordered):
    """`serial` is numbered by the database and never set by the application."""

    __tablename__ = "ticket"
    id: Mapped[int] = _key()
    name: Mapped[str | None] = mapped_column(String(20), unique=True)
    serial: Mapped[int | None] = mapped_column(Integer, server_default=FetchedValue())


Audit.__table__.info.update(ranked="seq", triggered=True)
Ticket.__table__.info.update(ranked="serial")


def _on_create(table: Any, dialect: str, sql: str) -> None:
    names = ("mysql", "mariadb") if dialect == "mariadb" else (dialect,)
    event.listen(table, "after_create", DDL(sql.replace("%", "%%")).execute_if(dialect=names))


def _watch(table: str) -> None:
    entity = Ordered.metadata.tables[table]
    audit = Ordered.metadata.tables["audit"]
    entity.add_is_dependent_on(audit)
    changes = {
        "insert": "'+' || NEW.id || coalesce(NEW.value, '')",
        "update": "OLD.id || coalesce(OLD.value, '') || '>' || NEW.id || coalesce(NEW.value, '')",
        "delete": "'-' || OLD.id || coalesce(OLD.value, '')",
    }
    for kind, what in changes.items():
        name = f"{table}_{kind}"
        _on_create(
            entity,
            "sqlite",
            f"CREATE TRIGGER {name} AFTER {kind} ON {table} "
            f"BEGIN INSERT INTO audit (what) VALUES ('{table} ' || {what}); END",
        )
        _on_create(
            entity,
            "postgresql",
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN INSERT INTO audit (what) VALUES ('{table} ' || {what}); RETURN NULL; END $$",
        )
        _on_create(
            entity,
            "postgresql",
            f"CREATE TRIGGER {name} AFTER {kind} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
        )
        parts = ", ".join(what.split(" || "))
        _on_create(
            entity,
            "mariadb",
            f"CREATE TRIGGER {name} AFTER {kind} ON {table} FOR EACH ROW "
            f"INSERT INTO audit (what) VALUES (concat('{table} ', {parts}))",
        )


_watch("watched")
_watch("witnessed")
_on_create(
    Ticket.__table__,
    "sqlite",
    "CREATE TRIGGER ticket_serial AFTER INSERT ON ticket BEGIN "
    "UPDATE ticket SET serial = (SELECT coalesce(max(serial), 0) + 1 FROM ticket) WHERE id = NEW.id; END",
)
_on_create(Ticket.__table__, "postgresql", "CREATE SEQUENCE ticket_serial")
_on_create(
    Ticket.__table__, "postgresql", "ALTER TABLE ticket ALTER COLUMN serial SET DEFAULT nextval('ticket_serial')"
)
_on_create(Ticket.__table__, "mariadb", "ALTER TABLE ticket MODIFY serial INTEGER NOT NULL AUTO_INCREMENT UNIQUE")


# ------------------------------------------------------------------------------------ what programs do with them

_LETTERS = ("a", "b", "c", "d")
_NUMBERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Kind:
    """A class as the programs see it.

    `pools`: its attributes, and the values that each is given. `parents`: attribute to the class whose key it takes.
    `swaps`: groups of attributes whose values are unique together. `counts`: attributes that expressions add to.
    `key_changes`: whether the key may be updated. `orm_only`: whether one object is more than one row.
    """

    mapped: Any
    pools: dict[str, tuple[Any, ...]]
    parents: tuple[tuple[str, str], ...] = ()
    swaps: tuple[tuple[str, ...], ...] = ()
    counts: tuple[str, ...] = ()
    key_changes: bool = False
    orm_only: bool = False
    weight: int = 2

    @property
    def name(self) -> str:
        return str(self.mapped.__name__)

    @property
    def key(self) -> tuple[str, ...]:
        mapper = self.mapped.__mapper__
        return tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)


KINDS = (
    Kind(
        Seat,
        {
            "id": _NUMBERS,
            "code": _LETTERS,
            "rank": (1, 2),
            "place": (1, 2),
            "tag": (None, "a", "b"),
            "note": (None, "x", "y"),
        },
        swaps=(("code",), ("rank", "place"), ("tag",)),
        key_changes=True,
        weight=6,
    ),
    Kind(Nick, {"id": _NUMBERS, "name": ("a", "A", "b", "B", "c")}, swaps=(("name",),), weight=3),
    Kind(Node, {"id": _NUMBERS, "parent_id": (None, 1, 2, 3, 4), "name": _LETTERS}, (("parent_id", "Node"),), weight=3),
    Kind(
        Twig,
        {"id": _NUMBERS, "parent_id": (None, 1, 2, 3, 4), "name": (None, *_LETTERS)},
        (("parent_id", "Twig"),),
        swaps=(("name",),),
        weight=3,
    ),
    Kind(Country, {"code": _LETTERS, "name": (None, "a", "b")}, swaps=(("code",), ("name",)), key_changes=True),
    Kind(
        City,
        {"id": _NUMBERS, "country_code": (None, *_LETTERS), "name": (None, "a", "b")},
        (("country_code", "Country"),),
        swaps=(("country_code", "name"),),
        weight=3,
    ),
    Kind(Currency, {"code": _LETTERS, "rate": _NUMBERS}, swaps=(("code",),), counts=("rate",), key_changes=True),
    Kind(
        Quote,
        {"currency_code": _LETTERS, "day": (1, 2), "price": _NUMBERS},
        (("currency_code", "Currency"),),
        swaps=(("currency_code", "day"),),
        counts=("price",),
        key_changes=True,
        weight=3,
    ),
    Kind(Remark, {"id": _NUMBERS, "currency_code": (None, *_LETTERS), "day": (None, 1, 2)}),
    Kind(Owner, {"id": (1, 2, 3), "name": _LETTERS}, swaps=(("name",),)),
    Kind(
        Pet,
        {"id": (1, 2, 3), "owner_id": (1, 2, 3), "name": (None, *_LETTERS)},
        (("owner_id", "Owner"),),
        swaps=(("name",),),
        weight=3,
    ),
    Kind(
        Loan,
        {"id": (1, 2, 3), "owner_id": (None, 1, 2, 3), "pet_id": (None, 1, 2, 3)},
        (("owner_id", "Owner"), ("pet_id", "Pet")),
    ),
    Kind(
        Draft,
        {"id": (1, 2, 3), "title": (None, "a", "b"), "n": _NUMBERS},
        swaps=(("title",),),
        counts=("n",),
        orm_only=True,
        weight=4,
    ),
    Kind(Level, {"id": (1, 2, 3), "low": _NUMBERS, "high": _NUMBERS}, weight=3),
    Kind(
        Cell,
        {"x": (1, 2), "y": (1, 2, 3), "value": _LETTERS},
        swaps=(("x", "y"),),
        key_changes=True,
        weight=3,
    ),
    Kind(Tally, {"id": _NUMBERS, "n": _NUMBERS, "word": (None, "a", "b")}, counts=("n",), weight=4),
    Kind(Copy, {"id": (1, 2, 11, 12), "n": _NUMBERS}, counts=("n",)),
    Kind(Auto, {"label": _LETTERS, "n": _NUMBERS}, counts=("n",)),
    Kind(Animal, {"id": _NUMBERS, "name": (None, "a", "b")}, swaps=(("name",),), orm_only=True),
    Kind(
        Dog,
        {"id": _NUMBERS, "name": (None, "a", "b"), "trick": (None, "x", "y")},
        swaps=(("name",), ("trick",)),
        orm_only=True,
        weight=3,
    ),
    Kind(Watched, {"id": (1, 2, 3), "value": (None, "a", "b")}, swaps=(("value",),), weight=3),
    Kind(Witnessed, {"id": (1, 2, 3), "value": _LETTERS}),
    Kind(Ticket, {"id": _NUMBERS, "name": (None, *_LETTERS)}, swaps=(("name",),), weight=3),
)

_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(name: str) -> Kind:
    return _BY_NAME[name]

"""The schema of the cases. A generated key is always ``id``, and such a row is known by its ``label``: keys may differ.

A column whose value is the time at which something happened has ``info={"clock": True}``: only its presence is
compared.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import (
    DDL,
    Column,
    Computed,
    DateTime,
    Engine,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Integer,
    Sequence,
    String,
    Table,
    Text,
    event,
    func,
    select,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    Session,
    WriteOnlyMapped,
    column_property,
    deferred,
    mapped_column,
    relationship,
)

CLOCK = {"clock": True}


class Base(DeclarativeBase):
    pass


def key() -> Any:
    return mapped_column(primary_key=True)


def label() -> Any:
    return mapped_column(String(50))


book_tag = Table(
    "book_tag",
    Base.metadata,
    Column("book_id", ForeignKey("book.id"), primary_key=True),
    Column("tag_name", ForeignKey("tag.name"), primary_key=True),
)


_VIEW = DDL("CREATE VIEW author_view AS SELECT label FROM author")
event.listen(Base.metadata, "after_create", _VIEW.execute_if(dialect="sqlite"))


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    visits: Mapped[int] = mapped_column(default=0)
    books: Mapped[list[Book]] = relationship(back_populates="author", cascade="all, delete-orphan", order_by="Book.id")
    dynamic_books: DynamicMapped[Book] = relationship(viewonly=True, order_by="Book.id")
    written_books: WriteOnlyMapped[Book] = relationship(
        order_by="Book.id", overlaps="books,author", passive_deletes=True
    )

    @hybrid_property
    def is_read(self) -> bool:
        return self.visits > 0

    @is_read.inplace.update_expression
    @classmethod
    def _is_read_update(cls, value: bool) -> Any:
        return [(cls.visits, 1 if value else 0)]


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    pages: Mapped[int] = mapped_column(default=100)
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship(back_populates="books", overlaps="written_books")
    tags: Mapped[list[Tag]] = relationship(secondary=book_tag, order_by="Tag.name")


class Tag(Base):
    __tablename__ = "tag"
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    weight: Mapped[int] = mapped_column(default=1)


class Shelf(Base):
    """An author, read with a column that is a query."""

    __table__ = Author.__table__
    __mapper_args__ = {"include_properties": ["id", "label"]}
    book_count: Mapped[int] = column_property(
        select(func.count(Book.id)).where(Book.author_id == Author.__table__.c.id).scalar_subquery()
    )


class Audit(Base):
    """Nothing that reads in the cases reads this one."""

    __tablename__ = "audit"
    id: Mapped[int] = key()
    label: Mapped[str] = label()


class Outside(Base):
    """The class that a case leaves out of the journal."""

    __tablename__ = "outside"
    id: Mapped[int] = key()
    label: Mapped[str] = label()


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    n: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


class Stamp(Base):
    """Its version is the database's to make."""

    __tablename__ = "stamp"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    n: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(server_default="1", server_onupdate=FetchedValue())
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}


class Seat(Base):
    __tablename__ = "seat"
    hall: Mapped[str] = mapped_column(String(10), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str | None] = mapped_column(String(50))


class Visit(Base):
    __tablename__ = "visit"
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    hall: Mapped[str] = mapped_column(String(10))
    number: Mapped[int]
    seat: Mapped[Seat] = relationship()
    __table_args__ = (ForeignKeyConstraint(["hall", "number"], ["seat.hall", "seat.number"], onupdate="CASCADE"),)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    kind: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "person"}


class Engineer(Person):
    """Joined inheritance."""

    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    language: Mapped[str | None] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_identity": "engineer"}


class Manager(Person):
    """Single-table inheritance."""

    bonus: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "manager"}


class Vehicle(Base):
    __tablename__ = "vehicle"
    id: Mapped[int] = key()
    label: Mapped[str] = label()


class Truck(Vehicle):
    """Concrete inheritance."""

    __tablename__ = "truck"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    load: Mapped[int]
    __mapper_args__ = {"concrete": True}


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    children: Mapped[list[Child]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class Child(Base):
    __tablename__ = "child"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id", ondelete="CASCADE"))


class Node(Base):
    """Two rows that need each other: `post_update`."""

    __tablename__ = "node"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    favorite_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    favorite: Mapped[Node | None] = relationship(remote_side=[id], post_update=True)


class Stamped(Base):
    __tablename__ = "stamped"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    given: Mapped[datetime.datetime | None] = mapped_column(DateTime, info=CLOCK)
    made: Mapped[datetime.datetime | None] = mapped_column(DateTime, default=func.now(), info=CLOCK)
    changed: Mapped[datetime.datetime | None] = mapped_column(DateTime, onupdate=func.now(), info=CLOCK)
    created: Mapped[datetime.datetime] = mapped_column(DateTime, server_default=func.now(), info=CLOCK)


class Touched(Base):
    """The server changes `touched` with every change of the row: MariaDB by itself, the others by a trigger."""

    __tablename__ = "touched"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    touched: Mapped[datetime.datetime | None] = mapped_column(
        DateTime, server_default=func.now(), server_onupdate=func.now(), info=CLOCK
    )


class Box(Base):
    __tablename__ = "box"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    width: Mapped[int]
    height: Mapped[int] = mapped_column(server_default=text("7"))
    area: Mapped[int] = mapped_column(Computed("width * height", persisted=True))


class EagerBox(Base):
    """Defaults of the server, wanted at once."""

    __tablename__ = "eager_box"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    height: Mapped[int] = mapped_column(server_default=text("7"))
    __mapper_args__ = {"eager_defaults": True}


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = key()
    label: Mapped[str] = label()
    body: Mapped[str] = deferred(mapped_column(Text))


class Ledger(Base):
    __tablename__ = "ledger"
    id: Mapped[int] = mapped_column(Integer, Identity(start=10), primary_key=True)
    label: Mapped[str] = label()


class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(Integer, Sequence("invoice_numbers", metadata=Base.metadata), primary_key=True)
    label: Mapped[str] = label()


class Made(Base):
    """Its key is made by the database, and is not a number that can be reserved."""

    __tablename__ = "made"
    code: Mapped[str] = mapped_column(String(50), primary_key=True, server_default="made")
    note: Mapped[str | None] = mapped_column(String(50))


def create(engine: Engine) -> None:
    """The tables, empty."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)


def seed(session: Session) -> None:
    """What every case finds there."""
    red, blue = Tag(name="red"), Tag(name="blue")
    session.add_all([red, blue, Tag(name="unused")])
    ada, bob = Author(label="ada", visits=1), Author(label="bob", visits=2)
    session.add_all([ada, bob])
    session.flush()
    for name, pages, author, tags in (
        ("first", 10, ada, [red]),
        ("second", 20, ada, [red, blue]),
        ("third", 30, bob, []),
        ("loose", 40, None, [blue]),
    ):
        session.add(Book(label=name, pages=pages, author=author, tags=tags))
        session.flush()
    session.add_all([Seat(hall="north", number=1, holder="ada"), Seat(hall="north", number=2)])
    session.flush()
    session.add(Visit(name="monday", hall="north", number=1))
    session.add(Counter(label="clicks", n=5))
    session.add_all([Engineer(label="grace", language="cobol"), Manager(label="mary", bonus=3), Person(label="paul")])
    session.add_all([Vehicle(label="bike"), Truck(label="lorry", load=8)])
    session.add(Parent(label="mother", children=[Child(label="elder"), Child(label="younger")]))
    session.add_all(
        [Stamped(label="old"), Touched(label="old"), Box(label="crate", width=3), Document(label="letter", body="dear")]
    )
    session.add(Outside(label="outside"))
    session.commit()

"""The classes: works of several kinds with authors and topics, members, copies and loans."""

from __future__ import annotations

import datetime
import enum
import uuid

from sqlalchemy import CheckConstraint, Column, ForeignKey, String, Table, Text, UniqueConstraint, func, select
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    mapped_column,
    relationship,
    validates,
)


class Base(DeclarativeBase):
    pass


written = Table(
    "written",
    Base.metadata,
    Column("work_id", ForeignKey("work.id", ondelete="CASCADE"), primary_key=True),
    Column("author_id", ForeignKey("author.id"), primary_key=True),
)


class Topic(Base):
    __tablename__ = "topic"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    works: Mapped[list[Work]] = relationship(secondary="filed_under", back_populates="topics", order_by="Work.title")


filed_under = Table(
    "filed_under",
    Base.metadata,
    Column("work_id", ForeignKey("work.id", ondelete="CASCADE"), primary_key=True),
    Column("topic_name", ForeignKey("topic.name"), primary_key=True),
)


class Author(Base):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    first_name: Mapped[str] = mapped_column(String(40))
    last_name: Mapped[str] = mapped_column(String(40))
    works: Mapped[list[Work]] = relationship(secondary=written, back_populates="authors", order_by="Work.title")

    @hybrid_property
    def name(self) -> str:
        return self.first_name + " " + self.last_name


class Work(Base):
    """Joined inheritance: a book, or a film."""

    __tablename__ = "work"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    title: Mapped[str] = mapped_column(String(80), index=True)
    year: Mapped[int | None]
    notes: Mapped[str | None] = mapped_column(Text, deferred=True)
    authors: Mapped[list[Author]] = relationship(secondary=written, back_populates="works", order_by="Author.last_name")
    topics: Mapped[list[Topic]] = relationship(secondary=filed_under, back_populates="works", order_by="Topic.name")
    copies: Mapped[list[Copy]] = relationship(
        back_populates="work", cascade="all, delete-orphan", order_by="Copy.shelf_mark"
    )

    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "work"}


class Book(Work):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(ForeignKey("work.id", ondelete="CASCADE"), primary_key=True)
    isbn: Mapped[str] = mapped_column(String(13), unique=True)
    pages: Mapped[int] = mapped_column(default=0)

    __mapper_args__ = {"polymorphic_identity": "book"}


class Film(Work):
    __tablename__ = "film"

    id: Mapped[int] = mapped_column(ForeignKey("work.id", ondelete="CASCADE"), primary_key=True)
    minutes: Mapped[int]

    __mapper_args__ = {"polymorphic_identity": "film"}


class Condition(enum.Enum):
    NEW = "new"
    WORN = "worn"
    LOST = "lost"


class Copy(Base):
    """Found by a mark that the application makes."""

    __tablename__ = "copy"

    shelf_mark: Mapped[str] = mapped_column(String(20), primary_key=True)
    work_id: Mapped[int] = mapped_column(ForeignKey("work.id"))
    condition: Mapped[Condition] = mapped_column(default=Condition.NEW)
    version: Mapped[int] = mapped_column()
    work: Mapped[Work] = relationship(back_populates="copies")
    loans: Mapped[list[Loan]] = relationship(back_populates="copy", order_by="Loan.lent_on")

    __mapper_args__ = {"version_id_col": version}


class Member(Base):
    __tablename__ = "member"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(80))
    name: Mapped[str] = mapped_column(String(80))
    fees_cents: Mapped[int] = mapped_column(default=0)
    settings: Mapped[Settings | None] = relationship(
        back_populates="member", cascade="all, delete-orphan", single_parent=True
    )
    loans: Mapped[list[Loan]] = relationship(back_populates="member", order_by="Loan.lent_on")

    __table_args__ = (UniqueConstraint("email"), CheckConstraint("fees_cents >= 0", name="no_negative_fees"))

    @validates("email")
    def _valid_email(self, _: str, email: str) -> str:
        if "@" not in email:
            raise ValueError(f"not an address: {email!r}")
        return email.lower()


class Settings(Base):
    __tablename__ = "settings"

    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"), primary_key=True)
    newsletter: Mapped[bool] = mapped_column(default=False)
    member: Mapped[Member] = relationship(back_populates="settings")


class Loan(Base):
    __tablename__ = "loan"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    copy_mark: Mapped[str] = mapped_column(ForeignKey("copy.shelf_mark"))
    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    lent_on: Mapped[datetime.date]
    due_on: Mapped[datetime.date]
    returned_on: Mapped[datetime.date | None]
    recorded_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    copy: Mapped[Copy] = relationship(back_populates="loans")
    member: Mapped[Member] = relationship(back_populates="loans")

    @hybrid_property
    def is_open(self) -> bool:
        return self.returned_on is None

    @is_open.inplace.expression
    @classmethod
    def _is_open(cls):
        return cls.returned_on.is_(None)


Work.times_lent = column_property(
    select(func.count(Loan.id))
    .join(Copy, Copy.shelf_mark == Loan.copy_mark)
    .where(Copy.work_id == Work.id)
    .correlate_except(Loan, Copy)
    .scalar_subquery(),
    deferred=True,
)


class Visit(Base):
    """Somebody came in at the door: many of these, and nobody waits for one."""

    __tablename__ = "visit"

    id: Mapped[int] = mapped_column(primary_key=True)
    door: Mapped[str] = mapped_column(String(20))
    day: Mapped[datetime.date]


class Change(Base):
    """A line of the audit trail."""

    __tablename__ = "change"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    entity: Mapped[str] = mapped_column(String(20))
    by: Mapped[str] = mapped_column(String(40))

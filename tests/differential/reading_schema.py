"""The schema of `test_read_your_writes`: what relationships there are, small enough that every row is in the model.

Each thread owns some nodes, leaves, labels and links, and nobody else writes them. A row that has a value gets the
number of the transaction that wrote it, and no number is used twice: what is read tells who wrote it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Column, ForeignKey, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["LABELS", "LEAVES", "TABLES", "Big", "Label", "Leaf", "Node", "Reading", "Row", "key_of", "link", "universe"]

LEAVES: Final = 4
"""Leaves of one owner. Number 0 is always there, and is written together with node number 0."""

LABELS: Final = 2
"""Labels of one owner; each is linked to node number 0, or is not."""

TABLES: Final = {"leaf": LEAVES, "node": 2, "big": 1, "link": LABELS}
"""What a row of the model may belong to, and how many rows of it each owner has at most."""


class Row(NamedTuple):
    """One row of the model, whether it is there or not."""

    table: str
    owner: int
    number: int


def universe(table: str, owner: int) -> list[Row]:
    """Every row that this owner may have in this table."""
    return [Row(table, owner, number) for number in range(TABLES[table])]


def key_of(owner: int, number: int) -> str:
    """The primary key of a row."""
    return f"{owner}.{number}"


class Reading(DeclarativeBase):
    """The base of this schema."""


link = Table(
    "reading_link",
    Reading.metadata,
    Column("node_key", ForeignKey("reading_node.key"), primary_key=True),
    Column("label_key", ForeignKey("reading_label.key"), primary_key=True),
)


class Node(Reading):
    """Two for each owner: number 0 is plain, number 1 is a `Big` one and the child of number 0."""

    __tablename__ = "reading_node"
    key: Mapped[str] = mapped_column(String(20), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    owner: Mapped[int]
    value: Mapped[int]
    parent_key: Mapped[str | None] = mapped_column(ForeignKey("reading_node.key"))
    children: Mapped[list[Node]] = relationship(back_populates="parent", order_by="Node.key")
    parent: Mapped[Node | None] = relationship(back_populates="children", remote_side=[key])
    leaves: Mapped[list[Leaf]] = relationship(back_populates="node", order_by="Leaf.key", cascade="all, delete-orphan")
    labels: Mapped[list[Label]] = relationship(secondary=link, order_by="Label.key")
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "node"}


class Big(Node):
    """A node with a row in a second table."""

    __tablename__ = "reading_big"
    key: Mapped[str] = mapped_column(ForeignKey("reading_node.key"), primary_key=True)
    weight: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "big"}


class Label(Reading):
    """What nodes are linked to. Never changes."""

    __tablename__ = "reading_label"
    key: Mapped[str] = mapped_column(String(20), primary_key=True)
    owner: Mapped[int]


class Leaf(Reading):
    """Comes and goes."""

    __tablename__ = "reading_leaf"
    key: Mapped[str] = mapped_column(String(20), primary_key=True)
    owner: Mapped[int]
    node_key: Mapped[str] = mapped_column(ForeignKey("reading_node.key"))
    value: Mapped[int]
    node: Mapped[Node] = relationship(back_populates="leaves")

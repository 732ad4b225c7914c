"""What the two web examples serve: orders with lines, and how many pieces of each article are sold.

Plain SQLAlchemy; knows nothing of HTTP, and nothing of walsync. Run it once before the servers are started, as one
would run migrations: four workers that all create tables get in each other's way.

    python examples/web_orders.py

Two settings come from the environment: ORDERS_TARGET, the database's URL (default: the SQLite file orders.db), and
ORDERS_LOG, the directory of the log (default: orders-log).
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Engine, ForeignKey, String, create_engine, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

TARGET_URL = os.environ.get("ORDERS_TARGET", "sqlite:///orders.db")
LOG_DIRECTORY = os.environ.get("ORDERS_LOG", "orders-log")

ARTICLES = ("bolt", "nut", "screw", "washer", "rivet", "hinge")


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    sold: Mapped[int]


class Order(Base):
    __tablename__ = "customer_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(String(80), index=True)
    lines: Mapped[list[OrderLine]] = relationship(order_by="OrderLine.position", lazy="selectin")


class OrderLine(Base):
    __tablename__ = "order_line"

    order_id: Mapped[int] = mapped_column(ForeignKey("customer_order.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    article: Mapped[str] = mapped_column(ForeignKey("article.name"))
    pieces: Mapped[int]


def open_target(url: str) -> Engine:
    """The database's Engine. On SQLite the workers take turns at writing, and wait for each other up to a minute."""
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    return create_engine(url, connect_args={"timeout": 60} if is_sqlite else {})


def create_tables(target: Engine) -> None:
    """Make what is missing: tables, and a row for each article."""
    Base.metadata.create_all(target)
    with Session(target) as session:
        missing = set(ARTICLES) - set(session.scalars(select(Article.name)))
        session.add_all(Article(name=name, sold=0) for name in sorted(missing))
        session.commit()
    if target.dialect.name == "sqlite":
        with target.connect() as connection:
            # Readers and the writer do not wait for each other. The file remembers it.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")


def place_order(session: Session, reference: str, lines: list[tuple[str, int]]) -> Order:
    """One transaction: the order, its lines, and the number sold of each article. Returns when it is committed.

    Raises ValueError for what the database would refuse: once it is committed to the log, it is too late to say no.
    """
    if not reference or len(reference) > 80 or not lines:
        raise ValueError("an order has a reference of 1 to 80 characters, and at least one line")
    for article, pieces in lines:
        if article not in ARTICLES or not 1 <= pieces <= 1_000_000:
            raise ValueError(f"{pieces} pieces of {article!r} cannot be ordered")
    order = Order(reference=reference)
    for position, (article, pieces) in enumerate(lines, 1):
        order.lines.append(OrderLine(position=position, article=article, pieces=pieces))
        # Added up by the database: no worker needs to know the number of the others.
        session.execute(
            update(Article).where(Article.name == article).values(sold=Article.sold + pieces),
            execution_options={"synchronize_session": False},
        )
    session.add(order)
    session.commit()
    return order


def order_as_json(order: Order) -> dict[str, Any]:
    lines = [{"article": line.article, "pieces": line.pieces} for line in order.lines]
    return {"id": order.id, "reference": order.reference, "lines": lines}


if __name__ == "__main__":
    engine = open_target(TARGET_URL)
    create_tables(engine)
    engine.dispose()
    print(f"tables and articles are in {engine.url!r}")

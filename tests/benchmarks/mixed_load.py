"""A mixed load: the same transactions run directly, and drained from a log by the checkpointer.

    python -m tests.benchmarks.mixed_load [--rounds N] [--transactions N] [--target sqlite|postgresql|mariadb]

A transaction has one to five changes, over five tables with foreign keys and a secondary unique constraint: 60 %
inserts, 30 % updates, 10 % deletes. A round runs all of them directly, in ORM sessions; then commits the same ones to a
log, with the checkpointer paused, and takes the time from `resume()` until all of them are in. Both go to databases of
the same server that are alike at first, and equal afterwards. Nothing is asserted but that. What it should be: at least
8 times as fast on PostgreSQL.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, ForeignKey, String, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import walsync
from tests.benchmarks.targets import engine_for
from tests.support.servers import ServerMissingError

WAIT_TIMEOUT_S = 900.0
TARGETS = ("postgresql", "mariadb", "sqlite")


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(String(60), unique=True)
    orders: Mapped[int] = mapped_column(default=0)


class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(60))
    price: Mapped[float]


class Purchase(Base):
    __tablename__ = "purchase"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))
    state: Mapped[str] = mapped_column(String(20))


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    purchase_id: Mapped[int] = mapped_column(ForeignKey("purchase.id"))
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"))
    count: Mapped[int]


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))
    text: Mapped[str] = mapped_column(String(200))


Step = Callable[[Session], Any]


class Plan:
    """The transactions, made once: lists of steps, each a call on a session that reads nothing."""

    def __init__(self, transactions: int, seed: int) -> None:
        self.source = random.Random(seed)
        self.last_id = 0
        self.alive: dict[type[Base], list[int]] = {model: [] for model in (Customer, Product, Purchase, Line, Note)}
        self.lines_of: dict[int, list[int]] = {}
        self.transactions = [[self.insert(model)] for model in (Customer, Product, Purchase, Line, Note)]
        self.transactions += [self.transaction() for _ in range(transactions)]

    def transaction(self) -> list[Step]:
        return [self.step() for _ in range(self.source.randint(1, 5))]

    def step(self) -> Step:
        draw = self.source.random()
        if draw < 0.6:
            return self.insert(self.source.choices([*self.alive], [1, 1, 3, 6, 3])[0])
        if draw < 0.9:
            return self.update(self.source.choice([*self.alive]))
        return self.delete(self.source.choices([Line, Note, Purchase], [4, 4, 1])[0])

    def insert(self, model: type[Base]) -> Step:
        self.last_id += 1
        key, pick = self.last_id, lambda other: self.source.choice(self.alive[other])
        values: dict[str, Any] = {"id": key}
        if model is Customer:
            values |= {"email": f"{key}@example.org", "orders": 0}
        elif model is Product:
            values |= {"name": f"product {key}", "price": key / 7}
        elif model is Purchase:
            values |= {"customer_id": pick(Customer), "state": "new"}
        elif model is Line:
            values |= {"purchase_id": pick(Purchase), "product_id": pick(Product), "count": key % 9}
            self.lines_of.setdefault(values["purchase_id"], []).append(key)
        else:
            values |= {"customer_id": pick(Customer), "text": f"note {key} " * 5}
        self.alive[model].append(key)

        def add(session: Session) -> None:
            session.add(model(**values))
            session.flush()

        return add

    def update(self, model: type[Base]) -> Step:
        key = self.source.choice(self.alive[model])
        values: dict[str, Any] = {
            Customer: {"email": f"{key}.{self.source.randrange(10**6)}@example.org"},
            Product: {"price": self.source.random()},
            Purchase: {"state": self.source.choice(["paid", "sent", "back"])},
            Line: {"count": self.source.randrange(100)},
            Note: {"text": f"changed {self.source.random()}"},
        }[model]
        statement = update(model).where(model.id == key).values(values)  # type: ignore[attr-defined]
        return lambda session: session.execute(statement, execution_options={"synchronize_session": False})

    def delete(self, model: type[Base]) -> Step:
        alive = self.alive[model]
        if len(alive) < 2:
            return self.update(model)
        key = alive.pop(self.source.randrange(len(alive)))
        gone = [(model, key)]
        if model is Purchase:
            # Its lines go first.
            lines = [line for line in self.lines_of.pop(key, []) if line in self.alive[Line]]
            for line in lines:
                self.alive[Line].remove(line)
            gone = [*((Line, line) for line in lines), *gone]
        statements: list[Any] = [delete(other).where(other.id == row) for other, row in gone]  # type: ignore[attr-defined]

        def remove(session: Session) -> None:
            for statement in statements:
                session.execute(statement, execution_options={"synchronize_session": False})

        return remove

    def run(self, factory: sessionmaker[Session]) -> float:
        begin = time.perf_counter()
        for steps in self.transactions:
            with factory() as session:
                for step in steps:
                    step(session)
                session.commit()
        return time.perf_counter() - begin


def sums(engine: Engine) -> list[Any]:
    """What both databases must agree in."""
    with engine.connect() as connection:
        return [
            connection.execute(select(func.count(), func.sum(model.id), func.min(model.id))).one()
            for model in (Customer, Product, Purchase, Line, Note)
        ] + [
            connection.execute(select(func.sum(Line.count))).scalar(),
            connection.execute(select(func.count(Note.id)).where(Note.text.like("changed%"))).scalar(),
        ]


def measure(target: str, directory: Path, rounds: int, transactions: int) -> str:
    direct, drained = [], []
    for number in range(rounds):
        plan = Plan(transactions, number)
        with ExitStack() as stack:
            by_hand = engine_for(target, directory / f"direct-{number}.sqlite", stack)
            by_log = engine_for(target, directory / f"drained-{number}.sqlite", stack)
            for engine in (by_hand, by_log):
                Base.metadata.create_all(engine)
            direct.append(plan.run(sessionmaker(by_hand, expire_on_commit=False)))
            factory: sessionmaker[Session] = sessionmaker(by_log)
            paused = walsync.CheckpointConfig(paused=True)
            log = walsync.LogConfig(durability="interval")
            with walsync.attach(factory, directory / f"log-{number}", log=log, checkpoint=paused) as journal:
                plan.run(factory)
                assert not journal.stats().direct_transactions
                begin = time.perf_counter()
                journal.resume()
                journal.wait_applied(timeout=WAIT_TIMEOUT_S)
                drained.append(time.perf_counter() - begin)
            if sums(by_hand) != sums(by_log):
                raise AssertionError(f"{target}: the databases differ: {sums(by_hand)} and {sums(by_log)}")
    ratio = statistics.median(slow / fast for slow, fast in zip(direct, drained, strict=True))
    return f"{target:<12}{statistics.median(direct):>12.2f}{statistics.median(drained):>12.2f}{ratio:>10.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    print(f"{options.transactions:,} transactions, {options.rounds} rounds")
    print(f"{'':<12}{'direct s':>12}{'drained s':>12}{'times':>10}")
    for target in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="mixed-load-") as directory:
            try:
                print(measure(target, Path(directory), options.rounds, options.transactions), flush=True)
            except (ServerMissingError, SQLAlchemyError) as error:
                print(f"{target:<12}left out: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()

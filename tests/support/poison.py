"""A backlog with poison in it, and a model that says which of its entries may be applied.

Two databases start with the same rows. Into one of them, the target, "somebody else" puts causes for refusal: rows
whose name is taken, rows that are missing. `make_backlog` makes transactions that are right in a database without the
causes; some of them run into a cause when they are applied to the target. The model goes through them with the rules of
the databases (keys, unique names, a check, foreign keys) and with those of the quarantine, and knows for each entry
whether it is applied, refused, or kept back because of another.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
)

from walsync.changes import RowChanges, TableName

__all__ = [
    "Backlog",
    "accounts",
    "bookings",
    "impose_causes",
    "make_backlog",
    "mend_causes",
    "metadata",
    "prices",
    "seed",
]

metadata = MetaData()
accounts = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(40), nullable=False, unique=True),
    Column("balance", Integer, nullable=False),
)
bookings = Table(
    "bookings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("amount", Integer, nullable=False),
)
prices = Table(
    "prices",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("amount", Integer, nullable=False),
    CheckConstraint("amount >= 0", name="not_negative"),
)

_INTEGER: Final = ("integer",)
_STRING: Final = ("string",)
_TAKEN: Final = 1_000_000  # ids of the rows that take names
_FEW: Final = 12

Cause = Literal["unique", "check", "no row", "foreign key"]
CAUSES: Final[tuple[Cause, ...]] = ("unique", "check", "no row", "foreign key")

Row = tuple[str, int]
"""A table's name and a primary key."""


@dataclass
class Operation:
    """One row change: `values` are those of all columns but the key, or some of them for an update."""

    kind: Literal["insert", "update", "delete"]
    table: str
    key: int
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> Row:
        return self.table, self.key

    def change(self) -> RowChanges:
        name = TableName(None, self.table)
        columns = tuple(self.values)
        types = tuple(_STRING if column == "name" else _INTEGER for column in columns)
        if self.kind == "insert":
            return RowChanges(
                "insert", name, ("id", *columns), (_INTEGER, *types), (), (), [[self.key, *self.values.values()]]
            )
        return RowChanges(
            self.kind, name, columns, types, ("id",), (_INTEGER,), [[*self.values.values(), self.key]], must_match=True
        )


class Database:
    """What a database with these tables does, without one."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[int, dict[str, Any]]] = {"accounts": {}, "bookings": {}, "prices": {}}

    def accepts(self, operations: list[Operation], *, checked: bool) -> bool:
        """Apply them as one transaction; False, and nothing is done, if one of them is refused."""
        undo: list[tuple[Row, dict[str, Any] | None]] = []
        for operation in operations:
            table = self.tables[operation.table]
            undo.append((operation.row, table.get(operation.key)))
            if not self._apply(operation, checked):
                for (name, key), before in reversed(undo):
                    self.tables[name].pop(key, None)
                    if before is not None:
                        self.tables[name][key] = before
                return False
        return True

    def _apply(self, operation: Operation, checked: bool) -> bool:
        table, key = self.tables[operation.table], operation.key
        if (operation.kind == "insert") == (key in table):
            return False
        if operation.kind == "delete":
            del table[key]
            return operation.table != "accounts" or not any(
                row["account_id"] == key for row in self.tables["bookings"].values()
            )
        row = {**table.get(key, {}), **operation.values}
        table[key] = row
        if operation.table == "prices":
            return not checked or bool(row["amount"] >= 0)
        if operation.table == "bookings":
            return row["account_id"] in self.tables["accounts"]
        return "name" not in operation.values or self.names().count(row["name"]) == 1

    def names(self) -> list[str]:
        return [row["name"] for row in self.tables["accounts"].values()]

    def contents(self, table: str) -> set[tuple[Any, ...]]:
        return {(key, *row.values()) for key, row in self.tables[table].items()}


@dataclass
class Backlog:
    """`entries`: the changes of each. `fate`: by number from 1, "applied", "rejected" or "depends"."""

    entries: list[list[RowChanges]]
    fate: dict[int, str]
    causes: dict[int, Cause]
    target: Database
    """The target when the quarantine has done its work."""
    seeded: Database

    def in_quarantine(self) -> list[int]:
        return [number for number, fate in self.fate.items() if fate != "applied"]


def make_backlog(seed_number: int, count: int, share: float = 0.01, care: float = 0.2) -> Backlog:
    """Transactions of one to three rows; a share of them runs into one of the causes, each in turn.

    With `care`, 0 to 1, rows that are held back are left alone: they draw others in, and without it most of a long
    backlog would be held back in the end.
    """
    source = random.Random(seed_number)
    poisoned = max(len(CAUSES), int(count * share))
    places = sorted(source.sample(range(count // 10, count), poisoned))
    causes = {place + 1: CAUSES[index % len(CAUSES)] for index, place in enumerate(places)}
    seeded = _seeded(causes)
    world, target = _seeded(causes), _seeded(causes)
    _impose(target, causes)
    maker = _Maker(source, world, care)
    # Rows with which a cause is to meet its entry are left alone until then.
    maker.reserved = {victim(number) for number in causes} | {ghost(number) for number in causes}
    entries, fate = [], {}
    held = _Held()
    maker.held = held.rows
    for number in range(1, count + 1):
        operations = maker.poison(number, causes[number]) if number in causes else maker.transaction()
        # The cause being mended, it is right.
        assert world.accepts(operations, checked=False), operations
        entries.append([operation.change() for operation in operations])
        if held.touches(operations):
            fate[number] = "depends"
        elif not target.accepts(operations, checked=True):
            fate[number] = "rejected"
        else:
            fate[number] = "applied"
            continue
        held.add(operations)
    return Backlog(entries, fate, causes, target, seeded)


class _Held:
    def __init__(self) -> None:
        self.rows: set[Row] = set()
        self._names: set[str] = set()
        self._accounts: set[int] = set()

    def touches(self, operations: list[Operation]) -> bool:
        return any(
            operation.row in self.rows
            or operation.values.get("name") in self._names
            or (operation.kind == "delete" and operation.table == "accounts" and operation.key in self._accounts)
            for operation in operations
        )

    def add(self, operations: list[Operation]) -> None:
        for operation in operations:
            self.rows.add(operation.row)
            if "name" in operation.values:
                self._names.add(operation.values["name"])
            if "account_id" in operation.values:
                self._accounts.add(operation.values["account_id"])


class _Maker:
    """Makes transactions that are right in the world as it is."""

    def __init__(self, source: random.Random, world: Database, care: float) -> None:
        self._care = care
        self._source = source
        self._world = world
        self._next = 10_000
        self.reserved: set[int] = set()
        self.held: set[Row] = set()

    def _new_key(self) -> int:
        self._next += 1
        return self._next

    def _some(self, table: str, taken: set[Row]) -> int | None:
        if self._source.random() < self._care:
            taken = taken | self.held
        keys = [
            key
            for key in self._world.tables[table]
            if (table, key) not in taken and not (table == "accounts" and key in self.reserved)
        ]
        return self._source.choice(keys[-400:]) if keys else None

    def transaction(self) -> list[Operation]:
        operations: list[Operation] = []
        taken: set[Row] = set()
        for _ in range(self._source.choice((1, 1, 1, 2, 3))):
            operation = self._operation(taken)
            operations.append(operation)
            taken.add(operation.row)
            if "account_id" in operation.values:
                # It may not be deleted in the same transaction.
                taken.add(("accounts", operation.values["account_id"]))
        return operations

    def _operation(self, taken: set[Row]) -> Operation:
        source = self._source
        for _ in range(20):
            table = source.choice(("accounts", "bookings", "bookings", "prices"))
            kind = source.choice(("insert", "insert", "update", "update", "delete"))
            if kind == "insert":
                return self._insert(table, taken)
            key = self._some(table, taken)
            if key is None:
                continue
            if kind == "delete":
                if table == "accounts" and any(
                    row["account_id"] == key for row in self._world.tables["bookings"].values()
                ):
                    continue
                return Operation("delete", table, key)
            return Operation("update", table, key, self._values(table, key))
        return self._insert("prices", taken)

    def _values(self, table: str, key: int) -> dict[str, Any]:
        if table == "accounts":
            if self._source.random() < 0.3:
                return {"name": f"renamed {key} {self._new_key()}"}
            return {"balance": self._source.randrange(1000)}
        return {"amount": self._source.randrange(1000)}

    def _insert(self, table: str, taken: set[Row]) -> Operation:
        key = self._new_key()
        if table == "bookings":
            account = self._some("accounts", taken)
            if account is not None:
                return Operation("insert", table, key, {"account_id": account, "amount": self._source.randrange(1000)})
            table = "prices"
        if table == "accounts":
            return Operation("insert", table, key, {"name": f"name {key}", "balance": 0})
        return Operation("insert", "prices", key, {"amount": self._source.randrange(1000)})

    def poison(self, number: int, cause: Cause) -> list[Operation]:
        others = self.transaction() if self._source.random() < 0.5 else []
        self.reserved -= {victim(number), ghost(number)}
        if cause == "unique":
            key = self._new_key()
            return [*others, Operation("insert", "accounts", key, {"name": taken_name(number), "balance": 1})]
        if cause == "check":
            return [*others, Operation("insert", "prices", self._new_key(), {"amount": -number})]
        if cause == "no row":
            return [*others, Operation("update", "accounts", victim(number), {"balance": number})]
        booking = Operation("insert", "bookings", self._new_key(), {"account_id": ghost(number), "amount": number})
        return [*others, booking]


def taken_name(number: int) -> str:
    return f"taken {number}"


def victim(number: int) -> int:
    return 100_000 + number


def ghost(number: int) -> int:
    return 200_000 + number


def _seeded(causes: dict[int, Cause]) -> Database:
    """Before anything has happened: some rows, and those that will be missing in the target."""
    database = Database()
    for key in range(1, _FEW + 1):
        database.tables["accounts"][key] = {"name": f"seed {key}", "balance": key}
        database.tables["bookings"][key] = {"account_id": key, "amount": key}
        database.tables["prices"][key] = {"amount": key}
    for number, cause in causes.items():
        if cause in ("no row", "foreign key"):
            key = victim(number) if cause == "no row" else ghost(number)
            database.tables["accounts"][key] = {"name": f"seed {key}", "balance": key}
    return database


def _impose(database: Database, causes: dict[int, Cause]) -> None:
    for number, cause in causes.items():
        if cause == "unique":
            database.tables["accounts"][_TAKEN + number] = {"name": taken_name(number), "balance": 0}
        elif cause == "no row":
            del database.tables["accounts"][victim(number)]
        elif cause == "foreign key":
            del database.tables["accounts"][ghost(number)]


def seed(engine: Engine, backlog: Backlog) -> None:
    """Make the tables and their first rows."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        for table in (accounts, bookings, prices):
            rows = [{"id": key, **row} for key, row in backlog.seeded.tables[table.name].items()]
            connection.execute(insert(table), rows)


def impose_causes(engine: Engine, backlog: Backlog) -> None:
    """What somebody else does to the target."""
    taken = [number for number, cause in backlog.causes.items() if cause == "unique"]
    with engine.begin() as connection:
        if taken:
            connection.execute(
                insert(accounts), [{"id": _TAKEN + n, "name": taken_name(n), "balance": 0} for n in taken]
            )
        for key in _missing(backlog):
            connection.execute(delete(accounts).where(accounts.c.id == key))


def mend_causes(engine: Engine, backlog: Backlog) -> None:
    """Undo it, and let prices be negative."""
    with engine.begin() as connection:
        connection.execute(delete(accounts).where(accounts.c.id >= _TAKEN))
        for key in _missing(backlog):
            row = backlog.seeded.tables["accounts"][key]
            connection.execute(insert(accounts).values(id=key, **row))
    drop_check(engine)


def _missing(backlog: Backlog) -> list[int]:
    return [
        victim(number) if cause == "no row" else ghost(number)
        for number, cause in backlog.causes.items()
        if cause in ("no row", "foreign key")
    ]


def drop_check(engine: Engine) -> None:
    """Let prices be negative."""

    def on_sqlite(connection: Connection) -> None:
        # It cannot drop a constraint.
        connection.exec_driver_sql("CREATE TABLE prices_new (id INTEGER NOT NULL PRIMARY KEY, amount INTEGER NOT NULL)")
        connection.exec_driver_sql("INSERT INTO prices_new SELECT id, amount FROM prices")
        connection.exec_driver_sql("DROP TABLE prices")
        connection.exec_driver_sql("ALTER TABLE prices_new RENAME TO prices")

    def elsewhere(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE prices DROP CONSTRAINT not_negative")

    drop: Callable[[Connection], None] = on_sqlite if engine.dialect.name == "sqlite" else elsewhere
    with engine.begin() as connection:
        drop(connection)

"""Runs a program of the planner on one side: directly on a database, or through walsync.

A side is anything with the attributes of `Side`. What a program reads, and the errors that it provokes, are collected
in a trace, in which rows go by their labels: the traces of both sides must be equal.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import (
    ClauseElement,
    Engine,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.exc import NoResultFound, StatementError
from sqlalchemy.orm import Session, SessionTransaction

from tests.differential import schema
from tests.differential.planner import Program
from tests.differential.schema import Account, Base, Counter, Document, Line, Person, Purchase, Setting, Tag, Token

__all__ = ["Interpreter", "Side"]

_ALPHABET = {mapper.class_.__name__: mapper.class_ for mapper in Base.registry.mappers}
_GENERATED = frozenset({"created_at", "doubled"})
"""Columns of which only the presence is noted: the server's clock, and what the server computes from other columns,
which a session may have loaded before or after a statement changed those. The comparison in the end sees the values."""


class Side(Protocol):
    """Where a program runs."""

    @property
    def factory(self) -> Callable[..., Session]: ...

    @property
    def core_engine(self) -> Engine: ...

    def pause(self) -> None:
        """What is committed from now on need not reach the database before `reopen`."""

    def reopen(self) -> None:
        """Close what can be closed and open it again. No session is in use."""


class Interpreter:
    """One run of one program. `skip` is the index of an operation to leave out, to prove that it would be missed."""

    def __init__(self, side: Side, program: Program, skip: int | None = None) -> None:
        self.side = side
        self.program = program
        self.skip = skip
        self.trace: list[Any] = []
        self.objects: dict[str, Any] = {}
        self.saved: list[tuple[SessionTransaction | None, dict[str, Any]]] = []
        # Everything read is kept: what the identity map holds must not depend on the garbage collector.
        self.kept: list[Any] = []
        self.session = self._new()

    def run(self) -> list[Any]:
        """The trace: what was read and what was raised, in order."""
        try:
            for index, (name, *arguments) in enumerate(self.program.operations):
                if index == self.skip:
                    continue
                try:
                    getattr(self, name)(*arguments)
                except Exception as error:
                    note = f"operation {index}: {name}({', '.join(map(repr, arguments))})"
                    raise ProgramError(f"{note} failed: {error!r}\n{self.program}") from error
        finally:
            self.session.close()
        return self.trace

    # ------------------------------------------------------------------------------------------------------ tools

    def _new(self) -> Session:
        self.objects = {}
        self.kept = []
        self.saved = [(None, {})]
        return self.side.factory(expire_on_commit=self.program.expire_on_commit)

    def _get(self, cls: str, label: str) -> Any:
        found = self.objects.get(label)
        if found is None or found not in self.session:
            mapped = _ALPHABET[cls]
            found = self.session.scalars(select(mapped).where(mapped.label == label)).one()
            self.objects[label] = found
        return found

    def _of(self, label: str | None) -> Any:
        """The object of a label whose class its prefix tells."""
        if label is None:
            return None
        prefix = label.partition("-")[0]
        names = {
            "person": "Person",
            "doc": "Document",
            "buy": "Purchase",
            "line": "Line",
            "tag": "Tag",
            "club": "Club",
            "node": "Node",
        }
        return self._get(names.get(prefix, "Person"), label)

    def _plain(self, row: Any) -> Any:
        """An object as its label and the columns that are nobody's key."""
        mapper = inspect(type(row))
        values: list[Any] = [type(row).__name__, row.label]
        for attribute in mapper.column_attrs:
            column = attribute.columns[0]
            if column.primary_key or column.foreign_keys or attribute.key == "label":
                continue
            value = getattr(row, attribute.key)
            if isinstance(value, ClauseElement):
                values.append(f"not flushed: {value}")
            else:
                values.append(value is not None if attribute.key in _GENERATED else repr(value))
        return tuple(values)

    def _note(self, what: str, value: Any) -> None:
        self.trace.append((what, value))

    # --------------------------------------------------------------------------------------- the session's course

    def flush(self) -> None:
        self.session.flush()

    def commit(self) -> None:
        self.session.commit()
        self.saved = [(None, dict(self.objects))]

    def rollback(self) -> None:
        self.session.rollback()
        self.objects = dict(self.saved[0][1])
        del self.saved[1:]
        self._forget_strangers()

    def begin_nested(self) -> None:
        nested = self.session.begin_nested()
        self.saved.append((nested, dict(self.objects)))

    def commit_nested(self) -> None:
        nested, _ = self.saved.pop()
        assert nested is not None
        nested.commit()

    def rollback_nested(self) -> None:
        nested, objects = self.saved.pop()
        assert nested is not None
        nested.rollback()
        # What was loaded inside of the savepoint may be kept by SQLAlchemy: a collection that was read when a row of it
        # was deleted would be short of that row, and a later delete would leave its association behind.
        self.session.expire_all()
        self.objects = objects
        self._forget_strangers()

    def _forget_strangers(self) -> None:
        """Lets go of what was only read: its row may have been rolled back, and SQLite gives its key away again."""
        own = {id(row) for row in self.objects.values()}
        strangers = [row for row in self.session.identity_map.values() if id(row) not in own]
        if strangers:
            self.session.expire_all()
            for row in strangers:
                self.session.expunge(row)

    def expire_all(self) -> None:
        self.session.expire_all()

    def expire(self, entries: list[tuple[str, str, str]]) -> None:
        for _, label, name in entries:
            found = self.objects.get(label)
            if found is not None:
                self.session.expire(found, [name])

    def new_session(self) -> None:
        self.session.close()
        self.session = self._new()

    def pause(self) -> None:
        self.side.pause()

    def reopen(self) -> None:
        self.session.close()
        self.side.reopen()
        self.session = self._new()

    # ------------------------------------------------------------------------------------------------ unit of work

    def add(self, cls: str, label: str, fields: dict[str, Any], references: dict[str, Any]) -> None:
        # Everything is found first: a read in between would flush a half-made object.
        found: dict[str, Any] = {}
        for name, target in references.items():
            if isinstance(target, list):
                found[name] = [self._of(one) for one in target]
            elif target is not None:
                found[name] = self._of(target)
        made = _ALPHABET[cls](label=label, **fields, **found)
        self.session.add(made)
        self.objects[label] = made

    def add_purchase(
        self, label: str, customer: str, fields: dict[str, Any], lines: list[tuple[str, int, int]]
    ) -> None:
        made = Purchase(label=label, customer=self._of(customer), **fields)
        for line, number, quantity in lines:
            self.objects[line] = Line(label=line, line_no=number, quantity=quantity)
            made.lines.append(self.objects[line])
        self.session.add(made)
        self.objects[label] = made

    def add_line(self, label: str, purchase: str, fields: dict[str, Any], by_collection: bool) -> None:
        parent = self._of(purchase)
        made = Line(label=label, **fields)
        if by_collection:
            parent.lines.append(made)
        else:
            made.purchase = parent
            self.session.add(made)
        self.objects[label] = made

    def add_with_expression(self, label: str, fields: dict[str, Any], number: int) -> None:
        made = Counter(label=label, **fields)
        made.n = func.abs(literal(number)) + 1  # type: ignore[assignment]
        self.session.add(made)
        self.objects[label] = made

    def set_fields(self, cls: str, label: str, fields: dict[str, Any]) -> None:
        found = self._get(cls, label)
        for name, value in fields.items():
            setattr(found, name, value)

    def point(self, cls: str, label: str, name: str, target: str | None) -> None:
        setattr(self._get(cls, label), name, self._of(target))

    def change_tags(self, cls: str, label: str, tags: list[str]) -> None:
        self._get(cls, label).tags = [self._of(tag) for tag in tags]

    def associate(self, cls: str, label: str, tag: str, add: bool) -> None:
        document, name = self._get(cls, label), self._of(tag).name
        table = schema.document_tag
        if add:
            self.session.execute(insert(table), [{"document_id": document.id, "tag_name": name}])
        else:
            pair = (table.c.document_id == document.id) & (table.c.tag_name == name)
            self.session.execute(delete(table).where(pair))
        self.session.expire(document, ["tags"])
        self.session.expire(self._of(tag), ["documents"])

    def drop_line(self, label: str, purchase: str) -> None:
        self._of(purchase).lines.remove(self._of(label))

    def expression(self, cls: str, label: str, column: str, change: int) -> None:
        mapped = _ALPHABET[cls]
        setattr(self._get(cls, label), column, getattr(mapped, column) + change)

    def delete(self, cls: str, label: str) -> None:
        self.session.delete(self._get(cls, label))

    def switch_row(self, label: str, successor: str, fields: dict[str, Any]) -> None:
        self.session.delete(self._get("Setting", label))
        self.add("Setting", successor, fields, {})

    def merge_setting(self, label: str, fields: dict[str, Any]) -> None:
        self.objects[label] = self.session.merge(Setting(label=label, **fields))

    # -------------------------------------------------------------------------------------------------------- bulk

    def bulk_insert(self, cls: str, way: str, rows: list[dict[str, Any]]) -> None:
        mapped = _ALPHABET[cls]
        rows = [dict(row) for row in rows]
        if way == "execute":
            self.session.execute(insert(mapped), rows)
        elif way == "values":
            self.session.execute(insert(mapped).values(rows))
        elif way == "mappings":
            self.session.bulk_insert_mappings(inspect(mapped), rows)
        else:
            self.session.bulk_save_objects([mapped(**row) for row in rows])

    def bulk_update(self, way: str, changes: list[tuple[str, dict[str, Any]]]) -> None:
        keys = dict(
            map(
                tuple,
                self.session.execute(
                    select(Counter.label, Counter.id).where(Counter.label.in_([label for label, _ in changes]))
                ),
            )
        )
        rows = [{"id": keys[label], **values} for label, values in changes]
        if way == "execute":
            self.session.execute(update(Counter), rows)
        else:
            self.session.bulk_update_mappings(inspect(Counter), rows)

    def update_where(self, kind: str, change: int, bound: int, sync: Any) -> None:
        employee = schema.Employee.__table__
        statements = {
            "counter": update(Counter).where(Counter.n > bound).values(n=Counter.n + change),
            "account": update(Account).where(Account.amount > bound).values(amount=Account.amount + change),
            "person": update(Person).where(Person.balance > bound).values({Person.balance: change}),
            "employee": update(employee).where(employee.c.salary > bound).values(salary=employee.c.salary + change),
            "document": update(schema.Report).where(schema.Report.pages > bound).values(pages=schema.Report.pages * 2),
            "subquery": update(Account)
            .where(Account.amount > bound)
            .values(amount=select(func.count(Counter.id)).scalar_subquery()),
            "specimen": update(schema.Specimen)
            .where(schema.Specimen.c_boolean.is_(True))
            .values(c_date=dt.date(2024, 2, 29), c_enum=schema.Colour.ULTRA_VIOLET, c_words=["a", "b"]),
        }
        if kind == "employee":
            self.session.execute(statements[kind])
            return
        if kind == "subquery" and sync == "evaluate":
            sync = "auto"
        self.session.execute(statements[kind], execution_options={"synchronize_session": sync})

    def update_code(self, label: str, code: str | None, sync: Any) -> None:
        statement = update(Account).where(Account.label == label).values(code=code)
        self.session.execute(statement, execution_options={"synchronize_session": sync})

    def delete_where(self, cls: str, labels: list[str], sync: Any) -> None:
        mapped = _ALPHABET[cls]
        statement = delete(mapped).where(mapped.label.in_(labels))
        self.session.execute(statement, execution_options={"synchronize_session": sync})
        if sync is False:
            # The session does not know that the rows are gone, and SQLite gives their keys away again.
            for found in list(self.session.identity_map.values()):
                if isinstance(found, mapped):
                    self.session.expunge(found)
        for label in labels:
            self.objects.pop(label, None)

    def insert_from_select(self, prefix: str) -> None:
        source = select(literal(prefix + " of ").concat(Account.label), Account.amount + 1).order_by(Account.label)
        self.session.execute(insert(Counter).from_select(["label", "n"], source))

    def insert_returning(self, label: str, number: int) -> None:
        statement = insert(Counter).values(label=label, n=number).returning(Counter.label, Counter.n)
        self._note("returned", tuple(self.session.execute(statement).one()))

    def raw_update(self, change: int) -> None:
        self.session.execute(text("UPDATE counter SET n = n + :change"), {"change": change})

    def core_transaction(self, rows: list[dict[str, Any]], gone: str | None, roll_back: bool) -> None:
        self.session.close()
        with self.side.core_engine.connect() as connection, connection.begin() as transaction:
            connection.execute(insert(Token), [{**row, "id": uuid.UUID(int=row["id"].int)} for row in rows])
            if gone is not None:
                connection.execute(delete(Setting).where(Setting.label == gone))
            if roll_back:
                transaction.rollback()

    # ------------------------------------------------------------------------------------------------------- reads

    def read(self, kind: str, cls: str, no_autoflush: bool) -> None:
        if no_autoflush:
            with self.session.no_autoflush:
                self._note(f"{kind} without autoflush", getattr(self, f"_read_{kind}")(_ALPHABET[cls]))
        else:
            self._note(kind, getattr(self, f"_read_{kind}")(_ALPHABET[cls]))

    def _all(self, statement: Any, **options: Any) -> list[Any]:
        found = self.session.scalars(statement, execution_options=options).all()
        self.kept += found
        return [self._plain(row) for row in found]

    def _read_entities(self, mapped: Any) -> Any:
        return self._all(select(mapped).order_by(mapped.label))

    def _read_populate(self, mapped: Any) -> Any:
        return self._all(select(mapped).order_by(mapped.label), populate_existing=True)

    def _read_query(self, mapped: Any) -> Any:
        found = self.session.query(mapped).order_by(mapped.label).all()
        self.kept += found
        return [row.label for row in found]

    def _read_for_update(self, mapped: Any) -> Any:
        return self._all(select(mapped).order_by(mapped.label).with_for_update())

    def _read_count(self, mapped: Any) -> Any:
        return self.session.scalar(select(func.count()).select_from(mapped))

    def _read_join(self, mapped: Any) -> Any:
        statement = (
            select(Purchase.label, Person.label, Line.label, Line.quantity)
            .join(Purchase.customer)
            .outerjoin(Purchase.lines)
            .order_by(Purchase.label, Line.label)
        )
        return sorted(repr(tuple(row)) for row in self.session.execute(statement))

    def _read_aggregate(self, mapped: Any) -> Any:
        statement = select(func.sum(Account.amount), func.count(Account.code), func.max(Account.version))
        return repr(tuple(int(value or 0) for value in self.session.execute(statement).one()))

    def _read_tags(self, mapped: Any) -> Any:
        statement = select(Document.label, Tag.label, Tag.name).join(Document.tags)
        return sorted(tuple(row) for row in self.session.execute(statement))

    def _read_exists(self, mapped: Any) -> Any:
        statement = select(Person.label).where(exists().where(Document.author_id == Person.id))
        return sorted(self.session.scalars(statement))

    def _read_cte(self, mapped: Any) -> Any:
        total = select(Line.purchase_id, func.sum(Line.quantity).label("total")).group_by(Line.purchase_id).cte()
        statement = select(Purchase.label, total.c.total).join(total, total.c.purchase_id == Purchase.id)
        return sorted((label, int(count)) for label, count in self.session.execute(statement))

    def _read_union(self, mapped: Any) -> Any:
        statement = union_all(select(Counter.label, Counter.n), select(Account.label, Account.amount))
        return sorted(tuple(row) for row in self.session.execute(statement))

    def _read_text(self, mapped: Any) -> Any:
        table = mapped.__mapper__.local_table.name
        return sorted(self.session.scalars(text(f"SELECT label FROM {table}")))

    def _read_core(self, mapped: Any) -> Any:
        table = mapped.__mapper__.local_table
        return sorted(self.session.scalars(select(table.c.label)))

    def read_one(self, cls: str, label: str, kind: str) -> None:
        found = self._get(cls, label)
        if kind == "get":
            again = self.session.get(type(found), inspect(found).identity)
            assert again is found
        elif kind == "refresh":
            self.session.refresh(found)
        elif kind == "expired":
            self.session.flush()
            self.session.expire(found)
        else:
            for relationship in inspect(type(found)).relationships:
                value = getattr(found, relationship.key)
                self.kept.append(value)
                rows = value if relationship.uselist else [value] if value is not None else []
                self._note(relationship.key, [row.label for row in rows])
            return
        self._note(kind, self._plain(found))

    # ------------------------------------------------------------------------------------------------------ errors

    def error_no_row(self) -> None:
        try:
            self.session.execute(select(Counter).where(Counter.label == "absent")).scalar_one()
        except NoResultFound as error:
            self._note("error", type(error).__name__)

    def _error_at_flush(self, **fields: Any) -> None:
        self.session.add(schema.Specimen(label="refused", **fields))
        try:
            self.session.flush()
        except StatementError as error:
            self._note("error", (type(error).__name__, type(error.orig).__name__, str(error.orig)))
        self.rollback()

    def error_enum(self) -> None:
        # A string would be left to the database to refuse.
        self._error_at_flush(c_enum=12)

    def error_decorator(self) -> None:
        self._error_at_flush(c_celsius=-300)


class ProgramError(AssertionError):
    """A program failed where the planner promised that it would not."""

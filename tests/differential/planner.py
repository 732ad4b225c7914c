"""Turns random bytes into a program that a database will not refuse.

The planner keeps a model of what exists, what points where, and which unique values are held, through savepoints and
rollbacks, and emits only operations that are valid whatever moment the session flushes at. So a database error while a
program runs directly is a fault of the planner, and the direct run never has to be excused. A value that was let go
may be taken by another row only after an explicit flush, because within one flush the unit of work is free in its
order; for the same reason a reference is never turned round within one flush.

Errors that a program provokes on purpose (operations named `error_...`) are raised by SQLAlchemy before the database
sees anything, and must be the same on both sides.

Four bytes make one operation, and the byte 0 makes none, so that Hypothesis can shrink a failing program.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
import zlib
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.differential import schema

__all__ = ["Operation", "Program", "plan"]

Operation = tuple[Any, ...]
"""A name, which is a method of `interpreter.Interpreter`, and its arguments. Rows are named by their label."""


@dataclass(frozen=True)
class Program:
    """What one workload does, and how its session is made."""

    operations: tuple[Operation, ...]
    expire_on_commit: bool
    batch_changes: int
    dialect: str

    def __str__(self) -> str:
        lines = [f"# {self.dialect}, expire_on_commit={self.expire_on_commit}, batch_changes={self.batch_changes}"]
        lines += [f"{name}({', '.join(repr(argument) for argument in rest)})" for name, *rest in self.operations]
        return "\n".join(lines)


@dataclass
class _Row:
    """What the planner must know of a row; `refs` are the labels that it points to, `holds` its unique values."""

    cls: str
    refs: dict[str, str | None] = field(default_factory=dict)
    holds: dict[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    def copy(self) -> _Row:
        return _Row(self.cls, dict(self.refs), dict(self.holds), self.tags)


_PEOPLE = ("Person", "Employee", "Executive")
_DOCUMENTS = ("Document", "Report", "Weblink")

# Relative frequencies. A name is a method `_plan_<name>` of the planner below.
_WEIGHTS = {
    "add_person": 14,
    "add_document": 12,
    "add_purchase": 8,
    "add_line": 8,
    "add_shipment": 5,
    "add_tag": 7,
    "add_club": 3,
    "add_membership": 5,
    "add_node": 8,
    "add_account": 8,
    "add_counter": 5,
    "add_setting": 6,
    "add_token": 4,
    "add_specimen": 14,
    "set_fields": 26,
    "point_elsewhere": 16,
    "change_tags": 10,
    "associate": 3,
    "rename_tag": 3,
    "renumber_line": 3,
    "move_line": 3,
    "drop_line": 3,
    "hand_over": 5,
    "swap": 4,
    "delete": 12,
    "switch_row": 4,
    "merge": 3,
    "expression": 8,
    "bulk_insert": 9,
    "bulk_people": 3,
    "bulk_update": 5,
    "update_where": 10,
    "update_codes": 2,
    "delete_where": 5,
    "insert_from_select": 3,
    "insert_returning": 2,
    "raw_update": 2,
    "core": 2,
    "flush": 10,
    "commit": 20,
    "rollback": 6,
    "begin_nested": 8,
    "end_nested": 26,
    "expire_all": 2,
    "new_session": 2,
    "read": 16,
    "read_one": 6,
    "error": 3,
    "reopen": 2,
}
_KINDS = [name for name, weight in _WEIGHTS.items() for _ in range(weight)]

_READING = frozenset({"read", "read_one", "bulk_update", "insert_returning", "raw_update"})
_BATCHES = (1, 2, 3, 7, 50, 1000)
_SYNCHRONIZE = ("auto", "evaluate", "fetch", False)


def plan(data: bytes, dialect: str) -> Program:
    """The program of these bytes. The same bytes give the same program."""
    head, body = data[:2].ljust(2, b"\0"), data[2:]
    planner = _Planner(dialect)
    planner.expire_on_commit = bool(head[0] & 1)
    planner.quiet = bool(head[0] & 2)
    for index in range(0, len(body) - 3, 4):
        code, *arguments = body[index : index + 4]
        if code == 0:
            continue
        # 256 codes are spread over the weights with the index as salt, so that every kind can be reached.
        kind = _KINDS[(code * 257 + arguments[2]) % len(_KINDS)]
        planner.source = random.Random(zlib.crc32(bytes((code, *arguments)) + index.to_bytes(2, "big")))
        planner.first, planner.second = arguments[0], arguments[1]
        if planner.quiet and kind in _READING:
            planner.before_reading(kind)
        else:
            getattr(planner, f"_plan_{kind}")()
    planner.finish()
    return Program(
        operations=tuple(planner.operations),
        expire_on_commit=planner.expire_on_commit,
        batch_changes=_BATCHES[head[1] % len(_BATCHES)],
        dialect=dialect,
    )


class _Planner:
    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.operations: list[Operation] = []
        self.source = random.Random(0)
        self.first = self.second = 0
        self.rows: dict[str, _Row] = {}
        self.held: dict[tuple[str, Any], str] = {}
        # Unique values and references that any flush since the last explicit one may have seen.
        self.blocked: set[tuple[str, Any]] = set()
        self.edges: set[tuple[str, str, str]] = set()
        self.pending: set[str] = set()
        self.snapshots: list[tuple[dict[str, _Row], dict[tuple[str, Any], str]]] = []
        self.made = 0
        self.expire_on_commit = False
        # A quiet program reads only where a transaction begins, so that most of its transactions stay buffered.
        self.quiet = False
        self._open()

    # ------------------------------------------------------------------------------------------------- the model

    def emit(self, name: str, *arguments: Any) -> None:
        self.operations.append((name, *arguments))

    def label(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}-{self.made}"

    def pick(self, *classes: str, index: int | None = None) -> str | None:
        found = [label for label, row in self.rows.items() if row.cls in classes]
        return found[(self.first if index is None else index) % len(found)] if found else None

    def add(self, label: str, row: _Row) -> None:
        self.rows[label] = row
        self.pending.add(label)
        for domain, value in row.holds.items():
            self.take(label, domain, value)
        for name, target in row.refs.items():
            if target is not None:
                self.edges.add((name, label, target))

    def free(self, domain: str, value: Any) -> bool:
        return (domain, value) not in self.blocked

    def take(self, label: str, domain: str, value: Any) -> None:
        """`label` holds `value` of `domain` now instead of what it held; None holds nothing."""
        before = self.rows[label].holds.get(domain)
        if before is not None:
            self.held.pop((domain, before), None)
        self.rows[label].holds[domain] = value
        if value is not None:
            self.held[domain, value] = label
            self.blocked.add((domain, value))

    def forget(self, label: str) -> None:
        row = self.rows.pop(label)
        for domain, value in row.holds.items():
            self.held.pop((domain, value), None)
        self.pending.discard(label)

    def flushed(self) -> None:
        self.pending.clear()
        self.blocked = set(self.held)
        self.edges = {
            (name, label, target)
            for label, row in self.rows.items()
            for name, target in row.refs.items()
            if target is not None
        }

    def _open(self) -> None:
        self.snapshots.append(({label: row.copy() for label, row in self.rows.items()}, dict(self.held)))

    def _restore(self) -> None:
        rows, held = self.snapshots[-1]
        self.rows = {label: row.copy() for label, row in rows.items()}
        self.held = dict(held)
        self.flushed()

    def referrers(self, name: str, target: str) -> list[str]:
        return [label for label, row in self.rows.items() if row.refs.get(name) == target]

    def would_turn(self, name: str, label: str, target: str) -> bool:
        """Whether `label` pointing to `target` closes a ring with any reference since the last flush."""
        reached, front = {target}, [target]
        while front:
            current = front.pop()
            for edge_name, source, end in self.edges:
                if edge_name == name and source == current and end not in reached:
                    reached.add(end)
                    front.append(end)
        return label in reached

    def choose(self, domain: str, values: list[Any]) -> Any:
        """A free one of `values`, or None."""
        available = [value for value in values if self.free(domain, value)]
        return self.source.choice(available) if available else None

    # ----------------------------------------------------------------------------------------------------- values

    def number(self) -> int:
        return self.source.choice((0, 1, -1, 7, 1000, self.source.randint(-(10**6), 10**6)))

    def word(self) -> str | None:
        return self.source.choice((None, "", "word", "O'Brien %s", "né 🦊", f"w{self.source.randrange(1000)}"))

    def fields(self, cls: str) -> dict[str, Any]:
        """Some columns of a class that have no part in keys, references and unique constraints."""
        pool: dict[str, Any] = {}
        if cls in _PEOPLE:
            pool |= {"name": self.word(), "balance": self.number()}
        if cls in {"Employee", "Executive"}:
            pool |= {
                "salary": self.source.choice((None, Decimal("0.01"), Decimal("-99999.99"), Decimal(12))),
                "hired": self.source.choice((None, dt.date(2020, 2, 29))),
            }
        if cls == "Executive":
            pool |= {"budget": self.source.choice((None, 0, 2**62, -(2**63)))}
        if cls in _DOCUMENTS:
            pool |= {"title": self.word()}
        if cls == "Report":
            pool |= {"pages": self.number()}
        if cls == "Weblink":
            pool |= {"url": self.word()}
        if cls == "Specimen":
            return schema.specimen_values(self.dialect, self.source.getrandbits(32), self.source.choice((0.05, 0.3, 1)))
        pool |= {
            "Purchase": {"remark": self.word()},
            "Line": {"quantity": self.number()},
            "Shipment": {"carrier": self.word()},
            "Membership": {"role": self.word(), "since": self.source.choice((None, dt.date(1999, 12, 31)))},
            "Node": {"place": self.number()},
            "Account": {"amount": self.number()},
            "Counter": {"n": self.number()},
            "Setting": {"value": self.word()},
            "Token": {"note": self.word()},
            "Tag": {"weight": self.number()},
        }.get(cls, {})
        if not pool or self.source.random() < 0.4:
            return pool
        return {name: pool[name] for name in self.source.sample(sorted(pool), self.source.randint(1, len(pool)))}

    def emails(self) -> list[str]:
        return [f"mail{number}@example.org" for number in range(6)]

    def codes(self) -> list[str]:
        return [f"C{number}" for number in range(6)]

    # ------------------------------------------------------------------------------------------------------- adds

    def _plan_add_person(self) -> None:
        cls = self.source.choice(_PEOPLE)
        label = self.label("person")
        manager = self.pick(*_PEOPLE) if self.source.random() < 0.5 else None
        email = self.choose("email", self.emails()) if self.source.random() < 0.5 else None
        fields = self.fields(cls)
        self.add(label, _Row(cls, {"manager": manager}, {"email": email}))
        self.emit("add", cls, label, {**fields, "email": email}, {"manager": manager})

    def _plan_add_document(self) -> None:
        cls = self.source.choice(_DOCUMENTS)
        label = self.label("doc")
        author = self.pick(*_PEOPLE) if self.source.random() < 0.6 else None
        tags = [name for name in (self.pick("Tag"), self.pick("Tag", index=self.second)) if name]
        tags = sorted(set(tags)) if self.source.random() < 0.6 else []
        self.add(label, _Row(cls, {"author": author}, tags=frozenset(tags)))
        self.emit("add", cls, label, self.fields(cls), {"author": author, "tags": tags})

    def _plan_add_purchase(self) -> None:
        customer = self.pick(*_PEOPLE)
        if customer is None:
            return self._plan_add_person()
        label = self.label("buy")
        self.add(label, _Row("Purchase", {"customer": customer}))
        lines = [(self.label("line"), number, self.number()) for number in range(1, 1 + self.source.randrange(3))]
        for line, number, _ in lines:
            self.add(line, _Row("Line", {"purchase": label}, {"line_no": (label, number)}))
        self.emit("add_purchase", label, customer, self.fields("Purchase"), lines)
        return None

    def _plan_add_line(self) -> None:
        purchase = self.pick("Purchase")
        if purchase is None:
            return self._plan_add_purchase()
        number = self.choose("line_no", [(purchase, number) for number in range(1, 8)])
        if number is None:
            return None
        label = self.label("line")
        self.add(label, _Row("Line", {"purchase": purchase}, {"line_no": number}))
        by_collection = self.source.random() < 0.4
        self.emit("add_line", label, purchase, {"line_no": number[1], **self.fields("Line")}, by_collection)
        return None

    def _plan_add_shipment(self) -> None:
        line = self.pick("Line")
        if line is None:
            return self._plan_add_purchase()
        label = self.label("ship")
        self.add(label, _Row("Shipment", {"line": line}))
        self.emit("add", "Shipment", label, self.fields("Shipment"), {"line": line})
        return None

    def _plan_add_tag(self) -> None:
        name = self.choose("tag", [f"tag {number} é" for number in range(9)])
        if name is not None:
            label = self.label("tag")
            self.add(label, _Row("Tag", holds={"tag": name}))
            weight = {} if self.source.random() < 0.5 else self.fields("Tag")
            self.emit("add", "Tag", label, {"name": name, **weight}, {})

    def _plan_add_club(self) -> None:
        code = self.choose("club", [f"CLUB{number}" for number in range(5)])
        if code is not None:
            label = self.label("club")
            self.add(label, _Row("Club", holds={"club": code}))
            self.emit("add", "Club", label, {"code": code}, {})

    def _plan_add_membership(self) -> None:
        person, club = self.pick(*_PEOPLE), self.pick("Club", index=self.second)
        if person is None:
            return self._plan_add_person()
        if club is None:
            return self._plan_add_club()
        if self.free("membership", (person, club)):
            label = self.label("member")
            self.add(label, _Row("Membership", {"person": person, "club": club}, {"membership": (person, club)}))
            self.emit("add", "Membership", label, self.fields("Membership"), {"person": person, "club": club})
        return None

    def _plan_add_node(self) -> None:
        label = self.label("node")
        parent = self.pick("Node") if self.source.random() < 0.7 else None
        self.add(label, _Row("Node", {"parent": parent}))
        self.emit("add", "Node", label, self.fields("Node"), {"parent": parent})

    def _plan_add_account(self) -> None:
        label = self.label("account")
        code = self.choose("code", self.codes())
        self.add(label, _Row("Account", holds={"code": code}))
        self.emit("add", "Account", label, {"code": code, **self.fields("Account")}, {})

    def _plan_add_counter(self) -> None:
        label = self.label("counter")
        slot = self.choose("slot", [(1, number) for number in range(6)])
        self.add(label, _Row("Counter", holds={"slot": slot}))
        fields = {"slot": None if slot is None else slot[1], **self.fields("Counter")}
        if self.source.random() < 0.3:
            self.emit("add_with_expression", label, fields, self.number())
        else:
            self.emit("add", "Counter", label, fields, {})

    def _plan_add_setting(self) -> None:
        key = self.choose("setting", [(section, number) for section in ("a", "B é") for number in range(4)])
        if key is not None:
            label = self.label("setting")
            self.add(label, _Row("Setting", holds={"setting": key}))
            self.emit("add", "Setting", label, {"section": key[0], "name": key[1], **self.fields("Setting")}, {})

    def _plan_add_token(self) -> None:
        label = self.label("token")
        key = uuid.UUID(int=self.source.getrandbits(128), version=4)
        self.add(label, _Row("Token"))
        self.emit("add", "Token", label, {"id": key, **self.fields("Token")}, {})

    def _plan_add_specimen(self) -> None:
        label = self.label("specimen")
        self.add(label, _Row("Specimen"))
        self.emit("add", "Specimen", label, self.fields("Specimen"), {})

    # ---------------------------------------------------------------------------------------------------- changes

    def _plan_set_fields(self) -> None:
        labels = [label for label, row in self.rows.items() if row.cls != "Club"]
        if not labels:
            return self._plan_add_specimen()
        label = labels[self.first % len(labels)]
        self.emit("set_fields", self.rows[label].cls, label, self.fields(self.rows[label].cls))
        return None

    def _plan_point_elsewhere(self) -> None:
        """A many-to-one reference is changed, sometimes to nothing."""
        choices = ("manager", "author", "customer", "parent", "line")
        name = choices[self.second % len(choices)]
        owners = {"manager": _PEOPLE, "author": _DOCUMENTS, "customer": ("Purchase",), "parent": ("Node",)}
        targets = {"manager": _PEOPLE, "author": _PEOPLE, "customer": _PEOPLE, "parent": ("Node",)}
        label = self.pick(*owners.get(name, ("Shipment",)))
        target = self.pick(*targets.get(name, ("Line",)), index=self.source.randrange(256))
        if label is None:
            return self._plan_add_document()
        if name in {"manager", "author", "parent"} and self.source.random() < 0.3:
            target = None
        if target is not None and (target == label or self.would_turn(name, label, target)):
            return None
        if name in {"customer", "line"} and label in self.pending:
            # SQLAlchemy expunges a pending object that leaves a collection with delete-orphan.
            self._plan_flush()
        self.rows[label].refs[name] = target
        if target is not None:
            self.edges.add((name, label, target))
        self.emit("point", self.rows[label].cls, label, name, target)
        return None

    def _plan_change_tags(self) -> None:
        label = self.pick(*_DOCUMENTS)
        if label is None:
            return self._plan_add_document()
        tags = [found for found in (self.pick("Tag", index=self.source.randrange(99)) for _ in range(3)) if found]
        self.rows[label].tags = frozenset(tags)
        self.emit("change_tags", self.rows[label].cls, label, sorted(set(tags)))
        return None

    def _plan_associate(self) -> None:
        """Rows of the association table by Core, in the session's transaction; the collection is loaded anew."""
        label, tag = self.pick(*_DOCUMENTS), self.pick("Tag", index=self.second)
        if label is None or tag is None:
            return self._plan_add_tag()
        there = tag in self.rows[label].tags
        self.rows[label].tags ^= {tag}
        self._plan_flush()
        self.emit("associate", self.rows[label].cls, label, tag, not there)
        return None

    def _plan_rename_tag(self) -> None:
        label = self.pick("Tag")
        name = self.choose("tag", [f"tag {number} renamed" for number in range(6)])
        if label is None or name is None:
            return self._plan_add_tag()
        self._plan_flush()
        self.take(label, "tag", name)
        self.emit("set_fields", "Tag", label, {"name": name})
        self._plan_flush()
        return None

    def _plan_renumber_line(self) -> None:
        label = self.pick("Line")
        if label is None or self.referrers("line", label):
            return self._plan_add_line()
        purchase = self.rows[label].refs["purchase"]
        number = self.choose("line_no", [(purchase, number) for number in range(1, 12)])
        if number is not None:
            self._plan_flush()
            self.take(label, "line_no", number)
            self.emit("set_fields", "Line", label, {"line_no": number[1]})
            self._plan_flush()
        return None

    def _plan_move_line(self) -> None:
        label, purchase = self.pick("Line"), self.pick("Purchase", index=self.second)
        if label is None or purchase is None or self.referrers("line", label):
            return self._plan_add_line()
        number = (purchase, self.rows[label].holds["line_no"][1])
        if self.free("line_no", number):
            self._plan_flush()
            self.take(label, "line_no", number)
            self.rows[label].refs["purchase"] = purchase
            self.emit("point", "Line", label, "purchase", purchase)
            self._plan_flush()
        return None

    def _plan_drop_line(self) -> None:
        """Out of the parent's collection: delete-orphan deletes it, and what was shipped of it."""
        label = self.pick("Line")
        if label is None:
            return self._plan_add_purchase()
        purchase = self.rows[label].refs["purchase"]
        self._plan_flush()
        self.emit("drop_line", label, purchase)
        self._vanish(label)
        self._plan_flush()
        return None

    def _plan_hand_over(self) -> None:
        """A unique value is taken from one row, and after a flush given to another."""
        domain, classes = (("email", _PEOPLE), ("code", ("Account",)))[self.second % 2]
        giver, taker = self.pick(*classes), self.pick(*classes, index=self.source.randrange(99))
        if giver is None or taker is None or giver == taker or self.rows[giver].holds[domain] is None:
            return self._plan_add_account() if domain == "code" else self._plan_add_person()
        value = self.rows[giver].holds[domain]
        self._plan_flush()
        self.take(giver, domain, None)
        self.emit("set_fields", self.rows[giver].cls, giver, {domain: None})
        self._plan_flush()
        self.take(taker, domain, value)
        self.emit("set_fields", self.rows[taker].cls, taker, {domain: value})
        return None

    def _plan_swap(self) -> None:
        """Two rows exchange their unique values by way of a third, in one transaction."""
        one, two = self.pick("Account"), self.pick("Account", index=self.second)
        if one is None or two is None or one == two:
            return self._plan_add_account()
        first, second = self.rows[one].holds["code"], self.rows[two].holds["code"]
        for label, value in ((one, None), (two, first), (one, second)):
            self._plan_flush()
            self.take(label, "code", value)
            self.emit("set_fields", "Account", label, {"code": value})
        self._plan_flush()
        return None

    def _plan_merge(self) -> None:
        label = self.pick("Setting")
        if label is None:
            return self._plan_add_setting()
        section, name = self.rows[label].holds["setting"]
        self._plan_flush()
        self.emit("merge_setting", label, {"section": section, "name": name, **self.fields("Setting")})
        return None

    def _plan_expression(self) -> None:
        label = self.pick("Account", "Counter", "Line", "Node", *_PEOPLE)
        if label is None:
            return self._plan_add_account()
        cls = self.rows[label].cls
        column = {"Account": "amount", "Counter": "n", "Line": "quantity", "Node": "place"}.get(cls, "balance")
        if label in self.pending:
            self._plan_flush()
        self.emit("expression", cls, label, column, self.source.randint(-9, 9))
        return None

    # ---------------------------------------------------------------------------------------------------- deletes

    def _vanish(self, label: str) -> list[tuple[str, str, str]]:
        """Takes a row and what goes with it out of the model; returns the collections that then are stale."""
        row = self.rows[label]
        stale: list[tuple[str, str, str]] = []
        dependents = {
            "Purchase": ("purchase",),
            "Line": ("line",),
            "Club": ("club",),
            "Node": ("parent",),
        }.get(row.cls, ("customer", "person") if row.cls in _PEOPLE else ())
        for name in dependents:
            for child in self.referrers(name, label):
                if child in self.rows:
                    stale += self._vanish(child)
        collections = {
            "Purchase": (("customer", "purchases"),),
            "Line": (("purchase", "lines"),),
            "Shipment": (("line", "shipments"),),
            "Membership": (("person", "memberships"), ("club", "memberships")),
            "Node": (("parent", "children"),),
        }.get(row.cls, ())
        if row.cls in _DOCUMENTS:
            collections = (("author", "documents"),)
        if row.cls in _PEOPLE:
            collections = (("manager", "reports"),)
            for name in ("manager", "author"):
                for other in self.referrers(name, label):
                    self.rows[other].refs[name] = None
                    stale.append((self.rows[other].cls, other, name))
        for name, collection in collections:
            target = row.refs.get(name)
            if target is not None and target in self.rows:
                stale.append((self.rows[target].cls, target, collection))
        if row.cls == "Tag":
            for other, candidate in self.rows.items():
                if label in candidate.tags:
                    candidate.tags -= {label}
                    stale.append((candidate.cls, other, "tags"))
        for tag in row.tags:
            stale.append(("Tag", tag, "documents"))
        self.forget(label)
        return stale

    def _plan_delete(self) -> None:
        labels = list(self.rows)
        if not labels:
            return self._plan_add_tag()
        label = labels[self.first % len(labels)]
        cls = self.rows[label].cls
        self._plan_flush()
        self.emit("delete", cls, label)
        stale = self._vanish(label)
        self._plan_flush()
        # With expire_on_commit=False nobody else takes the deleted row out of the collections that hold it.
        stale = sorted({entry for entry in stale if entry[1] in self.rows})
        if stale:
            self.emit("expire", stale)
        return None

    def _plan_switch_row(self) -> None:
        """A row is deleted and another with its key added in one flush: SQLAlchemy makes an UPDATE of it."""
        label = self.pick("Setting")
        if label is None:
            return self._plan_add_setting()
        key = self.rows[label].holds["setting"]
        self._plan_flush()
        self.forget(label)
        successor = self.label("setting")
        self.add(successor, _Row("Setting", holds={"setting": key}))
        fields = {"section": key[0], "name": key[1], **self.fields("Setting")}
        self.emit("switch_row", label, successor, fields)
        self._plan_flush()
        return None

    # ------------------------------------------------------------------------------------------------------- bulk

    def _plan_bulk_insert(self) -> None:
        way = self.source.choice(("execute", "mappings", "objects", "values", "mappings_reports", "execute_reports"))
        cls = "Report" if way.endswith("reports") else "Counter"
        rows = []
        same_columns = self.source.random() < 0.6 or way == "values"
        base = self.fields(cls) if same_columns else None
        for _ in range(self.source.choice((1, 2, 3, 12))):
            label = self.label("bulk")
            self.add(label, _Row(cls, {"author": None} if cls == "Report" else {}, {}))
            if cls == "Counter":
                self.rows[label].holds["slot"] = None
            rows.append({"label": label, **(base if base is not None else self.fields(cls))})
        self._plan_flush()
        self.emit("bulk_insert", cls, way.removesuffix("_reports"), rows)

    def _plan_bulk_people(self) -> None:
        """Joined inheritance in bulk: the keys of the first table are needed for the next."""
        cls = self.source.choice(("Employee", "Executive"))
        rows = []
        for _ in range(self.source.choice((1, 2, 4))):
            label = self.label("bulk")
            self.add(label, _Row(cls, {"manager": None}, {"email": None}))
            rows.append({"label": label, "name": self.word(), "balance": self.number()})
        self._plan_flush()
        self.emit("bulk_insert", cls, self.source.choice(("execute", "mappings")), rows)

    def _plan_bulk_update(self) -> None:
        labels = [label for label, row in self.rows.items() if row.cls == "Counter"]
        if not labels:
            return self._plan_bulk_insert()
        chosen = self.source.sample(labels, self.source.randint(1, min(3, len(labels))))
        self._plan_flush()
        way = self.source.choice(("execute", "mappings"))
        self.emit("bulk_update", way, [(label, {"n": self.number()}) for label in sorted(chosen)])
        return None

    def _plan_update_where(self) -> None:
        self._plan_flush()
        sync = self.source.choice(_SYNCHRONIZE)
        kind = self.source.choice(("counter", "account", "person", "employee", "document", "subquery", "specimen"))
        self.emit("update_where", kind, self.source.randint(-5, 5), self.source.randint(-50, 50), sync)

    def _plan_update_codes(self) -> None:
        """A unique value given by a statement."""
        label = self.pick("Account")
        code = self.choose("code", self.codes())
        if label is None:
            return self._plan_add_account()
        self._plan_flush()
        self.take(label, "code", code)
        self.emit("update_code", label, code, self.source.choice(_SYNCHRONIZE[:3]))
        self._plan_flush()
        return None

    def _plan_delete_where(self) -> None:
        cls = ("Counter", "Setting", "Token", "Specimen")[self.second % 4]
        labels = [label for label, row in self.rows.items() if row.cls == cls]
        chosen = sorted(self.source.sample(labels, min(len(labels), self.source.randrange(3))))
        self._plan_flush()
        for label in chosen:
            self.forget(label)
        self.emit("delete_where", cls, chosen, self.source.choice(_SYNCHRONIZE))
        self._plan_flush()

    def _plan_insert_from_select(self) -> None:
        self._plan_flush()
        prefix = self.label("copy")
        for label in [label for label, row in self.rows.items() if row.cls == "Account"]:
            copy = f"{prefix} of {label}"
            self.add(copy, _Row("Counter", holds={"slot": None}))
        self.emit("insert_from_select", prefix)
        self._plan_flush()

    def _plan_insert_returning(self) -> None:
        label = self.label("returned")
        self._plan_flush()
        self.add(label, _Row("Counter", holds={"slot": None}))
        self.emit("insert_returning", label, self.number())
        self._plan_flush()

    def _plan_raw_update(self) -> None:
        self._plan_flush()
        self.emit("raw_update", self.source.randint(-5, 5))

    def _plan_core(self) -> None:
        """A transaction of its own on the engine, without a session."""
        self._plan_commit()
        rows = []
        for _ in range(self.source.randrange(1, 4)):
            label = self.label("core")
            self.add(label, _Row("Token"))
            rows.append(
                {"id": uuid.UUID(int=self.source.getrandbits(128), version=4), "label": label, "note": self.word()}
            )
        gone = self.pick("Setting") if self.source.random() < 0.5 else None
        if gone is not None:
            self.forget(gone)
        self.emit("core_transaction", rows, gone, self.source.random() < 0.2)
        if self.operations[-1][3]:
            self._restore()
        self.emit("new_session")
        self.snapshots.clear()
        self._open()
        self.flushed()

    # ----------------------------------------------------------------------------------------- flow of the session

    def _plan_flush(self) -> None:
        if not self.operations or self.operations[-1][0] not in {"flush", "commit"}:
            self.emit("flush")
        self.flushed()

    def _plan_commit(self) -> None:
        self.emit("commit")
        self.snapshots.clear()
        self.flushed()
        self._open()

    def _plan_rollback(self) -> None:
        self.emit("rollback")
        del self.snapshots[1:]
        self._restore()

    def _plan_begin_nested(self) -> None:
        if len(self.snapshots) < 4:
            self.emit("begin_nested")
            self.flushed()
            self._open()

    def _plan_end_nested(self) -> None:
        if len(self.snapshots) == 1:
            return self._plan_begin_nested()
        if self.source.random() < 0.5:
            self.emit("commit_nested")
            self.snapshots.pop()
            self.flushed()
        else:
            self.emit("rollback_nested")
            self._restore()
            self.snapshots.pop()
        return None

    def _plan_expire_all(self) -> None:
        self._plan_flush()
        self.emit("expire_all")

    def _plan_new_session(self) -> None:
        self._plan_commit()
        self.emit("new_session")

    def before_reading(self, kind: str) -> None:
        """In a quiet program: reads are put behind a commit, what always runs on the database is left out."""
        self._plan_commit()
        if kind in {"read", "read_one", "bulk_update"}:
            getattr(self, f"_plan_{kind}")()
            self._plan_commit()

    def _plan_read(self) -> None:
        kinds = (
            "entities",
            "populate",
            "count",
            "join",
            "aggregate",
            "tags",
            "exists",
            "cte",
            "text",
            "query",
            "union",
            "core",
            *(() if self.quiet else ("for_update",)),
        )
        classes = ("Person", "Document", "Purchase", "Line", "Account", "Counter", "Setting", "Node", "Specimen", "Tag")
        kind = self.source.choice(kinds)
        cls = classes[self.second % len(classes)]
        no_autoflush = kind != "populate" and self.source.random() < 0.15
        self.emit("read", kind, cls, no_autoflush)

    def _plan_read_one(self) -> None:
        labels = list(self.rows)
        if not labels:
            return self._plan_read()
        label = labels[self.first % len(labels)]
        cls = self.rows[label].cls
        kind = self.source.choice(("get", "refresh", "collection", "expired"))
        # A refresh cascades, and SQLAlchemy lets pending objects go that it comes upon. And whether an attribute that
        # the server made is loaded already, and so whether reading it flushes first, is not the same on both sides.
        self._plan_flush()
        self.emit("read_one", cls, label, kind)
        return None

    def _plan_error(self) -> None:
        kind = self.source.choice(("error_no_row", "error_enum", "error_decorator"))
        self._plan_flush()
        self.emit(kind)
        if kind != "error_no_row":
            del self.snapshots[1:]
            self._restore()

    def _plan_reopen(self) -> None:
        """Entries are left unapplied in the log, and the log is closed and opened: they are replayed."""
        self._plan_commit()
        self.emit("pause")
        made: list[str] = []
        ways = (
            self._plan_add_setting,
            self._plan_add_account,
            self._plan_add_token,
            self._plan_add_specimen,
            self._plan_add_tag,
            lambda: self._change_made(made),
        )
        for _ in range(self.source.randrange(1, 5)):
            for _ in range(self.source.randrange(1, 4)):
                before = len(self.operations)
                self.source.choice(ways)()
                made.extend(operation[2] for operation in self.operations[before:] if operation[0] == "add")
            self._plan_commit()
        self.emit("reopen")

    def _change_made(self, made: list[str]) -> None:
        """Changes a row that this session made itself, which needs no read: none could be answered while paused."""
        made = [label for label in made if label in self.rows and label not in self.pending]
        if not made or self.expire_on_commit:
            return self._plan_add_account()
        label = self.source.choice(made)
        cls = self.rows[label].cls
        if self.source.random() < 0.3 and cls != "Tag":
            self._plan_flush()
            self.emit("delete", cls, label)
            self.forget(label)
            self._plan_flush()
        elif cls == "Account" and self.source.random() < 0.5:
            self._plan_flush()
            self.emit("update_where", "account", self.source.randint(-5, 5), -(10**9), False)
        else:
            self.emit("set_fields", cls, label, self.fields(cls))
        return None

    def finish(self) -> None:
        if self.operations:
            self.emit("commit")

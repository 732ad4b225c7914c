"""Random programs that write and read, each read checked against the model at once.

A program is written while it runs: what comes next depends on the numbers of its own generator and on what this thread
has written, so the same seed gives the same program. A thread has two sessions. The first one writes; the second one
reads, and writes in short transactions of its own while the first has nothing pending.

From when on a read must see what others have committed (`_floor`): usually from the moment before it began; in a
transaction that shows the snapshot of its first read, from the moment before that one; in a direct transaction that has
written, from the moment before it became direct.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.dml import Insert

import walsync
from tests.differential.reading_kinds import KINDS, Kind, read_pair
from tests.differential.reading_model import Content, Contents, Floor, Registry, WrongReadError
from tests.differential.reading_schema import LABELS, LEAVES, Big, Label, Leaf, Node, Row, key_of, link, universe
from walsync.session.state import state_of

__all__ = ["Worker", "fill"]

_OPERATIONS: Final = 30
_REMEMBERED: Final = 60


def fill(engine: Engine, registry: Registry, owners: int) -> None:
    """The rows that are there from the beginning, by a plain session on the target."""
    contents: Contents = {}
    with Session(engine) as session:
        for owner in range(owners):
            root = Node(key=key_of(owner, 0), kind="node", owner=owner, value=0)
            session.add(root)
            session.flush()
            session.add(Big(key=key_of(owner, 1), owner=owner, value=0, weight=0, parent=root))
            session.add(Leaf(key=key_of(owner, 0), owner=owner, node=root, value=0))
            session.add_all(Label(key=key_of(owner, number), owner=owner) for number in range(LABELS))
            contents.update(dict.fromkeys([*universe("node", owner), *universe("big", owner)], 0))
            contents[Row("leaf", owner, 0)] = 0
        session.commit()
    registry.committed(registry.committing(contents))


@dataclass
class _Open:
    """One session, and what the model knows of its open transaction.

    `levels`: what is flushed and not committed, one dict for the transaction and one for each savepoint. `floor`: see
    the module's docstring; None where it is the present. `may_write`: its picture of the thread's rows is the newest.
    `blind`: once it has written, this transaction reads nothing, or it would become direct. `had_savepoint`: on SQLite
    it holds a reader's lock until it ends, though it may have left the savepoint.
    """

    session: Session
    levels: list[Contents] = field(default_factory=lambda: [{}])
    floor: Floor | None = None
    may_write: bool = True
    blind: bool = False
    had_savepoint: bool = False

    @property
    def pending(self) -> Contents:
        merged: Contents = {}
        for level in self.levels:
            merged.update(level)
        return merged

    def end(self) -> None:
        if not self.may_write:
            # Others have changed rows of which the session has objects.
            self.session.expunge_all()
        self.levels, self.floor, self.may_write, self.had_savepoint = [{}], None, True, False


class Worker:
    """One thread's programs. `owners`: how many threads there are; this one is number `owner`."""

    def __init__(
        self,
        factory: sessionmaker[Session],
        journal: walsync.Journal,
        registry: Registry,
        owner: int,
        owners: int,
        seed: int,
        *,
        kinds: list[Kind] = KINDS,
        keeps_snapshots: bool,
        counts: Counter[str],
    ) -> None:
        self.factory, self.journal, self.registry = factory, journal, registry
        self.owner, self.owners = owner, owners
        self.random = random.Random(seed)
        self.kinds = kinds
        self.keeps_snapshots = keeps_snapshots
        self.counts = counts
        self.done: deque[str] = deque(maxlen=_REMEMBERED)
        self.number = (seed % 1000 + 1) * 1_000_000 + owner
        self.first = self.second = self.acting = _Open(factory())

    def run_program(self) -> None:
        """One program, from the beginning of two sessions to their end. Raises `WrongReadError`."""
        self.done.append("--- program")
        self.first, self.second = _Open(self.factory()), _Open(self.factory(), blind=True)
        try:
            for _ in range(_OPERATIONS):
                self._step()
            self._end(self.first)
            self._end(self.second)
            for kind in self.random.choices(self.kinds, k=3):
                self._read(self.first, kind, self.owner)
        finally:
            self.first.session.close()
            self.second.session.close()

    # ------------------------------------------------------------------------------------------ choosing

    def _step(self) -> None:
        operations: list[tuple[int, Callable[[_Open], None]]] = [
            (30, self._read_something),
            (30, self._write_something),
            (10, self._end),
            (4, self._pair),
            (3, self._begin_nested),
            (3, self._end_nested),
            (3, self._expire),
            (2, self._core_transaction),
            (2, self._become_direct),
            (8, self._second_session),
        ]
        weights, functions = zip(*operations, strict=True)
        function = self.random.choices(functions, weights)[0]
        self.acting = self.first
        try:
            self._noting_floor(self.first, function)
        except OperationalError as error:
            # A direct transaction met the checkpointer's locks: both are right, and the application repeats.
            session = self.acting.session
            if not state_of(session, self.journal).is_direct:
                raise
            self.counts["locked"] += 1
            self.done.append(f"locked: {error.orig}")
            while session.in_transaction():
                # SQLAlchemy rolls back savepoints that went with MariaDB's own rollback: each of them fails, once.
                with suppress(OperationalError):
                    session.rollback()
            session.close()
            if self.acting is self.first:
                self.first = _Open(self.factory())
            else:
                self.second = _Open(self.factory(), blind=True)

    def _noting_floor(self, open_: _Open, function: Callable[[_Open], None]) -> None:
        before = self.registry.floor()
        function(open_)
        state = state_of(open_.session, self.journal)
        if open_.floor is None and open_.session.in_transaction():
            if state.is_direct and state.wrote:
                open_.floor = before
                self.counts["direct"] += 1
            elif self.keeps_snapshots and state.has_snapshot:
                open_.floor = before

    def _second_session(self, _: _Open) -> None:
        """The other session reads, or writes and commits, while the first one's transaction is open."""
        state = state_of(self.first.session, self.journal)
        if self.first.had_savepoint or (state.is_direct and self.first.session.in_transaction()):
            # It holds locks that the second one would wait for, in the same thread.
            return
        second = self.acting = self.second
        if self.random.random() < 0.5 or self.first.pending:
            self._noting_floor(second, self._read_buffered)
            if self.random.random() < 0.3:
                second.session.rollback()
                second.end()
            return
        second.session.rollback()
        second.end()
        self._write_something(second)
        self._end(second)
        if self.first.session.in_transaction():
            self.first.may_write = False
        self.done.append("(that was the second session)")

    # ------------------------------------------------------------------------------------------- reading

    def _read_something(self, open_: _Open) -> None:
        if open_.blind and open_.pending and self.random.random() < 0.8:
            return
        if self.random.random() < 0.15:
            self._read_pair(open_)
            return
        kind = self.random.choice(self.kinds)
        if kind.direct and self.random.random() < 0.7:
            # They make every later read of their transaction easy.
            kind = self.random.choice(self.kinds)
        owner = self.owner if self.random.random() < 0.6 else self.random.randrange(self.owners)
        self._read(open_, kind, owner)

    def _read_buffered(self, open_: _Open) -> None:
        kind = self.random.choice([kind for kind in self.kinds if not kind.direct])
        self._read(open_, kind, self.random.randrange(self.owners))

    def _read(self, open_: _Open, kind: Kind, owner: int) -> None:
        if kind.scattered and not self.keeps_snapshots:
            owner = self.owner
        session = open_.session
        session.flush()
        session.expire_all()
        floor = self._floor(open_)
        self.done.append(f"read {kind.name} of {owner}")
        found = kind.read(session, owner)
        self.counts["reads"] += 1
        pending = open_.pending
        for row in universe(kind.table, owner):
            self._check(kind, row, found.get(row), {} if kind.stale else floor, pending)

    def _floor(self, open_: _Open) -> Floor:
        return self.registry.floor() if open_.floor is None else open_.floor

    def _check(self, kind: Kind, row: Row, found: Content, floor: Floor, pending: Contents) -> None:
        if row in pending:
            wrong = None if found == pending[row] else f"{row} is {found}, but this transaction made it {pending[row]}"
        else:
            wrong = self.registry.check(row, found, floor)
        if wrong is not None:
            self._fail(f"{kind.name}: {wrong}")

    def _read_pair(self, open_: _Open) -> None:
        owner = self.random.randrange(self.owners)
        open_.session.flush()
        self.done.append(f"read pair of {owner}")
        node, leaf = read_pair(open_.session, owner)
        if node != leaf:
            self._fail(f"half of a transaction of {owner}: the node is of {node}, the leaf of {leaf}")

    def _fail(self, message: str) -> None:
        raise WrongReadError(f"thread {self.owner}: {message}")

    # ------------------------------------------------------------------------------------------- writing

    def _current(self, open_: _Open, row: Row) -> Content:
        pending = open_.pending
        return pending[row] if row in pending else self.registry.last(row)

    def _write_something(self, open_: _Open) -> None:
        if not open_.may_write:
            return
        writes = [self._set_leaf, self._update_statement, self._delete_statement, self._insert_statement]
        if open_.blind:
            writes += [self._link_statement, self._node_statement]
        else:
            writes += [
                self._delete_leaf,
                self._remove_from_collection,
                self._set_node,
                self._set_big,
                self._toggle_label,
            ]
        self.number += 1000
        write = self.random.choice(writes)
        self.done.append(f"{write.__name__} {self.number}")
        if not open_.pending:
            self._pair(open_)
        write(open_, open_.levels[-1])
        if self.random.random() < 0.6:
            self.done.append("flush")
            open_.session.flush()

    def _pair(self, open_: _Open) -> None:
        """What every transaction that writes does: a node and a leaf get the same number."""
        if not open_.may_write:
            return
        self.number += 1000
        self.done.append(f"pair {self.number}")
        session, key = open_.session, key_of(self.owner, 0)
        if not open_.pending and self.random.random() < 0.5:
            # Read before anything is written.
            node, leaf = session.get(Node, key), session.get(Leaf, key)
            assert node is not None
            assert leaf is not None
            node.value = leaf.value = self.number
            session.flush()
        else:
            for table in (Node, Leaf):
                statement = update(table).where(table.key == key).values(value=self.number)
                session.execute(statement, execution_options={"synchronize_session": False})
            self._forget(session, Node, Leaf)
        for table in ("node", "leaf"):
            open_.levels[-1][Row(table, self.owner, 0)] = self.number

    def _forget(self, session: Session, *classes: type) -> None:
        """The session does not know what became of its objects."""
        for found in list(session.identity_map.values()):
            if isinstance(found, classes):
                session.expire(found)

    def _leaf_number(self) -> int:
        return self.random.randrange(1, LEAVES)

    def _set_leaf(self, open_: _Open, changes: Contents) -> None:
        row = Row("leaf", self.owner, self._leaf_number())
        key = key_of(self.owner, row.number)
        if self._current(open_, row) is None:
            node_key = key_of(self.owner, self.random.randrange(2))
            leaf = Leaf(key=key, owner=self.owner, node_key=node_key, value=self.number)
            if not open_.blind and self.random.random() < 0.5:
                node = open_.session.get(Node, node_key)
                assert node is not None
                leaf.node = node
            open_.session.add(leaf)
        elif open_.blind:
            values = [{"key": key, "value": self.number}]
            open_.session.execute(update(Leaf), values)
            self._forget(open_.session, Leaf)
        else:
            self._own_leaf(open_, key).value = self.number
        changes[row] = self.number

    def _own_leaf(self, open_: _Open, key: str) -> Leaf:
        leaf = open_.session.get(Leaf, key, populate_existing=self.random.random() < 0.5)
        if leaf is None:
            self._fail(f"get: the leaf {key} is not found")
        assert leaf is not None
        return leaf

    def _present_leaves(self, open_: _Open) -> list[Row]:
        rows = universe("leaf", self.owner)[1:]
        return [row for row in rows if self._current(open_, row) is not None]

    def _delete_leaf(self, open_: _Open, changes: Contents) -> None:
        for row in self._present_leaves(open_)[:1]:
            open_.session.delete(self._own_leaf(open_, key_of(self.owner, row.number)))
            open_.session.flush()
            changes[row] = None

    def _remove_from_collection(self, open_: _Open, changes: Contents) -> None:
        """An orphan is deleted by the unit of work."""
        open_.session.flush()
        open_.session.expire_all()
        for row in self._present_leaves(open_)[-1:]:
            leaf = self._own_leaf(open_, key_of(self.owner, row.number))
            leaf.node.leaves.remove(leaf)
            open_.session.flush()
            changes[row] = None

    def _set_node(self, open_: _Open, changes: Contents) -> None:
        node = open_.session.get(Node, key_of(self.owner, 1))
        assert node is not None
        node.value = self.number
        changes[Row("node", self.owner, 1)] = self.number

    def _set_big(self, open_: _Open, changes: Contents) -> None:
        big = open_.session.get(Big, key_of(self.owner, 1))
        assert big is not None
        big.weight = self.number
        changes[Row("big", self.owner, 0)] = self.number

    def _toggle_label(self, open_: _Open, changes: Contents) -> None:
        row = Row("link", self.owner, self.random.randrange(LABELS))
        open_.session.flush()
        open_.session.expire_all()
        node = open_.session.get(Node, key_of(self.owner, 0))
        label = open_.session.get(Label, key_of(self.owner, row.number))
        assert node is not None
        assert label is not None
        if self._current(open_, row) is None:
            node.labels.append(label)
            changes[row] = 1
        else:
            if label not in node.labels:
                self._fail(f"the collection of labels lacks {label.key}")
            node.labels.remove(label)
            changes[row] = None
        open_.session.flush()

    def _link_statement(self, open_: _Open, changes: Contents) -> None:
        row = Row("link", self.owner, self.random.randrange(LABELS))
        values = {"node_key": key_of(self.owner, 0), "label_key": key_of(self.owner, row.number)}
        if self._current(open_, row) is None:
            open_.session.execute(insert(link).values(values))
            changes[row] = 1
        else:
            open_.session.execute(delete(link).where(*(link.c[name] == value for name, value in values.items())))
            changes[row] = None

    def _node_statement(self, open_: _Open, changes: Contents) -> None:
        """Both tables of a `Big` by one statement each."""
        key = key_of(self.owner, 1)
        open_.session.execute(update(Node.__table__).where(Node.key == key).values(value=self.number))
        open_.session.execute(update(Big.__table__).where(Big.__table__.c.key == key).values(weight=self.number))
        self._forget(open_.session, Node)
        changes.update({Row("node", self.owner, 1): self.number, Row("big", self.owner, 0): self.number})

    def _update_statement(self, open_: _Open, changes: Contents) -> None:
        sync: Any = False if open_.blind else self.random.choice([False, "evaluate", "fetch", "auto"])
        session = open_.session
        session.flush()
        if self.random.random() < 0.5:
            # By a subquery on another table, so that it is a statement in the log.
            wanted = Leaf.node_key.in_(select(Node.key).where(Node.owner == self.owner))
            sync = False
        else:
            wanted = Leaf.owner == self.owner
        statement = update(Leaf).where(wanted, Leaf.key != key_of(self.owner, 0)).values(value=self.number)
        present = self._present_leaves(open_)
        session.execute(statement, execution_options={"synchronize_session": sync})
        self._forget(session, Leaf)
        changes.update(dict.fromkeys(present, self.number))

    def _delete_statement(self, open_: _Open, changes: Contents) -> None:
        session = open_.session
        session.flush()
        chosen = self._present_leaves(open_)[:2]
        keys = [key_of(self.owner, row.number) for row in chosen]
        sync = "evaluate" if open_.blind else "fetch"
        session.execute(delete(Leaf).where(Leaf.key.in_(keys)), execution_options={"synchronize_session": sync})
        changes.update(dict.fromkeys(chosen))

    def _insert_statement(self, open_: _Open, changes: Contents) -> None:
        session = open_.session
        session.flush()
        absent = [row for row in universe("leaf", self.owner)[1:] if self._current(open_, row) is None]
        values = [self._values(row) for row in absent]
        if not values:
            return
        way = self.random.randrange(4)
        if way == 0:
            session.execute(insert(Leaf), values)
        elif way == 1:
            session.execute(insert(Leaf).values(values))
        elif way == 2:
            session.bulk_insert_mappings(Leaf, values)  # type: ignore[arg-type]
        else:
            session.execute(insert(Leaf.__table__), values)
        changes.update(dict.fromkeys(absent, self.number))

    def _values(self, row: Row) -> dict[str, Any]:
        node_key = key_of(self.owner, self.random.randrange(2))
        return {"key": key_of(row.owner, row.number), "owner": row.owner, "node_key": node_key, "value": self.number}

    def _core_transaction(self, open_: _Open) -> None:
        """Core on the journal's engine, while the first session's transaction has nothing pending."""
        if open_.pending or (state_of(open_.session, self.journal).is_direct and open_.session.in_transaction()):
            return
        self.number += 1000
        row = Row("leaf", self.owner, self._leaf_number())
        key = key_of(self.owner, row.number)
        present = self.registry.last(row) is not None
        gone = present and self.random.random() < 0.4
        statement: Any = insert(Leaf).values(self._values(row))
        if gone:
            statement = delete(Leaf).where(Leaf.key == key)
        elif present:
            statement = update(Leaf).where(Leaf.key == key).values(value=self.number)
        roll_back = self.random.random() < 0.3
        self.done.append(f"core {type(statement).__name__} of leaf {row.number} {self.number} {roll_back=}")
        with self.journal.engine.connect() as connection:
            connection.execute(statement)
            if roll_back:
                connection.rollback()
            else:
                places = self.registry.committing({row: None if gone else self.number})
                connection.commit()
                self.registry.committed(places)
        if open_.session.in_transaction():
            open_.may_write = False

    # ------------------------------------------------------------------------------------- transactions

    def _become_direct(self, open_: _Open) -> None:
        """The reasons why a transaction runs on the target; reads of SQL text are among the kinds."""
        if not open_.may_write:
            return
        session, way = open_.session, self.random.randrange(5)
        self.done.append(f"direct {way}")
        if not open_.pending:
            self._pair(open_)
        row = Row("leaf", self.owner, 0)
        self.number += 1000
        if way == 0:
            with walsync.direct(session):
                session.execute(select(Label.key)).all()
            return
        if way == 1:
            session.scalars(select(Leaf).where(Leaf.key == key_of(self.owner, 0)).with_for_update()).all()
            return
        statement: Any = update(Leaf).where(Leaf.key == key_of(self.owner, 0)).values(value=self.number)
        if way == 2:
            session.flush()
            session.connection().execute(statement)
            session.execute(update(Node).where(Node.key == key_of(self.owner, 0)).values(value=self.number))
            open_.levels[-1].update({row: self.number, Row("node", self.owner, 0): self.number})
            session.expire_all()
            return
        if session.get_bind().dialect.name in ("mysql", "mariadb"):
            return
        absent = [row for row in universe("leaf", self.owner)[1:] if self._current(open_, row) is None]
        for row in absent[:1]:
            session.flush()
            returning: Insert = insert(Leaf).values(self._values(row)).returning(Leaf.key)
            session.execute(returning).all()
            open_.levels[-1][row] = self.number

    def _begin_nested(self, open_: _Open) -> None:
        if open_.may_write and len(open_.levels) < 3:
            self.done.append("begin nested")
            open_.session.begin_nested()
            open_.levels.append({})
            open_.had_savepoint = True

    def _end_nested(self, open_: _Open) -> None:
        if len(open_.levels) == 1:
            return
        transaction = open_.session.get_nested_transaction()
        assert transaction is not None
        level = open_.levels.pop()
        if self.random.random() < 0.5:
            self.done.append("release")
            transaction.commit()
            open_.levels[-1].update(level)
        else:
            self.done.append("roll back to savepoint")
            transaction.rollback()

    def _expire(self, open_: _Open) -> None:
        self.done.append("expire all")
        open_.session.flush()
        open_.session.expire_all()

    def _end(self, open_: _Open) -> None:
        session = open_.session
        if self.random.random() < 0.25:
            self.done.append("roll back")
            self.random.choice([session.rollback, session.close])()
        else:
            self.done.append("commit")
            while len(open_.levels) > 1:
                self._end_nested(open_)
            places = self.registry.committing(open_.pending)
            session.commit()
            self.registry.committed(places)
            self.counts["commits"] += bool(places)
        open_.end()
        open_.blind = self.random.random() < 0.6

"""Random programs in which the order of the changes matters, and how they run on a session.

A program is a list of transactions, a transaction a list of steps, and a step names everything that it needs: an object
to be changed comes with the values that it has, so that running a program reads nothing. So the same program runs
directly, and through walsync while nothing is applied.

Programs are made while they run directly (`Author`): each step is tried in a savepoint and is left out if the database
refuses it. What is left is a program that succeeds when it runs in this order; in another order it may well not.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from tests.differential.ordered_schema import KINDS, Kind, kind_of

__all__ = ["BATCHES", "Author", "OrderedProgram", "Step", "Transaction", "moved", "run_directly", "run_transaction"]

Step = tuple[Any, ...]
"""The name of a function `_do_...` below, and its arguments."""

Transaction = tuple[Step, ...]
Row = dict[str, Any]

REFUSALS = (SQLAlchemyError, SAWarning)
"""That a row to be deleted is not there is a warning of SQLAlchemy, and a refusal here, as it is when it is applied."""

_BARRED = frozenset({"Watched", "Witnessed", "Auto"})
"""Where triggers are at work everywhere, and where the application's changes are statements."""

BATCHES = (1, 2, 3, 7, 50, 10_000)


@dataclass(frozen=True)
class OrderedProgram:
    """`together`: nothing is applied before everything is committed, so that batches are as large as they can be."""

    transactions: tuple[Transaction, ...]
    batch_changes: int
    together: bool

    def __str__(self) -> str:
        lines = [f"# batch_changes={self.batch_changes}, together={self.together}"]
        for number, transaction in enumerate(self.transactions, 1):
            lines.append(f"# transaction {number}")
            lines += [f"{name}({', '.join(map(repr, arguments))})" for name, *arguments in transaction]
        return "\n".join(lines)

    def shorter(self) -> list[OrderedProgram]:
        """Every program that has one transaction, or one step, less."""
        found = []
        for index, transaction in enumerate(self.transactions):
            before, after = self.transactions[:index], self.transactions[index + 1 :]
            found.append(replace(self, transactions=(*before, *after)))
            if len(transaction) > 1:
                for place in range(len(transaction)):
                    less = (*transaction[:place], *transaction[place + 1 :])
                    found.append(replace(self, transactions=(*before, less, *after)))
        return found


def moved(program: OrderedProgram, source: random.Random) -> OrderedProgram:
    """The same program in a wrong order: one transaction is moved, or two are exchanged, or one is gone."""
    transactions = list(program.transactions)
    for _ in range(source.choice((1, 1, 2, 4))):
        if len(transactions) < 2:
            break
        how, place = source.random(), source.randrange(len(transactions))
        if how < 0.4:
            other = min(len(transactions) - 1, place + source.choice((1, 1, 2, 5)))
            transactions[place], transactions[other] = transactions[other], transactions[place]
        elif how < 0.85:
            transactions.insert(source.randrange(len(transactions)), transactions.pop(place))
        else:
            del transactions[place]
    return replace(program, transactions=tuple(transactions))


# --------------------------------------------------------------------------------------------------- running


def run_transaction(session: Session, transaction: Transaction) -> None:
    """Runs the steps and commits."""
    for step in transaction:
        run_step(session, step)
    session.commit()


def run_directly(engine: Engine, transactions: Sequence[Transaction]) -> tuple[Transaction, ...]:
    """Runs transactions on a database, and returns those that it did not refuse."""
    accepted = []
    for transaction in transactions:
        with Session(engine, expire_on_commit=False) as session:
            try:
                run_transaction(session, transaction)
            except REFUSALS:
                continue
        accepted.append(transaction)
    return tuple(accepted)


def run_step(session: Session, step: Step) -> None:
    name, *arguments = step
    with warnings.catch_warnings():
        warnings.simplefilter("error", SAWarning)
        globals()[f"_do_{name}"](session, *arguments)
        session.flush()
    # The next step brings its objects along.
    session.expunge_all()


def _loaded(kind: Kind, row: Row) -> Any:
    """An object as if it had been loaded with these values."""
    found = kind.mapped()
    for name, value in row.items():
        set_committed_value(found, name, value)
    make_transient_to_detached(found)
    return found


def _do_orm(session: Session, actions: Sequence[tuple[str, str, Row, Row]]) -> None:
    """Objects added, changed and deleted in one flush: (what, class, values that it has, values that it gets)."""
    for what, name, row, changes in actions:
        kind = kind_of(name)
        if what == "add":
            session.add(kind.mapped(**row))
            continue
        found = _loaded(kind, row)
        session.add(found)
        if what == "delete":
            session.delete(found)
        else:
            for attribute, value in changes.items():
                setattr(found, attribute, value)


def _do_insert(session: Session, name: str, rows: list[Row]) -> None:
    session.execute(insert(kind_of(name).mapped), [dict(row) for row in rows])


def _do_insert_values(session: Session, name: str, rows: list[Row]) -> None:
    session.execute(insert(kind_of(name).mapped).values([dict(row) for row in rows]))


def _is(kind: Kind, values: Row) -> list[Any]:
    return [getattr(kind.mapped, attribute) == value for attribute, value in values.items()]


def _do_update_where(session: Session, name: str, where: Row, changes: Row) -> None:
    kind = kind_of(name)
    statement = update(kind.mapped).where(*_is(kind, where)).values(**changes)
    session.execute(statement, execution_options={"synchronize_session": False})


def _do_update_many(session: Session, name: str, rows: list[Row]) -> None:
    session.execute(update(kind_of(name).mapped), [dict(row) for row in rows])


def _do_delete_where(session: Session, name: str, where: Row) -> None:
    kind = kind_of(name)
    statement = delete(kind.mapped).where(*_is(kind, where))
    session.execute(statement, execution_options={"synchronize_session": False})


def _do_plus(session: Session, name: str, column: str, change: int, where: Row) -> None:
    kind = kind_of(name)
    attribute = getattr(kind.mapped, column)
    statement = update(kind.mapped).where(*_is(kind, where)).values({attribute: attribute * 2 + change})
    session.execute(statement, execution_options={"synchronize_session": False})


def _do_copy_tally(session: Session, offset: int, most: int) -> None:
    tally, copy = kind_of("Tally").mapped, kind_of("Copy").mapped
    source = select(tally.id + offset, tally.n).where(tally.n <= most)
    session.execute(insert(copy).from_select(["id", "n"], source))


def _do_count_seats(session: Session, name: str) -> None:
    """A statement on one table that reads another."""
    tally, other = kind_of("Tally").mapped, kind_of(name).mapped
    found = select(other.__mapper__.primary_key[0]).where(other.__mapper__.primary_key[0].is_not(None)).subquery()
    count = select(func.count()).select_from(found).scalar_subquery()
    session.execute(update(tally).values(n=tally.n + count), execution_options={"synchronize_session": False})


# ---------------------------------------------------------------------------------------------------- making


class Author:
    """Makes a program on an empty database, which holds what the program leaves behind afterwards."""

    def __init__(self, engine: Engine, source: random.Random) -> None:
        self.engine = engine
        self.source = source
        self.planned: list[list[Step]] = []
        self.refused = 0
        # Few classes at a time, or little would ever happen to the same row.
        everything = [kind for kind in KINDS for _ in range(kind.weight)]
        # A tidy program has plain rows only, of few shapes, and no trigger sees them: nothing keeps a reordering from
        # what it likes to do. In the others, that would be done seldom.
        self.tidy = source.random() < 0.65
        chosen = {
            source.choice(everything).name for _ in range(source.choice((1, 2, 3) if self.tidy else (2, 3, 5, 30)))
        }
        for name in tuple(chosen):
            chosen.update(parent for _, parent in kind_of(name).parents)
        self.kinds = [kind for kind in everything if kind.name in chosen]
        self.columns: dict[str, list[list[str]]] = {}
        if self.tidy:
            self.kinds = [kind for kind in self.kinds if kind.name not in _BARRED] or [kind_of("Seat")]
            for kind in self.kinds:
                names = [name for name in kind.pools if kind.key_changes or name not in kind.key]
                groups = [[name] for name in names] + [list(group) for group in kind.swaps if set(group) <= set(names)]
                self.columns[kind.name] = source.sample(groups, min(len(groups), 2)) if groups else [[]]

    def write(self, length: int) -> OrderedProgram:
        transactions: list[Transaction] = []
        for _ in range(length * 3):
            if len(transactions) == length:
                break
            made = self._transaction()
            if made:
                transactions.append(made)
        return OrderedProgram(
            tuple(transactions),
            batch_changes=self.source.choice(BATCHES + (10_000,) * 6 if self.tidy else BATCHES),
            together=self.source.random() < (0.95 if self.tidy else 0.7),
        )

    def _transaction(self) -> Transaction:
        kept: list[Step] = []
        with Session(self.engine, expire_on_commit=False) as session:
            for _ in range(self.source.choice((1, 1, 1, 1, 2, 3, 6))):
                for step in self._next(session):
                    if self._accepted(session, step):
                        kept.append(step)
            if not kept:
                return ()
            try:
                session.commit()
            except REFUSALS:
                self.refused += 1
                return ()
        return tuple(kept)

    def _accepted(self, session: Session, step: Step) -> bool:
        nested = session.begin_nested()
        try:
            run_step(session, step)
            nested.commit()
        except REFUSALS:
            nested.rollback()
            session.expunge_all()
            self.refused += 1
            return False
        return True

    def _next(self, session: Session) -> list[Step]:
        if self.planned and self.source.random() < 0.8:
            return self.planned.pop(0)
        kind = self.source.choice(self.kinds)
        rows = self._rows(session, kind)
        story = self.source.choice(_TIDY_STORIES if self.tidy else _STORIES)
        steps = story(self, session, kind, rows)
        if self.source.random() < 0.5:
            # One after the other, each in a transaction of its own where nothing comes in between.
            self.planned += [[step] for step in steps[1:]]
            return steps[:1]
        return steps

    def _rows(self, session: Session, kind: Kind) -> list[Row]:
        names = [*kind.key, *(name for name in kind.pools if name not in kind.key)]
        if kind.name == "Draft":
            names.append("version")
        statement = select(*[getattr(kind.mapped, name) for name in names])
        if kind.name == "Animal":
            statement = statement.where(kind.mapped.species == "animal")
        return sorted((dict(row) for row in session.execute(statement).mappings()), key=repr)

    def _drawn(self, session: Session, kind: Kind) -> Row:
        row = {name: self.source.choice(values) for name, values in kind.pools.items()}
        for attribute, parent in kind.parents:
            found = self._rows(session, kind_of(parent)) if self.source.random() < 0.8 else []
            if found and row[attribute] is not None:
                other = kind_of(parent)
                row[attribute] = self.source.choice(found)[other.key[0]]
        if kind.name == "Level" and row["low"] > row["high"]:
            row["low"], row["high"] = row["high"], row["low"]
        return row

    def _new_key(self, session: Session, kind: Kind, row: Row) -> Row:
        """The row with a key that is free, where there is one."""
        held = {tuple(found[name] for name in kind.key) for found in self._rows(session, kind)}
        for _ in range(8):
            if tuple(row.get(name) for name in kind.key) not in held:
                break
            drawn = self._drawn(session, kind)
            row = {**row, **{name: drawn[name] for name in kind.key if name in drawn}}
        return row

    # The ways to make one change.

    def _add(self, kind: Kind, row: Row) -> Step:
        if kind.orm_only or self.source.random() < 0.6:
            return ("orm", (("add", kind.name, row, {}),))
        return ("insert", kind.name, [row])

    def _set(self, kind: Kind, row: Row, changes: Row) -> Step:
        key = {name: row[name] for name in kind.key}
        if _generated(kind):
            return ("update_where", kind.name, {"label": row["label"]}, changes)
        if kind.orm_only or self.source.random() < 0.6:
            return ("orm", (("set", kind.name, row, changes),))
        return ("update_where", kind.name, key, changes)

    def _drop(self, kind: Kind, row: Row) -> Step:
        if _generated(kind):
            return ("delete_where", kind.name, {"label": row["label"]})
        if kind.orm_only or self.source.random() < 0.6:
            return ("orm", (("delete", kind.name, row, {}),))
        return ("delete_where", kind.name, {name: row[name] for name in kind.key})

    def _changes(self, session: Session, kind: Kind) -> Row:
        drawn = self._drawn(session, kind)
        if kind.name in self.columns:
            return {name: drawn[name] for name in self.source.choice(self.columns[kind.name])}
        names = [name for name in drawn if kind.key_changes or name not in kind.key]
        if not names:
            return {}
        return {name: drawn[name] for name in self.source.sample(names, self.source.randint(1, len(names)))}


def _generated(kind: Kind) -> bool:
    return any(name not in kind.pools for name in kind.key)


def _after(kind: Kind, row: Row, changes: Row) -> Row:
    found = {**row, **changes}
    if "version" in row and found != row:
        found["version"] = row["version"] + 1
    return found


# The stories: what happens to a class's rows, as steps. A step that the database refuses is left out.


def _story_add(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    row = author._drawn(session, kind)
    if author.source.random() < 0.7:
        row = author._new_key(session, kind, row)
    return [author._add(kind, row)]


def _story_add_many(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    drawn = [author._new_key(session, kind, author._drawn(session, kind)) for _ in range(author.source.choice((2, 3)))]
    if kind.orm_only or author.source.random() < 0.4:
        return [("orm", tuple(("add", kind.name, row, {}) for row in drawn))]
    ways = ("insert",) if author.tidy else ("insert", "insert", "insert_values")
    return [(author.source.choice(ways), kind.name, drawn)]


def _story_change(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    if not rows:
        return _story_add(author, session, kind, rows)
    row = author.source.choice(rows)
    steps = []
    for _ in range(author.source.choice((1, 1, 2, 3))):
        changes = author._changes(session, kind)
        steps.append(author._set(kind, row, changes))
        row = _after(kind, row, changes)
    return [step for step in steps if step[-1] != {}]


def _story_change_many(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    names = [name for name in kind.pools if name not in kind.key]
    if len(rows) < 2 or not names or _generated(kind):
        return _story_add(author, session, kind, rows)
    names = author.source.sample(names, author.source.randint(1, len(names)))
    chosen = author.source.sample(rows, author.source.randint(2, min(3, len(rows))))
    changed = [{name: author._drawn(session, kind)[name] for name in names} for _ in chosen]
    if kind.orm_only or author.source.random() < 0.5:
        return [("orm", tuple(("set", kind.name, row, new) for row, new in zip(chosen, changed, strict=True)))]
    keyed = [{**{name: row[name] for name in kind.key}, **new} for row, new in zip(chosen, changed, strict=True)]
    return [("update_many", kind.name, keyed)]


def _story_remove(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    if not rows:
        return _story_add(author, session, kind, rows)
    return [author._drop(kind, author.source.choice(rows))]


def _story_swap(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    """Two rows exchange a unique value through a third value."""
    if len(rows) < 2 or not kind.swaps or _generated(kind):
        return _story_change(author, session, kind, rows)
    one, other = author.source.sample(rows, 2)
    group = author.source.choice(kind.swaps)
    if any(name in kind.key for name in group) and not kind.key_changes:
        return []
    drawn = author._drawn(session, kind)
    aside = {name: drawn[name] for name in group}
    for _ in range(6):
        if not any(all(row[name] == aside[name] for name in group) for row in rows):
            break
        drawn = author._drawn(session, kind)
        aside = {name: drawn[name] for name in group}
    first = {name: one[name] for name in group}
    second = {name: other[name] for name in group}
    away = _after(kind, one, aside)
    return [author._set(kind, one, aside), author._set(kind, other, first), author._set(kind, away, second)]


def _story_inherit(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    """A row is deleted, and a new one with another key gets its unique values."""
    if not rows or _generated(kind):
        return _story_add(author, session, kind, rows)
    gone = author.source.choice(rows)
    heir = author._new_key(session, kind, {name: gone[name] for name in kind.pools})
    return [author._drop(kind, gone), author._add(kind, heir)]


def _story_give(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    """A row gives a unique value away, and another one, or a new one, takes it."""
    if not rows or not kind.swaps or _generated(kind):
        return _story_add(author, session, kind, rows)
    giver = author.source.choice(rows)
    changes = author._changes(session, kind)
    if not changes:
        return []
    taker = author._new_key(session, kind, author._drawn(session, kind))
    group = author.source.choice(kind.swaps)
    if not any(name in kind.key for name in group):
        taker = {**taker, **{name: giver[name] for name in group}}
    return [author._set(kind, giver, changes), author._add(kind, taker)]


def _story_reuse(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    """A key is deleted, made anew, changed, and deleted again."""
    if not rows or _generated(kind):
        return _story_add(author, session, kind, rows)
    gone = author.source.choice(rows)
    drawn = author._drawn(session, kind)
    again = {**drawn, **{name: gone[name] for name in kind.key if name in kind.pools}}
    steps = [author._drop(kind, gone), author._add(kind, again)]
    made = {**again, "version": 1} if "version" in gone else again
    changes = {name: value for name, value in author._changes(session, kind).items() if name not in kind.key}
    if changes:
        steps.append(author._set(kind, made, changes))
        made = _after(kind, made, changes)
    if author.source.random() < 0.5:
        steps.append(author._drop(kind, made))
    return steps


def _story_leave(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    """Children move to another parent, and theirs is deleted."""
    if not kind.parents or not rows:
        return _story_change(author, session, kind, rows)
    attribute, name = author.source.choice(kind.parents)
    parent = kind_of(name)
    left = author.source.choice(rows)[attribute]
    candidates = [row for row in author._rows(session, parent) if row[parent.key[0]] != left]
    if left is None or not candidates:
        return _story_add(author, session, kind, rows)
    target = author.source.choice(candidates)[parent.key[0]]
    children = [row for row in rows if row[attribute] == left and row is not target]
    steps = [author._set(kind, row, {attribute: target}) for row in children]
    old = [row for row in author._rows(session, parent) if row[parent.key[0]] == left]
    return steps + [author._drop(parent, row) for row in old]


def _story_family(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    """A parent and its child come, and may go."""
    if not kind.parents:
        return _story_reuse(author, session, kind, rows)
    attribute, name = author.source.choice(kind.parents)
    parent = kind_of(name)
    first = author._new_key(session, parent, author._drawn(session, parent))
    child = author._new_key(session, kind, author._drawn(session, kind))
    child = {**child, attribute: first[parent.key[0]]}
    steps = [author._add(parent, first), author._add(kind, child)]
    if author.source.random() < 0.4:
        steps.append(author._drop(kind, child))
    if author.source.random() < 0.4:
        steps.append(author._drop(parent, first))
    return steps


def _story_statement(author: Author, session: Session, kind: Kind, rows: list[Row]) -> list[Step]:
    if author.source.random() < 0.15:
        return [("copy_tally", author.source.choice((0, 10)), author.source.choice((2, 4, 100)))]
    if author.source.random() < 0.1:
        return [("count_seats", author.source.choice(("Seat", "Copy", "Node")))]
    if not kind.counts or not rows:
        return _story_change(author, session, kind, rows)
    column = author.source.choice(kind.counts)
    where: Row = {}
    if author.source.random() < 0.6:
        name = author.source.choice([name for name in rows[0] if name not in ("version", "id")])
        where = {name: author.source.choice(rows)[name]}
        if where[name] is None:
            where = {}
    return [("plus", kind.name, column, author.source.choice((1, -1, 3)), where)]


_STORIES = (
    *(_story_add,) * 5,
    *(_story_add_many,) * 2,
    *(_story_change,) * 6,
    *(_story_change_many,) * 2,
    *(_story_remove,) * 2,
    *(_story_swap,) * 3,
    *(_story_inherit,) * 2,
    *(_story_give,) * 2,
    *(_story_reuse,) * 2,
    *(_story_leave,) * 2,
    *(_story_family,) * 2,
    *(_story_statement,) * 3,
)
_TIDY_STORIES = tuple(story for story in _STORIES if story is not _story_statement)

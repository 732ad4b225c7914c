"""Batches of every size must leave what single transactions in commit order leave, and stop where they stop.

Two properties, over random programs on the schema of `ordered_schema`:

- a program that succeeds directly leaves an equal database through walsync, whatever the size of its batches, and none
  of the batches is refused (one that is would be applied entry by entry, which hides a wrong order);
- entries in an order in which one of them is refused (though all of them together, in another order, would be accepted)
  are applied up to that one, and it is the one that is named.

`WALSYNC_DIFFERENTIAL_WORKLOADS=N` sets the number of programs, `-m slow` runs many, `WALSYNC_SEED=N` repeats a run.
A program that fails is made shorter before it is shown.

Last come the tests of the tests: wrong orders, foldings and barriers that must be found.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.differential.comparison import differences
from tests.differential.ordered_programs import (
    Author,
    OrderedProgram,
    Transaction,
    moved,
    run_directly,
    run_transaction,
)
from tests.differential.ordered_schema import Ordered
from tests.differential.reference import apply_in_order
from tests.differential.sides import BufferedSide, empty, pair_of_databases
from walsync.changes import ChangeSet, RowChanges, decode_change_set
from walsync.checkpoint import apply, apply_changes
from walsync.exceptions import CheckpointFailedError, EntryRejectedError, WalsyncError

QUICK = {"sqlite": 40, "postgresql": 20, "mariadb": 20}
LARGE = {"sqlite": 2000, "postgresql": 500, "mariadb": 500}
SHRINK_S = 60.0


class _Repeated(logging.Handler):
    """Counts the batches that were refused, and applied again: entry by entry, or in the order of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.rearranged = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("the target refused the batch")
        self.rearranged += record.getMessage().startswith("the target took a batch in the order of the log only")


class Orders:
    """A pair of databases, and a log on the second one."""

    def __init__(self, direct: Engine, buffered: Engine, directory: Path) -> None:
        self.direct, self.buffered = direct, buffered
        self.directory = directory
        self.logs = 0
        self.counts: Counter[str] = Counter()
        self.repeated = _Repeated()
        self.last_refused: int | None = None
        self.side = self._attach()

    def _attach(self) -> BufferedSide:
        self.logs += 1
        # What is refused is to be refused by the target.
        return BufferedSide(
            self.buffered, self.directory / f"log-{self.logs}", count_replayed=False, finds_conflicts=False
        )

    def start_anew(self) -> None:
        """After a failure or a refusal the log holds what must not be applied: the next program gets a new one."""
        self.side.abandon()
        self.side = self._attach()

    def write(self, source: random.Random, tidy: bool | None = None) -> OrderedProgram:
        empty(self.direct, Ordered.metadata)
        author = Author(self.direct, source, tidy)
        program = author.write(source.choice((20, 40) if author.tidy else (3, 8, 15, 30)))
        self.counts["transactions"] += len(program.transactions)
        self.counts["refused steps"] += author.refused
        return program

    def _expect_reordering(self) -> None:
        """A product that had to repeat a batch in the order of the log goes on in it for a while: not here."""
        target: Any = self.side.journal.checkpointer._target
        assert hasattr(target, "_in_order_for")
        target._in_order_for = 0

    def _record(self, program: OrderedProgram) -> None:
        self._expect_reordering()
        for transaction in program.transactions:
            with self.side.factory() as session:
                run_transaction(session, transaction)

    def check_equal(
        self, program: OrderedProgram, *, written: bool = False, repeated_is_wrong: bool = True
    ) -> list[str]:
        """Runs a program through walsync; what differs from running it directly. `written`: it just ran directly."""
        if not written:
            empty(self.direct, Ordered.metadata)
            program = replace(program, transactions=run_directly(self.direct, program.transactions))
        empty(self.buffered, Ordered.metadata)
        self.side.use(program.batch_changes)
        if program.together:
            self.side.pause()
        self.repeated.count = 0
        try:
            self._record(program)
            self.side.settle()
        except CheckpointFailedError:
            # A fault in the program, perhaps in this one: nothing was found out about the order.
            raise
        except WalsyncError as error:
            self.start_anew()
            return [f"walsync raises {type(error).__name__}: {error}"]
        found = differences(self.direct, self.buffered, metadata=Ordered.metadata)
        if repeated_is_wrong and self.repeated.count:
            found.append("a batch was refused, and its entries were not")
        return found

    def check_refused(self, program: OrderedProgram) -> list[str]:
        """Records a program, which may be refused, and compares what is applied with the reference."""
        for engine in (self.direct, self.buffered):
            empty(engine, Ordered.metadata)
        self.side.use(program.batch_changes)
        self.side.pause()
        applied = self.side.journal.checkpointer.applied_id
        self._record(program)
        entries = [decode_change_set(entry.id, entry.chunks()) for entry in self.side.journal.log.entries(applied)]
        expected = apply_in_order(self.direct, Ordered.metadata, entries)
        refused: int | None = None
        found: list[str] = []
        try:
            self.side.settle()
        except EntryRejectedError:
            refused = self.side.journal.checkpointer.status.rejected_entry_id
            stands = self.side.journal.checkpointer.applied_id
            if refused is None or stands != refused - 1:
                found.append(f"entry {refused} was refused, and the watermark is at {stands}")
        except CheckpointFailedError:
            # A fault in the program, perhaps in this one: nothing was found out about the order.
            raise
        except WalsyncError as error:
            found.append(f"walsync raises {type(error).__name__}: {error}")
        self.counts["refused programs"] += expected is not None
        self.last_refused = None if expected is None else expected - applied
        if refused != expected:
            found.append(f"in order, entry {expected} is refused; walsync refuses {refused}")
        found += differences(self.direct, self.buffered, metadata=Ordered.metadata)
        if refused is not None or found:
            self.start_anew()
        return found


@contextmanager
def orders(server: str | Path, directory: Path) -> Iterator[Orders]:
    with pair_of_databases(server, Ordered.metadata) as (direct, buffered):
        found = Orders(direct, buffered, directory)
        arrange = apply.arrange

        def counted(*arguments: Any, **options: Any) -> Any:
            steps = arrange(*arguments, **options)
            found.counts["arranged rows"] += sum(max(1, len(step.rows)) for step in steps)
            found.counts["arranged steps"] += len(steps)
            return steps

        logger = logging.getLogger("walsync.checkpoint")
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(found.repeated)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(apply, "arrange", counted)
            try:
                yield found
            finally:
                logger.removeHandler(found.repeated)
                logger.setLevel(level)
                found.side.abandon()


def first_failure(
    pair: Orders, count: int, number: int, check: Callable[[OrderedProgram], list[str]], *, wrong_order: bool
) -> tuple[OrderedProgram, list[str]] | None:
    for index in range(count):
        source = random.Random(f"{number} {index}")
        program = pair.write(source)
        if wrong_order:
            program = moved(program, source)
            found = check(program)
        else:
            found = pair.check_equal(program, written=True)
        if found:
            return program, found
    return None


def shortened(
    program: OrderedProgram, found: list[str], check: Callable[[OrderedProgram], list[str]]
) -> tuple[OrderedProgram, list[str]]:
    """The program without what it does not need to fail. Bounded in time; it is for people to read."""
    until = time.monotonic() + SHRINK_S
    smaller = True
    while smaller and time.monotonic() < until:
        smaller = False
        for candidate in program.shorter():
            if time.monotonic() >= until:
                break
            again = check(candidate)
            if again:
                program, found, smaller = candidate, again, True
                break
    return program, found


def run_programs(server: str | Path, directory: Path, count: int, *, wrong_order: bool) -> None:
    count = int(os.environ.get("WALSYNC_DIFFERENTIAL_WORKLOADS", count))
    number = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{count} programs; to repeat them: WALSYNC_SEED={number} WALSYNC_DIFFERENTIAL_WORKLOADS={count}")
    with orders(server, directory) as pair:
        check = pair.check_refused if wrong_order else pair.check_equal
        failure = first_failure(pair, count, number, check, wrong_order=wrong_order)
        if failure is not None:
            print(f"it failed first as:\n{failure[0]}\n{failure[1]}")
            program, found = shortened(*failure, check)
            raise AssertionError("\n".join([*found[:12], str(program)]))
        print(dict(pair.counts), f"{pair.repeated.rearranged} batches were repeated in the order of the log")
        assert pair.counts["transactions"] > 3 * count
        if wrong_order:
            # Too few, and the test would be another one; all of them, and equal databases would not be tested.
            assert count / 4 < pair.counts["refused programs"] < count
        # What is never reordered cannot be reordered wrongly.
        assert pair.counts["arranged rows"] > count
        assert pair.counts["arranged steps"] < 0.93 * pair.counts["arranged rows"]
        # A batch that the target takes in the order of the log only is right, and costs time. A rule of the reordering
        # that is wrong makes them frequent, and shows in nothing else where the wrong order is refused.
        assert pair.repeated.rearranged <= 5 + count / 8
        direct = pair.side.journal.stats().direct_reasons
        assert not direct, f"a program read, or wrote directly: {direct}"


def _seat(key: int, code: str, rank: int = 1, place: int = 1) -> dict[str, Any]:
    return {"id": key, "code": code, "rank": rank, "place": place, "tag": None, "note": None}


def _add(name: str, row: dict[str, Any]) -> Transaction:
    return (("orm", (("add", name, row, {}),)),)


def _drop(name: str, row: dict[str, Any]) -> Transaction:
    return (("orm", (("delete", name, row, {}),)),)


def _set(name: str, row: dict[str, Any], changes: dict[str, Any]) -> Transaction:
    return (("orm", (("set", name, row, changes),)),)


_OWNER, _PET = {"id": 1, "name": "a"}, {"id": 1, "owner_id": 1, "name": "a"}
_NODE, _CHILD = {"id": 1, "parent_id": None, "name": "a"}, {"id": 2, "parent_id": 1, "name": "b"}

REFUSED: dict[str, tuple[tuple[Transaction, ...], int]] = {
    # Transactions, and which of them is refused (1 is the first). All of them together would be accepted.
    "a value that is released later": (
        (_add("Seat", _seat(1, "a")), _add("Seat", _seat(2, "a", 2)), _set("Seat", _seat(1, "a"), {"code": "b"})),
        2,
    ),
    "a value whose row is deleted later": (
        (_add("Seat", _seat(1, "a")), _add("Seat", _seat(2, "a", 2)), _drop("Seat", _seat(1, "a"))),
        2,
    ),
    "a key that is released later": (
        (
            _add("Owner", _OWNER),
            _add("Owner", {"id": 1, "name": "b"}),
            _drop("Owner", _OWNER),
            _add("Owner", {"id": 2, "name": "c"}),
        ),
        2,
    ),
    "a child before its parent": ((_add("Pet", _PET), _add("Owner", _OWNER)), 1),
    "a parent before its child's delete": (
        (_add("Node", _NODE), _add("Node", _CHILD), _drop("Node", _NODE), _drop("Node", _CHILD)),
        3,
    ),
    "an update before its insert": (
        (_set("Owner", _OWNER, {"name": "b"}), _add("Owner", _OWNER)),
        1,
    ),
    "an update after its delete": (
        (_add("Owner", _OWNER), _drop("Owner", _OWNER), _set("Owner", _OWNER, {"name": "b"}), _add("Owner", _OWNER)),
        3,
    ),
    "a check that a later update satisfies": (
        (
            _add("Level", {"id": 1, "low": 1, "high": 2}),
            _set("Level", {"id": 1, "low": 1, "high": 2}, {"low": 3}),
            _set("Level", {"id": 1, "low": 3, "high": 2}, {"high": 4}),
        ),
        2,
    ),
    "a version that comes later": (
        (
            _add("Draft", {"id": 1, "title": "a", "n": 1}),
            _set("Draft", {"id": 1, "title": "a", "n": 1, "version": 2}, {"n": 3}),
            _set("Draft", {"id": 1, "title": "a", "n": 1, "version": 1}, {"n": 2}),
        ),
        2,
    ),
    "two values that are exchanged without a third": (
        (
            _add("Seat", _seat(1, "a")),
            _add("Seat", _seat(2, "b", 2)),
            _set("Seat", _seat(1, "a"), {"code": "b"}),
            _set("Seat", _seat(2, "b", 2), {"code": "a"}),
        ),
        3,
    ),
}

SERVERS = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgresql", id="postgresql", marks=pytest.mark.postgresql),
    pytest.param("mariadb", id="mariadb", marks=pytest.mark.mariadb),
]


def server_of(name: str, request: pytest.FixtureRequest, directory: Path) -> str | Path:
    if name == "sqlite":
        return directory
    url: str = request.getfixturevalue({"postgresql": "postgres_server_url", "mariadb": "mariadb_server_url"}[name])
    return url


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SERVERS)
def test_batches_of_every_size_leave_equal_databases(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run_programs(server_of(name, request, tmp_path), tmp_path, QUICK[name], wrong_order=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SERVERS)
def test_what_is_refused_in_order_is_refused_in_every_batch(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_programs(server_of(name, request, tmp_path), tmp_path, QUICK[name], wrong_order=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SERVERS)
def test_the_entry_that_is_refused_in_order_is_refused_though_the_batch_would_be_accepted(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with orders(server_of(name, request, tmp_path), tmp_path) as pair:
        for what, (transactions, refused) in REFUSED.items():
            for batch_changes in (1, 3, 10_000):
                program = OrderedProgram(transactions, batch_changes, together=True)
                assert pair.check_refused(program) == [], (what, batch_changes)
                assert pair.last_refused == refused, (what, batch_changes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SERVERS)
def test_many_programs_in_batches_of_every_size_leave_equal_databases(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_programs(server_of(name, request, tmp_path), tmp_path, LARGE[name], wrong_order=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SERVERS)
def test_many_refused_programs_stop_at_the_right_entry(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_programs(server_of(name, request, tmp_path), tmp_path, LARGE[name], wrong_order=True)


# ---------------------------------------------------------------------------------------------- tests of the tests

_Changes = list[tuple[int, Any]]
"""The changes of a batch, each row by itself, with the time of its commit."""


def _table(change: Any) -> str:
    return str(change.table if isinstance(change, RowChanges) else change.tables[0])


def _kind(change: Any) -> str:
    return change.kind if isinstance(change, RowChanges) else "statement"


def _by_table(changes: _Changes) -> _Changes:
    return sorted(changes, key=lambda change: _table(change[1]))


def _row_changes_by_table(changes: _Changes) -> _Changes:
    """Statements stay where they are; what lies between two of them is sorted."""
    return _between_statements(changes, lambda part: sorted(part, key=lambda change: _table(change[1])))


def _between_statements(changes: _Changes, order: Callable[[_Changes], _Changes]) -> _Changes:
    found: _Changes = []
    part: _Changes = []
    for change in changes:
        if isinstance(change[1], RowChanges):
            part.append(change)
        else:
            found += [*order(part), change]
            part = []
    return found + order(part)


def _kinds_in_order(*order: str) -> Callable[[_Changes], _Changes]:
    return lambda changes: _between_statements(
        changes, lambda part: sorted(part, key=lambda change: order.index(_kind(change[1])))
    )


def _within_a_table(order: tuple[str, ...], name: str | None = None) -> Callable[[_Changes], _Changes]:
    """Tables keep their places among each other; the changes of each one (or of this one) are sorted by kind."""

    def sort(part: _Changes) -> _Changes:
        places: dict[str, list[int]] = {}
        for index, (_, change) in enumerate(part):
            places.setdefault(_table(change), []).append(index)
        found = list(part)
        for table, indices in places.items():
            if name is not None and table != name:
                continue
            for place, index in zip(
                indices, sorted(indices, key=lambda i: order.index(_kind(part[i][1]))), strict=True
            ):
                found[place] = part[index]
        return found

    return lambda changes: _between_statements(changes, sort)


def _statements_last(changes: _Changes) -> _Changes:
    return sorted(changes, key=lambda change: not isinstance(change[1], RowChanges))


def _keys(change: Any) -> tuple[Any, ...]:
    """Where a row is before a change. Of an insert the columns that are named like a key."""
    if change.kind == "insert":
        return tuple(change.rows[0][:1])
    return tuple(change.rows[0][len(change.columns) :][:1])


def _last_update_only(changes: _Changes) -> _Changes:
    """Of several updates of one row with the same columns the last one is kept, at its place."""

    def fold(part: _Changes) -> _Changes:
        found: dict[Any, tuple[int, Any]] = {}
        for index, (at, change) in enumerate(part):
            same = (_table(change), change.columns, tuple(change.rows[0][len(change.columns) :]))
            key: Any = same if change.kind == "update" else index
            found.pop(key, None)
            found[key] = (at, change)
        return list(found.values())

    return _between_statements(changes, fold)


def _first_place_of_the_last_update(changes: _Changes) -> _Changes:
    def fold(part: _Changes) -> _Changes:
        found: dict[Any, tuple[int, Any]] = {}
        for index, (at, change) in enumerate(part):
            same = (_table(change), change.columns, tuple(change.rows[0][len(change.columns) :]))
            found[same if change.kind == "update" else index] = (at, change)
        return list(found.values())

    return _between_statements(changes, fold)


def _insert_and_delete_cancelled(changes: _Changes) -> _Changes:
    """A row that is inserted and then deleted is left out, whatever happened to it in between."""

    def fold(part: _Changes) -> _Changes:
        found = list(part)
        for place, (_, change) in enumerate(part):
            if change.kind != "insert":
                continue
            for later in range(place + 1, len(part)):
                other = part[later][1]
                if other.kind == "delete" and _table(other) == _table(change) and _keys(other) == _keys(change):
                    gone = [i for i in range(place, later + 1) if _table(part[i][1]) == _table(change)]
                    return fold([entry for i, entry in enumerate(part) if i not in gone])
        return found

    return _between_statements(changes, fold)


def _adjacent_exchanged(changes: _Changes) -> _Changes:
    """Every second change comes before the one in front of it where both are of one table."""

    def exchange(part: _Changes) -> _Changes:
        found = list(part)
        for index in range(0, len(found) - 1, 2):
            if _table(found[index][1]) == _table(found[index + 1][1]):
                found[index], found[index + 1] = found[index + 1], found[index]
        return found

    return _between_statements(changes, exchange)


def _rows_backwards(changes: _Changes) -> _Changes:
    """Equal shapes that stand next to each other, the last one first: what a set-based statement might do."""
    found: _Changes = []
    run: _Changes = []
    for change in changes:
        same = (
            run
            and isinstance(change[1], RowChanges)
            and isinstance(run[-1][1], RowChanges)
            and change[1].shape_key() == run[-1][1].shape_key()
        )
        if not same:
            found += reversed(run)
            run = []
        run.append(change)
    return [*found, *reversed(run)]


def _unrelated_statements_forward(changes: _Changes) -> _Changes:
    """A statement goes before row changes of other tables than those that it writes; what it reads is not asked."""
    found: _Changes = []
    for change in changes:
        place = len(found)
        if not isinstance(change[1], RowChanges):
            while place and _table(found[place - 1][1]) not in map(str, change[1].tables):
                place -= 1
        found.insert(place, change)
    return found


def _actions_forgotten(changes: _Changes) -> _Changes:
    """Deletes go to the end of the batch, past every change of another table."""

    def sort(part: _Changes) -> _Changes:
        found: _Changes = []
        for change in reversed(part):
            place = 0
            if change[1].kind == "delete":
                while place < len(found) and _table(found[place][1]) != _table(change[1]):
                    place += 1
            found.insert(place, change)
        return found

    return _between_statements(changes, sort)


WRONG: dict[str, Callable[[_Changes], _Changes]] = {
    "sorted by table": _by_table,
    "row changes sorted by table": _row_changes_by_table,
    "inserts, updates, deletes": _kinds_in_order("insert", "update", "delete"),
    "deletes, inserts, updates": _kinds_in_order("delete", "insert", "update"),
    "updates, deletes, inserts": _kinds_in_order("update", "delete", "insert"),
    "deletes first within a table": _within_a_table(("delete", "insert", "update")),
    "updates first within a table": _within_a_table(("update", "insert", "delete")),
    "inserts first within a table": _within_a_table(("insert", "update", "delete")),
    "only in the seats": _within_a_table(("delete", "insert", "update"), "seat"),
    "only in the drafts": _within_a_table(("delete", "insert", "update"), "draft"),
    "only in the watched": _within_a_table(("delete", "update", "insert"), "watched"),
    "statements last": _statements_last,
    "the last update only": _last_update_only,
    "the last update at the place of the first": _first_place_of_the_last_update,
    "insert and delete cancelled": _insert_and_delete_cancelled,
    "neighbours exchanged": _adjacent_exchanged,
    "rows of one statement backwards": _rows_backwards,
    "statements that read are let past": _unrelated_statements_forward,
    "deletes let past other tables": _actions_forgotten,
}

MUTANT_PROGRAMS = 400


def mutated(order: Callable[[_Changes], _Changes]) -> Callable[..., int]:
    """`apply_changes`, with the changes of the whole batch in another order."""

    def wrong(target: Any, change_sets: Any, *arguments: Any, **options: Any) -> int:
        batch = [change_sets] if isinstance(change_sets, ChangeSet) else list(change_sets)
        if options.get("row_by_row") or len(batch) < 2:
            # The right order once an entry is alone: what a reordering does is what it does to batches.
            return apply_changes(target, batch, *arguments, **options)
        changes: _Changes = []
        for change_set in batch:
            for change in change_set.changes:
                if isinstance(change, RowChanges):
                    rows = [change.with_rows([row], change.must_match) for row in change.rows]
                    changes += [(change_set.commit_time_ns, row) for row in rows]
                else:
                    changes.append((change_set.commit_time_ns, change))
        ordered = [ChangeSet(at, "", {}, [change], batch[0].entry_id) for at, change in order(changes)]
        return apply_changes(target, ordered, *arguments, **options)

    return wrong


ONLY_TRIGGERS_SEE = ("deletes let past other tables",)
"""Where the constraints refuse every other wrong order, and the batch is then applied rightly, entry by entry."""

QUICKLY_FOUND = ("deletes first within a table", "rows of one statement backwards")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICKLY_FOUND else pytest.mark.slow) for name in WRONG]
)
def test_a_wrong_order_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mutant is found by one of the two properties, with batches of two entries and more."""
    with orders(tmp_path, tmp_path) as pair:
        monkeypatch.setattr("walsync.checkpoint.transaction.apply_changes", mutated(WRONG[name]))
        for index in range(MUTANT_PROGRAMS):
            source = random.Random(f"mutant {index}")
            program = pair.write(source, False if name in ONLY_TRIGGERS_SEE else None)
            whole = replace(program, batch_changes=10_000, together=True)
            # That a batch is refused would be found sooner; here the databases alone must show it.
            if pair.check_equal(whole, written=True, repeated_is_wrong=False):
                print(f"found by program {index}, which succeeds directly")
                return
            if pair.check_refused(replace(moved(program, source), batch_changes=10_000)):
                print(f"found by program {index} in a wrong order")
                return
        raise AssertionError(f"{MUTANT_PROGRAMS} programs did not find the wrong order {name!r}")


@pytest.mark.timeout(300)
def test_the_right_order_is_not_found_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mutants do to a batch besides reordering it is nothing."""
    with orders(tmp_path, tmp_path) as pair:
        monkeypatch.setattr("walsync.checkpoint.transaction.apply_changes", mutated(list))
        for index in range(15):
            source = random.Random(f"mutant {index}")
            program = pair.write(source)
            whole = replace(program, batch_changes=10_000, together=True)
            assert pair.check_equal(whole, written=True) == []
            assert pair.check_refused(replace(moved(program, source), batch_changes=10_000)) == []

"""Puts the changes of a batch into few steps, each of one shape, without changing what the batch does.

A transaction of an application changes a row here and two there, so in the order of the log a batch is a long list of
short statements. Here a change is put into an earlier step of its own shape, past changes of other shapes, where the
target's catalogue proves that it makes no difference. The steps are executed in their order, and the rows of a step in
theirs.

**What is kept.** Let A stand before B in the log. B's step is never before A's, and B's row never before A's row within
a step, if

- they touch the same row, or rows that cannot be told apart;
- B takes a value of a unique set that A may have given up, or the other way round (*acquire*, *release*);
- A makes, removes or renames a row that B refers to by a foreign key, or stops referring to, or the other way round
  (*refer*, *unrefer*);
- one of them changes rows in the other's table by an action of a foreign key (ON DELETE CASCADE and its like);
- both draw from one sequence of the target;
- one of them is a recorded statement, or a change of a table of which too little is known (*barrier*): nothing at all
  is moved past it.

**What follows.** If the batch is accepted in the order of the log, then it is accepted in this order, with the same
rows in the end, or refused in this order; and if it is refused in the order of the log, then it is refused in this one
too. So an entry's rejection is never hidden. The refusals that are left are those of one kind: a value of a unique set is
taken by one row after another had given it up, and which value that was could not be told from the log. A batch that is
refused is done again in the order of the log, so they cost time and nothing else (`walsync.checkpoint.transaction`).

For the proof, take any pair for which the order is not kept, and look at what each of them can make the other do: in
each case that is left out below ("acquire" after "acquire", "refer" after "release") both orders end in a refusal, as
what would have made one of them pass is itself ordered behind both.

Pure: no I/O, no clock. Costs one or two dictionary look-ups for a row, and as many again for each unique set and foreign
key of its table that matter to the batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from walsync.changes import ChangeSet, RowChanges, StatementChange
from walsync.checkpoint.catalog import UNKNOWN, TableFacts
from walsync.checkpoint.catalog.catalog import Facts
from walsync.checkpoint.footprint import Values, values_of
from walsync.checkpoint.statements import shape_of

__all__ = ["CHANGES_MAX", "Step", "arrange", "worth_arranging"]

CHANGES_MAX: Final = 100_000
"""Rows past which a batch is applied as it is: a single huge entry, most often of one shape, would need as many notes."""

_NEVER: Final = -1


@dataclass(slots=True)
class Step:
    """Rows of one shape, or a recorded statement. `rows` end with the time of their commit in microseconds where the
    shape asks for it, as `PreparedRows.bind` does."""

    change: RowChanges | StatementChange
    rows: list[Any]


def worth_arranging(change_sets: Sequence[ChangeSet]) -> bool:
    """Whether shapes alternate, so that putting equal ones together saves statements."""
    count = 0
    runs = 0
    shapes: set[Hashable] = set()
    last: Hashable = None
    for change_set in change_sets:
        for change in change_set.changes:
            key: Hashable
            if isinstance(change, RowChanges):
                count += len(change.rows)
                key = _shape_key(change)
            else:
                key = None
            if key != last:
                runs += 1
                last = key
            shapes.add(key)
    return runs > len(shapes) and count <= CHANGES_MAX


def arrange(change_sets: Iterable[ChangeSet], facts: Facts) -> list[Step]:
    """The steps of these entries. `facts` are those of their tables; a table without is a barrier."""
    sets = list(change_sets)
    arrangement = _Arrangement(_relevant(sets, facts), facts)
    for change_set in sets:
        microseconds = change_set.commit_time_ns // 1000
        for change in change_set.changes:
            arrangement.add(change, microseconds)
    return arrangement.steps


def _shape_key(change: RowChanges) -> Hashable:
    # Changes that were read from a log share the bytes of their shape.
    return (change.header, change.must_match) if change.header is not None else shape_of(change)


# --------------------------------------------------------------------------------------------------- notes


@dataclass(slots=True)
class _Values:
    """In which steps the values of one unique set were used: for each value the last one, and the last one of all.

    `any_*` are those of uses whose value is not known.
    """

    acquired: dict[Hashable, int] = field(default_factory=dict)
    released: dict[Hashable, int] = field(default_factory=dict)
    referred: dict[Hashable, int] = field(default_factory=dict)
    unreferred: dict[Hashable, int] = field(default_factory=dict)
    any_acquired: int = _NEVER
    any_released: int = _NEVER
    any_referred: int = _NEVER
    any_unreferred: int = _NEVER
    last_acquired: int = _NEVER
    last_released: int = _NEVER
    last_referred: int = _NEVER
    last_unreferred: int = _NEVER

    def before_acquire(self, value: Hashable) -> int:
        if value is UNKNOWN:
            return self.last_referred
        return max(self.released.get(value, _NEVER), self.referred.get(value, _NEVER), self.any_referred)

    def before_release(self, value: Hashable) -> int:
        if value is UNKNOWN:
            return max(self.last_acquired, self.last_unreferred)
        return max(
            self.acquired.get(value, _NEVER),
            self.any_acquired,
            self.unreferred.get(value, _NEVER),
            self.any_unreferred,
        )

    def before_refer(self, value: Hashable) -> int:
        if value is UNKNOWN:
            return self.last_acquired
        return max(self.acquired.get(value, _NEVER), self.any_acquired)

    def before_unrefer(self, value: Hashable) -> int:
        if value is UNKNOWN:
            return self.last_released
        return max(self.released.get(value, _NEVER), self.any_released)

    def acquire(self, value: Hashable, step: int) -> None:
        self.last_acquired = max(self.last_acquired, step)
        if value is UNKNOWN:
            self.any_acquired = max(self.any_acquired, step)
        else:
            self.acquired[value] = max(self.acquired.get(value, _NEVER), step)

    def release(self, value: Hashable, step: int) -> None:
        self.last_released = max(self.last_released, step)
        if value is UNKNOWN:
            self.any_released = max(self.any_released, step)
        else:
            self.released[value] = max(self.released.get(value, _NEVER), step)

    def refer(self, value: Hashable, step: int) -> None:
        self.last_referred = max(self.last_referred, step)
        if value is UNKNOWN:
            self.any_referred = max(self.any_referred, step)
        else:
            self.referred[value] = max(self.referred.get(value, _NEVER), step)

    def unrefer(self, value: Hashable, step: int) -> None:
        self.last_unreferred = max(self.last_unreferred, step)
        if value is UNKNOWN:
            self.any_unreferred = max(self.any_unreferred, step)
        else:
            self.unreferred[value] = max(self.unreferred.get(value, _NEVER), step)


@dataclass(slots=True)
class _Table:
    """The notes of one table. `slots` are its unique sets and foreign keys that matter to this batch: the columns, and
    the values that they are about (of this table, or of the one referred to)."""

    facts: TableFacts
    unique: list[tuple[tuple[str, ...], bool, _Values]] = field(default_factory=list)
    references: list[tuple[tuple[str, ...], _Values]] = field(default_factory=list)
    rows: dict[Hashable, int] = field(default_factory=dict)
    any_row: int = _NEVER
    last_row: int = _NEVER
    current: dict[Hashable, list[Hashable]] = field(default_factory=dict)
    """For rows whose values in the slots are known from this batch: one for each slot, unique sets first."""


_Use: TypeAlias = tuple[_Values, int, "Values | None"]
"""The values, the slot's place, and how the new value is read from a row (None: it cannot be told)."""


@dataclass(slots=True)
class _Plan:
    """What the rows of one shape do."""

    key: Hashable
    change: RowChanges
    table: _Table | None
    """None: a barrier."""
    row: Values | None = None
    new_row: Values | None = None
    """The row's identity afterwards, where the primary key is written by an update."""
    writes_key: bool = False
    acquires: list[_Use] = field(default_factory=list)
    releases: list[_Use] = field(default_factory=list)
    refers: list[_Use] = field(default_factory=list)
    unrefers: list[_Use] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    acts_on: list[_Table] = field(default_factory=list)
    simple: bool = True
    """Touches its row and nothing else."""


@dataclass(frozen=True, slots=True)
class _Relevant:
    """Which tables the batch changes, and those in which it makes or removes rows that others may refer to."""

    tables: frozenset[Hashable]
    moving: frozenset[Hashable]
    referred: frozenset[tuple[Hashable, tuple[str, ...]]]
    """The unique sets that foreign keys of the batch's tables point to."""


def _relevant(change_sets: list[ChangeSet], facts: Facts) -> _Relevant:
    tables: dict[Hashable, TableFacts] = {}
    moving = set()
    seen = set()
    for change_set in change_sets:
        for change in change_set.changes:
            if not isinstance(change, RowChanges):
                continue
            key = _shape_key(change)
            if key in seen:
                continue
            seen.add(key)
            found = facts.get(change.table)
            if found is None or found.opaque is not None:
                continue
            tables[found.identity] = found
            if change.kind != "update" or _touches_unique(found, change):
                moving.add(found.identity)
    referred = {
        (reference.parent, reference.parent_columns)
        for found in tables.values()
        for reference in found.references
        if reference.parent in moving
    }
    return _Relevant(frozenset(tables), frozenset(moving), frozenset(referred))


def _touches_unique(facts: TableFacts, change: RowChanges) -> bool:
    written = {facts.column(name) for name in (*change.columns, *change.commit_times)}
    return any(not found.known or written.intersection(found.columns) for found in facts.unique)


# ----------------------------------------------------------------------------------------------- arranging


class _Arrangement:
    """One call of `arrange`."""

    def __init__(self, relevant: _Relevant, facts: Facts) -> None:
        self.steps: list[Step] = []
        self._relevant = relevant
        self._facts = facts
        self._base = 0
        """The first step that is open: nothing is moved before it."""
        self._open: dict[Hashable, list[int]] = {}
        self._plans: dict[Hashable, _Plan] = {}
        self._tables: dict[Hashable, _Table] = {}
        self._values: dict[tuple[Hashable, tuple[str, ...]], _Values] = {}
        self._drawn: dict[str, int] = {}

    def add(self, change: RowChanges | StatementChange, microseconds: int) -> None:
        if isinstance(change, StatementChange):
            self._bar(Step(change, []))
            return
        key = _shape_key(change)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(key, change)
        rows: list[Any] = change.rows
        if change.commit_times:
            rows = [(*row, microseconds) for row in rows]
        if plan.table is None:
            last = self.steps[-1] if self.steps else None
            if last is not None and self._open.get(key) == [len(self.steps) - 1]:
                # Still the last one: a barrier like this one.
                last.rows.extend(rows)
            else:
                self._bar(Step(change, list(rows)))
                self._open[key] = [len(self.steps) - 1]
            return
        for row in rows:
            self._put(plan, plan.table, row)

    def _bar(self, step: Step) -> None:
        self.steps.append(step)
        self._base = len(self.steps)
        self._open.clear()

    def _put(self, plan: _Plan, table: _Table, row: Sequence[Any]) -> None:
        identity = UNKNOWN if plan.row is None else plan.row(row)
        if identity is None:
            identity = UNKNOWN
        new_identity = identity
        if plan.writes_key:
            new_identity = UNKNOWN if plan.new_row is None else plan.new_row(row)
        if identity is UNKNOWN or new_identity is UNKNOWN or new_identity is None:
            self._place(plan, row, self._use(plan, table, row, None, table.last_row), None)
            return
        floor = max(self._base, table.any_row, table.rows.get(identity, _NEVER))
        if new_identity != identity:
            floor = max(floor, table.rows.get(new_identity, _NEVER))
        ...

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

**What follows.** If the batch is accepted in the order of the log, then in this order it is accepted with the same rows
in the end, or refused; and if it is refused in the order of the log, then it is refused in this one too. So an entry's
rejection is never hidden. The refusals that are new are of one kind: a value of a unique set is taken by one row after
another had given it up, and which value that was could not be told from the log. A batch that is refused is done again
in the order of the log, so they cost time and nothing else (`walsync.checkpoint.transaction`).

For the proof, take any pair for which the order is not kept, and look at what each of them can make the other do: in
each case that is left out below ("acquire" after "acquire", "refer" after "release") both orders end in a refusal, as
what would have made one of them pass is itself ordered behind both.

Pure but for what it is given to look up rows with; no clock. Costs one or two looks into a dictionary for a row, and as
many again for each unique set and each foreign key of its table that matter to the batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from walsync.changes import ChangeSet, RowChanges, StatementChange
from walsync.checkpoint.catalog import UNKNOWN, Facts, TableFacts
from walsync.checkpoint.footprint import Values, folded_at, identities, key_places, value_places, values_at
from walsync.checkpoint.lookup import Question
from walsync.checkpoint.statements import shape_of

__all__ = ["CHANGES_MAX", "LookUp", "Step", "arrange", "worth_arranging"]

CHANGES_MAX: Final = 100_000
"""Rows past which a batch is applied as it is: a huge entry, most often of one shape, would need as many notes."""

LookUp: TypeAlias = Callable[[Question], list[Sequence[Any]]]

_LOOK_UP_MIN: Final = 2
"""A single row is not worth a statement."""

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


def arrange(change_sets: Iterable[ChangeSet], facts: Facts, look_up: LookUp | None = None) -> list[Step]:
    """The steps of these entries. `facts` are those of their tables; a table without is a barrier.

    `look_up` answers for rows as they are before the batch (`walsync.checkpoint.lookup`). It is called once for a table
    at most, where what a removed row referred to makes a difference; without it more keeps its order.
    """
    sets = list(change_sets)
    arrangement = _Arrangement(sets, facts)
    if look_up is not None:
        arrangement.learn(sets, look_up)
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
class _Uses:
    """In which steps values were used in one way: for each value the last one."""

    steps: dict[Hashable, int] = field(default_factory=dict)
    unknown: int = _NEVER
    """The last use of a value that is not known."""
    last: int = _NEVER

    def note(self, value: Hashable, step: int) -> None:
        self.last = max(self.last, step)
        if value is UNKNOWN:
            self.unknown = max(self.unknown, step)
        else:
            self.steps[value] = max(self.steps.get(value, _NEVER), step)

    def last_of(self, value: Hashable) -> int:
        """The last step that may have used this value."""
        return self.last if value is UNKNOWN else max(self.steps.get(value, _NEVER), self.unknown)


@dataclass(slots=True)
class _Values:
    """How the values of one unique set were used, and which uses must stand before another one."""

    acquired: _Uses = field(default_factory=_Uses)
    released: _Uses = field(default_factory=_Uses)
    referred: _Uses = field(default_factory=_Uses)
    unreferred: _Uses = field(default_factory=_Uses)

    def before_acquire(self, value: Hashable) -> int:
        # A value given up without saying which may be this one: then the target refuses it, and nothing is hidden.
        return max(self.released.steps.get(value, _NEVER), self.referred.last_of(value))

    def before_release(self, value: Hashable) -> int:
        return max(self.acquired.last_of(value), self.unreferred.last_of(value))

    def before_refer(self, value: Hashable) -> int:
        return self.acquired.last_of(value)

    def before_unrefer(self, value: Hashable) -> int:
        return self.released.last_of(value)

    def acquire(self, value: Hashable, step: int) -> None:
        self.acquired.note(value, step)

    def release(self, value: Hashable, step: int) -> None:
        self.released.note(value, step)

    def refer(self, value: Hashable, step: int) -> None:
        self.referred.note(value, step)

    def unrefer(self, value: Hashable, step: int) -> None:
        self.unreferred.note(value, step)


@dataclass(slots=True)
class _Table:
    """The notes of one table."""

    facts: TableFacts
    sets: list[tuple[tuple[str, ...], _Values]] = field(default_factory=list)
    """Columns whose values matter to other changes of the batch: its unique sets, and what foreign keys point to.
    Columns without a name stand for a set of which nothing can be told."""
    references: list[tuple[tuple[str, ...], TableFacts, tuple[str, ...], _Values]] = field(default_factory=list)
    """Its foreign keys to tables of the batch: columns, and the columns and values of the other table."""
    rows: dict[Hashable, int] = field(default_factory=dict)
    any_row: int = _NEVER
    last_row: int = _NEVER
    current: dict[Hashable, dict[int, Hashable]] = field(default_factory=dict)
    """For rows that the batch has written, or that were looked up: the values that they have now in `sets`, then
    `references`, by number."""

    def before_all(self) -> int:
        """The last step that must stand before a change of rows of this table that nobody knows."""
        floor = max(self.last_row, self.any_row)
        for _, values in self.sets:
            floor = max(floor, values.before_release(UNKNOWN), values.before_acquire(UNKNOWN))
        for *_, values in self.references:
            floor = max(floor, values.before_unrefer(UNKNOWN), values.before_refer(UNKNOWN))
        return floor

    def change_all(self, step: int) -> None:
        """Rows of this table that nobody knows are changed in this step."""
        self.any_row = max(self.any_row, step)
        self.last_row = max(self.last_row, step)
        for _, values in self.sets:
            values.release(UNKNOWN, step)
            values.acquire(UNKNOWN, step)
        for *_, values in self.references:
            values.unrefer(UNKNOWN, step)
            values.refer(UNKNOWN, step)
        self.current.clear()


class _Action(NamedTuple):
    """What a row of one shape does to one set of values."""

    before: Callable[[_Values, Hashable], int]
    after: Callable[[_Values, Hashable, int], None]
    values: _Values
    slot: int
    read: Values | None
    """How the value is got from a row; None if it is the one that the row has now, as far as that is known."""
    is_new: bool
    """The row has this value afterwards."""


@dataclass(slots=True)
class _Plan:
    """What the rows of one shape do."""

    key: Hashable
    change: RowChanges
    table: _Table | None = None
    """None: a barrier."""
    rows: list[Values] | None = None
    """How to get the identities that a row touches, before and after; None if that cannot be told."""
    actions: list[_Action] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    acts_on: list[_Table] = field(default_factory=list)
    simple: bool = True
    """Touches its row and nothing else."""


# ----------------------------------------------------------------------------------------------- arranging


class _Arrangement:
    """One call of `arrange`."""

    def __init__(self, change_sets: list[ChangeSet], facts: Facts) -> None:
        self.steps: list[Step] = []
        self._facts = facts
        self._base = 0
        """The first step that is open: nothing is moved before it."""
        self._open: dict[Hashable, list[int]] = {}
        self._plans: dict[Hashable, _Plan] = {}
        self._values: dict[tuple[Hashable, tuple[str, ...]], _Values] = {}
        self._drawn: dict[str, int] = {}
        self._tables: dict[Hashable, _Table] = {}
        self._releasing: set[Hashable] = set()
        """Tables of which the batch removes or renames rows."""
        self._make_tables(change_sets)

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
        table = plan.table
        if table is None:
            if self._open.get(key) == [len(self.steps) - 1]:
                # A barrier like the one before it.
                self.steps[-1].rows.extend(rows)
            else:
                self._bar(Step(change, list(rows)))
                self._open[key] = [len(self.steps) - 1]
            return
        for row in rows:
            self._put(plan, table, row)

    def _bar(self, step: Step) -> None:
        self.steps.append(step)
        self._base = len(self.steps)
        self._open.clear()
        for table in self._tables.values():
            # It may have changed any row.
            table.current.clear()

    def _put(self, plan: _Plan, table: _Table, row: Sequence[Any]) -> None:
        floor = max(self._base, table.any_row)
        touched: list[Hashable] = [] if plan.rows is None else [read(row) for read in plan.rows]
        known = bool(touched) and UNKNOWN not in touched and None not in touched
        if known:
            for identity in touched:
                floor = max(floor, table.rows.get(identity, _NEVER))
        else:
            floor = max(floor, table.last_row)
        if plan.simple:
            step = self._place(plan, row, floor)
        else:
            current = table.current.get(touched[0], {}) if known and plan.change.kind != "insert" else {}
            done = []
            for action in plan.actions:
                value = current.get(action.slot, UNKNOWN) if action.read is None else action.read(row)
                done.append((action, value))
                if value is not None:
                    floor = max(floor, action.before(action.values, value))
            for sequence in plan.draws:
                floor = max(floor, self._drawn.get(sequence, _NEVER))
            for other in plan.acts_on:
                floor = max(floor, other.before_all())
            step = self._place(plan, row, floor)
            for action, value in done:
                if value is not None:
                    action.after(action.values, value, step)
            for sequence in plan.draws:
                self._drawn[sequence] = max(self._drawn.get(sequence, _NEVER), step)
            for other in plan.acts_on:
                other.change_all(step)
            if known:
                self._remember(plan, table, touched, current, done)
        table.last_row = max(table.last_row, step)
        if known:
            for identity in touched:
                table.rows[identity] = max(table.rows.get(identity, _NEVER), step)
        else:
            table.any_row = max(table.any_row, step)
            table.current.clear()

    def _remember(
        self,
        plan: _Plan,
        table: _Table,
        touched: list[Hashable],
        current: dict[int, Hashable],
        done: list[tuple[_Action, Hashable]],
    ) -> None:
        """Keeps what is now known of a row's values."""
        table.current.pop(touched[0], None)
        if plan.change.kind != "delete":
            now = dict(current)
            now.update((action.slot, value) for action, value in done if action.is_new)
            table.current[touched[-1]] = now

    def _place(self, plan: _Plan, row: Sequence[Any], floor: int) -> int:
        """Puts a row into the first step of its shape from `floor` on, or into a new one."""
        steps = self._open.setdefault(plan.key, [])
        place = bisect_left(steps, floor)
        if place < len(steps):
            step = steps[place]
            self.steps[step].rows.append(row)
            return step
        step = len(self.steps)
        self.steps.append(Step(plan.change, [row]))
        steps.append(step)
        return step

    # ------------------------------------------------------------------------------------------- preparing

    def _make_tables(self, change_sets: list[ChangeSet]) -> None:
        shapes: dict[Hashable, RowChanges] = {}
        for change_set in change_sets:
            for change in change_set.changes:
                if isinstance(change, RowChanges):
                    shapes.setdefault(_shape_key(change), change)
        tables = self._tables
        moving = set()
        for change in shapes.values():
            facts = self._facts.get(change.table)
            if facts is None or facts.opaque is not None:
                continue
            tables.setdefault(facts.identity, _Table(facts))
            if change.kind != "update" or _writes_unique(facts, change):
                moving.add(facts.identity)
                if change.kind != "insert":
                    self._releasing.add(facts.identity)
        self._make_sets()
        for table in tables.values():
            for reference in table.facts.references:
                if reference.parent not in moving:
                    continue
                parent = tables[reference.parent]
                columns = reference.parent_columns
                if all(columns != others for others, _ in parent.sets):
                    parent.sets.append((columns, self._values_of(reference.parent, columns)))
                values = self._values_of(reference.parent, columns)
                table.references.append((reference.columns, parent.facts, columns, values))

    def _make_sets(self) -> None:
        for table in self._tables.values():
            for unique in table.facts.unique:
                if not unique.known:
                    table.sets.append(((), self._values_of(table.facts.identity, ("",))))
                elif set(unique.columns) != set(table.facts.primary_key):
                    # For the primary key itself, the notes about rows do.
                    table.sets.append((unique.columns, self._values_of(table.facts.identity, unique.columns)))

    def learn(self, change_sets: list[ChangeSet], look_up: LookUp) -> None:
        """Finds out what rows refer to that are removed, or made to refer to others, in a batch that also removes such
        others."""
        questions: dict[Hashable, Question] = {}
        seen: dict[Hashable, set[Hashable]] = {}
        for change_set in change_sets:
            for change in change_set.changes:
                if isinstance(change, RowChanges):
                    self._ask(change, questions, seen)
        for identity, question in questions.items():
            if len(question.rows) < _LOOK_UP_MIN:
                continue
            table = self._tables[identity]
            places = {name: place for place, name in enumerate((*question.key, *question.columns))}
            read_row = values_at(table.facts, question.key, places)
            reads = [values_at(table.facts, columns, places) for columns, _ in table.sets]
            reads += [
                folded_at(parent, others, [places.get(name) for name in columns])
                for columns, parent, others, _ in table.references
            ]
            for row in look_up(question):
                known = {slot: read(row) for slot, read in enumerate(reads) if read is not None}
                if read_row is not None:
                    table.current[read_row(row)] = known

    def _ask(
        self, change: RowChanges, questions: dict[Hashable, Question], seen: dict[Hashable, set[Hashable]]
    ) -> None:
        """Adds the rows of a change of which the values before the batch are wanted."""
        facts = self._facts.get(change.table)
        if facts is None or facts.opaque is not None:
            return
        table = self._tables[facts.identity]
        if not any(parent.identity in self._releasing for _, parent, _, _ in table.references):
            return
        readers = identities(change, facts)
        if readers is None:
            return
        written = {facts.column(name) for name in (*change.columns, *change.commit_times)}
        loses = change.kind == "delete" or (
            change.kind == "update" and any(written.intersection(columns) for columns, *_ in table.references)
        )
        noted = seen.setdefault(facts.identity, set())
        places = key_places(change, facts)
        for row in change.rows:
            identity = readers[0](row)
            if identity in noted or identity is UNKNOWN or identity is None:
                continue
            if change.kind == "insert":
                noted.add(identity)
            elif loses:
                noted.add(identity)
                question = questions.get(facts.identity)
                if question is None:
                    names = [columns for columns, _ in table.sets] + [columns for columns, *_ in table.references]
                    others = dict.fromkeys(name for columns in names for name in columns)
                    types = [change.key_types[places[name] - len(change.columns)] for name in facts.primary_key]
                    question = questions[facts.identity] = Question(
                        change.table, facts.primary_key, tuple(types), tuple(others), []
                    )
                question.rows.append(tuple([row[places[name]] for name in facts.primary_key]))

    def _values_of(self, identity: Hashable, columns: tuple[str, ...]) -> _Values:
        return self._values.setdefault((identity, columns), _Values())

    def _plan(self, key: Hashable, change: RowChanges) -> _Plan:
        facts = self._facts.get(change.table)
        if facts is None or facts.opaque is not None:
            return _Plan(key, change)
        table = self._tables[facts.identity]
        plan = _Plan(key, change, table, identities(change, facts))
        written = {facts.column(name) for name in (*change.columns, *change.commit_times)}
        is_update = change.kind == "update"
        if change.kind == "delete" or (is_update and _writes_unique(facts, change)):
            if any(identity not in self._tables for identity in facts.acted_on):
                # It changes a table of whose foreign keys nothing is known here.
                return _Plan(key, change)
            plan.acts_on = [self._tables[identity] for identity in facts.acted_on]
        if change.kind == "insert":
            plan.draws = [sequence for column, sequence in facts.drawn if column not in written]
        before, after = key_places(change, facts), value_places(change, facts)
        for slot, (columns, values) in enumerate(table.sets):
            if is_update and columns and not written.intersection(columns):
                continue
            if change.kind != "insert":
                read = values_at(facts, columns, before)
                plan.actions.append(_Action(_Values.before_release, _Values.release, values, slot, read, False))
            if change.kind != "delete":
                read = values_at(facts, columns, after) or _unknown
                plan.actions.append(_Action(_Values.before_acquire, _Values.acquire, values, slot, read, True))
        for slot, (columns, parent, parent_columns, values) in enumerate(table.references, len(table.sets)):
            if is_update and not written.intersection(columns):
                continue
            if change.kind != "insert":
                read = folded_at(parent, parent_columns, [before.get(column) for column in columns])
                plan.actions.append(_Action(_Values.before_unrefer, _Values.unrefer, values, slot, read, False))
            if change.kind != "delete":
                read = folded_at(parent, parent_columns, [after.get(column) for column in columns]) or _unknown
                plan.actions.append(_Action(_Values.before_refer, _Values.refer, values, slot, read, True))
        plan.simple = not (plan.actions or plan.draws or plan.acts_on)
        return plan


def _unknown(_: Sequence[Any]) -> Hashable:
    return UNKNOWN


def _writes_unique(facts: TableFacts, change: RowChanges) -> bool:
    written = {facts.column(name) for name in (*change.columns, *change.commit_times)}
    return any(not found.known or written.intersection(found.columns) for found in facts.unique)

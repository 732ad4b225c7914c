"""Version conflicts, found at the commit: what a `version_id_col` is for, before the transaction is recorded.

The unit of work writes "where the primary key is 5 and the version is 3". The target looks at that when the entry is
applied, and by then the session has long been told that its commit succeeded. But of two transactions that were
committed through the same journal it is known here: the last version of each row that this process has committed is
remembered, and a transaction that expects another one is refused with SQLAlchemy's `StaleDataError`, with nothing of it
recorded. The application rolls back, reads again (which waits for what it has to see) and repeats, as without walsync.

What is remembered of a row is a version, or that the version is *in doubt*. A transaction that expects

- the remembered version is recorded;
- another one, while the entry that made the remembered one is not applied, is refused: nobody can have read another;
- another one, when that entry is applied, may be stale, or may have read what somebody else (a direct transaction,
  another process) has written since. The target is asked; where it does not answer, the transaction is refused;
- any, where the version is in doubt: the target is asked as well, unless it does not answer or has yet to get entries
  of that table. Then the transaction is recorded, and the target decides when the entry is applied: no commit waits
  for the target.

Of a row that nothing is remembered of, the target decides when the entry is applied: the conflict was with somebody
else, or lies further back than `SessionConfig.tracked_versions` rows.

Looking at the rows of a transaction and remembering what it makes of them is one step under one lock, before the entry
is appended; no I/O is done under that lock. A transaction whose entry could then not be appended leaves its rows in
doubt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Select, column, literal_column, select, table
from sqlalchemy.orm.exc import StaleDataError

from walsync.changes import RowChanges, StatementChange, TableName, TypeSpec, restore_type
from walsync.changes.model import Change
from walsync.wal import EntryId

if TYPE_CHECKING:
    from walsync.session.journal import Journal

__all__ = ["Ask", "VersionGuard", "WantedVersion", "has_version"]

_ASKING_MAX: Final = 5
"""How often the target is asked for one commit before it gives way to others that change the same row."""


class _Unknown:
    """A version that is in doubt, or a row that was deleted: no version is equal to it."""


_DOUBT: Final = _Unknown()
_GONE: Final = _Unknown()

_RowKey: TypeAlias = tuple[TableName, Hashable]


def _hashable(key: tuple[Any, ...]) -> Hashable:
    try:
        hash(key)
    except TypeError:
        return repr(key)  # an ARRAY in a primary key
    return key


class WantedVersion(NamedTuple):
    """One row, as a transaction wants to find it: the primary key, and the version as the last of `keys`."""

    table: TableName
    keys: tuple[str, ...]
    types: tuple[TypeSpec, ...]
    values: tuple[Any, ...]

    @property
    def row_key(self) -> _RowKey:
        return self.table, _hashable(self.values[:-1])

    @property
    def version(self) -> Any:
        return self.values[-1]


Ask: TypeAlias = Callable[[WantedVersion], bool]
"""Whether the target has this row in this version at this moment."""


class _Step(NamedTuple):
    """What a transaction does to one row, or, without a key, to rows of a table that are not known.

    `wanted`: the version that it expects, None for any. `makes`: the version that the row has afterwards.
    """

    table: TableName
    key: Hashable | None
    wanted: WantedVersion | None
    makes: Any


class _Row:
    """What is remembered of a row. `entry_id` is None while the entry is being appended."""

    __slots__ = ("age", "entry_id", "version")

    def __init__(self, version: Any, entry_id: EntryId | None, age: int) -> None:
        self.version = version
        self.entry_id = entry_id
        self.age = age


class VersionGuard:
    """Remembers versions, and refuses transactions. Thread-safe.

    `rows_max`: of how many rows; 0 for none. `applied` tells the last entry that is in the target, `must_wait` whether
    entries that touch these tables are not there yet.
    """

    def __init__(
        self, rows_max: int, applied: Callable[[], EntryId], must_wait: Callable[[frozenset[TableName]], bool]
    ) -> None:
        self._rows_max = rows_max
        self._applied = applied
        self._must_wait = must_wait
        self.forget_all()

    def forget_all(self) -> None:
        """Begin anew, with a lock of one's own: in a forked child, what is remembered is the parent's."""
        self._lock = threading.Lock()  # guards all that follows; nothing is called under it that waits
        self._rows: dict[_RowKey, _Row] = {}  # the one that was changed last is the last
        # The version's column of each table that has one, and how often rows were changed that are not known.
        self._versions: dict[TableName, str] = {}
        self._ages: dict[TableName, int] = {}

    def append(self, changes: Sequence[Change], ask: Ask, append: Callable[[], EntryId]) -> EntryId:
        """Append a transaction with these changes, unless it conflicts. `append` does it, and returns the entry's id.

        Raises `StaleDataError` with nothing appended, and what `append` raises. Asks the target only where that is
        needed, and blocks for that.
        """
        if not self.concerns(changes):
            return append()
        reserved = self._reserve(list(self._steps(changes)), ask)
        entry_id: EntryId | None = None
        try:
            entry_id = append()
        finally:
            self._settle(reserved, entry_id)
        return entry_id

    # ------------------------------------------------------------------------------------------ the changes

    def concerns(self, changes: Sequence[Change]) -> bool:
        """Whether there is a version in these changes, or what was remembered may become untrue by them."""
        known = self._versions
        for change in changes:
            if isinstance(change, RowChanges):
                places = change.places
                if places is not None and places.expected is not None and change.must_match and self._rows_max:
                    return True
                if known and (change.table in known or not known.keys().isdisjoint(change.acts_on)):
                    return True
            elif (change.row is not None and self._rows_max) or not known.keys().isdisjoint(change.tables):
                return True
        return False

    def _steps(self, changes: Sequence[Change]) -> Iterator[_Step]:
        for change in changes:
            if isinstance(change, StatementChange):
                yield from self._statement_steps(change)
                continue
            yield from self._row_steps(change)
            for other in change.acts_on:
                yield _Step(other, None, None, _DOUBT)

    def _statement_steps(self, change: StatementChange) -> Iterator[_Step]:
        row = change.row
        if row is None or len(change.tables) != 1:
            for name in change.tables:
                yield _Step(name, None, None, _DOUBT)
            return
        (name,) = change.tables
        self._versions.setdefault(name, row.keys[-1])
        wanted = WantedVersion(name, row.keys, row.key_types, row.key_values)
        yield _Step(name, wanted.row_key[1], wanted, row.new[0] if row.new else _DOUBT)

    def _row_steps(self, change: RowChanges) -> Iterator[_Step]:
        name, places = change.table, change.places
        if places is None or places.key is None:
            yield _Step(name, None, None, _DOUBT)
            return
        key_places, expected, new = places.key, places.expected, places.new
        checked = expected is not None and change.must_match
        if checked:
            assert places.version is not None
            self._versions.setdefault(name, places.version)
        elif change.kind == "update" and places.moved_key is None and self._versions.get(name) not in change.columns:
            return  # it leaves versions alone
        width = len(change.columns)
        order = [*key_places, *([] if expected is None else [expected])]
        keys = tuple([change.keys[place - width] for place in order]) if change.keys else ()
        types = tuple([change.key_types[place - width] for place in order]) if change.keys else ()
        for row in change.rows:
            key = _hashable(tuple([row[place] for place in key_places]))
            wanted = None
            makes: Any = _GONE if change.kind == "delete" else _DOUBT
            if checked:
                wanted = WantedVersion(name, keys, types, tuple([row[place] for place in order]))
                if new is not None:
                    makes = row[new]
            if places.moved_key is None:
                yield _Step(name, key, wanted, makes)
            else:
                yield _Step(name, key, wanted, _GONE if checked else _DOUBT)
                yield _Step(name, _hashable(tuple([row[place] for place in places.moved_key])), None, makes)

    # ------------------------------------------------------------------------------------------ the decision

    def _reserve(self, steps: list[_Step], ask: Ask) -> list[tuple[_RowKey, _Row]]:
        """Remember what the transaction makes of its rows, if nothing speaks against it."""
        doubtful: list[tuple[WantedVersion, _Row]] = []
        for _ in range(_ASKING_MAX):
            with self._lock:
                doubtful = self._look(steps)
                if not doubtful:
                    return self._remember(steps)
            for wanted, seen in doubtful:
                age = self._ages.get(wanted.table, 0)  # before asking: what is changed after that is not in the answer
                if not self._answer(ask, wanted, seen):
                    raise _stale(wanted)
                with self._lock:
                    # Unless somebody was faster, who then is the one to compare with.
                    if self._rows.get(wanted.row_key) is seen:
                        self._rows[wanted.row_key] = _Row(wanted.version, EntryId(0), age)
        raise _stale(doubtful[0][0])

    def _answer(self, ask: Ask, wanted: WantedVersion, seen: _Row) -> bool:
        in_doubt = seen.version is _DOUBT or seen.age != self._ages.get(wanted.table, 0)
        if in_doubt and self._must_wait(frozenset((wanted.table,))):
            return True
        try:
            return ask(wanted)
        except Exception as error:
            # Whatever the driver raises.
            if in_doubt:
                return True
            raise StaleDataError(
                f"{_place(wanted)} was changed since by this process, and whether it is in the version "
                f"{wanted.version!r:.80} again cannot be asked ({type(error).__name__}: {error}). Nothing was "
                "committed: roll back, read it again and repeat"
            ) from error

    def _look(self, steps: list[_Step]) -> list[tuple[WantedVersion, _Row]]:
        """What the target must be asked about. Raises `StaleDataError`. The lock is held."""
        applied = self._applied()
        doubtful: list[tuple[WantedVersion, _Row]] = []
        own: set[Any] = set()  # rows, and tables, that the transaction itself has changed before
        for step in steps:
            place: _RowKey = (step.table, step.key)
            if step.wanted is not None and place not in own and step.table not in own:
                row = self._rows.get(place)
                if row is not None and not self._agrees(step.wanted, row, applied):
                    doubtful.append((step.wanted, row))
            own.add(step.table if step.key is None else place)
        return doubtful

    def _agrees(self, wanted: WantedVersion, row: _Row, applied: EntryId) -> bool:
        """Whether the row is known to be as the transaction wants it; False where one must ask."""
        is_applied = row.entry_id is not None and row.entry_id <= applied
        if not is_applied and row.entry_id is None:
            # Somebody is at it in this moment, and the version that this makes cannot have been read.
            raise _stale(wanted)
        if row.age != self._ages.get(wanted.table, 0) or row.version is _DOUBT:
            return False
        if row.version == wanted.version:
            return True
        if not is_applied:
            raise _stale(wanted)
        return False

    def _remember(self, steps: list[_Step]) -> list[tuple[_RowKey, _Row]]:
        """The lock is held."""
        reserved: dict[_RowKey, _Row] = {}
        rows = self._rows
        for step in steps:
            if step.key is None:
                self._ages[step.table] = self._ages.get(step.table, 0) + 1
                continue
            place = (step.table, step.key)
            if step.wanted is None and place not in rows:
                continue  # nothing to correct
            rows.pop(place, None)
            rows[place] = reserved[place] = _Row(step.makes, None, self._ages.get(step.table, 0))
        while len(rows) > self._rows_max:
            del rows[next(iter(rows))]
        return list(reserved.items())

    def _settle(self, reserved: list[tuple[_RowKey, _Row]], entry_id: EntryId | None) -> None:
        """The entry is in the log; or, with None, whether it is is not known."""
        if entry_id is not None:
            for _, row in reserved:
                row.entry_id = entry_id
            return
        with self._lock:
            for _, row in reserved:
                row.version, row.entry_id = _DOUBT, EntryId(0)


def _place(wanted: WantedVersion) -> str:
    values = zip(wanted.keys[:-1], wanted.values[:-1], strict=True)
    return f"{wanted.table}: the row with " + ", ".join(f"{name} = {value!r:.80}" for name, value in values)


def _stale(wanted: WantedVersion) -> StaleDataError:
    return StaleDataError(
        f"{_place(wanted)} is not in the version {wanted.version!r:.80} any more: a transaction that was committed "
        "since it was read has changed or deleted it. Nothing was committed: roll back, read it again and repeat"
    )


def has_version(journal: Journal, wanted: WantedVersion) -> bool:
    """Whether the target has the row in this version. Blocks for the answer; raises what the driver raises."""
    columns: list[Any] = [
        column(name, restore_type(spec)) for name, spec in zip(wanted.keys, wanted.types, strict=True)
    ]
    found = table(wanted.table.name, *columns, schema=wanted.table.schema)
    statement: Select[Any] = select(literal_column("1")).select_from(found)
    for name, value in zip(wanted.keys, wanted.values, strict=True):
        statement = statement.where(found.c[name] == value)
    return journal.ask_target(lambda connection: connection.execute(statement).first() is not None)

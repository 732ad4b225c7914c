"""Which entries are in conflict with which: by row, by table, by unique key, by foreign key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from walsync.changes import RowChanges, StatementChange, TableName
from walsync.changes.model import Change
from walsync.checkpoint.catalog import Reference, TableFacts, UniqueSet
from walsync.checkpoint.catalog.facts import fold_ascii_text, fold_integer, fold_text
from walsync.checkpoint.quarantine.held import Footprint, HeldRows

PARENTS, CHILDREN, OTHER = TableName(None, "parents"), TableName(None, "children"), TableName(None, "other")
X = TableName(None, "x")
PARENT_FACTS = TableFacts(
    identity=1,
    opaque=None,
    primary_key=("id",),
    unique=(UniqueSet(("id",)), UniqueSet(("name",))),
    acted_on=(),
    folds=(("id", fold_integer), ("name", fold_text)),
)
CHILD_FACTS = TableFacts(
    identity=2,
    opaque=None,
    primary_key=("id",),
    unique=(UniqueSet(("id",)),),
    references=(Reference(("parent_id",), 1, ("id",), acts=False),),
    folds=(("id", fold_integer), ("parent_id", fold_integer)),
)
FACTS = {PARENTS: PARENT_FACTS, CHILDREN: CHILD_FACTS}


def rows(kind: Any, table: TableName, key: int, **values: Any) -> RowChanges:
    columns = tuple(values)
    if kind == "insert":
        return RowChanges(
            kind, table, ("id", *columns), (("x",),) * (1 + len(columns)), (), (), [[key, *values.values()]]
        )
    return RowChanges(kind, table, columns, (("x",),) * len(columns), ("id",), (("x",),), [[*values.values(), key]])


def statement(sql: str, tables: list[TableName], read: list[TableName]) -> StatementChange:
    return StatementChange(sql, {}, {}, tables, read, "sqlite")


def held(*changes: Change, facts: Any = FACTS, max_values: int = 1000) -> HeldRows:
    """Entry 1 with these changes."""
    found = HeldRows(max_values)
    footprint = Footprint()
    for change in changes:
        footprint.add(change, facts)
    found.add(1, footprint)
    return found


UPDATE_PARENT = rows("update", PARENTS, 5, name="a")
INSERT_CHILD = rows("insert", CHILDREN, 9, parent_id=5)
STATEMENT = statement("UPDATE parents SET x = (SELECT 1 FROM children)", [PARENTS], [CHILDREN])


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (UPDATE_PARENT, rows("update", PARENTS, 5, balance=1), True),
        (UPDATE_PARENT, rows("delete", PARENTS, 5), True),
        (UPDATE_PARENT, rows("update", PARENTS, 6, balance=1), False),
        (UPDATE_PARENT, rows("update", CHILDREN, 5, amount=1), False),
        # The name is to be free for the held one.
        (UPDATE_PARENT, rows("insert", PARENTS, 6, name="a"), True),
        (UPDATE_PARENT, rows("insert", PARENTS, 6, name="b"), False),
        (UPDATE_PARENT, rows("update", PARENTS, 6, name=None), False),
        # What it points to is to stay.
        (INSERT_CHILD, rows("delete", PARENTS, 5), True),
        (INSERT_CHILD, rows("delete", PARENTS, 6), False),
        (INSERT_CHILD, rows("update", PARENTS, 5, name="z"), False),
        (INSERT_CHILD, rows("update", PARENTS, 5, id=6), True),
        (INSERT_CHILD, rows("insert", CHILDREN, 10, parent_id=5), False),
        (rows("insert", CHILDREN, 9, parent_id=None), rows("delete", PARENTS, 5), False),
        # The key changes: both rows are touched.
        (rows("update", PARENTS, 5, id=6), rows("update", PARENTS, 6, balance=1), True),
        # Statements.
        (STATEMENT, rows("update", PARENTS, 1, balance=1), True),
        (STATEMENT, rows("update", CHILDREN, 1, amount=1), True),
        (STATEMENT, rows("insert", OTHER, 1), False),
        (rows("update", CHILDREN, 1, amount=1), STATEMENT, True),
        (rows("update", PARENTS, 1, balance=1), STATEMENT, True),
        (statement("UPDATE other", [OTHER], [CHILDREN]), statement("DELETE FROM x", [X], [CHILDREN]), False),
        (INSERT_CHILD, statement("UPDATE parents SET x = 1", [PARENTS], []), False),
        (INSERT_CHILD, statement("DELETE FROM parents", [PARENTS], []), True),
        # What foreign keys do.
        (replace(UPDATE_PARENT, acts_on=(CHILDREN,)), rows("update", CHILDREN, 1, amount=1), True),
        (rows("update", CHILDREN, 1, amount=1), replace(rows("delete", PARENTS, 8), acts_on=(CHILDREN,)), True),
        # A table of which nothing is known is held whole.
        (rows("insert", OTHER, 1), rows("insert", OTHER, 2), True),
    ],
)  # fmt: skip
def test_conflicts(first: Change, second: Change, conflict: bool) -> None:
    assert held(first).conflicts([second], FACTS) == ({1} if conflict else set())


def test_what_the_catalogue_knows_of_foreign_keys_counts() -> None:
    facts = {**FACTS, PARENTS: replace(PARENT_FACTS, acted_on=(2,))}
    child = rows("update", CHILDREN, 1, amount=1)
    assert held(rows("delete", PARENTS, 8), facts=facts).conflicts([child], facts) == {1}
    assert held(child, facts=facts).conflicts([rows("delete", PARENTS, 8)], facts) == {1}
    assert held(child, facts=facts).conflicts([UPDATE_PARENT], facts) == set()


def test_a_catalogue_that_has_changed_makes_more_wait_and_never_fewer() -> None:
    other_fold = replace(PARENT_FACTS, folds=(("id", fold_ascii_text),))
    renamed = replace(PARENT_FACTS, identity=77)
    for facts in (None, {}, {PARENTS: other_fold}):
        assert held(UPDATE_PARENT).conflicts([rows("update", PARENTS, 6, balance=1)], facts) == {1}
        assert held(UPDATE_PARENT, facts=facts).conflicts([rows("update", PARENTS, 6, balance=1)], FACTS) == {1}
    assert held(UPDATE_PARENT).conflicts([rows("update", PARENTS, 5, balance=1)], {PARENTS: renamed}) == {1}


def test_a_table_is_one_under_all_its_names() -> None:
    public = TableName("public", "parents")
    facts = {**FACTS, public: PARENT_FACTS}
    assert held(UPDATE_PARENT).conflicts([rows("delete", public, 5)], facts) == {1}
    assert held(UPDATE_PARENT).conflicts([rows("delete", public, 6)], facts) == set()


def test_past_the_bound_whole_tables_are_held() -> None:
    found = held(UPDATE_PARENT, INSERT_CHILD, max_values=2)
    assert found.conflicts([rows("update", PARENTS, 999, balance=1)], FACTS) == {1}
    assert found.conflicts([rows("update", CHILDREN, 999, amount=1)], FACTS) == {1}


def test_what_is_removed_holds_nothing_back() -> None:
    found = held(UPDATE_PARENT, INSERT_CHILD, STATEMENT)
    footprint = Footprint()
    for change in (UPDATE_PARENT, INSERT_CHILD, STATEMENT):
        footprint.add(change, FACTS)
    found.add(2, footprint)
    later = [rows("delete", PARENTS, 5)]
    assert found.conflicts(later, FACTS) == {1, 2}
    assert found.conflicts(later, FACTS, before=2) == {1}
    found.remove(1)
    assert (found.conflicts(later, FACTS), 1 in found, len(found)) == ({2}, False, 1)
    found.remove(2)
    found.remove(2)
    assert found.conflicts(later, FACTS) == set()
    assert not found._values

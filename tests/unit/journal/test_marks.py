"""Marks: an entry that writes a table, by whatever name, bears a mark that the table's readers wait for."""

from __future__ import annotations

import pytest

from walsync.changes import TableName
from walsync.journal.marks import ANY_TABLE, awaited_marks, marks_of

ORDERS = TableName(None, "orders")


def meet(read: TableName, written: TableName) -> bool:
    return not set(awaited_marks(frozenset({read}))).isdisjoint(marks_of({written}))


@pytest.mark.parametrize("other", [ORDERS, TableName("public", "orders"), TableName(None, "Orders")])
def test_names_that_may_be_of_one_table_meet(other: TableName) -> None:
    assert meet(ORDERS, other)
    assert meet(other, ORDERS)


def test_tables_of_two_schemas_do_not_wait_for_each_other() -> None:
    assert not meet(TableName("one", "orders"), TableName("two", "orders"))
    assert meet(TableName("ONE", "orders"), TableName("one", "ORDERS"))


def test_other_tables_do_not_meet() -> None:
    names = [
        TableName(None, "a.b"),
        TableName("a", "b"),
        TableName(None, "c"),
        TableName("", "d"),
        TableName("a", "c.d"),
    ]
    for read in names:
        for written in names:
            assert meet(read, written) is (read == written)


def test_the_same_tables_have_the_same_tuple() -> None:
    assert marks_of({ORDERS}) is marks_of([ORDERS])


def test_every_read_waits_for_what_may_write_any_table() -> None:
    assert meet(ORDERS, ANY_TABLE)
    assert meet(TableName("public", "orders"), ANY_TABLE)

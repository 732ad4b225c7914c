"""Which tables a statement reads: all of them, however deep, or "unknown"."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    TableClause,
    cast,
    column,
    exists,
    func,
    insert,
    literal_column,
    select,
    table,
    text,
    union,
    update,
)

from walsync.changes import TableName
from walsync.journal.tables import StatementTables, table_name, walk

METADATA = MetaData()
a, b, c = (Table(name, METADATA, Column("id", Integer, primary_key=True)) for name in "abc")
elsewhere = Table("a", METADATA, Column("id", Integer), schema="other")


def reads(*names: str) -> frozenset[TableName]:
    return frozenset(TableName(None, name) for name in names)


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        (select(a), "a"),
        (select(a.c.id), "a"),
        (select(func.count()).select_from(a), "a"),
        (select(a).join(b, a.c.id == b.c.id), "ab"),
        (select(a.alias("x")), "a"),
        (select(select(b).subquery()), "b"),
        (select(select(b).cte("x")), "b"),
        (select(a).where(exists().where(b.c.id == a.c.id)), "ab"),
        (select(a).where(a.c.id.in_(select(b.c.id).where(b.c.id == select(c.c.id).scalar_subquery()))), "abc"),
        (union(select(a.c.id), select(b.c.id)), "ab"),
        (select(a, select(c.c.id).lateral("x")), "ac"),
        (select(table("light", column("id"))), ["light"]),
        (select(func.count(literal_column("*"))).select_from(a), "a"),
        (select(a.c.id).where(cast(a.c.id, String).startswith("1", autoescape=True)), "a"),
        (select(literal_column("'FROM b'"), literal_column("1.5"), literal_column("NULL")).select_from(a), "a"),
    ],
)
def test_the_tables_of_a_select_are_found(statement: Any, names: Any) -> None:
    assert walk([statement]) == StatementTables(reads(*names), True)


def test_a_schema_is_part_of_the_name() -> None:
    assert walk([select(elsewhere)]).reads == {TableName("other", "a")}


@pytest.mark.parametrize(
    "statement",
    [
        select(a).where(text("id IN (SELECT id FROM b)")),
        select(text("1")),
        select(literal_column("(SELECT max(id) FROM b)")),
        select(literal_column("'' || (SELECT max(id) FROM b) || ''")),
        select(literal_column(r"'\' || (SELECT max(id) FROM b) || '\'")),
        text("SELECT * FROM a"),
        text("SELECT id FROM a").columns(column("id")),
    ],
)
def test_text_hides_its_tables(statement: Any) -> None:
    assert walk([statement]).reads is None


@pytest.mark.parametrize(
    "statement",
    [
        text("SELECT 1"),
        insert(a),
        update(a).values(id=1),
        select(a).with_for_update(),
        select(select(b).with_for_update().subquery()),
        select(insert(a).values(id=1).returning(a.c.id).cte("x")),
        func.now(),
    ],
)
def test_what_is_not_a_plain_read_is_told(statement: Any) -> None:
    assert not walk([statement]).read_only


def test_names_are_plain_strings() -> None:
    quoted: TableClause = Table("Mixed Case", MetaData(), Column("id", Integer), quote=True)
    assert type(table_name(quoted).name) is str

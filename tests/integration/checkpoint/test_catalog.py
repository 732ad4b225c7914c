"""What each database says of its tables, and that nothing is moved past what is not known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    BigInteger,
    Column,
    Computed,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    create_engine,
    func,
    text,
)

from walsync.changes import TableName
from walsync.checkpoint.catalog import Catalog, TableFacts, UniqueSet
from walsync.checkpoint.catalog.facts import UNKNOWN

metadata = MetaData()
INNODB = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}

Table(
    "account",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("email", String(40), unique=True),
    Column("made", DateTime, server_default=func.now()),
    Column("level", Integer, server_default=text("3")),
    Column("word", String(5), server_default="it''s"),
    **INNODB,
)
Table(
    "entry",
    metadata,
    Column("a", Integer, primary_key=True, autoincrement=False),
    Column("b", String(10), primary_key=True),
    Column("account_id", ForeignKey("account.id", ondelete="CASCADE")),
    Column("token", Uuid, unique=True),
    UniqueConstraint("account_id", "b", name="one_of_each"),
    **INNODB,
)
Table(
    "note",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("a", Integer),
    Column("b", String(10)),
    ForeignKeyConstraint(["a", "b"], ["entry.a", "entry.b"], ondelete="SET NULL"),
    **INNODB,
)
Table(
    "mixed",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("real", Float, unique=True),
    Column("fixed", CHAR(8), unique=True),
    Column("up", ForeignKey("mixed.id")),
    Column("n", Integer),
    Column("twice", Integer, Computed("n * 2", persisted=True), unique=True),
    **INNODB,
)


@pytest.fixture
def engine(target_url: str) -> Iterator[Engine]:
    engine = create_engine(target_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def family(engine: Engine) -> str:
    return {"mariadb": "mysql"}.get(engine.dialect.name, engine.dialect.name)


def facts_of(engine: Engine, *names: str) -> list[TableFacts]:
    found = Catalog(60.0).facts(engine, [TableName(None, name) for name in names])
    assert found is not None
    facts = [found[TableName(None, name)] for name in names]
    assert all(fact is not None for fact in facts)
    return [fact for fact in facts if fact is not None]


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_keys_and_unique_sets_are_found(engine: Engine) -> None:
    account, entry, note = facts_of(engine, "account", "entry", "note")
    assert [fact.opaque for fact in (account, entry, note)] == [None, None, None]
    assert account.primary_key == ("id",)
    assert set(account.unique) == {UniqueSet(("id",)), UniqueSet(("email",))}
    assert entry.primary_key == ("a", "b")
    assert set(entry.unique) == {UniqueSet(("a", "b")), UniqueSet(("token",)), UniqueSet(("account_id", "b"))}
    assert note.unique == (UniqueSet(("id",)),)


def test_foreign_keys_and_what_they_act_on_are_found(engine: Engine) -> None:
    account, entry, note = facts_of(engine, "account", "entry", "note")
    assert account.references == ()
    (to_account,) = entry.references
    assert (to_account.columns, to_account.parent, to_account.parent_columns) == (
        ("account_id",),
        account.identity,
        ("id",),
    )
    (to_entry,) = note.references
    assert (to_entry.columns, to_entry.parent, to_entry.parent_columns) == (("a", "b"), entry.identity, ("a", "b"))
    assert set(account.acted_on) == {entry.identity, note.identity}
    assert entry.acted_on == (note.identity,)
    assert note.acted_on == ()


def test_what_acts_over_a_table_that_nobody_asked_for_is_found(engine: Engine) -> None:
    (account,) = facts_of(engine, "account")
    assert len(account.acted_on) == 2


def test_a_key_that_points_to_its_own_table_is_found(engine: Engine) -> None:
    (mixed,) = facts_of(engine, "mixed")
    (up,) = mixed.references
    assert (up.columns, up.parent, up.acts) == (("up",), mixed.identity, False)


def test_a_unique_set_over_a_generated_column_is_not_known(engine: Engine) -> None:
    (mixed,) = facts_of(engine, "mixed")
    assert UniqueSet((), known=False) in mixed.unique
    assert UniqueSet(("real",)) in mixed.unique


def test_values_fold_as_the_database_compares(engine: Engine) -> None:
    account, entry, mixed = facts_of(engine, "account", "entry", "mixed")
    folds = dict(mixed.folds)
    assert folds["real"](1.5) is UNKNOWN
    assert folds["id"](7) == 7
    assert folds["id"]("7") is UNKNOWN
    assert folds["fixed"]("a  ") == folds["fixed"]("a")
    email = dict(account.folds)["email"]
    assert email("a") != email("b")
    if family(engine) == "mysql":
        assert email("A@x") == email("a@x ")
        assert email("é") is UNKNOWN
    else:
        assert email("A@x") != email("a@x")
    token = dict(entry.folds)["token"]
    assert token("12345678-1234-5678-1234-567812345678") is not None


def test_a_column_that_the_server_numbers_is_found(engine: Engine) -> None:
    account, note = facts_of(engine, "account", "note")
    assert [column for column, _ in account.drawn] == ["id"]
    if engine.dialect.name != "sqlite":
        assert note.drawn == ()


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (
            {
                "sqlite": ["CREATE TRIGGER t AFTER INSERT ON note BEGIN SELECT 1; END"],
                "postgresql": [
                    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
                    "CREATE TRIGGER t AFTER INSERT ON note FOR EACH ROW EXECUTE FUNCTION f()",
                ],
                "mysql": ["CREATE TRIGGER t AFTER INSERT ON note FOR EACH ROW SET @seen = 1"],
            },
            "it has a trigger",
        ),
        (
            {
                "sqlite": ["DROP TABLE note", "CREATE VIEW note AS SELECT 1 AS id"],
                "postgresql": ["DROP TABLE note", "CREATE VIEW note AS SELECT 1 AS id"],
                "mysql": ["DROP TABLE note", "CREATE VIEW note AS SELECT 1 AS id"],
            },
            "view|not a plain table",
        ),
        (
            {
                "sqlite": ["CREATE TABLE other (id INTEGER PRIMARY KEY, n INTEGER DEFAULT (abs(random())))"],
                "postgresql": [
                    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                    "CREATE TABLE other (id int PRIMARY KEY, n int DEFAULT f())",
                ],
                "mysql": ["CREATE TABLE other (id INT PRIMARY KEY, n INT DEFAULT (CONNECTION_ID() + 1))"],
            },
            "default of its column n",
        ),
        ({"postgresql": ["ALTER TABLE note ENABLE ROW LEVEL SECURITY"]}, "row-level security"),
        ({"postgresql": ["CREATE TABLE other (CHECK (id > 0)) INHERITS (note)"]}, "inherits"),
        (
            {"postgresql": ["CREATE TABLE other (r int4range, EXCLUDE USING gist (r WITH &&))"]},
            "exclusion constraint",
        ),
        ({"postgresql": ["CREATE RULE r AS ON INSERT TO note DO ALSO NOTHING"]}, "rules"),
        ({"sqlite": ["CREATE TABLE other (id INTEGER PRIMARY KEY, n UNIQUE ON CONFLICT REPLACE)"]}, "ON CONFLICT"),
        ({"mysql": ["CREATE TABLE other (id INT PRIMARY KEY) ENGINE=MyISAM"]}, "InnoDB"),
    ],
    ids=["trigger", "view", "default", "policy", "inherits", "exclusion", "rule", "conflict clause", "engine"],
)
def test_what_may_act_on_its_own_is_opaque(engine: Engine, statements: dict[str, list[str]], reason: str) -> None:
    mine = statements.get(family(engine))
    if mine is None:
        pytest.skip(f"{engine.dialect.name} has no such thing")
    run(engine, *mine)
    name = "other" if "other" in " ".join(mine) and "INHERITS" not in " ".join(mine) else "note"
    (facts,) = facts_of(engine, name)
    assert facts.opaque is not None
    assert any(word in facts.opaque for word in reason.split("|"))


PARTITIONED = (
    "CREATE TABLE parted (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
    "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE child (id int PRIMARY KEY, parted_id int, at int, FOREIGN KEY (parted_id, at) REFERENCES parted)",
)


def test_a_table_in_partitions_is_a_table(engine: Engine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("the two others have no partitions, or nothing can be different about one of them")
    run(engine, *PARTITIONED)
    parted, child = facts_of(engine, "parted", "child")
    assert parted.opaque is None
    assert parted.primary_key == ("id", "at")
    (reference,) = child.references
    assert reference.parent == parted.identity


@pytest.mark.parametrize(
    "statements",
    [
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER t AFTER INSERT ON parted_1 FOR EACH ROW EXECUTE FUNCTION f()",
        ),
        ("CREATE UNIQUE INDEX one_id ON parted_1 (id)",),
        ("ALTER TABLE parted_1 ADD FOREIGN KEY (id) REFERENCES note",),
        ("CREATE TABLE other (id int, at int, FOREIGN KEY (id, at) REFERENCES parted_1)",),
    ],
    ids=["trigger", "unique index", "foreign key", "pointed to"],
)
def test_a_partition_with_something_of_its_own_makes_its_table_opaque(
    engine: Engine, statements: tuple[str, ...]
) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("the two others have no partitions, or nothing can be different about one of them")
    run(engine, *PARTITIONED, *statements)
    parted, partition = facts_of(engine, "parted", "parted_1")
    assert parted.opaque is not None
    assert "partition" in parted.opaque
    assert partition.opaque is not None


def test_a_partial_unique_index_is_not_known(engine: Engine) -> None:
    if family(engine) == "mysql":
        pytest.skip("MariaDB has no partial indexes")
    run(engine, "CREATE UNIQUE INDEX partly ON note (a) WHERE a > 3")
    (note,) = facts_of(engine, "note")
    assert UniqueSet((), known=False) in note.unique


def test_an_identity_is_a_number_of_the_server(engine: Engine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("the two others number in one way only")
    table = Table("numbered", MetaData(), Column("id", Integer, Identity(always=True), primary_key=True))
    table.create(engine)
    (facts,) = facts_of(engine, "numbered")
    assert [column for column, _ in facts.drawn] == ["id"]


def test_a_user_who_may_not_see_triggers_is_told_nothing(engine: Engine, target_url: str) -> None:
    if family(engine) != "mysql":
        pytest.skip("elsewhere every user sees all triggers")
    database = engine.url.database
    run(
        engine,
        f"CREATE USER IF NOT EXISTS 'narrow_{database}'@'%%' IDENTIFIED BY 'narrow'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO 'narrow_{database}'@'%%'",
    )
    narrow = create_engine(engine.url.set(username=f"narrow_{database}", password="narrow"))
    try:
        (note,) = facts_of(narrow, "note")
        assert note.opaque is not None
        assert "TRIGGER" in note.opaque
    finally:
        narrow.dispose()
        run(engine, f"DROP USER 'narrow_{database}'@'%%'")


def test_a_server_that_changes_values_is_told_apart(engine: Engine) -> None:
    if family(engine) != "mysql":
        pytest.skip("the two others do not change values silently")
    lax = create_engine(engine.url, connect_args={"init_command": "SET SESSION sql_mode = ''"})
    (note,) = facts_of(lax, "note")
    lax.dispose()
    assert note.opaque is not None
    assert "strict" in note.opaque


def test_a_missing_table_has_no_facts(engine: Engine) -> None:
    found = Catalog(60.0).facts(engine, [TableName(None, "nowhere"), TableName("nosuch", "note")])
    assert found == {TableName(None, "nowhere"): None, TableName("nosuch", "note"): None} or (
        engine.dialect.name == "sqlite" and found is None
    )


def test_facts_are_read_again_when_they_are_old_or_forgotten(engine: Engine) -> None:
    now = [100.0]
    catalog = Catalog(10.0, clock=lambda: now[0])
    asked: list[Any] = []

    def state() -> bool:
        found = catalog.facts(engine, [TableName(None, "later")])
        asked.append(found)
        return found is not None and found[TableName(None, "later")] is not None

    assert not state()
    run(engine, "CREATE TABLE later (id INTEGER PRIMARY KEY)")
    assert not state()
    now[0] += 11
    assert state()
    run(engine, "DROP TABLE later")
    assert state()
    catalog.forget()
    assert not state()


def test_a_database_that_is_not_known_has_no_facts() -> None:
    engine = create_engine("sqlite://")
    engine.dialect.name = "unheard-of"
    assert Catalog(60.0).facts(engine, [TableName(None, "note")]) is None

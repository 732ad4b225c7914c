"""The tests of the test: the planner's programs are valid, and the comparison sees every difference."""

from __future__ import annotations

import itertools
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Column, Connection, Engine
from sqlalchemy.exc import DBAPIError

from tests.differential.comparison import CLOCK, differences, differences_between, generated_key
from tests.differential.interpreter import Interpreter
from tests.differential.planner import Operation, Program, plan
from tests.differential.programs import program_bytes
from tests.differential.schema import Base
from tests.differential.sides import DirectSide, empty, pair_of_databases

pytestmark = pytest.mark.filterwarnings("ignore:Dialect sqlite.* does .not. support Decimal:sqlalchemy.exc.SAWarning")

TOKEN = {"id": uuid.UUID(int=5, version=4), "label": "token-1"}

# A row in every table, and a second one in most, so that a reference can be turned to another row.
POPULATION: tuple[Operation, ...] = (
    ("add", "Executive", "person-1", {"name": "A", "email": "a@example.org", "balance": 1, "budget": 5}, {}),
    ("add", "Employee", "person-2", {"name": "B", "balance": 2}, {"manager": "person-1"}),
    ("add", "Person", "person-3", {}, {}),
    ("add", "Tag", "tag-1", {"name": "one"}, {}),
    ("add", "Tag", "tag-2", {"name": "two", "weight": 3}, {}),
    ("add", "Report", "doc-1", {"title": "t", "pages": 3}, {"author": "person-1", "tags": ["tag-1"]}),
    ("add", "Weblink", "doc-2", {"title": "u", "url": "v"}, {"author": "person-2", "tags": ["tag-1", "tag-2"]}),
    ("add", "Document", "doc-3", {}, {}),
    ("add_purchase", "buy-1", "person-1", {"remark": "r"}, [("line-1", 1, 1), ("line-2", 2, 5)]),
    ("add_purchase", "buy-2", "person-2", {"remark": "r"}, [("line-3", 3, 1)]),
    ("add", "Shipment", "ship-1", {"carrier": "c"}, {"line": "line-1"}),
    ("add", "Club", "club-1", {"code": "ONE"}, {}),
    ("add", "Club", "club-2", {"code": "TWO"}, {}),
    ("add", "Membership", "member-1", {"role": "x"}, {"person": "person-1", "club": "club-1"}),
    ("add", "Node", "node-1", {"place": 1}, {}),
    ("add", "Node", "node-2", {"place": 2}, {"parent": "node-1"}),
    ("add", "Account", "account-1", {"code": "C1", "amount": 1}, {}),
    ("add", "Counter", "counter-1", {"slot": 1, "n": 4}, {}),
    ("add", "Setting", "setting-1", {"section": "s", "name": 1, "value": "v"}, {}),
    ("commit",),
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    with pair_of_databases(tmp_path_factory.mktemp("planner")) as pair:
        yield pair


def program_of(*operations: Operation) -> Program:
    return Program(operations, expire_on_commit=False, batch_changes=1, dialect="sqlite")


def both(engines: tuple[Engine, Engine], program: Program, skip: int | None = None) -> list[str]:
    """Runs a program on both databases, the second time without one operation, and tells what differs."""
    for engine in engines:
        empty(engine)
    first = Interpreter(DirectSide(engines[0]), program).run()
    second = Interpreter(DirectSide(engines[1]), program, skip).run()
    read = [f"read {one!r} and {two!r}" for one, two in zip(first, second, strict=True) if one != two]
    return differences(*engines) + read


@pytest.mark.slow
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(program_bytes())
def test_a_program_run_directly_twice_is_never_refused_and_leaves_equal_databases(
    engines: tuple[Engine, Engine], data: bytes
) -> None:
    assert both(engines, plan(data, "sqlite")) == []


def test_random_bytes_reach_every_operation() -> None:
    source = random.Random(1)
    seen = Counter(name for _ in range(150) for name, *_ in plan(source.randbytes(400), "sqlite").operations)
    operations = {
        name
        for name in vars(Interpreter)
        if not name.startswith("_") and name != "run" and callable(getattr(Interpreter, name))
    }
    assert operations - set(seen) == set()


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([("add", "Tag", "tag-9", {"name": "nine"}, {})], id="insert"),
        pytest.param([("set_fields", "Account", "account-1", {"amount": 99})], id="update"),
        pytest.param([("set_fields", "Executive", "person-1", {"budget": 99})], id="update of the third joined table"),
        pytest.param([("delete", "Shipment", "ship-1")], id="delete"),
        pytest.param([("point", "Weblink", "doc-2", "author", "person-1")], id="reference"),
        pytest.param([("change_tags", "Report", "doc-1", ["tag-2"])], id="association"),
        pytest.param([("drop_line", "line-2", "buy-1")], id="orphan"),
        pytest.param([("expression", "Counter", "counter-1", "n", 1)], id="expression"),
        pytest.param([("update_where", "account", 5, 0, "auto")], id="statement"),
        pytest.param([("bulk_insert", "Counter", "execute", [{"label": "bulk-1", "n": 1}])], id="bulk"),
        pytest.param([("core_transaction", [TOKEN], "setting-1", False)], id="core"),
    ],
)
def test_a_change_that_is_dropped_is_seen(engines: tuple[Engine, Engine], operations: list[Operation]) -> None:
    program = program_of(*POPULATION, *operations, ("commit",))
    assert both(engines, program) == []
    assert both(engines, program, skip=len(POPULATION)) != []


def test_a_change_that_is_made_twice_is_seen(engines: tuple[Engine, Engine]) -> None:
    twice = program_of(*POPULATION, ("raw_update", 1), ("raw_update", 1), ("commit",))
    assert both(engines, twice, skip=len(POPULATION)) != []


def _altered(connection: Connection, column: Column[Any]) -> bool:
    """Gives one row another value in this column; False where the database would not have it."""
    table, name = column.table.name, f'"{column.name}"'
    if column.foreign_keys:
        target = next(iter(column.foreign_keys)).column
        other = f'SELECT "{target.name}" FROM "{target.table.name}"'
        candidates = [f'{other} WHERE "{target.name}" NOT IN (SELECT {name} FROM "{table}") LIMIT 1']
        candidates += [f"{other} ORDER BY 1 {order} LIMIT 1" for order in ("ASC", "DESC")]
    else:
        candidates = [f"{name} + 1", f"{name} || 'x'", "'2001-02-03 04:05:06'", "1", "x'00'"]
    look = f'SELECT {name}, typeof({name}) FROM "{table}"'
    before = connection.exec_driver_sql(look).all()
    # Which row came first may differ from run to run, and not each of them takes each value.
    rows = connection.exec_driver_sql(f'SELECT rowid FROM "{table}" ORDER BY 1').scalars().all()
    for candidate, row in itertools.product((*candidates, "NULL"), rows):
        savepoint = connection.begin_nested()
        change = f'UPDATE "{table}" SET {name} = ({candidate}) WHERE rowid = {row}'
        try:
            connection.exec_driver_sql(change)
        except DBAPIError:
            savepoint.rollback()
            continue
        if connection.exec_driver_sql(look).all() != before:
            return True
        savepoint.rollback()
    return False


def test_a_difference_in_any_column_of_any_table_is_seen(engines: tuple[Engine, Engine]) -> None:
    specimen = {"c_integer": 1, "c_text": "x", "c_enum_words": "small"}
    more: tuple[Operation, ...] = (
        ("add", "Specimen", "specimen-1", specimen, {}),
        ("commit",),
        ("core_transaction", [{**TOKEN, "note": "n"}], None, False),
    )
    assert both(engines, program_of(*POPULATION[:-1], *more)) == []
    seen, not_alterable = 0, set()
    with engines[0].connect() as direct:
        for table in Base.metadata.sorted_tables:
            for column in table.columns:
                if generated_key(column) is column or (table.name, column.name) in CLOCK:
                    continue
                with engines[1].connect() as connection:
                    connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
                    if _altered(connection, column):
                        found = differences_between(direct, connection)
                        assert any(line.startswith(table.name) and column.name in line for line in found), column
                        seen += 1
                    else:
                        not_alterable.add(f"{table.name}.{column.name}")
                    connection.rollback()
    assert not_alterable <= {"counter.doubled"}
    assert seen > 100


def test_a_row_too_many_and_a_row_too_few_are_seen(engines: tuple[Engine, Engine]) -> None:
    assert both(engines, program_of(*POPULATION)) == []
    with engines[0].connect() as direct, engines[1].connect() as connection:
        connection.exec_driver_sql("DELETE FROM shipment")
        assert any("missing" in line for line in differences_between(direct, connection))
        connection.rollback()
        connection.exec_driver_sql("INSERT INTO setting VALUES ('other', 5, 'more', NULL)")
        assert any("only through walsync" in line for line in differences_between(direct, connection))
        connection.rollback()


def test_keys_that_are_merely_other_numbers_are_no_difference(engines: tuple[Engine, Engine]) -> None:
    empty(engines[0])
    Interpreter(DirectSide(engines[0]), program_of(*POPULATION)).run()
    empty(engines[1])
    ahead = [("add", "Person", "person-8", {}, {}), ("add", "Node", "node-8", {}, {}), ("flush",)]
    gone = [("delete", "Person", "person-8"), ("delete", "Node", "node-8"), ("commit",)]
    Interpreter(DirectSide(engines[1]), program_of(*ahead, *POPULATION[:-1], *gone)).run()
    keys = []
    for engine in engines:
        with engine.connect() as connection:
            keys.append(connection.exec_driver_sql("SELECT id FROM person ORDER BY label").scalars().all())
    assert keys[0] != keys[1]
    assert differences(*engines) == []

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests.unit.checkpoint.entries import change_set, delete, insert, items, metadata, statement, update
from walsync.changes import RowChanges, TableName
from walsync.checkpoint import apply as apply_module
from walsync.checkpoint import apply_changes
from walsync.exceptions import EntryRejectedError, TargetUnavailableError


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.fixture
def executed(engine: Engine) -> Iterator[list[tuple[str, int]]]:
    """What reached the driver: the statement's first word and how many rows it had."""
    seen: list[tuple[str, int]] = []

    def listen(conn: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append((sql.partition(" ")[0], len(parameters) if many else 1))

    event.listen(engine, "before_cursor_execute", listen)
    yield seen
    event.remove(engine, "before_cursor_execute", listen)


def rows(connection: Connection) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(select(items.c.id, items.c.name).order_by(items.c.id))]


def test_inserts_updates_and_deletes_arrive(connection: Connection) -> None:
    count = apply_changes(
        connection,
        change_set(insert((1, "a"), (2, "b"), (3, "c")), update(("A", 1), ("C", 3)), delete(2)),
    )
    assert count == 6
    assert rows(connection) == [(1, "A"), (3, "C")]


def test_nothing_is_committed(engine: Engine) -> None:
    with engine.connect() as connection:
        apply_changes(connection, change_set(insert((1, "a"))))
        connection.rollback()
        assert rows(connection) == []


def test_a_session_may_be_given(engine: Engine) -> None:
    with Session(engine) as session:
        apply_changes(session, [change_set(insert((1, "a")))])
        session.commit()
    with engine.connect() as connection:
        assert rows(connection) == [(1, "a")]


def test_neighbours_of_one_shape_become_one_executemany_across_entries(
    connection: Connection, executed: list[tuple[str, int]]
) -> None:
    apply_changes(connection, [change_set(insert((n, str(n)), (n + 100, str(n + 100)))) for n in range(10)])
    assert executed == [("INSERT", 20)]


def test_nothing_is_moved_past_another_shape(connection: Connection, executed: list[tuple[str, int]]) -> None:
    # The unique name goes from row to row: any other order is refused.
    apply_changes(
        connection,
        [
            change_set(insert((1, "x"))),
            change_set(update(("y", 1)), insert((2, "x"))),
            change_set(delete(1), insert((3, "y"))),
        ],
    )
    assert executed == [("INSERT", 1), ("UPDATE", 1), ("INSERT", 1), ("DELETE", 1), ("INSERT", 1)]
    assert rows(connection) == [(2, "x"), (3, "y")]


def test_rows_of_one_executemany_keep_their_order(connection: Connection) -> None:
    apply_changes(connection, change_set(insert((1, "a"), (2, "b")), update(("t", 1), ("a", 2), ("b", 1))))
    assert rows(connection) == [(1, "b"), (2, "a")]


def test_a_statement_is_a_barrier(connection: Connection) -> None:
    apply_changes(
        connection,
        [
            change_set(insert((1, "a"))),
            change_set(statement("UPDATE items SET name = name || %(s)s", "sqlite", s="!")),
            change_set(insert((2, "b"))),
        ],
    )
    assert rows(connection) == [(1, "a!"), (2, "b")]


def test_two_statements_of_one_entry_run_in_order(connection: Connection) -> None:
    apply_changes(
        connection,
        change_set(
            insert((1, "a")),
            statement("UPDATE items SET name = name || '%%b'", "sqlite"),
            statement("UPDATE items SET name = name || %(s)s", "sqlite", s="%c"),
        ),
    )
    assert rows(connection) == [(1, "a%b%c")]


def test_a_statement_that_finds_other_rows_than_it_did_is_rejected(connection: Connection) -> None:
    change = statement("UPDATE items SET name = %(s)s WHERE id < %(id)s", "sqlite", s="x", id=9)
    change.expected_rows = 1
    with pytest.raises(EntryRejectedError, match="items was to find 1 rows and found 0"):
        apply_changes(connection, change_set(change))
    apply_changes(connection, change_set(insert((1, "a")), change))
    assert rows(connection) == [(1, "x")]


@pytest.mark.parametrize("change", [update(("z", 9)), delete(9)])
def test_a_row_that_is_not_there_is_rejected_by_name(connection: Connection, change: RowChanges) -> None:
    with pytest.raises(EntryRejectedError, match=r"items: the row with id = 9 was found 0 times"):
        apply_changes(connection, change_set(change))


def test_rows_that_need_not_match_may_be_missing(connection: Connection) -> None:
    apply_changes(connection, change_set(update(("z", 9), must_match=False), delete(9, must_match=False)))


def test_a_missing_row_is_found_inside_of_an_executemany(connection: Connection) -> None:
    apply_changes(connection, change_set(insert((1, "a"), (2, "b"))))
    with pytest.raises(EntryRejectedError, match="2 of 3 rows"):
        apply_changes(connection, change_set(update(("x", 1), ("y", 9), ("z", 2))))


def test_row_by_row_names_the_missing_row(connection: Connection, executed: list[tuple[str, int]]) -> None:
    apply_changes(connection, change_set(insert((1, "a"), (2, "b"))))
    executed.clear()
    with pytest.raises(EntryRejectedError, match="id = 9"):
        apply_changes(connection, change_set(update(("x", 1), ("y", 9), ("z", 2))), row_by_row=True)
    assert executed == [("UPDATE", 1), ("UPDATE", 1)]


def test_hidden_parameters_stay_hidden() -> None:
    engine = create_engine("sqlite://", hide_parameters=True)
    metadata.create_all(engine)
    with engine.connect() as connection:
        with pytest.raises(EntryRejectedError) as caught:
            apply_changes(connection, change_set(delete(987654)))
    assert "987654" not in str(caught.value)
    engine.dispose()


def test_a_version_that_has_moved_on_is_rejected(connection: Connection) -> None:
    connection.execute(items.insert().values(id=1, name="a", version=5))
    integer = ("integer",)
    change = RowChanges(
        "update",
        TableName(None, "items"),
        ("version",),
        (integer,),
        ("id", "version"),
        (integer, integer),
        [[6, 1, 4]],
        must_match=True,
    )
    with pytest.raises(EntryRejectedError, match="id = 1, version = 4"):
        apply_changes(connection, change_set(change))
    change.rows = [[6, 1, 5]]
    apply_changes(connection, change_set(change))


def test_null_in_a_key_finds_no_row_and_is_rejected(connection: Connection) -> None:
    connection.execute(items.insert().values(id=1, name="a", version=None))
    integer = ("integer",)
    change = RowChanges(
        "delete",
        TableName(None, "items"),
        (),
        (),
        ("id", "version"),
        (integer, integer),
        [[1, None]],
        must_match=True,
    )
    with pytest.raises(EntryRejectedError, match="version = None"):
        apply_changes(connection, change_set(change))


def test_what_the_driver_refuses_comes_as_sqlalchemys_error(connection: Connection) -> None:
    with pytest.raises(IntegrityError):
        apply_changes(connection, change_set(insert((1, "a"), (1, "b"))))


def test_a_value_that_the_driver_cannot_take_is_the_entrys_fault(connection: Connection) -> None:
    with pytest.raises(EntryRejectedError, match="OverflowError"):
        apply_changes(connection, change_set(insert((2**70, "a"))))


def test_a_value_that_a_bind_processor_cannot_take_is_the_entrys_fault(connection: Connection) -> None:
    change = RowChanges("insert", TableName(None, "items"), ("id", "name"), (("integer",), ("date",)), (), (), [[1, 5]])
    with pytest.raises(EntryRejectedError, match="TypeError"):
        apply_changes(connection, change_set(change))


def test_the_time_of_the_commit_is_written_as_current_timestamp_has_it(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE stamped (id INTEGER PRIMARY KEY, name TEXT, created TEXT)"))
        stamped = TableName(None, "stamped")
        apply_changes(
            connection,
            [
                change_set(
                    insert((n, "x"), table=stamped, commit_times=("created",)),
                    commit_time_ns=(1_582_934_399 + n) * 10**9 + 999_999_999,
                )
                for n in range(2)
            ],
        )
        assert connection.execute(text("SELECT created FROM stamped ORDER BY id")).scalars().all() == [
            "2020-02-28 23:59:59",
            "2020-02-29 00:00:00",
        ]


def test_a_schema_translate_map_is_honoured(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'main.db'}").execution_options(schema_translate_map={"app": None})
    metadata.create_all(engine)
    app = TableName("app", "items")
    with engine.connect() as connection:
        apply_changes(
            connection,
            change_set(insert((1, "a"), (2, "b"), table=app), update(("c", 1), table=app), delete(2, table=app)),
        )
        assert rows(connection) == [(1, "c")]
    engine.dispose()


def test_very_large_changes_are_handed_over_in_parts(
    connection: Connection, executed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "_ROWS_MAX", 10)
    apply_changes(connection, change_set(insert(*[(n, str(n)) for n in range(25)])))
    assert executed == [("INSERT", 10), ("INSERT", 10), ("INSERT", 5)]
    assert len(rows(connection)) == 25


# --------------------------------------------------------------------------- drivers that do not count properly


class UncountedCursor(sqlite3.Cursor):
    """Like a driver that does not say how many rows an executemany found."""

    many = False

    def executemany(self, *arguments: Any) -> Any:
        self.many = True
        return super().executemany(*arguments)

    @property
    def rowcount(self) -> int:  # type: ignore[override]
        return -1 if self.many else super().rowcount


class UncountedConnection(sqlite3.Connection):
    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(UncountedCursor)


def test_a_driver_that_does_not_count_many_is_asked_row_by_row_the_second_time() -> None:
    engine = create_engine("sqlite://", connect_args={"factory": UncountedConnection})
    metadata.create_all(engine)
    with engine.connect() as connection:
        apply_changes(connection, change_set(insert((1, "a"), (2, "b"))))
        connection.commit()
        with pytest.raises(TargetUnavailableError, match="one by one"):
            apply_changes(connection, change_set(update(("x", 1), ("y", 2))))
        connection.rollback()
        apply_changes(connection, change_set(update(("x", 1), ("y", 2))))
        assert rows(connection) == [(1, "x"), (2, "y")]
        with pytest.raises(EntryRejectedError, match="id = 9"):
            apply_changes(connection, change_set(update(("x", 1), ("y", 9))))
    engine.dispose()


def test_a_dialect_known_not_to_count_many_is_asked_row_by_row_at_once(
    engine: Engine, connection: Connection, executed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.dialect, "supports_sane_multi_rowcount", False)
    apply_changes(connection, change_set(insert((1, "a"), (2, "b")), update(("x", 1), ("y", 2))))
    assert executed == [("INSERT", 2), ("UPDATE", 1), ("UPDATE", 1)]

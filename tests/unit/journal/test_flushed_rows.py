"""The short way of flushed INSERTs: the same changes and errors as the long one, and taken only where it may be."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, DateTime, ForeignKey, String, TypeDecorator, event
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from tests.unit.journal.recording import Recorder
from walsync.journal import SessionJournalEngine
from walsync.journal.dialect import JournalDialect


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Reversed(TypeDecorator[str]):
    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value[::-1]


class Station(Base):
    __tablename__ = "station"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Reversed)
    colour: Mapped[Colour | None]
    seen: Mapped[datetime.datetime | None] = mapped_column(DateTime)
    readings: Mapped[list[Reading]] = relationship()


class Reading(Base):
    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    station_id: Mapped[int] = mapped_column(ForeignKey("station.id"))
    value: Mapped[float]


class Draft(Base):
    """Its default is made at execution, which is more than the short way does."""

    __tablename__ = "draft"

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default=lambda: "new")


class Way:
    """A session on a recorder, and how many executions took SQLAlchemy's long way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorder = Recorder()
        self.engine = SessionJournalEngine(self.recorder.engine)
        self.session = Session(self.engine, expire_on_commit=False)
        self.long = 0
        original = Connection._execute_context

        def counted(connection: Connection, *args: Any, **kwargs: Any) -> Any:
            self.long += 1
            return original(connection, *args, **kwargs)

        monkeypatch.setattr(Connection, "_execute_context", counted)

    def commit(self, *objects: Base) -> int:
        """Commit these, and return how many executions took the long way."""
        before = self.long
        self.session.add_all(objects)
        self.session.commit()
        return self.long - before

    def shapes_and_rows(self) -> list[tuple[Any, Any]]:
        return [(change.shape_key(), change.rows) for commit in self.recorder.commits for change in commit.changes]  # type: ignore[union-attr]


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    # A cache of compiled constructs is a mapper's own, and other tests have filled it for the dialects of theirs.
    found = Way(monkeypatch)
    yield found
    found.session.close()


def station(key: int, **values: Any) -> Station:
    return Station(id=key, name=f"station {key}", colour=None, seen=None, **values)


def test_the_second_flush_takes_the_short_way_and_records_the_same(way: Way) -> None:
    assert way.commit(station(1)) == 1
    assert way.commit(station(2)) == 0
    assert way.commit(Station(id=3, name="abc", colour=Colour.BLUE, seen=datetime.datetime(2026, 1, 2, 3, 4))) == 0
    (first, row), (second, other), (third, full) = way.shapes_and_rows()
    assert first == second == third
    names = first[2]
    assert dict(zip(names, row[0], strict=True))["name"] == "1 noitats"
    assert dict(zip(names, other[0], strict=True)) == {"id": 2, "name": "2 noitats", "colour": None, "seen": None}
    assert dict(zip(names, full[0], strict=True)) == {
        "id": 3,
        "name": "cba",
        "colour": "BLUE",
        "seen": datetime.datetime(2026, 1, 2, 3, 4),
    }


def test_several_rows_of_one_flush_stay_in_one_change_and_in_order(way: Way) -> None:
    assert way.commit(station(1), station(2)) == 1
    assert way.commit(station(3), station(4), station(5)) == 0
    ((_, rows),) = way.shapes_and_rows()[1:]
    assert [row[0] for row in rows] == [3, 4, 5] or [row[-1] for row in rows] == [3, 4, 5]


def test_objects_are_persistent_and_unchanged_after_the_short_way(way: Way) -> None:
    way.commit(station(1))
    found = station(2)
    way.commit(found)
    assert way.session.is_modified(found) is False
    assert way.session.get(Station, 2) is found
    assert found.name == "station 2"


def test_related_objects_get_their_foreign_keys(way: Way) -> None:
    way.commit(station(1, readings=[Reading(id=10, value=0.5)]))
    assert way.commit(station(2, readings=[Reading(id=20, value=1.5)])) == 0
    # Several rows at once are another compiled construct, which the long way meets first.
    assert way.commit(station(3, readings=[Reading(id=key, value=2.5) for key in (30, 31)])) == 1
    assert way.commit(station(4, readings=[Reading(id=key, value=2.5) for key in (40, 41)])) == 0
    readings = [rows for shape, rows in way.shapes_and_rows() if shape[1].name == "reading"]
    assert [len(rows) for rows in readings] == [1, 1, 2, 2]
    assert all(4 in row for row in readings[3])


def test_a_missing_value_is_sqlalchemys_error_and_nothing_is_recorded(way: Way) -> None:
    way.commit(station(1))
    for _ in range(2):
        way.session.add(Station(id=2, name=None, colour=None, seen=None))
        with pytest.raises(IntegrityError, match="NOT NULL constraint: station.name"):
            way.session.flush()
        way.session.rollback()
    assert way.commit(station(3)) == 0
    assert len(way.recorder.commits) == 2


def test_a_value_that_its_type_refuses_is_sqlalchemys_error_and_nothing_is_recorded(way: Way) -> None:
    way.commit(station(1))
    way.session.add(Station(id=2, name="x", colour=3.5, seen=None))
    with pytest.raises(StatementError, match="3.5"):
        way.session.flush()
    way.session.rollback()
    assert len(way.recorder.commits) == 1


def test_a_default_made_at_execution_takes_the_long_way(way: Way) -> None:
    for key in (1, 2, 3):
        draft = Draft(id=key)
        assert way.commit(draft) == 1
        assert draft.state == "new"
    assert [rows for _, rows in way.shapes_and_rows()] in (
        [[[1, "new"]], [[2, "new"]], [[3, "new"]]],
        [[["new", 1]], [["new", 2]], [["new", 3]]],
    )


def test_listeners_of_the_engine_see_every_execution(way: Way) -> None:
    way.commit(station(1))
    seen: list[str] = []
    event.listen(way.engine, "before_execute", lambda connection, element, *rest: seen.append(str(element)))
    assert way.commit(station(2)) == 1
    assert len(seen) == 1
    assert "INSERT INTO station" in seen[0]


def test_a_savepoint_that_is_rolled_back_takes_its_rows_along(way: Way) -> None:
    way.commit(station(1))
    way.session.add(station(2))
    way.session.flush()
    savepoint = way.session.begin_nested()
    way.session.add(station(3))
    way.session.flush()
    savepoint.rollback()
    way.session.add(station(4))
    way.session.commit()
    keys = [row for _, rows in way.shapes_and_rows()[1:] for row in rows]
    assert len(keys) == 2
    assert way.long == 1


def test_what_sqlalchemy_needs_a_result_of_is_executed_by_sqlalchemy(way: Way) -> None:
    way.commit(station(1))
    with way.engine.begin() as connection:
        result = connection.execute(Station.__table__.insert(), [{"id": 5, "name": "x"}])
        assert result.context.isinsert
        assert result.inserted_primary_key == (5,)


def test_a_plan_is_not_looked_for_in_another_dialects_construct(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two journals share the mapper's cache of compiled constructs.
    first, second = Way(monkeypatch), Way(monkeypatch)
    first.commit(station(1))
    assert second.commit(station(2)) == 1
    assert isinstance(second.engine.dialect, JournalDialect)
    assert second.commit(station(3)) == 0
    assert [len(way.recorder.commits) for way in (first, second)] == [1, 2]

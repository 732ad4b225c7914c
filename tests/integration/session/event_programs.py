"""What an application does with sessions, each as a program that is run with and without the log.

A program gets a function that makes a `Session`, and one that notes how far it has come. Its mapped classes have no
server defaults: what a flush fetches of those is another matter (see the page on session events).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, ForeignKey, String, Table, delete, event, insert, select, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column, relationship

__all__ = ["DIRECT", "PROGRAMS", "Base", "Program"]

MakeSession = Callable[..., Session]
Mark = Callable[[str], None]
Program = Callable[[MakeSession, Mark], None]


class Base(DeclarativeBase):
    pass


labelled = Table(
    "labelled",
    Base.metadata,
    Column("part_id", ForeignKey("part.id"), primary_key=True),
    Column("label_name", ForeignKey("label.name"), primary_key=True),
)


class Machine(Base):
    __tablename__ = "machine"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(50))
    hours: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    parts: Mapped[list[Part]] = relationship(back_populates="machine", cascade="all, delete-orphan", order_by="Part.id")
    __mapper_args__ = {"version_id_col": version, "polymorphic_on": kind, "polymorphic_identity": "machine"}


class Crane(Machine):
    __tablename__ = "crane"
    id: Mapped[int] = mapped_column(ForeignKey("machine.id"), primary_key=True)
    height: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "crane"}


class Part(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    machine_id: Mapped[int] = mapped_column(ForeignKey("machine.id"))
    machine: Mapped[Machine] = relationship(back_populates="parts")
    labels: Mapped[list[Label]] = relationship(secondary=labelled, order_by="Label.name")


class Label(Base):
    __tablename__ = "label"
    name: Mapped[str] = mapped_column(String(50), primary_key=True)


def _machine(name: str = "lathe", *, nut: bool = True) -> Machine:
    """Without the nut there is one of each: objects that are deleted together are so in no order."""
    parts = [Part(name="bolt", labels=[Label(name=f"{name}, steel")])]
    return Machine(name=name, parts=[*parts, Part(name="nut")] if nut else parts)


def add_and_commit(make: MakeSession, mark: Mark) -> None:
    session = make()
    machine = _machine()
    session.add(machine)
    mark("added")
    session.commit()
    mark("committed")
    machine.name = "mill"
    session.commit()
    mark("changed")
    session.commit()
    mark("nothing to commit")
    session.add_all([Crane(name="tower", height=30), Label(name="red")])
    session.flush()
    session.flush()
    session.commit()
    mark("inherited")
    session.close()


def roll_back(make: MakeSession, mark: Mark) -> None:
    session = make()
    machine = _machine(nut=False)
    session.add(machine)
    session.rollback()
    mark("never flushed")
    session.add(_machine(nut=False))
    session.flush()
    session.rollback()
    mark("flushed")
    machine = _machine(nut=False)
    session.add(machine)
    session.commit()
    machine.name = "mill"
    session.flush()
    session.delete(machine)
    session.flush()
    session.rollback()
    mark("deleted")
    assert machine in session
    session.rollback()
    mark("nothing")
    session.close()


def savepoints(make: MakeSession, mark: Mark) -> None:
    session = make()
    with session.begin():
        machine = _machine(nut=False)
        session.add(machine)
        with session.begin_nested():
            session.add(Label(name="released"))
        mark("released")
        nested = session.begin_nested()
        session.add(Label(name="rolled back"))
        machine.name = "mill"
        nested.rollback()
        mark("rolled back")
        with session.begin_nested():
            with session.begin_nested():
                session.add(Label(name="inner"))
            session.add(Label(name="outer"))
        try:
            with session.begin_nested():
                session.delete(machine)
                session.flush()
                raise KeyError("the application's own")
        except KeyError:
            mark("raised")
        machine.hours = 4
    mark("committed")
    session.close()


def savepoints_of_new_objects(make: MakeSession, mark: Mark) -> None:
    session = make()
    session.add(Label(name="before"))
    with session.begin_nested():
        session.add(Label(name="released"))
    mark("released")
    nested = session.begin_nested()
    session.add(Label(name="lost"))
    session.flush()
    nested.rollback()
    mark("rolled back")
    session.commit()
    with session.begin(), session.begin_nested() as outer, session.begin_nested():
        session.add(Label(name="deep"))
        outer.commit()
    mark("the outer ended first")
    session.close()


def flush_errors(make: MakeSession, mark: Mark) -> None:
    session = make()
    session.add(Label(name="kept"))
    session.flush()
    session.add(Part(name="without a machine"))
    try:
        session.flush()
    except IntegrityError:
        mark("refused")
    try:
        session.scalars(select(Label)).all()
    except PendingRollbackError:
        mark("pending")
    session.rollback()
    session.add(Label(name="later"))
    try:
        with session.begin_nested():
            session.add(Part(name="without a machine"))
    except IntegrityError:
        mark("refused in a savepoint")
    session.commit()
    mark("committed")
    session.close()


def versions_of_two_sessions(make: MakeSession, mark: Mark) -> None:
    one, other = make(), make()
    machine = Machine(name="lathe")
    one.add(machine)
    one.commit()
    same = other.get_one(Machine, machine.id)
    mark("read by both")
    same.hours = 1
    other.commit()
    one.rollback()
    one.refresh(machine)
    machine.hours += 1
    one.commit()
    mark("each its turn")
    one.close()
    other.close()


def _bulk(synchronize: Any) -> Program:
    def program(make: MakeSession, mark: Mark) -> None:
        session = make()
        machines = [_machine("lathe"), _machine("mill")]
        session.add_all(machines)
        session.commit()
        options = {"synchronize_session": synchronize}
        session.execute(update(Machine).where(Machine.name == "mill").values(hours=3), execution_options=options)
        mark("updated")
        session.commit()
        session.execute(delete(labelled))
        session.execute(delete(Part).where(Part.name == "bolt"), execution_options=options)
        mark("deleted")
        session.commit()
        session.query(Part).filter(Part.name == "nut").update({"name": "screw"}, synchronize_session=synchronize)
        mark("updated by a Query")
        session.commit()
        session.query(Part).filter(Part.name == "screw").delete(synchronize_session=synchronize)
        mark("deleted by a Query")
        session.rollback()
        session.close()

    program.__name__ = f"bulk_synchronize_{synchronize}".lower()
    return program


def bulk_rows(make: MakeSession, mark: Mark) -> None:
    session = make()
    session.execute(insert(Label), [{"name": "one"}, {"name": "two"}])
    mark("inserted")
    session.bulk_save_objects([Label(name="three")])
    session.bulk_insert_mappings(Label, [{"name": "four"}])  # type: ignore[arg-type]
    session.add(Machine(name="lathe"))
    session.commit()
    machine = session.scalars(select(Machine)).one()
    session.execute(update(Machine), [{"id": machine.id, "hours": 8, "version": 1}])
    session.bulk_update_mappings(Machine, [{"id": machine.id, "hours": 9, "version": 2}])  # type: ignore[arg-type]
    mark("updated")
    session.commit()
    session.close()


def two_sessions(make: MakeSession, mark: Mark) -> None:
    with make() as first, make() as second:
        first.add(_machine())
        second.add(Label(name="red"))
        second.commit()
        mark("the second")
        first.commit()
        mark("the first")
        second.scalars(select(Machine)).one().name = "mill"
        second.commit()
        first.expire_all()
        assert first.scalars(select(Machine.name)).one() == "mill"
        moved = Label(name="moved")
        first.add(moved)
        first.expunge(moved)
        second.add(moved)
        second.commit()


def autobegin(make: MakeSession, mark: Mark) -> None:
    session = make()
    assert not session.in_transaction()
    session.scalars(select(Label)).all()
    mark("read")
    session.add(Label(name="red"))
    session.flush()
    session.scalars(select(Label)).all()
    mark("read what it wrote")
    session.commit()
    assert not session.in_transaction()
    session.close()
    mark("closed")


def begin_block(make: MakeSession, mark: Mark) -> None:
    with make() as session, session.begin():
        session.add(_machine())
    mark("committed")
    try:
        with make() as session, session.begin():
            session.add(Label(name="lost"))
            session.flush()
            raise KeyError("the application's own")
    except KeyError:
        mark("rolled back")
    try:
        with make() as session, session.begin():
            session.add(Label(name="red"))
            session.commit()
            session.add(Label(name="too late"))
    except InvalidRequestError:
        mark("ended inside")


def close_without_commit(make: MakeSession, mark: Mark) -> None:
    session = make()
    session.add(_machine())
    session.flush()
    session.close()
    mark("closed")
    session.add(Label(name="red"))
    session.commit()
    session.reset()
    mark("reset")
    session.scalars(select(Label)).all()
    session.invalidate()
    mark("invalidated")


def expire_and_refresh(make: MakeSession, mark: Mark) -> None:
    session = make()
    machine = _machine()
    session.add(machine)
    session.commit()
    session.expire(machine, ["name"])
    assert machine.name == "lathe"
    mark("expired")
    session.refresh(machine)
    session.expire_all()
    assert [part.name for part in machine.parts] == ["bolt", "nut"]
    mark("refreshed")
    session.commit()
    assert session.get(Machine, machine.id) is machine
    session.expunge_all()
    again = session.get(Machine, machine.id)
    assert again is not None
    assert again is not machine
    mark("read again")
    session.close()


def delete_and_cascade(make: MakeSession, mark: Mark) -> None:
    session = make()
    machine = _machine()
    session.add(machine)
    session.commit()
    machine.parts.pop()
    session.flush()
    mark("orphan")
    session.delete(machine)
    session.flush()
    mark("deleted")
    session.commit()
    mark("detached")
    make_transient(machine)
    session.add(Label(name="red"))
    session.commit()
    session.close()


def states_of_objects(make: MakeSession, mark: Mark) -> None:
    session = make()
    label = Label(name="red")
    session.add(label)
    session.expunge(label)
    mark("pending to transient")
    session.add(label)
    session.commit()
    session.expunge(label)
    session.add(label)
    assert label.name == "red"
    mark("detached to persistent")
    make_transient(label)
    mark("persistent to transient")
    merged = session.merge(label)
    session.merge(Label(name="blue"))
    session.commit()
    assert merged is not label
    mark("merged")
    session.delete(merged)
    session.flush()
    session.rollback()
    mark("deleted to persistent")
    session.close()


def listeners_that_write(make: MakeSession, mark: Mark) -> None:
    """Listeners of the application that add to the transaction: before the flush, after it, before the commit."""
    session = make()

    def before_flush(session: Session, context: Any, instances: Any) -> None:
        if any(isinstance(new, Machine) for new in session.new):
            session.add(Label(name="made before the flush"))

    def after_flush(session: Session, context: Any) -> None:
        if any(isinstance(new, Machine) for new in session.new):
            session.execute(insert(labelled_log), [{"note": "after the flush"}])
            session.add(Label(name="made after the flush"))

    def before_commit(session: Session) -> None:
        session.add(Label(name="made before the commit"))

    event.listen(session, "before_flush", before_flush)
    event.listen(session, "after_flush", after_flush)
    event.listen(session, "before_commit", before_commit)
    session.add(_machine())
    session.commit()
    mark("committed")
    assert len(session.scalars(select(Label)).all()) == 4
    session.close()


labelled_log = Table("labelled_log", Base.metadata, Column("note", String(50), primary_key=True))


def direct_beside_buffered(make: MakeSession, mark: Mark) -> None:
    """What makes a transaction direct: SQL as text, RETURNING, FOR UPDATE, reading what was flushed, in a savepoint."""
    from sqlalchemy import text

    session = make()
    session.add(_machine())
    session.flush()
    session.execute(text("UPDATE machine SET hours = 3"))
    mark("text")
    session.commit()
    session.add(Label(name="red"))
    session.flush()
    with session.begin_nested():
        session.add(Label(name="blue"))
        assert len(session.scalars(select(Label)).all()) == 3
    mark("read in a savepoint")
    session.commit()
    machine = session.scalars(select(Machine).with_for_update()).one()
    machine.name = "mill"
    session.commit()
    mark("locked")
    session.rollback()
    session.close()


PROGRAMS: tuple[Program, ...] = (
    add_and_commit,
    roll_back,
    savepoints,
    savepoints_of_new_objects,
    flush_errors,
    versions_of_two_sessions,
    _bulk("auto"),
    _bulk("evaluate"),
    _bulk("fetch"),
    _bulk(False),
    bulk_rows,
    two_sessions,
    autobegin,
    begin_block,
    close_without_commit,
    expire_and_refresh,
    delete_and_cascade,
    states_of_objects,
    listeners_that_write,
    direct_beside_buffered,
)

DIRECT = {"autobegin", "direct_beside_buffered", "savepoints"}
"""The programs of which no transaction is buffered: each reads what it has written, or more."""

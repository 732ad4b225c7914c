"""Writes down every event that sessions, mappers and instances tell an application of, in order.

What is written is the same whether the sessions are attached or not, if the events are: objects, sessions and
transactions are named by the order in which they are first seen. The checkpointer's own sessions are of the
application's class, so they tell the application's listeners too; they run in another thread, and are left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import MapperEvents, Session, SessionEvents

__all__ = ["INSTANCE_EVENTS", "MAPPER_EVENTS", "SESSION_EVENTS", "Recorder", "recording"]


def _names(events: type) -> tuple[str, ...]:
    return tuple(sorted(name for name in vars(events) if not name.startswith("_") and name != "dispatch"))


SESSION_EVENTS = _names(SessionEvents)
MAPPER_EVENTS = tuple(name for name in _names(MapperEvents) if name.endswith(("_insert", "_update", "_delete")))
INSTANCE_EVENTS = ("expire", "init", "load", "refresh", "refresh_flush")


class Recorder:
    """`lines` is what was told: for each event its name and what identifies what it was told of."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.begun_on: list[str] = []
        self.row_counts: list[int] = []
        self._seen: list[Any] = []
        self._thread = threading.get_ident()

    def mark(self, step: str) -> None:
        """The program has come so far."""
        self.lines.append(("--", step))

    def name_of(self, thing: Any) -> str:
        """The class, and the number of what was seen of that class before."""
        kind = type(thing).__name__ if not isinstance(thing, Session) else "session"
        alike = [seen for seen in self._seen if _kind(seen) == kind]
        for number, seen in enumerate(alike, 1):
            if seen is thing:
                return f"{kind} {number}"
        self._seen.append(thing)
        return f"{kind} {len(alike) + 1}"

    def listener(self, name: str) -> Callable[..., None]:
        """What to call for the event of this name."""
        described = getattr(self, f"_{name}", self._other)

        def told(*arguments: Any) -> None:
            if threading.get_ident() == self._thread:
                self.lines.append((name, *described(*arguments)))

        return told

    # ----------------------------------------------------------------------------------------------- each event

    def _other(self, *arguments: Any) -> tuple[Any, ...]:
        return tuple(self.name_of(argument) for argument in arguments)

    def _transaction(self, session: Session, transaction: Any, *_: Any) -> tuple[Any, ...]:
        inside = transaction.parent is not None
        return self.name_of(session), "savepoint" if transaction.nested else "inner" if inside else "outermost"

    _after_transaction_create = _after_transaction_end = _after_soft_rollback = _transaction

    def _after_begin(self, session: Session, transaction: Any, connection: Any) -> tuple[Any, ...]:
        """With the depth of the savepoint: 0 for the outermost transaction."""
        self.begun_on.append(connection.dialect.name)
        depth, outer = 0, transaction
        while outer.parent is not None:
            depth, outer = depth + outer.nested, outer.parent
        return self.name_of(session), depth

    def _of_session(self, session: Session) -> tuple[Any, ...]:
        return self.name_of(session), "in a savepoint" if session.in_nested_transaction() else ""

    _before_commit = _after_commit = _after_rollback = _of_session

    def _flush(self, session: Session, *_: Any) -> tuple[Any, ...]:
        return self.name_of(session), *(
            sorted(map(self.name_of, things)) for things in (session.new, session.dirty, session.deleted)
        )

    _before_flush = _after_flush = _after_flush_postexec = _flush

    def _bulk(self, context: Any) -> tuple[Any, ...]:
        self.row_counts.append(context.result.rowcount)
        return self.name_of(context.session), context.mapper.class_.__name__

    _after_bulk_update = _after_bulk_delete = _bulk

    def _do_orm_execute(self, state: Any) -> tuple[Any, ...]:
        kinds = ("is_select", "is_insert", "is_update", "is_delete", "is_column_load", "is_relationship_load")
        mapper = state.bind_mapper
        return (
            self.name_of(state.session),
            mapper.class_.__name__ if mapper is not None else "",
            *(kind for kind in kinds if getattr(state, kind)),
        )

    def _of_mapper(self, mapper: Any, _connection: Any, target: Any) -> tuple[Any, ...]:
        return (self.name_of(target),)

    _before_insert = _after_insert = _before_update = _after_update = _before_delete = _after_delete = _of_mapper

    def _instance(self, target: Any, *_: Any) -> tuple[Any, ...]:
        return (self.name_of(target),)

    _init = _load = _instance

    def _attributes(self, target: Any, *rest: Any) -> tuple[Any, ...]:
        names = rest[-1]
        return self.name_of(target), None if names is None else tuple(sorted(names))

    _expire = _refresh = _refresh_flush = _attributes


def _kind(thing: Any) -> str:
    return "session" if isinstance(thing, Session) else type(thing).__name__


@contextmanager
def recording(session_class: Any, base: Any) -> Iterator[Recorder]:
    """Record what sessions of this class, and mapped classes under `base`, tell until the block ends."""
    recorder = Recorder()
    listening: list[tuple[Any, str, Callable[..., None]]] = []
    for target, names in (
        (session_class, SESSION_EVENTS),
        (base, MAPPER_EVENTS),
        (base, INSTANCE_EVENTS),
    ):
        for name in names:
            listening.append((target, name, recorder.listener(name)))
    for target, name, listener in listening:
        event.listen(target, name, listener, **({"propagate": True} if target is base else {}))
    try:
        yield recorder
    finally:
        for target, name, listener in listening:
            event.remove(target, name, listener)

"""Keys for new objects, before the unit of work inserts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.orm import Mapper, Session

from walsync.checkpoint.transaction import APPLYING
from walsync.journal.plan import generated_key
from walsync.session.options import TRANSLATE
from walsync.session.state import SessionState, binds_of, mode_of, state_of

if TYPE_CHECKING:
    from walsync.session.routing import SessionHooks

__all__ = ["FlushKeys"]


class FlushKeys:
    """Those of the sessions of one class."""

    def __init__(self, hooks: SessionHooks) -> None:
        self._hooks = hooks
        self._journal = hooks.journal
        self._get_bind = hooks.own_get_bind
        self._key_attributes: dict[Mapper[Any], tuple[str, Any] | None] = {}

    def before_flush(self, session: Session, flush_context: Any, instances: Any) -> None:
        """Give new objects their keys, so that the unit of work can insert them together."""
        if not session._new or APPLYING in session.info:
            return
        keyless = []
        known = self._key_attributes
        for obj_state in session._new:
            mapper = obj_state.manager.mapper
            found = known[mapper] if mapper in known else self._key_attribute(mapper)
            if found is not None and obj_state.dict.get(found[0]) is None:
                keyless.append((obj_state, mapper, *found))
        if keyless:
            self._give_keys(session, keyless)

    def _give_keys(self, session: Session, keyless: list[tuple[Any, Mapper[Any], str, Any]]) -> None:
        """To these: the object's state, its mapper, and the attribute and column of the key."""
        binds: dict[Any, Any] | None = None
        bound = None
        if self._get_bind is not Session.get_bind or binds_of(session):
            binds = {}  # each mapper may have its own
        else:
            bound = self._get_bind(session)
            if bound is not self._journal.target and not self._has_keys(bound):
                return
        state = state_of(session, self._journal)
        if TRANSLATE in state.options:
            return  # their tables are others than those that keys are reserved for
        if len(keyless) > 1:
            keyless.sort(key=_insert_order)
        scope = self._journal.scope
        is_direct = state.direct_reason is not None or mode_of(session) == "direct"
        for obj_state, mapper, attribute, column in keyless:
            if not scope.has_mapper(mapper):
                continue
            if binds is not None:
                if mapper not in binds:
                    binds[mapper] = self._get_bind(session, mapper)
                bound = binds[mapper]
                if bound is not self._journal.target and not self._has_keys(bound):
                    continue
            if is_direct and column.identity is not None and column.identity.always:
                continue  # it takes no key but its own, and gives it out itself
            # As SQLAlchemy does with a key that the database made, but before the INSERT.
            obj_state.dict[attribute] = self._next_key(state, column, bound)

    def _has_keys(self, bound: Any) -> bool:
        """Whether keys are reserved for the tables that are meant there: by an Engine or Connection of its own."""
        return self._hooks.is_of_target(bound) and TRANSLATE not in bound.get_execution_options()

    def _next_key(self, state: SessionState, column: Any, bound: Any) -> int:
        journal = self._journal
        if bound is journal.target:
            return journal.next_key(state, column)
        key = journal.keys.reserved_key(column)
        if key is None:
            # In the transaction of that connection: if it is rolled back, so is the reservation, and the row.
            connection = state.session.connection(bind_arguments={"bind": bound})
            key = journal.keys.next_key_on(connection, column)
        return key

    def _key_attribute(self, mapper: Mapper[Any]) -> tuple[str, Any] | None:
        """The attribute and column of a mapper's autoincrement key, if the database would make it."""
        try:
            return self._key_attributes[mapper]
        except KeyError:
            pass
        found: tuple[str, Any] | None = None
        root = mapper
        while root.inherits is not None and not root.concrete:
            root = root.inherits
        table = root.local_table
        if isinstance(table, Table):
            column = generated_key(table)
            if column is not None and (column.default is None or column.default.is_sequence):
                found = (mapper.get_property_by_column(column).key, column)
        self._key_attributes[mapper] = found
        return found


def _insert_order(keyless: tuple[Any, ...]) -> int:
    order = keyless[0].insert_order
    return int(order) if order is not None else 0

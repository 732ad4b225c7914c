"""Every kind of read, each as a function that tells what it found of one owner's rows.

What comes from the identity map is no read of the database, so a caller expires the session's objects first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import column, exists, func, select, table, text, union_all
from sqlalchemy.orm import (
    Session,
    aliased,
    immediateload,
    joinedload,
    lazyload,
    selectinload,
    subqueryload,
    with_loader_criteria,
    with_polymorphic,
)

from tests.differential.reading_model import Contents
from tests.differential.reading_schema import LABELS, LEAVES, Big, Label, Leaf, Node, Row, key_of, link

__all__ = ["KINDS", "Kind", "read_pair"]

Read = Callable[[Session, int], Contents]


class Kind(NamedTuple):
    """`table` is the table of the model whose rows are found. `direct`: the transaction becomes direct by it.

    `scattered`: a row that is moved while it reads may be found in none of the places where it was: each is read by a
    statement of its own. Only a database that shows all of them one snapshot keeps others' rows from that.
    """

    name: str
    table: str
    read: Read
    direct: bool = False
    stale: bool = False
    scattered: bool = False


KINDS: Final[list[Kind]] = []


def _kind(table: str, **flags: bool) -> Callable[[Read], Read]:
    def add(read: Read) -> Read:
        KINDS.append(Kind(read.__name__.strip("_"), table, read, **flags))
        return read

    return add


def _rows(table: str, found: Iterable[tuple[str, int]]) -> Contents:
    contents: Contents = {}
    for key, value in found:
        owner, number = key.split(".")
        row = Row(table, int(owner), int(number))
        assert row not in contents, f"{row} is there twice"
        contents[row] = value
    return contents


def _leaves(found: Iterable[Any]) -> Contents:
    return _rows("leaf", ((leaf.key, leaf.value) for leaf in found))


# ------------------------------------------------------------------------------------------------------ leaves


@_kind("leaf")
def _entities(session: Session, owner: int) -> Contents:
    return _leaves(session.scalars(select(Leaf).where(Leaf.owner == owner)))


@_kind("leaf")
def _columns(session: Session, owner: int) -> Contents:
    return _leaves(session.execute(select(Leaf.key, Leaf.value).where(Leaf.owner == owner)))


@_kind("leaf")
def _core_table(session: Session, owner: int) -> Contents:
    table = Leaf.__table__
    return _leaves(session.execute(select(table).where(table.c.owner == owner)))


@_kind("leaf")
def _alias(session: Session, owner: int) -> Contents:
    other = aliased(Leaf, name="other")
    return _leaves(session.scalars(select(other).where(other.owner == owner)))


@_kind("leaf")
def _join(session: Session, owner: int) -> Contents:
    return _leaves(session.execute(select(Leaf.key, Leaf.value).join(Leaf.node).where(Node.owner == owner)))


@_kind("leaf")
def _outer_join(session: Session, owner: int) -> Contents:
    statement = select(Leaf.key, Leaf.value).select_from(Node).outerjoin(Node.leaves).where(Node.owner == owner)
    return _leaves(row for row in session.execute(statement) if row.key is not None)


@_kind("leaf")
def _subquery(session: Session, owner: int) -> Contents:
    inner = select(Leaf).where(Leaf.owner == owner).subquery()
    return _leaves(session.execute(select(inner.c.key, inner.c.value)))


@_kind("leaf")
def _alias_of_subquery(session: Session, owner: int) -> Contents:
    other = aliased(Leaf, select(Leaf).where(Leaf.owner == owner).subquery())
    return _leaves(session.scalars(select(other)))


@_kind("leaf")
def _in_subquery(session: Session, owner: int) -> Contents:
    wanted = select(Leaf.key).where(Leaf.owner == owner)
    return _leaves(session.scalars(select(Leaf).where(Leaf.key.in_(wanted))))


@_kind("leaf")
def _cte(session: Session, owner: int) -> Contents:
    inner = select(Leaf.key, Leaf.value).where(Leaf.owner == owner).cte("chosen")
    return _leaves(session.execute(select(inner.c.key, inner.c.value)))


@_kind("leaf")
def _recursive_cte(session: Session, owner: int) -> Contents:
    """Over the nodes from the root down, and their leaves."""
    start = select(Node.key).where(Node.owner == owner, Node.parent_key.is_(None)).cte("below", recursive=True)
    child = aliased(Node)
    below = start.union_all(select(child.key).where(child.parent_key == start.c.key))
    return _leaves(session.execute(select(Leaf.key, Leaf.value).join(below, below.c.key == Leaf.node_key)))


@_kind("leaf")
def _union(session: Session, owner: int) -> Contents:
    keys = [key_of(owner, number) for number in range(LEAVES)]
    parts = [select(Leaf.key, Leaf.value).where(Leaf.key.in_(part)) for part in (keys[::2], keys[1::2])]
    return _leaves(session.execute(union_all(*parts)))


@_kind("leaf")
def _entities_of_union(session: Session, owner: int) -> Contents:
    keys = [key_of(owner, number) for number in range(LEAVES)]
    both = union_all(*(select(Leaf).where(Leaf.key.in_(part)) for part in (keys[:1], keys[1:])))
    return _leaves(session.scalars(select(Leaf).from_statement(both)))


@_kind("leaf")
def _scalar_subquery(session: Session, owner: int) -> Contents:
    found = []
    for number in range(LEAVES):
        key = key_of(owner, number)
        inner = select(Leaf.value).where(Leaf.key == key).scalar_subquery()
        value = session.scalar(select(func.coalesce(inner, -1)))
        if value != -1:
            found.append((key, value))
    return _rows("leaf", found)


@_kind("leaf")
def _exists(session: Session, owner: int) -> Contents:
    """Which value each leaf has, without a row of its table in the result."""
    other = aliased(Leaf)
    found: list[tuple[str, int]] = []
    for number in range(LEAVES):
        key = key_of(owner, number)
        condition = exists().where(other.key == key, other.value >= 0)
        if session.scalar(select(Node.key).where(Node.key == key_of(owner, 0), condition)) is not None:
            value = session.scalar(select(func.max(Leaf.value)).where(Leaf.key == key))
            if value is not None:
                # Else another thread has deleted it in between.
                found.append((key, int(value)))
    return _rows("leaf", found)


@_kind("leaf")
def _query(session: Session, owner: int) -> Contents:
    return _leaves(session.query(Leaf).filter_by(owner=owner).all())


@_kind("leaf")
def _query_with_populate(session: Session, owner: int) -> Contents:
    return _leaves(session.query(Leaf).populate_existing().filter_by(owner=owner).yield_per(2))


@_kind("leaf")
def _get(session: Session, owner: int) -> Contents:
    found = (session.get(Leaf, key_of(owner, number)) for number in range(LEAVES))
    return _leaves([leaf for leaf in found if leaf is not None])


@_kind("leaf")
def _refresh(session: Session, owner: int) -> Contents:
    leaf = session.get(Leaf, key_of(owner, 0))
    assert leaf is not None
    session.refresh(leaf)
    contents = _columns(session, owner)
    contents[Row("leaf", owner, 0)] = leaf.value
    return contents


@_kind("leaf")
def _expired_attribute(session: Session, owner: int) -> Contents:
    contents = _columns(session, owner)
    leaf = session.get(Leaf, key_of(owner, 0))
    assert leaf is not None
    session.flush()
    session.expire(leaf, ["value"])
    contents[Row("leaf", owner, 0)] = leaf.value
    return contents


def _loaded(session: Session, owner: int, option: Any) -> Contents:
    nodes = session.scalars(select(Node).where(Node.owner == owner).options(option)).unique().all()
    return _leaves(leaf for node in nodes for leaf in node.leaves)


@_kind("leaf", scattered=True)
def _lazy_load(session: Session, owner: int) -> Contents:
    return _loaded(session, owner, lazyload(Node.leaves))


@_kind("leaf")
def _selectin_load(session: Session, owner: int) -> Contents:
    return _loaded(session, owner, selectinload(Node.leaves))


@_kind("leaf")
def _joined_load(session: Session, owner: int) -> Contents:
    return _loaded(session, owner, joinedload(Node.leaves))


@_kind("leaf")
def _subquery_load(session: Session, owner: int) -> Contents:
    return _loaded(session, owner, subqueryload(Node.leaves))


@_kind("leaf", scattered=True)
def _immediate_load(session: Session, owner: int) -> Contents:
    return _loaded(session, owner, immediateload(Node.leaves))


@_kind("leaf")
def _connection(session: Session, owner: int) -> Contents:
    return _leaves(session.connection().execute(select(Leaf.key, Leaf.value).where(Leaf.owner == owner)))


@_kind("leaf")
def _literal_text_inside(session: Session, owner: int) -> Contents:
    return _leaves(session.execute(select(Leaf.key, Leaf.value).where(Leaf.owner == owner, text("1 = 1"))))


_VIEW = table("reading_view", column("key"), column("owner"), column("value"))


@_kind("leaf")
def _view(session: Session, owner: int) -> Contents:
    """A view over the leaves."""
    return _leaves(session.execute(select(_VIEW.c.key, _VIEW.c.value).where(_VIEW.c.owner == owner)))


@_kind("leaf")
def _loader_criteria_in_subquery(session: Session, owner: int) -> Contents:
    """They are in the SQL and not in the construct."""
    inner = select(Leaf).where(Leaf.owner == owner).subquery()
    criteria = with_loader_criteria(Leaf, Leaf.node_key.in_(select(Node.key).where(Node.value >= 0)))
    return _leaves(session.execute(select(inner.c.key, inner.c.value).options(criteria)))


@_kind("leaf", direct=True)
def _text(session: Session, owner: int) -> Contents:
    found = session.execute(text("SELECT l.key, l.value FROM reading_leaf l")).all()
    return _rows("leaf", [(key, value) for key, value in found if key.startswith(f"{owner}.")])


@_kind("leaf", direct=True)
def _driver_sql(session: Session, owner: int) -> Contents:
    found = session.connection().exec_driver_sql("SELECT l.key, l.value FROM reading_leaf l").all()
    return _rows("leaf", [(key, value) for key, value in found if key.startswith(f"{owner}.")])


@_kind("leaf", direct=True)
def _entities_of_text(session: Session, owner: int) -> Contents:
    found = session.scalars(select(Leaf).from_statement(text("SELECT * FROM reading_leaf"))).all()
    return _leaves([leaf for leaf in found if leaf.owner == owner])


@_kind("leaf", stale=True)
def _stale(session: Session, owner: int) -> Contents:
    statement = select(Leaf.key, Leaf.value).where(Leaf.owner == owner)
    return _leaves(session.execute(statement, execution_options={"walsync_read": "stale"}))


# ----------------------------------------------------------------------------------------- nodes, links, the rest


@_kind("node")
def _nodes(session: Session, owner: int) -> Contents:
    return _rows("node", ((node.key, node.value) for node in session.scalars(select(Node).where(Node.owner == owner))))


@_kind("node")
def _children(session: Session, owner: int) -> Contents:
    root = session.get(Node, key_of(owner, 0))
    assert root is not None
    return _rows("node", ((node.key, node.value) for node in [root, *root.children]))


@_kind("node")
def _parents(session: Session, owner: int) -> Contents:
    child = session.get(Node, key_of(owner, 1))
    assert child is not None
    assert child.parent is not None
    return _rows("node", ((node.key, node.value) for node in (child.parent, child)))


@_kind("node")
def _self_join(session: Session, owner: int) -> Contents:
    parent, child = aliased(Node), aliased(Node)
    statement = (
        select(parent.key, parent.value, child.key, child.value)
        .join(child, child.parent_key == parent.key)
        .where(parent.owner == owner)
    )
    one = session.execute(statement).one()
    return _rows("node", ((one[0], one[1]), (one[2], one[3])))


def _bigs(found: Iterable[Any]) -> Contents:
    return {Row("big", int(key.split(".")[0]), 0): weight for key, weight in found}


@_kind("big")
def _subclass(session: Session, owner: int) -> Contents:
    return _bigs((big.key, big.weight) for big in session.scalars(select(Big).where(Big.owner == owner)))


@_kind("big")
def _loaded_later(session: Session, owner: int) -> Contents:
    """The columns of the second table are not in the first SELECT."""
    found = session.scalars(select(Node).where(Node.owner == owner, Node.kind == "big")).all()
    return _bigs((node.key, node.weight) for node in found if isinstance(node, Big))


@_kind("big")
def _polymorphic(session: Session, owner: int) -> Contents:
    every = with_polymorphic(Node, [Big])
    found = session.scalars(select(every).where(every.owner == owner)).all()
    return _bigs((node.key, node.weight) for node in found if isinstance(node, Big))


@_kind("big")
def _second_table(session: Session, owner: int) -> Contents:
    table = Big.__table__
    return _bigs(session.execute(select(table).where(table.c.key == key_of(owner, 1))))


def _links(found: Iterable[str]) -> Contents:
    return _rows("link", ((key, 1) for key in found))


@_kind("link")
def _association(session: Session, owner: int) -> Contents:
    return _links(session.scalars(select(link.c.label_key).where(link.c.node_key == key_of(owner, 0))))


@_kind("link")
def _lazy_association(session: Session, owner: int) -> Contents:
    node = session.get(Node, key_of(owner, 0))
    assert node is not None
    return _links(label.key for label in node.labels)


@_kind("link")
def _selectin_association(session: Session, owner: int) -> Contents:
    statement = select(Node).where(Node.key == key_of(owner, 0)).options(selectinload(Node.labels))
    return _links(label.key for label in session.scalars(statement).one().labels)


@_kind("link")
def _joined_association(session: Session, owner: int) -> Contents:
    statement = select(Node).where(Node.key == key_of(owner, 0)).options(joinedload(Node.labels))
    return _links(label.key for label in session.scalars(statement).unique().one().labels)


@_kind("link")
def _join_over_association(session: Session, owner: int) -> Contents:
    return _links(session.scalars(select(Label.key).select_from(Node).join(Node.labels).where(Node.owner == owner)))


@_kind("link")
def _any_association(session: Session, owner: int) -> Contents:
    found = []
    for number in range(LABELS):
        key = key_of(owner, number)
        if session.scalar(select(Node.key).where(Node.owner == owner, Node.labels.any(Label.key == key))) is not None:
            found.append(key)
    return _links(found)


def read_pair(session: Session, owner: int) -> tuple[int, int]:
    """The values of a node and of a leaf that every transaction writes together, in one SELECT."""
    statement = select(Node.value, Leaf.value).join(Leaf, Leaf.key == Node.key).where(Node.key == key_of(owner, 0))
    node, leaf = session.execute(statement).one()
    return node, leaf

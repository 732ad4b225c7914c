"""Flows of SQLAlchemy's ORM quick start, unified tutorial and querying guide, in code of our own.

A flow gets a factory of sessions and `note`, with which it writes down everything that it is answered. It names no key:
those that a rollback leaves unused differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    bindparam,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal_column,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.orm import (
    Bundle,
    Session,
    aliased,
    contains_eager,
    defer,
    immediateload,
    joinedload,
    lazyload,
    load_only,
    raiseload,
    selectin_polymorphic,
    selectinload,
    sessionmaker,
    subqueryload,
    undefer,
    with_loader_criteria,
    with_polymorphic,
)

from tests.integration.applications.tutorial_models import (
    Address,
    Company,
    Employee,
    Engineer,
    Item,
    LogRecord,
    Manager,
    Order,
    User,
)

__all__ = ["TUTORIAL_FLOWS", "Flow"]

Sessions = sessionmaker[Session]
Note = Callable[[Any], None]
Flow = Callable[[Sessions, Note], None]


def _people(session: Session) -> None:
    session.add_all(
        [
            User(name="spongebob", fullname="Spongebob Squarepants", addresses=[Address(email="spongebob@sea.org")]),
            User(
                name="sandy",
                fullname="Sandy Cheeks",
                addresses=[Address(email="sandy@sea.org"), Address(email="sandy@squirrels.org")],
            ),
            User(name="patrick", fullname="Patrick Star"),
        ]
    )
    session.commit()


def _staff(session: Session) -> None:
    session.add(
        Company(
            name="Krusty Krab",
            employees=[
                Manager(name="Mr. Krabs", title="Owner"),
                Engineer(name="SpongeBob", skill="Frying"),
                Engineer(name="Squidward", skill="Clarinet"),
                Employee(name="Nobody"),
            ],
        )
    )
    session.commit()


# ------------------------------------------------------------------------------------------------ quick start


def quick_start(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        _people(session)
    session = sessions()
    note(session.scalars(select(User).where(User.name.in_(["spongebob", "sandy"])).order_by(User.name)).all())
    found = select(Address).join(Address.user).where(User.name == "sandy").where(Address.email == "sandy@sea.org")
    address = session.scalars(found).one()
    note(address)
    patrick = session.scalars(select(User).where(User.name == "patrick")).one()
    patrick.addresses.append(Address(email="patrick@sea.org"))
    address.email = "sandy_cheeks@sea.org"
    session.commit()
    sandy = session.get(User, address.user_id)
    assert sandy is not None
    sandy.addresses.remove(address)
    session.flush()
    note(sandy.addresses)
    session.delete(patrick)
    session.commit()
    note(session.scalars(select(Address.email).order_by(Address.email)).all())
    session.close()


# --------------------------------------------------------------------------------- data manipulation with the ORM


def unit_of_work(sessions: Sessions, note: Note) -> None:
    session = sessions()
    squidward = User(name="squidward", fullname="Squidward Tentacles")
    krabs = User(name="ehkrabs", fullname="Eugene H. Krabs")
    note((squidward.id, inspect(squidward).transient))
    session.add(squidward)
    session.add(krabs)
    note(sorted(map(repr, session.new)))
    session.flush()
    note((isinstance(squidward.id, int), krabs.id - squidward.id, list(session.new)))
    note(session.get(User, squidward.id) is squidward)
    session.commit()
    sandy = User(name="sandy", fullname="Sandy Cheeks")
    session.add(sandy)
    session.commit()
    again = session.execute(select(User).filter_by(name="sandy")).scalar_one()
    note(again is sandy)
    again.fullname = "Sandy Squirrel"
    note((again in session.dirty, session.is_modified(again)))
    note(session.execute(select(User.fullname).where(User.id == again.id)).scalar_one())
    note(again in session.dirty)
    session.delete(squidward)
    note(squidward in session.deleted)
    note(session.scalars(select(User).order_by(User.name)).all())
    note(squidward in session)
    session.rollback()
    note((sandy.fullname, squidward in session, again is sandy))
    note(session.execute(select(User).where(User.name == "squidward")).scalar_one() is squidward)
    session.close()
    note((inspect(sandy).detached, sandy in session))
    session.add(sandy)
    note(sandy.name)
    session.close()


# ----------------------------------------------------------------------------------- working with related objects


def related_objects(sessions: Sessions, note: Note) -> None:
    session = sessions()
    user = User(name="pkrabs", fullname="Pearl Krabs")
    note(user.addresses)
    first = Address(email="pearl@sea.org")
    user.addresses.append(first)
    second = Address(email="pearl@aol.org", user=user)
    note((first.user is user, user.addresses))
    session.add(user)
    note((first in session, second in session, first.user_id))
    session.commit()
    note(first.user_id == user.id)
    session.expire_all()
    note(user.addresses)
    note(session.scalars(select(User).join(User.addresses).where(Address.email == "pearl@aol.org")).all())
    note(session.execute(select(Address.email).join_from(User, Address).order_by(Address.email)).scalars().all())
    order = Order(name="lunch", user=user, items=[Item(name="bun"), Item(name="patty", price=3)])
    session.add(order)
    session.commit()
    session.expire_all()
    note((order.items, user.orders))
    order.items.pop(0)
    session.commit()
    note(session.scalars(select(Item).join(Order.items).order_by(Item.name)).all())
    other = User(name="sandy", addresses=[])
    session.add(other)
    user.addresses[0].user = other
    session.commit()
    session.expire_all()
    note((user.addresses, other.addresses))
    second.user = other
    session.flush()
    session.expire(other, ["addresses"])
    note(other.addresses)
    session.close()


def loading_relationships(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        _people(session)
        sandy = session.scalars(select(User).filter_by(name="sandy")).one()
        session.add(Order(name="nuts", user=sandy, items=[Item(name="acorn"), Item(name="peanut")]))
        session.commit()
    for load in (lazyload, selectinload, joinedload, subqueryload, immediateload):
        with sessions() as session:
            statement = select(User).options(load(User.addresses)).order_by(User.name)
            note([(user, user.addresses) for user in session.scalars(statement).unique()])
    with sessions() as session:
        nested = select(User).options(selectinload(User.orders).joinedload(Order.items)).order_by(User.name)
        users = session.scalars(nested).all()
        session.close()
        note([(user, [(order, order.items) for order in user.orders]) for user in users])
    with sessions() as session:
        inner = select(Address).options(joinedload(Address.user, innerjoin=True)).order_by(Address.email)
        note([(address, address.user) for address in session.scalars(inner)])
        explicit = (
            select(Address)
            .join(Address.user)
            .where(User.name == "sandy")
            .options(contains_eager(Address.user))
            .order_by(Address.email)
        )
        note([(address, address.user) for address in session.scalars(explicit)])
    with sessions() as session:
        user = session.scalars(select(User).options(raiseload(User.addresses)).order_by(User.name)).first()
        try:
            assert user is not None
            note(user.addresses)
        except Exception as error:  # noqa: BLE001 - which error it is, is what is noted
            note(type(error).__name__)
        filtered = selectinload(User.addresses.and_(Address.email.like("%squirrels%")))
        session.expunge_all()
        note([(user, user.addresses) for user in session.scalars(select(User).options(filtered).order_by(User.name))])
        session.expunge_all()
        criteria = with_loader_criteria(Address, Address.email.like("%sea.org"))
        both = select(User).options(criteria, selectinload(User.addresses)).order_by(User.name)
        note([(user, user.addresses) for user in session.scalars(both)])


# --------------------------------------------------------------------------------------------- the querying guide


def selecting(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        _people(session)
        note(session.execute(select(User, Address).join(User.addresses).order_by(Address.email)).all())
        note(session.execute(select(User.name, Address.email).join(User.addresses).order_by(Address.email)).all())
        bundle: Any = Bundle("contact", User.name, Address.email)
        note(
            [row.contact.email for row in session.execute(select(bundle).join(User.addresses).order_by(Address.email))]
        )
        one, other = aliased(Address, name="one"), aliased(Address, name="other")
        twice = (
            select(User)
            .join(User.addresses.of_type(one))
            .where(one.email == "sandy@sea.org")
            .join(User.addresses.of_type(other))
            .where(other.email == "sandy@squirrels.org")
        )
        note(session.scalars(twice).all())
        inner = select(User).where(User.fullname.like("S%")).order_by(User.name).subquery()
        note(session.scalars(select(aliased(User, inner)).order_by(inner.c.name)).all())
        counts = select(func.count(Address.id).label("n"), Address.user_id).group_by(Address.user_id).subquery()
        counted = select(User.name, func.coalesce(counts.c.n, 0)).outerjoin(counts, User.id == counts.c.user_id)
        note(session.execute(counted.order_by(User.name)).all())
        names = union_all(select(User.name.label("x")), select(Address.email.label("x"))).subquery()
        note(session.scalars(select(names.c.x).order_by(names.c.x)).all())
        both = union_all(select(User).where(User.name == "sandy"), select(User).where(User.name == "patrick"))
        note(sorted(map(repr, session.scalars(select(User).from_statement(both)))))
        by_text = text("SELECT id, name, fullname FROM user_account ORDER BY name").columns(
            User.id, User.name, User.fullname
        )
        note(session.scalars(select(User).from_statement(by_text)).all())
        note(
            session.scalars(
                select(User).where(User.addresses.any(Address.email.like("%sea%"))).order_by(User.name)
            ).all()
        )
        note(session.scalars(select(User).where(~User.addresses.any())).all())
        note(
            session.scalars(select(Address).where(Address.user.has(User.name == "sandy")).order_by(Address.email)).all()
        )
        sandy = session.scalars(select(User).filter_by(name="sandy")).one()
        note(session.scalars(select(Address).where(Address.user == sandy).order_by(Address.email)).all())
        note(session.scalars(select(User).where(exists().where(Address.user_id == User.id)).order_by(User.name)).all())
        cte = select(User.id, User.name).where(User.name != "patrick").cte()
        note(
            session.execute(select(cte.c.name, Address.email).join(Address, Address.user_id == cte.c.id))
            .all()
            .__len__()
        )
        pairs = select(User.name).where(tuple_(User.name, User.fullname).in_([("sandy", "Sandy Cheeks")]))
        note(session.scalars(pairs).all())
        window = select(Address.email, func.row_number().over(partition_by=Address.user_id, order_by=Address.email))
        note(sorted(map(tuple, session.execute(window))))
        note(session.scalar(select(literal_column("40 + 2"))))
        note(session.execute(select(User.name).where(User.name == bindparam("n")), {"n": "sandy"}).mappings().all())


def loading_columns(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        session.add(User(name="sandy", fullname="Sandy Cheeks", biography="from Texas"))
        session.commit()
    for option in (defer(User.fullname), load_only(User.name), undefer(User.biography)):
        with sessions() as session:
            user = session.scalars(select(User).options(option)).one()
            note(sorted(inspect(user).unloaded))
            note((user.fullname, user.biography))
    with sessions() as session:
        user = session.scalars(select(User)).one()
        session.execute(update(User).values(fullname="Changed"), execution_options={"synchronize_session": False})
        note(user.fullname)
        note(session.scalars(select(User).execution_options(populate_existing=True)).one().fullname)
        session.commit()


def inheritance(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        _staff(session)
    with sessions() as session:
        note(session.scalars(select(Manager).order_by(Manager.name)).all())
        for employee in session.scalars(select(Employee).order_by(Employee.name)):
            note((employee, getattr(employee, "skill", None), getattr(employee, "title", None)))
    with sessions() as session:
        loader = selectin_polymorphic(Employee, [Manager, Engineer])
        loaded = session.scalars(select(Employee).order_by(Employee.name).options(loader)).all()
        session.close()
        note([(employee, employee.__dict__.get("skill")) for employee in loaded])
    with sessions() as session:
        wide: Any = with_polymorphic(Employee, [Engineer, Manager])
        matching = select(wide).where((wide.Engineer.skill == "Frying") | (wide.Manager.title == "Owner"))
        note(session.scalars(matching.order_by(wide.name)).all())
        of_type = select(Company.name, Engineer.name).join(Company.employees.of_type(Engineer))
        note(session.execute(of_type.order_by(Engineer.name)).all())
        eager = selectinload(Company.employees.of_type(wide))
        company = session.scalars(select(Company).options(eager)).one()
        note(company.employees)
        engineer = session.scalars(select(Engineer).filter_by(name="Squidward")).one()
        engineer.skill, engineer.name = "Canvas", "Squidward T."
        company.employees.remove(engineer)
        session.commit()
        note((engineer.company, session.scalars(select(Engineer.skill).order_by(Engineer.skill)).all()))
        session.delete(engineer)
        session.commit()
        note(session.scalar(select(func.count(Employee.id))))
        session.execute(insert(Manager), [{"name": "Plankton", "title": "Rival"}, {"name": "Karen", "title": "Wife"}])
        session.commit()
        note(session.execute(select(Manager.name, Manager.title).order_by(Manager.name)).all())
        moved = session.scalars(select(Manager).filter_by(name="Karen")).one()
        session.execute(update(Manager), [{"id": moved.id, "name": "Karen P.", "title": "Computer"}])
        session.commit()
        session.expire_all()
        note((moved.name, moved.title))
        session.execute(
            update(Manager)
            .where(Manager.id.in_(select(Employee.id).where(Employee.name == "Plankton")))
            .values(title="?")
        )
        session.commit()
        note(session.scalars(select(Manager.title).order_by(Manager.title)).all())


# ------------------------------------------------------------------------------------------- INSERT, UPDATE, DELETE


def bulk_statements(sessions: Sessions, note: Note) -> None:
    """The calling forms that the page on ORM-enabled DML lists."""
    with sessions() as session:
        session.execute(
            insert(User),
            [{"name": "spongebob", "fullname": "S. S."}, {"name": "sandy", "fullname": None}, {"name": "patrick"}],
        )
        session.commit()
        note(session.execute(select(User.name, User.fullname).order_by(User.name)).all())
        ids = session.execute(select(User.name, User.id).order_by(User.name)).all()
        session.execute(insert(Address).values([{"email": f"{name}@sea.org", "user_id": key} for name, key in ids]))
        session.commit()
        session.execute(insert(Item).values(price=func.length("four")), [{"name": "bun"}, {"name": "patty"}])
        session.commit()
        note(session.execute(select(Item.name, Item.price).order_by(Item.name)).all())
        session.execute(update(User), [{"id": key, "fullname": name.upper()} for name, key in ids])
        session.commit()
        note(session.scalars(select(User.fullname).order_by(User.name)).all())
        users = session.scalars(select(User).order_by(User.name)).all()
        session.execute(update(User).where(User.name.in_(["sandy", "patrick"])).values(fullname="Name: " + User.name))
        note([user.fullname for user in users])
        session.commit()
        for synchronize in ("auto", "evaluate", "fetch", False):
            session.execute(
                update(User).where(User.name == "sandy").values(fullname=f"by {synchronize}"),
                execution_options={"synchronize_session": synchronize},
            )
            session.commit()
            session.expire_all()
            note([user.fullname for user in users])
        busy = select(Address.user_id).where(Address.email.like("p%"))
        session.execute(update(User).where(User.id.in_(busy)).values(fullname="busy"))
        session.commit()
        session.execute(delete(Address).where(Address.email == "patrick@sea.org"))
        session.execute(delete(User).where(User.name == "patrick"))
        session.commit()
        note(session.scalars(select(User).order_by(User.name)).all())
        session.bulk_save_objects([Item(name="kelp"), Item(name="shake")])
        session.bulk_insert_mappings(Item, [{"name": "fries", "price": 2}])  # type: ignore[arg-type]
        session.commit()
        note(session.execute(select(Item.name, Item.price).order_by(Item.name)).all())


def returning(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        made = session.scalars(insert(User).returning(User), [{"name": "sandy"}, {"name": "patrick"}]).all()
        note(sorted(map(repr, made)))
        session.commit()
        note(session.scalars(select(User).order_by(User.name)).all()[0] in made)
        sorted_by_parameters = insert(Item).returning(Item.name, sort_by_parameter_order=True)
        note(session.execute(sorted_by_parameters, [{"name": "bun"}, {"name": "ale"}]).all())
        session.commit()
        if sessions.kw["bind"].dialect.update_returning:
            changed = update(User).where(User.name == "sandy").values(fullname="Sandy").returning(User)
            note([(user, user.fullname) for user in session.scalars(changed)])
        gone = delete(User).where(User.name == "patrick").returning(User.name)
        note(session.execute(gone).all())
        session.commit()
        note(session.scalars(select(User)).all())


def upserts(sessions: Sessions, note: Note) -> None:
    with sessions() as session:
        session.add(User(name="sandy", fullname="old"))
        session.commit()
        rows = [{"name": "sandy", "fullname": "new"}, {"name": "patrick", "fullname": "Patrick"}]
        name = session.get_bind().dialect.name
        statement: Any
        if name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import insert as insert_or

            statement = insert_or(User).values(rows)
            statement = statement.on_duplicate_key_update(fullname=statement.inserted.fullname)
            nothing = insert_or(User).values(name="sandy", fullname="other").prefix_with("IGNORE")
        else:
            if name == "sqlite":
                from sqlalchemy.dialects.sqlite import insert as insert_or
            else:
                from sqlalchemy.dialects.postgresql import insert as insert_or  # type: ignore[assignment]
            statement = insert_or(User).values(rows)
            statement = statement.on_conflict_do_update(
                index_elements=[User.name], set_={"fullname": statement.excluded.fullname}
            )
            nothing = insert_or(User).values(name="sandy", fullname="other").on_conflict_do_nothing()
        session.execute(statement)
        session.commit()
        note(session.execute(select(User.name, User.fullname).order_by(User.name)).all())
        session.execute(nothing)
        session.commit()
        note(session.execute(select(User.name, User.fullname).order_by(User.name)).all())
        if name != "mariadb":
            found = session.scalars(statement.returning(User), execution_options={"populate_existing": True}).all()
            note(sorted((user.name, user.fullname) for user in found))
            session.commit()


def expressions_and_defaults(sessions: Sessions, note: Note) -> None:
    """Additional persistence techniques: SQL in a flush, a forced NULL, what the server puts in."""
    with sessions() as session:
        record = LogRecord(name="first")
        session.add(record)
        session.commit()
        note((record.code, record.times, record.note, record.at))
        record.times = LogRecord.times + 5
        session.commit()
        note(record.times)
        record.name = func.upper("changed")
        session.commit()
        note(record.name)
        session.add(User(name="null", fullname=None))
        session.add(User(name="expression", fullname=func.lower("LOWER")))
        session.commit()
        note(session.execute(select(User.name, User.fullname).order_by(User.name)).all())


TUTORIAL_FLOWS: tuple[Flow, ...] = (
    quick_start,
    unit_of_work,
    related_objects,
    loading_relationships,
    selecting,
    loading_columns,
    inheritance,
    bulk_statements,
    returning,
    upserts,
    expressions_and_defaults,
)

"""What the desk reads: joins, aggregates, windows, pages."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from sqlalchemy import case, exists, func, or_, select, text
from sqlalchemy.orm import Session, joinedload, selectin_polymorphic, selectinload

from library.models import Author, Book, Copy, Film, Loan, Member, Topic, Visit, Work


class Page(NamedTuple):
    items: list[Work]
    total: int
    pages: int


def catalogue(session: Session, page: int = 1, per_page: int = 10) -> Page:
    total = session.scalar(select(func.count(Work.id))) or 0
    found = session.scalars(
        select(Work)
        .options(selectin_polymorphic(Work, [Book, Film]), selectinload(Work.authors))
        .order_by(Work.title, Work.id)
        .limit(per_page)
        .offset((page - 1) * per_page)
    ).all()
    return Page(list(found), total, -(-total // per_page))


def search(session: Session, words: str) -> list[str]:
    pattern = f"%{words.lower()}%"
    statement = (
        select(Work.title)
        .outerjoin(Work.authors)
        .where(or_(func.lower(Work.title).like(pattern), func.lower(Author.name).like(pattern)))
        .distinct()
        .order_by(Work.title)
    )
    return list(session.scalars(statement))


def overdue(session: Session, today: datetime.date) -> list[tuple[str, str, int]]:
    loans = session.scalars(
        select(Loan)
        .options(joinedload(Loan.member), joinedload(Loan.copy).joinedload(Copy.work))
        .where(Loan.is_open, Loan.due_on < today)
        .order_by(Loan.due_on, Loan.copy_mark)
    )
    return [(loan.member.name, loan.copy.work.title, (today - loan.due_on).days) for loan in loans]


def most_lent(session: Session, count: int = 3) -> list[tuple[str, int]]:
    lent = func.count(Loan.id)
    statement = (
        select(Work.title, lent)
        .join(Work.copies)
        .join(Copy.loans)
        .group_by(Work.id, Work.title)
        .having(lent > 0)
        .order_by(lent.desc(), Work.title)
        .limit(count)
    )
    return [(title, number) for title, number in session.execute(statement)]


def ranks(session: Session) -> list[tuple[str, int]]:
    """Members by what they owe: a window function over a CTE."""
    owing = select(Member.name, Member.fees_cents).where(Member.fees_cents > 0).cte("owing")
    rank = func.rank().over(order_by=owing.c.fees_cents.desc())
    return [(name, place) for name, place in session.execute(select(owing.c.name, rank).order_by(rank, owing.c.name))]


def topics_in_use(session: Session) -> dict[str, int]:
    statement = select(Topic.name, func.count(Work.id)).join(Topic.works).group_by(Topic.name)
    return dict(session.execute(statement).all())


def shelf(session: Session) -> dict[str, int]:
    """How many copies are in, and how many are out."""
    is_out = exists().where(Loan.copy_mark == Copy.shelf_mark, Loan.is_open)
    where = case((is_out, "out"), else_="in").label("place")
    return dict(session.execute(select(where, func.count()).select_from(Copy).group_by(where)).all())


def visits(session: Session, since: datetime.date) -> list[tuple[datetime.date, str, int]]:
    statement = (
        select(Visit.day, Visit.door, func.count())
        .where(Visit.day >= since)
        .group_by(Visit.day, Visit.door)
        .order_by(Visit.day, Visit.door)
    )
    return [(day, door, number) for day, door, number in session.execute(statement)]


def newest_sql(session: Session) -> list[str]:
    """Somebody wrote this one by hand."""
    return list(
        session.scalars(text("SELECT title FROM work WHERE year IS NOT NULL ORDER BY year DESC, title LIMIT 3"))
    )

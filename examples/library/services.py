"""What the desk does. Each function works in the transaction of the session that it is given, and leaves the commit."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from library.models import Author, Book, Condition, Copy, Loan, Member, Settings, Topic, Visit, Work, filed_under

LOAN_DAYS = 28
FEE_CENTS_PER_DAY = 20
LOANS_MAX = 3


class LibraryError(Exception):
    """The desk refuses."""


class AlreadyLentError(LibraryError):
    pass


class NotAllowedError(LibraryError):
    pass


class EmailTakenError(LibraryError):
    pass


# ------------------------------------------------------------------------------------------------ the catalogue


def author_named(session: Session, first_name: str, last_name: str) -> Author:
    """Found, or made."""
    found = session.scalars(select(Author).filter_by(first_name=first_name, last_name=last_name)).one_or_none()
    if found is None:
        found = Author(first_name=first_name, last_name=last_name)
        session.add(found)
    return found


def add_book(
    session: Session, title: str, isbn: str, authors: Iterable[tuple[str, str]] = (), copies: int = 1, **values: object
) -> Book:
    book = Book(title=title, isbn=isbn, **values)
    book.authors = [author_named(session, *names) for names in authors]
    session.add(book)
    add_copies(book, copies)
    return book


def add_copies(work: Work, count: int) -> None:
    have = len(work.copies)
    for number in range(have + 1, have + count + 1):
        work.copies.append(Copy(shelf_mark=f"{work.title[:12].upper()}-{number}"))


def file_under(session: Session, work: Work, *names: str) -> None:
    for name in names:
        topic = session.get(Topic, name)
        if topic is None:
            topic = Topic(name=name)
            session.add(topic)
        if topic not in work.topics:
            work.topics.append(topic)


def rename_topic(session: Session, old: str, new: str) -> None:
    """A natural key changes: the new row, the references, the old row."""
    session.execute(insert(Topic), [{"name": new}])
    session.execute(update(filed_under).where(filed_under.c.topic_name == old).values(topic_name=new))
    session.execute(delete(Topic).where(Topic.name == old))


def import_topics(session: Session, names: Sequence[str]) -> int:
    """Those that are missing, in one statement."""
    present = set(session.scalars(select(Topic.name).where(Topic.name.in_(names))))
    missing = [{"name": name} for name in dict.fromkeys(names) if name not in present]
    if missing:
        session.execute(insert(Topic), missing)
    return len(missing)


# --------------------------------------------------------------------------------------------------- members


def register(session: Session, email: str, name: str, *, newsletter: bool = False) -> Member:
    """Says so if the address is taken, and leaves the rest of the transaction as it was."""
    member = Member(email=email, name=name, settings=Settings(newsletter=newsletter))
    try:
        with session.begin_nested():
            session.add(member)
    except IntegrityError as error:
        raise EmailTakenError(email) from error
    return member


def merge_members(session: Session, kept: Member, removed: Member) -> None:
    for loan in list(removed.loans):
        loan.member = kept
    kept.fees_cents = kept.fees_cents + removed.fees_cents
    session.flush()
    session.delete(removed)


def waive_small_fees(session: Session, below_cents: int) -> None:
    session.execute(update(Member).where(Member.fees_cents < below_cents).values(fees_cents=0))


# ----------------------------------------------------------------------------------------------------- loans


def lend(session: Session, copy: Copy, member: Member, today: datetime.date) -> Loan:
    if copy.condition is Condition.LOST:
        raise NotAllowedError(f"{copy.shelf_mark} is lost")
    if any(loan.is_open for loan in copy.loans):
        raise AlreadyLentError(copy.shelf_mark)
    if sum(loan.is_open for loan in member.loans) >= LOANS_MAX:
        raise NotAllowedError(f"{member.name} has {LOANS_MAX} already")
    loan = Loan(copy=copy, member=member, lent_on=today, due_on=today + datetime.timedelta(days=LOAN_DAYS))
    session.add(loan)
    return loan


def give_back(loan: Loan, today: datetime.date) -> int:
    """The fee in cents, which is added to the member's in the database."""
    loan.returned_on = today
    fee = max(0, (today - loan.due_on).days) * FEE_CENTS_PER_DAY
    if fee:
        loan.member.fees_cents = Member.fees_cents + fee
    return fee


def report_lost(copy: Copy) -> None:
    copy.condition = Condition.LOST


def forget_old_loans(session: Session, before: datetime.date) -> None:
    session.execute(delete(Loan).where(Loan.returned_on < before))


def count_visit(session: Session, door: str, today: datetime.date) -> None:
    session.add(Visit(door=door, day=today))


def open_loans(session: Session) -> int:
    return session.scalar(select(func.count(Loan.id)).where(Loan.is_open)) or 0

"""Lending and giving back, and the reports of it."""

from __future__ import annotations

import datetime

import pytest
from conftest import TODAY
from library import reports, services
from library.models import Copy, Film, Loan, Member, Work
from sqlalchemy import select
from sqlalchemy.orm import undefer

DAY = datetime.timedelta(days=1)


@pytest.fixture
def lend(session, make_member, make_book):
    """One loan of a new book to a new member."""

    def lend(title="Emma", name="Ada", on=TODAY):
        loan = services.lend(session, make_book(title).copies[0], make_member(name), on)
        session.commit()
        return loan

    return lend


def test_a_loan_ends_after_four_weeks(lend, read):
    lend()
    loan = read(lambda session: session.scalars(select(Loan)).one())
    assert (loan.due_on - loan.lent_on).days == 28
    assert loan.is_open


def test_the_database_says_when_it_was_recorded(lend):
    assert isinstance(lend().recorded_at, datetime.datetime)


def test_a_copy_is_lent_once(session, lend, make_member):
    loan = lend()
    with pytest.raises(services.AlreadyLentError):
        services.lend(session, loan.copy, make_member("Grace"), TODAY)


def test_a_copy_that_came_back_can_be_lent_again(session, lend, make_member, read):
    loan = lend()
    services.give_back(loan, TODAY + DAY)
    session.commit()
    services.lend(session, loan.copy, make_member("Grace"), TODAY + DAY)
    session.commit()
    assert read(services.open_loans) == 1


def test_a_lost_copy_is_not_lent(session, make_book, make_member):
    book = make_book()
    services.report_lost(book.copies[0])
    session.commit()
    with pytest.raises(services.NotAllowedError):
        services.lend(session, book.copies[0], make_member(), TODAY)


def test_a_member_has_three_at_most(session, make_book, make_member):
    member, book = make_member(), make_book(copies=4)
    for copy in book.copies[:3]:
        services.lend(session, copy, member, TODAY)
    session.commit()
    with pytest.raises(services.NotAllowedError):
        services.lend(session, book.copies[3], member, TODAY)


def test_being_late_costs(session, lend, read):
    loan = lend()
    assert services.give_back(loan, loan.due_on + 3 * DAY) == 60
    session.commit()
    assert loan.member.fees_cents == 60
    assert read(lambda session: session.scalars(select(Member.fees_cents)).one()) == 60


def test_members_are_merged(session, lend, make_member, read):
    kept = make_member("Ada", fees_cents=10)
    loan = lend("Emma", "Other")
    loan.member.fees_cents = 5
    session.commit()
    services.merge_members(session, kept, loan.member)
    session.commit()
    assert read(lambda session: session.execute(select(Member.name, Member.fees_cents)).all()) == [("Ada", 15)]
    assert read(lambda session: session.scalars(select(Loan.member_id)).all()) == [kept.id]


def test_old_loans_are_forgotten(session, lend, read):
    for days, title in enumerate(("Emma", "Persuasion", "Sanditon")):
        services.give_back(lend(title, title), TODAY + days * DAY)
    session.commit()
    services.forget_old_loans(session, TODAY + 2 * DAY)
    session.commit()
    assert len(read(lambda session: session.scalars(select(Loan)).all())) == 1


def test_who_is_late(lend, read):
    lend("Emma", "Ada")
    lend("Persuasion", "Grace", TODAY + 10 * DAY)
    assert read(reports.overdue, TODAY + 30 * DAY) == [("Ada", "Emma", 2)]


def test_what_is_lent_most(session, lend, make_member, read):
    for title in ("Emma", "Persuasion"):
        loan = lend(title, title)
    services.give_back(loan, TODAY)
    services.lend(session, loan.copy, make_member("Grace"), TODAY)
    session.commit()
    assert read(reports.most_lent) == [("Persuasion", 2), ("Emma", 1)]
    by_work = read(lambda session: session.scalars(select(Work).options(undefer(Work.times_lent))).all())
    assert {work.title: work.times_lent for work in by_work} == {"Persuasion": 2, "Emma": 1}


def test_what_is_in_and_what_is_out(session, lend, make_book, read):
    lend()
    make_book("Persuasion", copies=2)
    assert read(reports.shelf) == {"in": 2, "out": 1}


def test_ranks_by_fees(make_member, read):
    for name, fees in (("Ada", 50), ("Grace", 90), ("Linus", 50), ("Kim", 0)):
        make_member(name, fees_cents=fees)
    assert read(reports.ranks) == [("Grace", 1), ("Ada", 2), ("Linus", 2)]


def test_the_catalogue_by_pages(session, make_book, read):
    for number in range(4):
        make_book(f"Volume {number}")
    session.add(Film(title="A film", minutes=90))
    session.commit()
    page = read(reports.catalogue, 2, 2)
    assert ([work.title for work in page.items], page.total, page.pages) == (["Volume 1", "Volume 2"], 5, 3)


def test_search_finds_titles_and_authors(make_book, read):
    make_book("Emma")
    make_book("The Austen Papers", authors=[("R. A.", "Leigh")])
    make_book("Ulysses", authors=[("James", "Joyce")])
    assert read(reports.search, "austen") == ["Emma", "The Austen Papers"]


def test_a_report_in_sql(make_book, read):
    for title, year in (("Emma", 1815), ("Persuasion", 1817), ("Undated", None)):
        make_book(title, year=year)
    assert read(reports.newest_sql) == ["Persuasion", "Emma"]


def test_one_unit_of_work_for_a_whole_visit(session, make_book, make_member, read):
    """Reads, writes, reads what it wrote, and writes again: one transaction."""
    book, member = make_book(copies=2), make_member()
    with session.begin_nested():
        loan = services.lend(session, book.copies[0], member, TODAY)
    assert services.open_loans(session) == 1
    services.give_back(loan, TODAY)
    services.lend(session, book.copies[1], member, TODAY)
    session.commit()
    assert read(services.open_loans) == 1
    assert read(
        lambda session: session.scalars(select(Copy.shelf_mark).join(Copy.loans).where(Loan.is_open)).all()
    ) == ["EMMA-2"]


def test_visits_are_counted_one_by_one(session, read):
    for number in range(40):
        services.count_visit(session, "north" if number % 4 else "south", TODAY)
        session.commit()
    services.count_visit(session, "north", TODAY - DAY)
    session.commit()
    assert read(reports.visits, TODAY) == [(TODAY, "north", 30), (TODAY, "south", 10)]

"""Members, and what goes wrong with them."""

from __future__ import annotations

import pytest
from library import services
from library.models import Member, Settings
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError


def emails(session):
    return session.scalars(select(Member.email).order_by(Member.email)).all()


def test_somebody_registers(session, read):
    member = services.register(session, "Ada@example.org", "Ada", newsletter=True)
    session.commit()
    assert member.settings is not None
    assert read(emails) == ["ada@example.org"]
    assert read(lambda session: session.scalars(select(Settings.newsletter)).all()) == [True]


def test_what_is_no_address_is_refused_before_anything_is_sent(session):
    with pytest.raises(ValueError, match="not an address"):
        services.register(session, "nowhere", "Nobody")
    assert not session.new


@pytest.mark.refused_by_the_database
def test_an_address_is_taken_once(session, make_member, read):
    make_member(email="ada@example.org")
    session.add(Member(email="ada@example.org", name="Other"))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert read(emails) == ["ada@example.org"]


@pytest.mark.refused_by_the_database
def test_a_taken_address_leaves_the_rest_of_the_transaction(session, make_member, read):
    make_member(email="ada@example.org")
    services.register(session, "grace@example.org", "Grace")
    with pytest.raises(services.EmailTakenError):
        services.register(session, "ada@example.org", "Other")
    services.register(session, "linus@example.org", "Linus")
    session.commit()
    assert read(emails) == ["ada@example.org", "grace@example.org", "linus@example.org"]


@pytest.mark.refused_by_the_database
def test_fees_are_never_negative(session, make_member, read):
    member = make_member()
    member.fees_cents = -1
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    assert read(lambda session: session.scalars(select(Member.fees_cents)).all()) == [0]


@pytest.mark.refused_by_the_database
def test_settings_of_nobody_are_refused(session):
    session.add(Settings(member_id=4711))
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()


def test_an_address_can_be_used_again_after_its_member_has_gone(session, make_member, read):
    session.delete(make_member(email="ada@example.org"))
    session.commit()
    make_member(email="ada@example.org", name="Other")
    assert read(emails) == ["ada@example.org"]


def test_settings_go_with_their_member(session, read):
    member = services.register(session, "ada@example.org", "Ada")
    session.commit()
    session.delete(member)
    session.commit()
    assert read(lambda session: session.scalar(select(func.count(Settings.member_id)))) == 0


def test_small_fees_are_waived_in_one_statement(session, make_member, read):
    for name, fees in (("Ada", 40), ("Grace", 400), ("Linus", 99)):
        make_member(name, fees_cents=fees)
    services.waive_small_fees(session, 100)
    session.commit()
    assert sorted(read(lambda session: session.scalars(select(Member.fees_cents)).all())) == [0, 0, 400]


def test_fees_of_many_members_by_their_keys(session, make_member, read):
    members = [make_member(name) for name in ("Ada", "Grace")]
    session.execute(update(Member), [{"id": member.id, "fees_cents": 7} for member in members])
    session.commit()
    assert read(lambda session: session.scalar(select(func.sum(Member.fees_cents)))) == 14


def test_what_is_rolled_back_was_never_there(session, make_member, read):
    member = make_member()
    member.name = "Eve"
    session.add(Member(email="eve@example.org", name="Eve"))
    session.flush()
    session.rollback()
    assert member.name == "Ada"
    assert read(emails) == ["ada1@example.org"]


def test_a_copy_of_a_member_from_elsewhere_is_merged(session, make_member, read):
    member = make_member()
    session.expunge(member)
    member.name = "Ada L."
    merged = session.merge(member)
    session.commit()
    assert merged is not member
    assert read(lambda session: session.scalars(select(Member.name)).all()) == ["Ada L."]

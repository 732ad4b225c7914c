"""Compares the database with what a load of HTTP requests was told: nothing lost, doubled, in part, or unasked for."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from web_load import Outcome
from web_orders import Article, Order, OrderLine


def find_faults(target: Engine, outcome: Outcome) -> list[str]:
    """What is wrong, a sentence each. Everything committed must have been applied."""
    faults = list(outcome.errors)
    with Session(target) as session:
        orders = [order for order in session.scalars(select(Order)) if order.reference in outcome.sent]
        for reference, count in Counter(order.reference for order in orders).items():
            if count > 1:
                faults.append(f"{reference} is in the database {count} times")
        found = {order.reference: order for order in orders}
        for reference, order_id in outcome.answered.items():
            if reference not in found:
                faults.append(f"{reference} was answered as order {order_id}, and is not in the database")
            elif found[reference].id != order_id:
                faults.append(f"{reference} was answered as order {order_id}, and is order {found[reference].id}")
        for reference, order in found.items():
            if reference not in outcome.answered and reference not in outcome.cut:
                faults.append(f"{reference} is in the database, and was answered with an error")
            if [(line.article, line.pieces) for line in order.lines] != outcome.sent[reference]:
                faults.append(f"{reference} is in the database in part")
        ordered = dict(
            session.execute(select(OrderLine.article, func.sum(OrderLine.pieces)).group_by(OrderLine.article)).all()
        )
        faults += [
            f"{article.sold} pieces of {article.name} are sold, {ordered.get(article.name, 0)} ordered"
            for article in session.scalars(select(Article))
            if article.sold != ordered.get(article.name, 0)
        ]
    return faults


def count_cut_and_committed(target: Engine, outcome: Outcome) -> int:
    """How many of the orders that were cut are in the database."""
    with Session(target) as session:
        return sum(reference in outcome.cut for reference in session.scalars(select(Order.reference)))

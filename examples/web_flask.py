"""Orders over HTTP with Flask: gunicorn imports this once, attaches, and forks its workers.

    python examples/web_orders.py
    gunicorn --chdir examples --preload --workers 4 --threads 4 web_flask:app

With `--preload` the log is opened in gunicorn's own process, before the fork, and every worker goes on with it;
without, each worker imports this module and opens the log for itself. Both are right, and nothing here depends on which
it is.

`web_orders.py` has the tables, `web_demo.py` starts this, sends requests, kills a worker, and compares.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import asdict
from typing import Any

from flask import Flask, abort, request
from sqlalchemy.orm import sessionmaker
from web_orders import LOG_DIRECTORY, TARGET_URL, Article, Order, open_target, order_as_json, place_order

import walsync

engine = open_target(TARGET_URL)
Sessions = sessionmaker(engine)
journal = walsync.attach(Sessions, LOG_DIRECTORY)
atexit.register(journal.close)
# A forked process must not use its parent's connections to the database: it begins with an empty pool.
os.register_at_fork(after_in_child=lambda: engine.dispose(close=False))

app = Flask(__name__)


@app.post("/orders")
def post_order() -> tuple[dict[str, Any], int]:
    new = request.get_json()
    with Sessions() as session:
        try:
            lines = [(str(line["article"]), int(line["pieces"])) for line in new["lines"]]
            order = place_order(session, str(new["reference"]), lines)
        except (ValueError, KeyError, TypeError) as error:
            abort(422, f"not an order: {error!r}")
        return {"id": order.id}, 201


# Whichever worker took the order: the read waits until it is in the database.
@app.get("/orders/<int:order_id>")
def get_order(order_id: int) -> dict[str, Any]:
    with Sessions() as session:
        order = session.get(Order, order_id)
        if order is None:
            abort(404, f"no order {order_id}")
        return order_as_json(order)


@app.get("/articles/<name>")
def get_article(name: str) -> dict[str, Any]:
    with Sessions() as session:
        article = session.get(Article, name)
        if article is None:
            abort(404, f"no article {name}")
        return {"name": article.name, "sold": article.sold}


# Status 200 also while the database is away: orders are taken all the same, and whoever watches reads the figures.
@app.get("/health")
def get_health() -> dict[str, Any]:
    return {"process": os.getpid(), **asdict(journal.stats())}

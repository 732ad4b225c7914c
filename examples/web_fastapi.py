"""Orders over HTTP with FastAPI: every worker of uvicorn commits to one log, and one of them applies it.

    python examples/web_orders.py
    uvicorn --app-dir examples --workers 4 web_fastapi:app

uvicorn starts each worker as a process of its own, which imports this module; so each attaches for itself, when its
application starts. The first one to come opens the log, the others join it.

`web_orders.py` has the tables, `web_demo.py` starts this, sends requests, kills a worker, and compares.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session, sessionmaker
from web_orders import LOG_DIRECTORY, TARGET_URL, Article, Order, open_target, order_as_json, place_order

import walsync

engine = open_target(TARGET_URL)
Sessions = sessionmaker(engine)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    journal = walsync.attach(Sessions, LOG_DIRECTORY)
    yield {"journal": journal}
    journal.close()
    engine.dispose()


app = FastAPI(lifespan=lifespan)


def get_session() -> Iterator[Session]:
    with Sessions() as session:
        yield session


SessionOfRequest = Annotated[Session, Depends(get_session)]


class Line(BaseModel):
    article: str
    pieces: int


class NewOrder(BaseModel):
    reference: str
    lines: list[Line]


# `def`, not `async def`: FastAPI runs it in a thread, where a commit or a read may wait.
@app.post("/orders", status_code=201)
def post_order(new: NewOrder, session: SessionOfRequest) -> dict[str, Any]:
    try:
        order = place_order(session, new.reference, [(line.article, line.pieces) for line in new.lines])
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return {"id": order.id}


# Whichever worker took the order: the read waits until it is in the database.
@app.get("/orders/{order_id}")
def get_order(order_id: int, session: SessionOfRequest) -> dict[str, Any]:
    order = session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, f"no order {order_id}")
    return order_as_json(order)


@app.get("/articles/{name}")
def get_article(name: str, session: SessionOfRequest) -> dict[str, Any]:
    article = session.get(Article, name)
    if article is None:
        raise HTTPException(404, f"no article {name}")
    return {"name": article.name, "sold": article.sold}


# Status 200 also while the database is away: orders are taken all the same, and whoever watches reads the figures.
@app.get("/health")
def get_health(request: Request) -> dict[str, Any]:
    return {"process": os.getpid(), **asdict(request.state.journal.stats())}

"""The web examples' comparison finds what it is there to find, and their load notices a connection that breaks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests.support.examples import example_modules

check, load, orders = example_modules("web_check", "web_load", "web_orders")

LINES = [("bolt", 2), ("nut", 1)]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Engine]:
    engine = orders.open_target(f"sqlite:///{tmp_path / 'orders.db'}")
    orders.create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def outcome(target: Engine) -> Any:
    """Five orders that were answered, and one that was cut and is not there."""
    found = load.Outcome(sent={"cut": LINES}, cut={"cut"})
    with Session(target) as session:
        for number in range(1, 6):
            found.sent[f"order-{number}"] = LINES
            found.answered[f"order-{number}"] = orders.place_order(session, f"order-{number}", LINES).id
    return found


def test_what_was_answered_and_is_there_has_no_faults(target: Engine, outcome: Any) -> None:
    assert check.find_faults(target, outcome) == []
    assert check.count_cut_and_committed(target, outcome) == 0


def test_an_order_that_was_cut_may_be_there_whole(target: Engine, outcome: Any) -> None:
    with Session(target) as session:
        orders.place_order(session, "cut", LINES)
    assert check.find_faults(target, outcome) == []
    assert check.count_cut_and_committed(target, outcome) == 1


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        pytest.param(
            "DELETE FROM customer_order WHERE reference = 'order-3'", "order-3 was answered as order 3", id="lost"
        ),
        pytest.param("INSERT INTO customer_order VALUES (99, 'order-3')", "order-3 is in the database 2", id="doubled"),
        pytest.param("DELETE FROM order_line WHERE order_id = 2 AND position = 2", "order-2 is in the", id="in part"),
        pytest.param("INSERT INTO customer_order VALUES (99, 'cut')", "cut is in the", id="what was cut, in part"),
        pytest.param("UPDATE order_line SET pieces = 7 WHERE order_id = 1", "order-1 is in the", id="other content"),
        pytest.param("UPDATE article SET sold = sold + 2 WHERE name = 'bolt'", "12 pieces of bolt", id="added twice"),
        pytest.param("UPDATE customer_order SET id = 99 WHERE id = 5", "and is order 99", id="another's key"),
    ],
)
def test_a_fault_is_found_and_named(target: Engine, outcome: Any, damage: str, named: str) -> None:
    with target.begin() as connection:
        connection.execute(text(damage))
    assert any(named in fault for fault in check.find_faults(target, outcome))


def test_an_order_that_was_refused_and_is_there_is_a_fault(target: Engine, outcome: Any) -> None:
    del outcome.answered["order-4"]
    assert check.find_faults(target, outcome) == ["order-4 is in the database, and was answered with an error"]


@pytest.mark.parametrize(
    ("reference", "lines"), [("", LINES), ("x" * 81, LINES), ("x", []), ("x", [("wheel", 1)]), ("x", [("bolt", 0)])]
)
def test_what_the_database_would_refuse_is_no_order(target: Engine, reference: str, lines: list[Any]) -> None:
    with Session(target) as session, pytest.raises(ValueError):
        orders.place_order(session, reference, lines)


class Server:
    """Answers the first `answers` requests on each connection, then breaks it when the next one has come."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._count = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                for number in range(self._answers + 1):
                    length = 0
                    while (line := stream.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    if len(stream.read(length)) == 0 or number == self._answers:
                        break
                    self._count += 1
                    body = json.dumps({"id": self._count}).encode()
                    head = f"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
                    connection.sendall(head.encode() + b"\r\n\r\n" + body)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def test_a_request_whose_connection_breaks_is_cut_and_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # The server does not know how to answer a read.
    monkeypatch.setattr(load.Load, "_read_back", lambda *_: None)
    server = Server(answers=3)
    try:
        outcome = load.Load("127.0.0.1", server.port, orders=8, clients=1, seed="x").run()
    finally:
        server.close()
    assert len(outcome.sent) == 8
    assert outcome.cut == {"x-3", "x-7"}
    assert outcome.answered.keys() == outcome.sent.keys() - outcome.cut

"""Sends orders to a server over HTTP from several threads, and takes down what was answered.

An order whose connection broke before the answer came is *cut*: its transaction may have been committed or not. It is
never sent again, for the server could not know that it is the same one.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from web_orders import ARTICLES

REQUEST_TIMEOUT_S = 60.0
CONNECT_WITHIN_S = 30.0
REQUESTS_PER_CONNECTION = 20
"""Then a new connection, which another worker may get."""

READ_EVERY = 5
"""One of so many orders is read back at once, over a new connection."""

MOST_ERRORS = 20
"""With so many something is wrong, and no more is sent."""

Lines = list[tuple[str, int]]


@dataclass
class Outcome:
    """What became of the orders, by their references."""

    sent: dict[str, Lines] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    """The id that the server gave, for those that it answered with a status of 2xx."""

    cut: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    """Other answers, and reads that did not show what had been answered."""

    reads: int = 0


class Client:
    """One connection at a time, kept open between requests."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._connection: http.client.HTTPConnection | None = None
        self._requests = 0

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and content of the answer. Raises OSError or HTTPException if the connection breaks before it."""
        connection = self._connected()
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except BaseException:
            self.close()
            raise
        self._requests += 1
        if self._requests >= REQUESTS_PER_CONNECTION:
            self.close()
        is_json = answer.getheader("Content-Type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content.decode(errors="replace")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._requests = 0

    def _connected(self) -> http.client.HTTPConnection:
        until = time.monotonic() + CONNECT_WITHIN_S
        while self._connection is None:
            connection = http.client.HTTPConnection(*self._address, timeout=REQUEST_TIMEOUT_S)
            try:
                connection.connect()
            except ConnectionRefusedError:
                # Nothing was sent, so it may be tried again.
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                self._connection = connection
        return self._connection


class Load:
    """So many orders, each sent once, by so many threads."""

    def __init__(self, host: str, port: int, *, orders: int, clients: int, seed: str) -> None:
        self.outcome = Outcome()
        self._host, self._port, self._seed = host, port, seed
        self._lock = threading.Lock()  # guards the outcome and the numbers
        self._numbers = iter(range(orders))
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def run(self, meanwhile: Callable[[Outcome], object] = lambda outcome: None) -> Outcome:
        """Send all orders. `meanwhile` is called about every millisecond while they are on their way."""
        for thread in self._threads:
            thread.start()
        for thread in itertools.cycle(self._threads):
            thread.join(0.001)
            meanwhile(self.outcome)
            if not any(each.is_alive() for each in self._threads):
                return self.outcome
        return self.outcome

    def _run(self) -> None:
        client = Client(self._host, self._port)
        while True:
            with self._lock:
                number = next(self._numbers, None) if len(self.outcome.errors) < MOST_ERRORS else None
            if number is None:
                break
            try:
                self._place(client, number)
            except Exception as error:  # noqa: BLE001 - whatever it is, the report names it
                with self._lock:
                    self.outcome.errors.append(f"order {number}: {error!r}")
        client.close()

    def _place(self, client: Client, number: int) -> None:
        source = random.Random(f"{self._seed} {number}")
        reference = f"{self._seed}-{number}"
        lines = [(article, source.randint(1, 9)) for article in source.sample(ARTICLES, source.randint(1, 5))]
        content = {"reference": reference, "lines": [{"article": a, "pieces": pieces} for a, pieces in lines]}
        with self._lock:
            self.outcome.sent[reference] = lines
        try:
            status, answer = client.request("POST", "/orders", content)
        except (OSError, http.client.HTTPException):
            with self._lock:
                self.outcome.cut.add(reference)
            return
        with self._lock:
            if not 200 <= status < 300:
                self.outcome.errors.append(f"{reference}: status {status}: {str(answer)[:200]}")
                return
            self.outcome.answered[reference] = answer["id"]
        if number % READ_EVERY == 0:
            self._read_back(answer["id"], content)

    def _read_back(self, order_id: int, content: dict[str, Any]) -> None:
        client = Client(self._host, self._port)
        try:
            status, answer = client.request("GET", f"/orders/{order_id}")
        except (OSError, http.client.HTTPException):
            return
        finally:
            client.close()
        with self._lock:
            self.outcome.reads += 1
            if (status, answer) != (200, {"id": order_id, **content}):
                self.outcome.errors.append(f"order {order_id} was answered, and read back as {status}: {answer}")

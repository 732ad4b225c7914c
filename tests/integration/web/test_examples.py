"""The web examples under uvicorn and gunicorn: orders over HTTP, a worker killed in the middle, and nothing lost.

`WALSYNC_WEB_ORDERS=N` sets how many orders are sent in the tests that are slow, with a kill for every 1,000.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support.examples import EXAMPLES
from tests.support.processes import run_python

WORKERS = 4
CLIENTS = 8
"""Each kill cuts what some of them wait for."""
QUICK_ORDERS = 400
LARGE_ORDERS = 20_000
ORDERS_PER_KILL = 1_000

SERVERS = [
    pytest.param(("fastapi",), id="fastapi"),
    pytest.param(("flask",), id="flask-preload"),
    pytest.param(("flask", "--no-preload"), id="flask"),
]

pytestmark = pytest.mark.crash


def run_example(server: tuple[str, ...], url: str, directory: Path, orders: int, kills: int) -> None:
    """The example says that all is well, and the database agrees: counted here without anything of the example's."""
    arguments = ("--target", url, "--log", directory / "log", "--workers", str(WORKERS), "--clients", str(CLIENTS))
    numbers = ("--orders", str(orders), "--kills", str(kills))
    done = run_python(EXAMPLES / "web_demo.py", *server, *arguments, *numbers, cwd=directory, timeout_s=1500.0)
    output = done.stdout
    assert "The database holds what was answered, and nothing in part." in output
    assert output.count("(SIGKILL)") == kills
    counted = re.search(r"Sent (\d+) orders in .* s: (\d+) answered, (\d+) cut", output)
    assert counted, output
    sent, answered, cut = map(int, counted.groups())
    assert sent == orders == answered + cut

    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        references = Counter(connection.scalars(text("SELECT reference FROM customer_order")))
        with_lines = connection.scalar(text("SELECT count(DISTINCT order_id) FROM order_line"))
        sold = connection.scalar(text("SELECT sum(sold) FROM article"))
        ordered = connection.scalar(text("SELECT sum(pieces) FROM order_line"))
    engine.dispose()
    assert answered <= sum(references.values()) <= answered + cut
    assert set(references.values()) == {1}
    assert with_lines == len(references)
    assert sold == ordered
    # A run in which hardly anything was answered, or read, would prove nothing.
    assert answered > 0.9 * orders - kills * CLIENTS
    assert int(re.findall(r"Read back at once: (\d+)", output)[0]) > 0.1 * orders


@pytest.mark.parametrize("server", [pytest.param(*SERVERS[0].values, id="fastapi", marks=pytest.mark.slow), SERVERS[1]])
def test_a_killed_worker_loses_no_order_on_sqlite(server: tuple[str, ...], sqlite_url: str, tmp_path: Path) -> None:
    run_example(server, sqlite_url, tmp_path, QUICK_ORDERS, 1)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("server", SERVERS[:2])
def test_a_killed_worker_loses_no_order_on_postgresql(
    server: tuple[str, ...], empty_postgres_url: str, tmp_path: Path
) -> None:
    run_example(server, empty_postgres_url, tmp_path, QUICK_ORDERS, 1)


def large_run(server: tuple[str, ...], url: str, directory: Path) -> None:
    orders = int(os.environ.get("WALSYNC_WEB_ORDERS", LARGE_ORDERS))
    run_example(server, url, directory, orders, max(1, orders // ORDERS_PER_KILL))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("server", SERVERS)
def test_workers_killed_again_and_again_on_sqlite(server: tuple[str, ...], sqlite_url: str, tmp_path: Path) -> None:
    large_run(server, sqlite_url, tmp_path)


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("server", SERVERS)
def test_workers_killed_again_and_again_on_postgresql(
    server: tuple[str, ...], empty_postgres_url: str, tmp_path: Path
) -> None:
    large_run(server, empty_postgres_url, tmp_path)

"""Starts one of the two web examples, sends it orders, kills a worker in the middle, and proves that nothing is lost.

    python examples/web_demo.py fastapi        # web_fastapi.py under uvicorn, 4 workers
    python examples/web_demo.py flask          # web_flask.py under gunicorn --preload, 4 workers

At the end the number of orders in the database is the number of answers with a status of 2xx, but for requests that the
kill cut off: each of those is in the database whole, or not at all. The exit status is 0 if so, 1 if not.

The database is a SQLite file in a temporary directory unless told otherwise (`pip install ".[examples,postgresql]"`):

    python examples/web_demo.py flask --target postgresql+psycopg://user:password@host/database
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker
from web_check import count_cut_and_committed, find_faults
from web_load import Client, Load, Outcome
from web_orders import create_tables, open_target

import walsync

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_WITHIN_S = 60.0
STOP_WITHIN_S = 60.0
APPLIED_WITHIN_S = 60.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Orders over HTTP, and a worker that is killed.")
    parser.add_argument("server", choices=["fastapi", "flask"])
    parser.add_argument("--orders", metavar="N", type=int, default=2000, help="how many are sent")
    parser.add_argument("--clients", metavar="N", type=int, default=8, help="threads that send them")
    parser.add_argument("--workers", metavar="N", type=int, default=4, help="processes of the server")
    parser.add_argument("--kills", metavar="N", type=int, default=1, help="workers that are killed, evenly spread")
    parser.add_argument("--no-preload", action="store_true", help="gunicorn: each worker attaches for itself")
    parser.add_argument("--target", metavar="URL", help="database URL (default: a SQLite file)")
    parser.add_argument("--log", metavar="DIR", type=Path, help="log directory (default: a temporary one)")
    return parser.parse_args()


def command(options: argparse.Namespace, port: int) -> list[str]:
    if options.server == "fastapi":
        words = f"uvicorn --app-dir {HERE} --host {HOST} --port {port} --workers {options.workers}"
        words += " --log-level warning web_fastapi:app"
    else:
        words = f"gunicorn --chdir {HERE} --bind {HOST}:{port} --workers {options.workers} --threads 4"
        words += " --log-level warning --no-control-socket"
        words += " web_flask:app" if options.no_preload else " --preload web_flask:app"
    return [sys.executable, "-m", *words.split()]


@contextmanager
def running(options: argparse.Namespace, url: str, log: Path) -> Iterator[int]:
    """The server, from its first answer until it has stopped; gives its port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    settings = {"ORDERS_TARGET": url, "ORDERS_LOG": str(log.resolve())}
    server = subprocess.Popen(command(options, port), env={**os.environ, **settings})
    try:
        until = time.monotonic() + START_WITHIN_S
        while worker_that_answers(port) is None:
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start: exit status {server.poll()}")
            time.sleep(0.05)
        yield port
        server.send_signal(signal.SIGTERM)
        server.wait(STOP_WITHIN_S)
    finally:
        server.kill()
        server.wait()


def worker_that_answers(port: int) -> int | None:
    """The process id of some worker; None if none answers."""
    try:
        # A connection of its own, which any worker may get.
        with socket.create_connection((HOST, port), timeout=1.0):
            pass
        client = Client(HOST, port)
        status, answer = client.request("GET", "/health")
        client.close()
    except (OSError, http.client.HTTPException):
        return None
    return answer["process"] if status == 200 else None


class Killer:
    """Kills workers while orders are on their way: called again and again, acts when enough of them are answered."""

    def __init__(self, port: int, orders: int, kills: int) -> None:
        self._port = port
        self._at = [orders * (number + 1) // (kills + 1) for number in range(kills)]
        self.killed: list[int] = []

    def __call__(self, outcome: Outcome) -> None:
        if self._at and len(outcome.answered) + len(outcome.cut) >= self._at[0]:
            self._at.pop(0)
            worker = worker_that_answers(self._port)
            if worker is not None:
                # At any moment of what it does for the requests that come meanwhile.
                time.sleep(random.uniform(0.0, 0.01))
                os.kill(worker, signal.SIGKILL)
                self.killed.append(worker)
                print(f"Killed worker {worker} (SIGKILL) after {len(outcome.answered)} answers", flush=True)


def drain(target: Engine, log: Path) -> None:
    """Apply what is still in the log."""
    with walsync.attach(sessionmaker(target), log) as journal:
        journal.wait_applied(timeout=APPLIED_WITHIN_S)


def demonstrate(options: argparse.Namespace, target: Engine, log: Path) -> bool:
    """Whether the database holds what was answered."""
    create_tables(target)
    url = target.url.render_as_string(hide_password=False)
    with running(options, url, log) as port:
        killer = Killer(port, options.orders, options.kills)
        load = Load(HOST, port, orders=options.orders, clients=options.clients, seed=secrets.token_hex(4))
        begin = time.monotonic()
        outcome = load.run(killer)
        elapsed_s = time.monotonic() - begin
    drain(target, log)
    faults = find_faults(target, outcome)
    if len(killer.killed) != options.kills:
        faults.append(f"{len(killer.killed)} workers were killed, not {options.kills}")
    answered = len(outcome.answered)
    committed = answered + count_cut_and_committed(target, outcome)
    print(f"Sent {len(outcome.sent)} orders in {elapsed_s:.1f} s: {answered} answered, {len(outcome.cut)} cut")
    print(f"Read back at once: {outcome.reads}")
    print(f"In the database: {committed}, of which {committed - answered} of those that were cut")
    for fault in faults[:20]:
        print(f"WRONG: {fault}")
    print(f"{len(faults)} faults." if faults else "The database holds what was answered, and nothing in part.")
    return not faults


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as made:
        target = open_target(options.target or f"sqlite:///{made}/orders.db")
        try:
            right = demonstrate(options, target, options.log or Path(made) / "log")
        finally:
            target.dispose()
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()

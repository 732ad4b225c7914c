"""A process that has a journal attached and does what it is told, and the object that tells it.

Orders and answers are lines of JSON. A worker can fork; its children are told what to do through it. The tables are
those of `tests.integration.session.models`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sqlalchemy import create_engine, event, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker

import walsync
from tests.integration.session.models import Audit, Author
from tests.support.processes import start_python

__all__ = ["Worker", "WorkerError"]


class WorkerError(Exception):
    """What the worker raised: its type's name, and its words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind


class Worker:
    """A process under orders. A context manager that kills it in the end, if it is still there."""

    def __init__(self, url: str, directory: Path, **options: Any) -> None:
        self._arguments = (url, str(directory), json.dumps(options))
        # Python warns of forking while threads run, which is what is tested.
        self.process = start_python("-W", "ignore::DeprecationWarning", "-m", __name__, *self._arguments)
        self._answer()

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, order: str, *arguments: Any) -> Any:
        """Give an order and wait for its answer; raises `WorkerError` for what the worker raises."""
        self.tell(order, *arguments)
        return self._answer()

    def tell(self, order: str, *arguments: Any) -> None:
        """Give an order; `answer` has to be called for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([order, *arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The answer to an order that was given by `tell`."""
        return self._answer()

    def child(self, name: str, order: str, *arguments: Any) -> Any:
        """Give an order to a child that was made by the order ``fork``."""
        return self.ask("to", name, order, *arguments)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=20)
            raise AssertionError(f"worker {self.pid} ended with {self.process.returncode}:\n{errors}")
        found = json.loads(line)
        if "error" in found:
            raise WorkerError(found["error"], found["words"])
        return found["answer"]

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Worker:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


# ------------------------------------------------------------------------------------------- in the process


class _Orders:
    """The orders: each public method is one."""

    def __init__(self, url: str, directory: str, options: dict[str, Any]) -> None:
        self.engine = create_engine(url, **options.pop("engine", {}))
        self.factory = sessionmaker(self.engine)
        checkpoint = options.pop("checkpoint", {})
        if isinstance(checkpoint, dict):
            checkpoint = walsync.CheckpointConfig(**checkpoint)
        keys = walsync.KeyConfig(block_keys=options.pop("block_keys", 100))
        session = walsync.SessionConfig(**options.pop("session", {}))
        self.journal = walsync.attach(self.factory, directory, checkpoint=checkpoint, keys=keys, session=session)
        self.children: dict[str, tuple[IO[str], IO[str], int]] = {}
        self.loading = threading.Event()
        self.loads: list[threading.Thread] = []
        self.loaded: list[str] = []

    def commit(self, *names: str) -> list[int]:
        """Authors, a transaction each; their keys."""
        keys = []
        for name in names:
            with self.factory() as session:
                author = Author(name=name)
                session.add(author)
                session.commit()
                keys.append(author.id)
        return keys

    def note(self, what: str) -> None:
        """A row of another table."""
        with self.factory() as session:
            session.add(Audit(what=what))
            session.commit()

    def names(self) -> list[str]:
        """What a session of this process reads."""
        with self.factory() as session:
            return list(session.scalars(select(Author.name).order_by(Author.id)))

    def count(self) -> int:
        with self.factory() as session:
            return session.scalar(select(func.count(Author.id))) or 0

    def has(self, name: str) -> bool:
        with self.factory() as session:
            return session.scalar(select(Author.id).where(Author.name == name)) is not None

    def wait(self, timeout: float = 60.0) -> None:
        self.journal.wait_applied(timeout=timeout)

    def wait_entry(self, entry_id: int, timeout: float | None) -> None:
        self.journal.wait_applied(walsync.EntryId(entry_id), timeout)

    def commit_and_time(self, name: str) -> float:
        """Seconds until a commit is applied."""
        began = time.monotonic()
        self.commit(name)
        self.journal.wait_applied(timeout=60)
        return time.monotonic() - began

    def stats(self) -> dict[str, Any]:
        stats = self.journal.stats()
        return {name: getattr(stats, name) for name in stats.__dataclass_fields__}

    def origin(self) -> str:
        return self.journal.origin

    def threads(self) -> list[str]:
        return sorted(thread.name for thread in threading.enumerate())

    def pause(self) -> None:
        self.journal.pause()

    def resume(self) -> None:
        self.journal.resume()

    def refuse_names(self, name: str) -> None:
        """A listener that fails for a batch in this process alone."""

        def fail(*arguments: object) -> None:
            raise ValueError(name)

        event.listen(self.journal, "before_checkpoint", fail)

    def close(self, drain: bool = True, timeout: float = 60.0) -> bool:
        return self.journal.close(drain=drain, timeout=timeout)

    def load(self, name: str, threads: int) -> None:
        """Commit without end, in threads, until `end_load`."""
        self.loading.set()

        def run(number: int) -> None:
            count = 0
            while self.loading.is_set():
                made = f"{name}-{number}-{count}"
                self.commit(made)
                self.loaded.append(made)
                count += 1

        self.loads = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for thread in self.loads:
            thread.start()

    def loaded_count(self) -> int:
        return len(self.loaded)

    def end_load(self) -> list[str]:
        """What was acknowledged."""
        self.loading.clear()
        for thread in self.loads:
            thread.join(60)
        loaded, self.loaded = self.loaded, []
        return loaded

    # ------------------------------------------------------------------------------------------- children

    def fork(self, name: str) -> int:
        """A child that takes orders; its process id."""
        to_child, from_parent = os.pipe(), os.pipe()
        process_id = os.fork()
        if process_id == 0:
            self.children = {}
            self.loads, self.loaded = [], []
            self.loading = threading.Event()
            with open(to_child[0], encoding="utf-8") as orders, open(from_parent[1], "w", encoding="utf-8") as answers:
                os.close(to_child[1])
                os.close(from_parent[0])
                try:
                    serve(self, orders, answers)
                finally:
                    os._exit(0)
        os.close(to_child[0])
        os.close(from_parent[1])
        writing = open(to_child[1], "w", encoding="utf-8")  # noqa: SIM115 - for as long as the child lives
        reading = open(from_parent[0], encoding="utf-8")  # noqa: SIM115
        self.children[name] = (writing, reading, process_id)
        return process_id

    def to(self, name: str, *order: Any) -> Any:
        """An order for a child."""
        writing, reading, _ = self.children[name]
        writing.write(json.dumps(order) + "\n")
        writing.flush()
        found = json.loads(reading.readline())
        if "error" in found:
            raise WorkerError(found["error"], found["words"])
        return found["answer"]

    def kill_child(self, name: str) -> None:
        writing, reading, process_id = self.children.pop(name)
        os.kill(process_id, 9)
        os.waitpid(process_id, 0)
        writing.close()
        reading.close()


def serve(orders: _Orders, lines: Iterable[str], answers: IO[str]) -> None:
    for line in lines:
        name, *arguments = json.loads(line)
        method: Callable[..., Any] = getattr(orders, name)
        try:
            answer = {"answer": method(*arguments)}
        except WorkerError as error:
            answer = {"error": error.kind, "words": str(error)}
        except (walsync.WalsyncError, SQLAlchemyError, OSError) as error:
            answer = {"error": type(error).__name__, "words": str(error)}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


def main() -> None:
    url, directory, options = sys.argv[1:]
    orders = _Orders(url, directory, json.loads(options))
    sys.stdout.write('{"answer": "ready"}\n')
    sys.stdout.flush()
    serve(orders, sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()

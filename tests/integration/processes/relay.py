"""One of two processes that commit and read in turns, and know of each other by a number on a pipe alone.

    python -m tests.integration.processes.relay URL DIRECTORY COUNT first|second

The first commits a row with the number 1 and writes its number to its standard output, which is the other's standard
input. The other reads at once, through its session, and must see it; then it commits number 2; and so on, to COUNT. How
it reads changes: by key, all rows counted, as SQL text. The exit status is 0 if every read saw what was committed.
"""

from __future__ import annotations

import sys

from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.integration.session.models import Audit


def read(factory: sessionmaker[Session], number: int) -> None:
    with factory() as session:
        if number % 10 == 3:
            seen = session.scalar(select(func.count()).select_from(Audit))
        elif number % 10 == 6:
            seen = session.scalar(text("SELECT count(*) FROM audit"))
        else:
            seen = number if session.get(Audit, number) is not None else None
    if seen != number:
        raise AssertionError(f"number {number} was committed, and what is read is {seen}")


def main() -> None:
    url, directory, count, role = sys.argv[1:]
    engine = create_engine(url)
    factory = sessionmaker(engine)
    with walsync.attach(factory, directory):
        for number in range(1, int(count) + 1):
            if (number % 2 == 1) == (role == "first"):
                with factory() as session:
                    session.add(Audit(id=number, what=f"number {number}"))
                    session.commit()
                print(number, flush=True)
            else:
                said = sys.stdin.readline()
                if said != f"{number}\n":
                    raise AssertionError(f"the other process says {said!r} in place of {number}")
                read(factory, number)
    engine.dispose()


if __name__ == "__main__":
    main()

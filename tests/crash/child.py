"""The process that is killed: several threads that commit through one journal, with its checkpointer.

    python -m tests.crash.child URL DIRECTORY NAME,NAME,... TRANSACTIONS SEED [external]

The names are those of its writers; with `external`, somebody else applies. Lines on its standard output, each written
at once and whole:
- `recovered NAME COUNTER`: before it writes anything, what a read through the session says of each writer;
- `ready`: the writers start now;
- `acknowledged NAME NUMBER`: `commit()` of this transaction has returned;
- `failed ...`: something went wrong; the process ends with status 3.

With 0 transactions it only recovers, waits until everything is applied, and closes the journal in order. Otherwise it
lives until it is killed.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import traceback

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker

import walsync
from tests.crash.ledger import MARKERS_KEPT, Item, Marker, Parcel, Writer, content_of, engine_of, items_of, mix

SEGMENT_BYTES = 128 * 1024
WAIT_TIMEOUT_S = 60.0


def say(line: str) -> None:
    # One write of a short line to a pipe, or at the end of a file, is whole or not there.
    os.write(1, f"{line}\n".encode())


def commit_one(session: Session, writer: Writer, number: int, source: random.Random) -> None:
    """The transaction of this number."""
    name = writer.name
    writer.counter = number
    items = [Item(place=place) for place in range(items_of(number))]
    session.add(Parcel(writer_name=name, number=number, content=content_of(name, number), items=items))
    if source.random() < 0.3:
        session.flush()
    session.execute(
        update(Writer).where(Writer.name == name).values(added=Writer.added + 1, mixed=mix(Writer.mixed, number)),
        execution_options={"synchronize_session": False},
    )
    session.add(Marker(writer_name=name, number=number))
    if number > MARKERS_KEPT:
        session.execute(
            delete(Marker).where(Marker.writer_name == name, Marker.number == number - MARKERS_KEPT),
            execution_options={"synchronize_session": False},
        )
    if source.random() < 0.1:
        # What is rolled back to the savepoint must not appear, and what was before it must.
        nested = session.begin_nested()
        session.add(Marker(writer_name=name, number=-number))
        session.flush()
        nested.rollback()
    session.commit()


def write(factory: sessionmaker[Session], name: str, last: int, transactions: int, seed: str) -> None:
    source = random.Random(seed)
    session = factory()
    writer = session.get_one(Writer, name)
    try:
        for number in range(last + 1, last + 1 + transactions):
            if source.random() < 0.05:
                session.close()
                session = factory()
                # Behind the barrier, then held: what nobody holds, the session forgets and reads again.
                writer = session.get_one(Writer, name)
            commit_one(session, writer, number, source)
            say(f"acknowledged {name} {number}")
            if source.random() < 0.05:
                seen = session.scalar(select(Writer.added).where(Writer.name == name))
                if seen != number:
                    raise AssertionError(f"{name} committed {number} and reads {seen}")
                session.commit()
    except BaseException as error:  # noqa: BLE001 - whatever ends a writer is the parent's to judge
        say(f"failed in {name}: {error!r} {''.join(traceback.format_exception(error))!r}")
        os._exit(3)


def main() -> None:
    url, directory, writers, transactions, seed, *external = sys.argv[1:]
    source = random.Random(seed)
    engine = engine_of(url)
    factory = sessionmaker(engine)
    config = walsync.CheckpointConfig(
        batch_changes=source.choice((1, 10, 100, 1000)),
        batch_delay_s=source.choice((0.0, 0.01, 0.1)),
        paused=source.random() < 0.1 and int(transactions) > 0,
    )
    if external:
        config = walsync.CheckpointConfig(external=True)
    journal = walsync.attach(factory, directory, log=walsync.LogConfig(segment_bytes=SEGMENT_BYTES), checkpoint=config)
    if config.paused:
        # Killed before anything is applied, unless it reads.
        journal.resume()
    names = writers.split(",")
    started: dict[str, int] = {}
    with factory() as session:
        for name in names:
            found = session.get(Writer, name)
            if found is None:
                session.add(Writer(name=name, counter=0, added=0))
            started[name] = 0 if found is None else found.counter
        session.commit()
    for name, counter in started.items():
        say(f"recovered {name} {counter}")
    if int(transactions) == 0:
        journal.wait_applied(timeout=WAIT_TIMEOUT_S)
        journal.close()
        return
    say("ready")
    for name in names:
        arguments = (factory, name, started[name], int(transactions), f"{seed} {name}")
        threading.Thread(target=write, args=arguments, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:  # noqa: BLE001 - likewise
        say(f"failed {error!r} {''.join(traceback.format_exception(error))!r}")
        os._exit(3)

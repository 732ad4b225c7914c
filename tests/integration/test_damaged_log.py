"""A log with entries that wait, then damaged: never a crash, a hang or wrong data; the error names file and offset.

One log is made with the checkpointer paused, and copied for every case. What may come of a damaged copy:
- opening it raises an error of the log's branch, which names a file of the directory and an offset, and the database is
  as it was; or
- it opens, and what arrives in the database is every transaction that was committed.

The log was closed, so its checkpoint file says how far it went, and a loss of its very end is damage as well.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import ForeignKey, String, create_engine, event, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import walsync
from walsync.wal import verify_log
from walsync.wal.format import FRAMES_OFFSET

TRANSACTIONS = 12
SEGMENT_BYTES = 32 * 1024
WAIT_TIMEOUT_S = 20.0
SAMPLE = 120


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"

    name: Mapped[str] = mapped_column(String(30), primary_key=True)
    total: Mapped[int] = mapped_column(default=0)
    children: Mapped[list[Child]] = relationship(back_populates="parent")


class Child(Base):
    __tablename__ = "child"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_name: Mapped[str] = mapped_column(ForeignKey("parent.name"))
    text: Mapped[str] = mapped_column(String(300))
    parent: Mapped[Parent] = relationship(back_populates="children")


State = tuple[object, ...]


@dataclass(frozen=True)
class Original:
    """The undamaged log and database, and what the database holds after each number of transactions."""

    log: Path
    database: Path
    states: list[State]

    @property
    def segments(self) -> list[Path]:
        return sorted(path for path in self.log.iterdir() if path.name.startswith("segment-"))


def state_of(database: Path) -> State:
    engine = create_engine(f"sqlite:///{database}")
    try:
        with Session(engine) as session:
            parents = session.execute(select(Parent.name, Parent.total).order_by(Parent.name)).all()
            children = session.execute(select(Child.id, Child.parent_name, Child.text).order_by(Child.id)).all()
    finally:
        engine.dispose()
    return (tuple(map(tuple, parents)), tuple(map(tuple, children)))


def commit_one(session: Session, number: int) -> None:
    """Rows, an update, a statement and a deletion, so that every kind of change can be damaged."""
    parent = Parent(name=f"parent {number}")
    session.add(parent)
    session.add(Child(parent=parent, text=f"{number} " + "é" * (number * 7)))
    session.add(Child(parent=parent, text=f"second of {number}"))
    session.flush()
    parent.total = number
    session.execute(
        update(Parent).where(Parent.name == "parent 0").values(total=Parent.total + 1),
        execution_options={"synchronize_session": False},
    )
    session.commit()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    directory = tmp_path_factory.mktemp("original")
    database, log = directory / "target.sqlite", directory / "log"
    engine = _engine(database)
    Base.metadata.create_all(engine)
    states = [state_of(database)]
    factory = sessionmaker(engine)
    paused = walsync.CheckpointConfig(paused=True)
    config = walsync.LogConfig(segment_bytes=SEGMENT_BYTES, preallocated_segments=0)
    # The states are taken from a copy that applies each transaction as it comes.
    mirror = _engine(directory / "mirror.sqlite")
    Base.metadata.create_all(mirror)
    with walsync.attach(factory, log, log=config, checkpoint=paused) as journal, factory() as session:
        with sessionmaker(mirror, expire_on_commit=False)() as mirrored:
            for number in range(TRANSACTIONS):
                commit_one(session, number)
                commit_one(mirrored, number)
                states.append(state_of(directory / "mirror.sqlite"))
        journal.close(drain=False)
    mirror.dispose()
    engine.dispose()
    assert state_of(database) == states[0]
    return Original(log, database, states)


def _engine(database: Path):  # type: ignore[no-untyped-def]
    engine = create_engine(f"sqlite:///{database}")

    @event.listens_for(engine, "connect")
    def connect(connection: object, record: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")  # type: ignore[attr-defined]
        connection.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]

    return engine


@dataclass
class Copy:
    """A copy of the original to damage, and to open."""

    original: Original
    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def database(self) -> Path:
        return self.directory / "target.sqlite"

    def renew(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        shutil.copytree(self.original.log, self.log)
        shutil.copy(self.original.database, self.database)

    def open_and_apply(self) -> walsync.WalsyncError | None:
        """Attaches, and waits until all is applied; the error that came of it, if one did."""
        engine = _engine(self.database)
        try:
            journal = walsync.attach(
                sessionmaker(engine), self.log, checkpoint=walsync.CheckpointConfig(batch_delay_s=0.0)
            )
            try:
                journal.wait_applied(timeout=WAIT_TIMEOUT_S)
            finally:
                journal.close(drain=False)
        except walsync.ApplyTimeoutError:
            raise
        except walsync.WalsyncError as error:
            return error
        finally:
            engine.dispose()
        return None

    def check(self, case: str) -> str:
        """Opens the damaged copy, and fails unless what came of it is allowed; says what it was."""
        damaged = {path.name: path.read_bytes() for path in self.log.iterdir()}
        error = self.open_and_apply()
        found = state_of(self.database)
        if error is not None:
            self._check_error(case, error)
            # Nothing was made worse: what was there to be examined is still there.
            kept = {path.name for path in self.log.iterdir()}
            assert set(damaged) <= kept, f"{case}: {set(damaged) - kept} is gone after {error}"
            assert found in self.original.states, f"{case}: after {error!r} the database holds {found}"
            return "refused"
        assert found == self.original.states[-1], f"{case}: opened without an error, but the database holds {found}"
        return "whole"

    def _check_error(self, case: str, error: walsync.WalsyncError) -> None:
        assert isinstance(error, (walsync.LogError, walsync.WatermarkGapError)), f"{case}: {error!r}"
        message = str(error)
        assert any(path.name in message for path in self.log.iterdir()), f"{case}: no file in {message!r}"
        assert re.search(r"offsets? \d+|byte \d+", message), f"{case}: no offset in {message!r}"


@pytest.fixture
def copy(original: Original, tmp_path: Path) -> Copy:
    return Copy(original, tmp_path / "copy")


def a_seed() -> int:
    seed = int(os.environ.get("WALSYNC_SEED", random.SystemRandom().randrange(2**32)))
    print(f"WALSYNC_SEED={seed}")
    return seed


def damage_step() -> int:
    """`WALSYNC_DAMAGE_STEP=N` takes every N-th byte or length where the long tests would take each."""
    return max(1, int(os.environ.get("WALSYNC_DAMAGE_STEP", "1")))


def used_bytes(path: Path) -> int:
    """The length of a file without the zeros at its end."""
    return len(path.read_bytes().rstrip(b"\0"))


def change(path: Path, offset: int, flip: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= flip
    path.write_bytes(data)


def test_an_undamaged_copy_arrives_whole(copy: Copy) -> None:
    copy.renew()
    assert copy.check("undamaged") == "whole"


def test_any_one_byte_changed_is_refused_or_harmless(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    outcomes = []
    for segment in original.segments:
        used = used_bytes(segment)
        places = source.sample(range(used), min(used, SAMPLE)) + source.sample(range(used, SEGMENT_BYTES), 5)
        for offset in places:
            flip = source.choice((1, 0x80, 0xFF))
            copy.renew()
            change(copy.log / segment.name, offset, flip)
            outcomes.append(copy.check(f"{segment.name}, offset {offset}, flipped {flip:#x}"))
    # A sample in which every flip was harmless would prove nothing.
    assert outcomes.count("refused") > len(outcomes) / 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_byte_changed_is_refused_or_harmless(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    step = damage_step()
    for segment in original.segments:
        for offset in range(source.randrange(step), used_bytes(segment), step):
            copy.renew()
            change(copy.log / segment.name, offset, source.choice((1, 2, 4, 8, 16, 32, 64, 128, 0xFF)))
            copy.check(f"{segment.name}, offset {offset}")


def cut_lengths(original: Original, source: random.Random, count: int) -> Iterator[tuple[str, int]]:
    for segment in original.segments:
        used = used_bytes(segment)
        edges = [0, 1, 511, 512, 4095, 4096, 8191, 8192, used - 1, used, SEGMENT_BYTES - 1]
        for length in [*edges, *source.sample(range(used), min(used, count))]:
            yield segment.name, length


def test_a_log_cut_at_any_length_is_refused_or_harmless(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    for name, length in cut_lengths(original, source, 50):
        copy.renew()
        os.truncate(copy.log / name, length)
        copy.check(f"{name} cut at {length}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_log_cut_at_every_length_is_refused_or_harmless(original: Original, copy: Copy) -> None:
    for name, length in cut_lengths(original, random.Random(0), SEGMENT_BYTES // damage_step()):
        copy.renew()
        os.truncate(copy.log / name, length)
        copy.check(f"{name} cut at {length}")


def test_a_log_replaced_by_random_bytes_is_refused(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    for segment in original.segments:
        for length in (0, 1, 100, 4096, SEGMENT_BYTES, 3 * SEGMENT_BYTES):
            copy.renew()
            (copy.log / segment.name).write_bytes(source.randbytes(length))
            outcome = copy.check(f"{segment.name} replaced by {length} random bytes")
            assert outcome == "refused" or used_bytes(segment) == 0


def test_a_log_without_one_of_its_files_is_refused(original: Original, copy: Copy) -> None:
    """Nobody knows the name of a file that is gone; the error says which segment it held."""
    for segment in original.segments:
        copy.renew()
        (copy.log / segment.name).unlink()
        error = copy.open_and_apply()
        assert (error is None) == (used_bytes(segment) == 0)
        assert error is None or re.search(r"segment \d+.* missing", str(error)), str(error)
        assert state_of(copy.database) == original.states[-1 if error is None else 0]


def test_a_stretch_of_random_bytes_is_refused_or_harmless(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    for _ in range(30):
        segment = source.choice(original.segments)
        copy.renew()
        path = copy.log / segment.name
        data = bytearray(path.read_bytes())
        length = source.choice((2, 8, 64, 512, 3000))
        start = source.randrange(max(1, used_bytes(segment)))
        data[start : start + length] = source.randbytes(len(data[start : start + length]))
        path.write_bytes(data)
        copy.check(f"{segment.name}: {length} random bytes at {start}")


def test_a_stretch_of_zeros_is_refused_or_harmless(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    for _ in range(30):
        segment = source.choice(original.segments)
        copy.renew()
        path = copy.log / segment.name
        data = bytearray(path.read_bytes())
        start = source.randrange(max(1, used_bytes(segment)))
        length = source.randrange(1, max(2, used_bytes(segment) - start))
        data[start : start + length] = bytes(length)
        path.write_bytes(data)
        copy.check(f"{segment.name}: {length} zeros at {start}")


@pytest.mark.slow
def test_other_files_of_the_directory_damaged_change_no_data(original: Original, copy: Copy) -> None:
    """The checkpoint slots, the reserved keys, the locks."""
    source = random.Random(a_seed())
    others = [path for path in original.log.iterdir() if path not in original.segments and path.is_file()]
    for other in others:
        size = other.stat().st_size
        for _ in range(min(size, 25)):
            copy.renew()
            offset = source.randrange(size)
            change(copy.log / other.name, offset, 0xFF)
            copy.check(f"{other.name}, offset {offset}")
        for data in (b"", source.randbytes(size or 100), bytes(size)):
            copy.renew()
            (copy.log / other.name).write_bytes(data)
            copy.check(f"{other.name} replaced by {data[:8]!r}...")


def test_verify_says_where_the_damage_is_and_writes_nothing(original: Original, copy: Copy) -> None:
    source = random.Random(a_seed())
    copy.renew()
    assert not verify_log(str(copy.log)).damage
    segment = next(segment for segment in original.segments if used_bytes(segment))
    for number in range(60):
        copy.renew()
        # A header is there twice; of a log that was closed every frame is promised.
        in_frames = number % 2 == 1
        bounds = (FRAMES_OFFSET, used_bytes(segment)) if in_frames else (0, FRAMES_OFFSET)
        change(copy.log / segment.name, source.randrange(*bounds), 0xFF)
        before = {path.name: path.read_bytes() for path in copy.log.iterdir()}
        try:
            damage = [str(one) for one in verify_log(str(copy.log)).damage]
        except walsync.LogError as error:
            damage = [str(error)]
        assert before == {path.name: path.read_bytes() for path in copy.log.iterdir()}
        for line in damage:
            assert segment.name in line, line
            assert re.search(r"\d", line), line
        assert bool(damage) == in_frames

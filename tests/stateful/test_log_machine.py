"""The log against a dict: random calls of its interface, with closing, killing and opening again in between.

What a power cut does to the disk is the simulation's; here it is what the calls return that is compared.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from tests.unit.wal.logs import SEGMENT_BYTES, abandon, open_log
from walsync.exceptions import EntryNotFoundError
from walsync.wal import EntryId, LogPosition, MemoryStorage, WriteAheadLog, verify_log

# Most are small; some fill a segment, some need several.
CHUNKS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 3 * SEGMENT_BYTES).map(
        lambda length: bytes(range(1, 250)) * (length // 249) + b"z" * (length % 249)
    ),
)
ENTRIES = st.lists(CHUNKS, min_size=1, max_size=4).map(tuple)


class LogMachine(RuleBasedStateMachine):
    """`entries` is what the log owes; `released` the last entry that it may have forgotten."""

    positions = Bundle("positions")

    def __init__(self) -> None:
        super().__init__()
        self.storage = MemoryStorage()
        self.entries: dict[int, tuple[bytes, ...]] = {}
        self.released = 0
        self.version_info = b""
        self.log: WriteAheadLog

    @initialize()
    def create(self) -> None:
        self.log = self.open()

    def open(self) -> WriteAheadLog:
        log = open_log(self.storage, version_info=self.version_info)
        # A killed log may hand out released entries again, and never misses one that is owed.
        assert log.checkpointed_id <= self.released
        self.released = log.checkpointed_id
        return log

    @property
    def owed(self) -> dict[int, tuple[bytes, ...]]:
        return {entry_id: chunks for entry_id, chunks in self.entries.items() if entry_id > self.released}

    # ------------------------------------------------------------------------------------------------- writing

    @rule(chunks=ENTRIES)
    def append(self, chunks: tuple[bytes, ...]) -> None:
        entry_id = self.log.append(*chunks)
        assert entry_id == len(self.entries) + 1
        self.entries[entry_id] = chunks

    @rule(chunks=ENTRIES)
    def append_at_an_interval(self, chunks: tuple[bytes, ...]) -> None:
        entry_id = self.log.append(*chunks, durability="interval")
        self.log.sync()
        assert entry_id == self.log.durable_id == len(self.entries) + 1
        self.entries[entry_id] = chunks

    @rule(target=positions, chunks=ENTRIES)
    def write(self, chunks: tuple[bytes, ...]) -> Any:
        with self.log.begin_entry() as entry:
            records = [entry.write_chunk(chunk) for chunk in chunks]
        assert entry.entry_id == len(self.entries) + 1
        self.entries[entry.entry_id] = chunks
        return multiple(
            *((entry.entry_id, record.position, chunk) for record, chunk in zip(records, chunks, strict=True))
        )

    @rule(chunks=ENTRIES, fails=st.booleans())
    def roll_back(self, chunks: tuple[bytes, ...], fails: bool) -> None:
        entry = self.log.begin_entry()
        for chunk in chunks:
            entry.write_chunk(chunk)
        if fails:
            # As a block does that is left by an exception.
            assert not entry.__exit__(RuntimeError, RuntimeError(), None)
        else:
            entry.rollback()

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        through = data.draw(st.integers(1, len(self.entries)))
        self.log.checkpoint(EntryId(through))
        self.released = max(self.released, through)

    # ---------------------------------------------------------------------------------------- closing, opening

    @rule(version_info=st.sampled_from([b"", b"one", b"two"]))
    def close_and_open(self, version_info: bytes) -> None:
        self.log.close()
        assert verify_log(self.storage).ok
        self.version_info = version_info
        self.log = self.open()

    @rule()
    def kill_and_open(self) -> None:
        abandon(self.log)
        self.log = self.open()

    # ------------------------------------------------------------------------------------------------- reading

    @invariant()
    def the_figures_are_right(self) -> None:
        if not hasattr(self, "log"):
            return
        log = self.log
        assert (log.last_id, log.durable_id) == (len(self.entries), len(self.entries))
        assert (log.checkpointed_id, log.backlog_entries) == (self.released, len(self.owed))

    @rule(data=st.data())
    def read_all(self, data: st.DataObject) -> None:
        after = data.draw(st.integers(self.released, max(self.released, len(self.entries))))
        found = {entry.id: tuple(entry.chunks()) for entry in self.log.entries(EntryId(after))}
        assert found == {entry_id: chunks for entry_id, chunks in self.owed.items() if entry_id > after}
        assert list(found) == sorted(found)

    @rule(written=positions)
    def read_one(self, written: tuple[int, LogPosition, bytes]) -> None:
        entry_id, position, chunk = written
        position = LogPosition.from_bytes(position.to_bytes())
        try:
            assert self.log.read_at(position) == chunk
            with self.log.open_chunk(position) as stream:
                assert stream.read() == chunk
        except EntryNotFoundError:
            # Only its segment keeps a released entry.
            assert entry_id <= self.released

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            assert verify_log(self.storage).ok


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

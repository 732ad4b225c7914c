"""Small logs for tests: no threads, so that what happens does not depend on time; and what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from walsync.wal import Checkpointer, Entry, EntryId, LogConfig, MemoryStorage, Storage, WriteAheadLog

SEGMENT_BYTES = 32 * 1024


def quiet_config(**settings: Any) -> LogConfig:
    """Small segments, no background thread, no HINT but the one at closing."""
    return LogConfig(**{"segment_bytes": SEGMENT_BYTES, "preallocated_segments": 0, "idle_hint_s": None, **settings})


def open_log(storage: Any, checkpointer: Checkpointer | None = None, **settings: Any) -> WriteAheadLog:
    return WriteAheadLog.recover(storage, checkpointer, config=quiet_config(**settings))


def contents(entries: Iterable[Entry]) -> dict[int, list[bytes]]:
    return {entry.id: list(entry.chunks()) for entry in entries}


def all_of(log: WriteAheadLog) -> dict[int, list[bytes]]:
    return contents(log.entries(EntryId(0)))


def abandon(log: WriteAheadLog) -> None:
    """End a log as a killed process does: its lock is free, nothing more is written."""
    log._membership.release()


def bytes_of(storage: MemoryStorage, name: str) -> bytearray:
    return storage._files[name]


def copy_of(storage: MemoryStorage) -> MemoryStorage:
    copy = MemoryStorage()
    copy._files = {name: bytearray(content) for name, content in storage._files.items()}
    return copy


def segments_of(storage: Storage) -> list[str]:
    return sorted(name for name in storage.list() if name.startswith("segment-"))

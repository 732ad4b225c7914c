"""Writing the checkpoint file. Owns its open handle and its slots' generation; `checkpoint_slots` has the layout."""

from __future__ import annotations

import contextlib

from walsync.exceptions import DamagedLogError
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, CHECKPOINT_FILE_BYTES, CheckpointSlot, newest_slot
from walsync.wal.directory import read_exactly
from walsync.wal.segments import write_all
from walsync.wal.storage.protocol import Storage

__all__ = ["CheckpointFile", "create_checkpoint_file"]

_NEW_FILE = CHECKPOINT_FILE + ".new"


def create_checkpoint_file(storage: Storage, slot: CheckpointSlot) -> None:
    """Make the file, whole and durable at once: that it is there says that a log was created here."""
    with contextlib.suppress(FileNotFoundError):
        storage.remove(_NEW_FILE)
    file = storage.create(_NEW_FILE)
    try:
        write_all(file, bytes(CHECKPOINT_FILE_BYTES), 0)
        write_all(file, slot.pack(), slot.offset)
        file.sync()
    finally:
        file.close()
    storage.rename(_NEW_FILE, CHECKPOINT_FILE)
    storage.sync_directory()


class CheckpointFile:
    """The open checkpoint file of a log. Not for several threads at once."""

    def __init__(self, storage: Storage, slot: CheckpointSlot) -> None:
        self._file = storage.open(CHECKPOINT_FILE)
        self.slot = slot

    def write(self, checkpointed_id: int, position: int, head_sequence: int, durable: tuple[int, int]) -> None:
        """Write the next slot and return when it is on stable storage.

        `durable` is a position and the last entry below it; everything below it must be on stable storage already.
        """
        slot = self.slot._replace(
            generation=self.slot.generation + 1,
            checkpointed_id=checkpointed_id,
            position=position,
            head_sequence=head_sequence,
            promise=durable[0],
            promised_id=durable[1],
        )
        write_all(self._file, slot.pack(), slot.offset)
        self._file.sync()
        self.slot = slot

    def reload(self) -> None:
        """Another process has written: read the slot that it wrote. Raises `DamagedLogError` if none is whole."""
        path = getattr(self._file, "path", CHECKPOINT_FILE)
        slot, _ = newest_slot(read_exactly(self._file, CHECKPOINT_FILE_BYTES, 0), path)
        if slot is None:
            raise DamagedLogError(f"{path} has no whole slot any more: look at the disk, and restore the directory")
        self.slot = slot

    def close(self) -> None:
        """Close the file."""
        self._file.close()

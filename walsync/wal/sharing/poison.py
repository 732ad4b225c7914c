"""What one process tells all others when a write or a sync has failed: nothing is committed any more.

Owns the words for it in the control block. Nothing takes them back: the block is built anew when the log is opened
after everybody has closed it.
"""

from __future__ import annotations

from typing import NoReturn

from walsync.exceptions import LogPoisonedError
from walsync.wal.control_block import POISON_TEXT, POISON_TEXT_BYTES, POISONED
from walsync.wal.storage.protocol import SharedWords

__all__ = ["Poison"]


class Poison:
    """Takes no lock. Thread-safe."""

    def __init__(self, words: SharedWords) -> None:
        self._words = words

    @property
    def is_told(self) -> bool:
        """Whether some process has."""
        return bool(self._words[POISONED])

    def tell(self, text: str) -> None:
        """Tell all processes. The first to say so is quoted."""
        words = self._words
        if words[POISONED]:
            return
        data = text.encode("utf-8")[:POISON_TEXT_BYTES]
        for index in range(0, len(data), 8):
            words[POISON_TEXT + 1 + index // 8] = int.from_bytes(data[index : index + 8].ljust(8, b"\0"), "little")
        words[POISON_TEXT] = len(data)
        words[POISONED] = 1

    def text(self) -> str:
        """What was said of it."""
        words = self._words
        length = min(words[POISON_TEXT], POISON_TEXT_BYTES)
        data = b"".join(
            words[POISON_TEXT + 1 + index].to_bytes(8, "little") for index in range((POISON_TEXT_BYTES + 7) // 8)
        )
        return data[:length].decode("utf-8", "replace")

    def raise_told(self) -> NoReturn:
        """Raises `LogPoisonedError`."""
        raise LogPoisonedError(
            f"the log is poisoned for every process that has it open: {self.text()} Close it in all of them, then open "
            "it again"
        )

"""An entry that is not written yet: its chunks in memory or, past a bound, in a temporary file.

Owns the temporary file. Never touches the log: nobody holds the log's lock while user code builds an entry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import IO

from walsync.exceptions import LogError

__all__ = ["PendingEntry", "SpilledEntry"]


class PendingEntry:
    """An entry of chunks in memory. `lengths` are theirs, in order; `positions` is filled when it is written."""

    __slots__ = ("_chunks", "lengths", "positions")

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks
        self.lengths: list[int] = [len(chunk) for chunk in chunks]
        self.positions: list[int] = []

    def piece(self, index: int, start: int, length: int) -> bytes | memoryview:
        """`length` bytes of a chunk from `start` on."""
        chunk = self._chunks[index]
        if length == len(chunk):
            return chunk
        return memoryview(chunk)[start : start + length]


class SpilledEntry(PendingEntry):
    """Chunks that lie one behind the other in memory up to `buffer_bytes`, beyond that in a temporary file."""

    __slots__ = ("_file", "_offsets", "size")

    def __init__(self, buffer_bytes: int) -> None:
        super().__init__(())
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=buffer_bytes)  # noqa: SIM115 - close() is below
        self._offsets: list[int] = []
        self.size = 0
        """The bytes of all chunks so far."""

    def begin_chunk(self) -> None:
        """What is added from now on belongs to a new chunk."""
        self.lengths.append(0)
        self._offsets.append(self.size)

    def add(self, data: memoryview) -> None:
        """Add to the last chunk."""
        try:
            self._file.seek(self.size)
            self._file.write(data)
        except OSError as error:
            raise LogError(
                f"cannot write the temporary file of a large entry in {tempfile.gettempdir()}: {error}. Nothing "
                "reached the log. Make room there, or set TMPDIR"
            ) from error
        self.size += len(data)
        self.lengths[-1] += len(data)

    def piece(self, index: int, start: int, length: int) -> bytes:
        """`length` bytes of a chunk from `start` on."""
        self._file.seek(self._offsets[index] + start)
        data = self._file.read(length)
        if len(data) != length:
            raise OSError(f"the temporary file of a large entry ended {length - len(data)} bytes too early")
        return data

    def close(self) -> None:
        """Let the temporary file go."""
        self._file.close()

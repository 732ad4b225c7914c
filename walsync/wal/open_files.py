"""The slot files that an open log has open, at most so many. Owns their handles; never looks inside.

A handle that is dropped here is closed when its last user lets it go, so a reader never loses one under its hands.
"""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict

from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = ["OpenFiles"]

MAX_OPEN_FILES = 64


class OpenFiles:
    """Handles by the name of the slot file. Usable from many threads at once."""

    def __init__(self, storage: Storage, *, read_only: bool = False) -> None:
        self._storage = storage
        self._read_only = read_only
        self._files: OrderedDict[str, StorageFile] = OrderedDict()
        self._closed = False
        # Guards the fields above. A file is opened under it: twice would be worse than waiting.
        self._mutex = threading.Lock()

    def get(self, name: str) -> StorageFile:
        """The open file of this name. `OSError` after `close`."""
        with self._mutex:
            if self._closed:
                raise OSError(errno.EBADF, "the files of the log were closed", name)
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = self._storage.open(name, read_only=self._read_only)
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(name)
            return file

    def drop(self, name: str) -> None:
        """The file of this name is removed or moved."""
        with self._mutex:
            self._files.pop(name, None)

    def close(self) -> None:
        """Close every file, also those that a reader still holds."""
        with self._mutex:
            self._closed = True
            files = list(self._files.values())
            self._files.clear()
        for file in files:
            file.close()

    def forget_in_child(self) -> None:
        """In a forked child: the parent's threads may have held the lock."""
        self._mutex = threading.Lock()

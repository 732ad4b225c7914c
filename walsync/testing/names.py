"""The names in a simulated directory: what is there now, and what is certainly there after a crash.

Owns the unsynced changes of names. A change is durable when every directory that it concerns was synced after it;
changes are whole (a rename never leaves neither name), and a crash keeps any of them that are not durable, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from walsync.testing.contents import Contents

__all__ = ["Names"]


class _Change(NamedTuple):
    sequence: int
    directories: frozenset[str]
    removed: str | None
    added: str | None
    contents: Contents | None


class Names:
    """The names of files, and of subdirectories with a slash at their end. Not for several threads at once."""

    __slots__ = ("_changes", "_durable", "files", "subdirectories")

    def __init__(self, files: dict[str, Contents] | None = None, subdirectories: frozenset[str] = frozenset()) -> None:
        self.files = dict(files or {})
        self.subdirectories = set(subdirectories)
        self._durable = (dict(self.files), frozenset(self.subdirectories))
        self._changes: list[_Change] = []

    def exists(self, directory: str) -> bool:
        """Whether there is such a directory; the storage's own always is."""
        return not directory or directory in self.subdirectories

    def add(self, sequence: int, name: str, contents: Contents) -> None:
        """A file has this name now."""
        self.files[name] = contents
        self._note(_Change(sequence, frozenset({directory_of(name)}), None, name, contents))

    def remove(self, sequence: int, name: str) -> None:
        """The name is gone."""
        del self.files[name]
        self._note(_Change(sequence, frozenset({directory_of(name)}), name, None, None))

    def rename(self, sequence: int, old: str, new: str) -> None:
        """The file has another name, and what had that name is gone."""
        contents = self.files.pop(old)
        self.files[new] = contents
        self._note(_Change(sequence, frozenset({directory_of(old), directory_of(new)}), old, new, contents))

    def make_directory(self, sequence: int, name: str) -> None:
        """There is a subdirectory of this name."""
        self.subdirectories.add(name)
        self._note(_Change(sequence, frozenset({""}), None, name, None))

    def _note(self, change: _Change) -> None:
        self._changes.append(change)

    def sync(self, directory: str) -> None:
        """The names in this directory are durable, except renames whose other directory is not synced yet."""
        left = [change._replace(directories=change.directories - {directory}) for change in self._changes]
        files, subdirectories = self._durable
        files, made = dict(files), set(subdirectories)
        for change in left:
            if not change.directories:
                _apply(change, files, made)
        self._durable = (files, frozenset(made))
        self._changes = [change for change in left if change.directories]

    def surviving(self, keeps: Callable[[int], bool]) -> Names:
        """The names after a crash; `keeps` says of a change's number whether it survives."""
        files, subdirectories = self._durable
        files, made = dict(files), set(subdirectories)
        for change in self._changes:
            if keeps(change.sequence):
                _apply(change, files, made)
        return Names(
            {
                name: contents
                for name, contents in files.items()
                if not directory_of(name) or directory_of(name) in made
            },
            frozenset(made),
        )


def directory_of(name: str) -> str:
    """The subdirectory in a name; "" if there is none."""
    return name.rpartition("/")[0]


def _apply(change: _Change, files: dict[str, Contents], subdirectories: set[str]) -> None:
    if change.removed is not None:
        files.pop(change.removed, None)
    if change.added is not None:
        if change.contents is None:
            subdirectories.add(change.added)
        else:
            files[change.added] = change.contents

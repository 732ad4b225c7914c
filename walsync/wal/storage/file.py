"""Files in a directory of the file system.

Owns every call to the system that the log makes. `sync` is `fdatasync` where there is one, `F_FULLFSYNC` on macOS, else
`fsync`; a platform with none of them is refused. A directory on a network file system is refused: locks and syncs there
may not be what they promise. Never caches, never retries a sync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from walsync.exceptions import ConfigurationError, LogError
from walsync.wal.lock import FileLock
from walsync.wal.storage.shared import FileShare

__all__ = ["FileStorage", "OpenFile", "file_system_type", "sync_function"]

_NETWORK_TYPES = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.glusterfs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "pvfs2",
        "smb3",
        "smbfs",
        "fuse.s3fs",
        "fuse.gcsfuse",
        "fuse.rclone",
        "vboxsf",
        "prl_fs",
    ]
)


_advise = getattr(os, "posix_fadvise", None) if sys.platform == "linux" else None
_NOT_NEEDED = getattr(os, "POSIX_FADV_DONTNEED", 0)
_PAGE_BYTES = 4096
"""Where the system's pages are larger, what fills none of these fills none of those."""


def sync_function() -> Callable[[int], None]:
    """What puts a file's bytes on stable storage here. Raises `ConfigurationError` where nothing does."""
    if sys.platform == "darwin":
        import fcntl

        # fsync on macOS stops at the drive's cache.
        def full_sync(descriptor: int) -> None:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)

        return full_sync
    found = getattr(os, "fdatasync", None) or getattr(os, "fsync", None)
    if found is None:
        raise ConfigurationError("this platform has neither fdatasync nor fsync, so nothing can be made durable on it")
    return found  # type: ignore[no-any-return]


def file_system_type(path: str, mountinfo: str) -> str | None:
    """The type of the file system that `path` lies on, told from the text of /proc/self/mountinfo."""
    best, kind = "", None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        types = after.split()
        if not separator or len(fields) < 5 or not types:
            continue
        mount = fields[4].encode().decode("unicode_escape")
        inside = mount == "/" or path == mount or path.startswith(mount + "/")
        # Of two mounts at one place the later one covers the earlier.
        if inside and len(mount) >= len(best):
            best, kind = mount, types[0]
    return kind


class OpenFile:
    """An open file. `pread` and `pwrite` are the system's own. Closed when the object goes, at the latest."""

    __slots__ = ("_fallback", "_mutex", "descriptor", "path", "pread", "pwrite", "sync")

    pread: Callable[[int, int], bytes]
    pwrite: Callable[[bytes | bytearray | memoryview, int], int]
    sync: Callable[[], None]

    def __init__(self, path: str, flags: int) -> None:
        self.path = path
        self.descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)
        # On the commit's path: a partial of the system call costs half of what a method around it does.
        if hasattr(os, "pwrite"):
            self.pread = partial(os.pread, self.descriptor)
            self.pwrite = partial(os.pwrite, self.descriptor)
        else:
            self._mutex = threading.Lock()
            self.pread = self._seek_and_read
            self.pwrite = self._seek_and_write
        self.sync = partial(sync_function(), self.descriptor)

    def pwrite_to_sync(self, data: bytes, offset: int) -> int:
        """`pwrite` of what is synced next: the disk begins with it, and need not be waited for from its beginning.

        Linux begins to write out what it is told will not be needed, and does not wait; what is whole and clean of it
        would be dropped from memory, so nothing is said of bytes that fill a page (mm/fadvise.c in its source).
        """
        count = self.pwrite(data, offset)
        if _advise is not None and count < _PAGE_BYTES + (-offset & _PAGE_BYTES - 1):
            try:
                _advise(self.descriptor, offset, count, _NOT_NEEDED)
            except OSError:
                # What is wrong, `sync` will say. (contextlib.suppress is three calls more, on the path of each commit.)
                pass
        return count

    def _seek_and_read(self, length: int, offset: int) -> bytes:
        # Windows has no pread; the file's own offset is shared, hence the lock around the two calls.
        with self._mutex:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, length)

    def _seek_and_write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        with self._mutex:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.write(self.descriptor, data)

    def size(self) -> int:
        """The file's length in bytes."""
        return os.fstat(self.descriptor).st_size

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        os.ftruncate(self.descriptor, size)

    def close(self) -> None:
        """Give the descriptor back; every later call raises `OSError`."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            # Another file may get the number: nobody may reach it through this object any more.
            self.pread = self.pwrite = self.sync = partial(_refuse_closed, self.path)
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)


def _refuse_closed(path: str, *_: object) -> NoReturn:
    raise OSError(errno.EBADF, "the file was closed", path)


class FileStorage:
    """The files of one directory."""

    def __init__(self, directory: str | os.PathLike[str], *, network_file_systems: bool = False) -> None:
        self._directory = os.path.abspath(os.fspath(directory))
        self._network_file_systems = network_file_systems

    @property
    def directory(self) -> str:
        """The directory's absolute path."""
        return self._directory

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def describe(self, name: str) -> str:
        """The file's path."""
        return self._path(name)

    def prepare(self) -> None:
        """Make the directory and those missing above it, each durably in its parent; refuse network file systems."""
        sync_function()
        missing = []
        path = self._directory
        while not os.path.isdir(path):
            missing.append(path)
            parent = os.path.dirname(path)
            if parent == path:
                break
            path = parent
        self._refuse_network(path)
        for path in reversed(missing):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o777)
                if not os.path.isdir(path):
                    raise NotADirectoryError(f"{path} exists and is not a directory")
                _sync_directory(os.path.dirname(path))
            except OSError as error:
                raise LogError(
                    f"cannot make the log directory {self._directory}: {error}. Give a path that this process may write"
                ) from error

    def _refuse_network(self, path: str) -> None:
        if self._network_file_systems or not sys.platform.startswith("linux"):
            return
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
                mountinfo = file.read()
        except OSError:
            # No /proc in this container: the type cannot be told.
            return
        kind = file_system_type(os.path.realpath(path), mountinfo)
        if kind in _NETWORK_TYPES:
            raise ConfigurationError(
                f"{self._directory} is on a network file system ({kind}), where locks and syncs may not hold. Put the "
                "log on a local disk, or set LogConfig(network_file_systems=True) if you know that yours is safe"
            )

    def list(self) -> list[str]:
        """The names of the files in the directory itself."""
        try:
            with os.scandir(self._directory) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def create(self, name: str) -> OpenFile:
        """Make a new, empty file."""
        return OpenFile(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def open(self, name: str, *, read_only: bool = False) -> OpenFile:
        """Open a file that exists."""
        return OpenFile(self._path(name), os.O_RDONLY if read_only else os.O_RDWR)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.remove(self._path(name))

    def rename(self, old: str, new: str) -> None:
        """Rename a file, replacing what is there."""
        os.replace(self._path(old), self._path(new))

    def make_directory(self, name: str) -> None:
        """Make a subdirectory if it is not there."""
        os.makedirs(self._path(name), exist_ok=True)

    def sync_directory(self, name: str = "") -> None:
        """Put the directory's names on stable storage."""
        _sync_directory(self._path(name) if name else self._directory)

    def lock(self, name: str, timeout_s: float) -> FileLock | None:
        """Take the lock kept in the file `name`."""
        return FileLock.acquire(self._path(name), timeout_s)

    def share(self) -> FileShare | None:
        """What processes need to use the directory together; None where the system has no `flock`."""
        return FileShare(self._directory) if FileShare.is_available() else None


def _sync_directory(path: str) -> None:
    if sys.platform == "win32":
        # Windows cannot open a directory to sync it; NTFS journals its names.
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

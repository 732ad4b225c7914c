"""One file of the quarantine: an entry that is not in the target, and why it is not.

A file is written once and never changed; a new reason is a new file in its place. Layout, little-endian:

======  ======  ==========================================================================================
offset  bytes   content
======  ======  ==========================================================================================
0       8       ``WALSYNCQ``
8       2       version of the format, 1
10      2       zero
12      4       length of the header, at most 1 MiB
16      4       CRC-32C of bytes 0 to 15 and of the header
20      ...     header: a JSON object in UTF-8, the fields of `QuarantinedEntry` and the log's identity
then, for each chunk of the entry, as many as the header says:
0       8       length of the chunk
8       4       CRC-32C of the entry's id (u64), the chunk's number (u32), its length (u64) and its bytes
12      ...     the chunk
======  ======  ==========================================================================================

The file ends with the last chunk. Reading trusts nothing: every length is compared with what the file has before memory
is asked for, and every byte is under a checksum. Whatever does not fit is a `DamagedLogError` that names the file and
the offset. A chunk at a time is in memory, however large the entry is.
"""

from __future__ import annotations

import contextlib
import json
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from crc32c import crc32c

from walsync.changes import TableName
from walsync.exceptions import DamagedLogError, LogVersionError
from walsync.wal import EntryId
from walsync.wal.directory import read_exactly
from walsync.wal.segments import write_all
from walsync.wal.storage.protocol import Storage, StorageFile

__all__ = ["QuarantinedEntry", "Record", "read_chunks", "read_record", "record_size", "write_record"]

_MAGIC: Final = b"WALSYNCQ"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sHHI")
_CRC: Final = struct.Struct("<I")
_CHUNK: Final = struct.Struct("<QI")
_PLACE: Final = struct.Struct("<QIQ")
_HEADER_OFFSET: Final = _HEAD.size + _CRC.size
_MAX_HEADER_BYTES: Final = 1024 * 1024

_REASON_CHARACTERS: Final = 4000
_MAX_NAMED: Final = 1000
"""Tables, and entries that were waited for, that a header names; with them it stays far below its bound."""

Kind = Literal["rejected", "depends"]


@dataclass(frozen=True, kw_only=True)
class QuarantinedEntry:
    """An entry in the quarantine, without its changes."""

    entry_id: int
    kind: Kind
    """``"rejected"``: the target refused it. ``"depends"``: it touches rows that an entry in the quarantine touches."""

    reason: str
    """The target's own words; for a dependent entry, what it waits for."""

    depends_on: tuple[int, ...]
    """The entries in the quarantine whose rows it touches, as of when it was put there; at most 1,000 are named."""

    tables: tuple[TableName, ...]
    """The tables that it writes; at most 1,000 are named."""

    commit_time_ns: int
    """When the application committed it, in nanoseconds since the epoch."""

    origin: str
    """The process that committed it."""

    quarantined_at: float
    """When it was put into the quarantine, in seconds since the epoch."""

    change_count: int
    """Rows and statements."""

    byte_length: int
    """The bytes of all its chunks."""

    chunk_count: int

    discarded: bool = False
    """It was discarded: it is kept as a record, and is not tried again."""


class Record(NamedTuple):
    """A header as it was read, and where the chunks begin."""

    entry: QuarantinedEntry
    log_uuid: uuid.UUID
    chunks_offset: int


def with_reason(entry: QuarantinedEntry, reason: str) -> QuarantinedEntry:
    """The entry, refused for another reason than before."""
    return replace(entry, kind="rejected", reason=reason)


def record_size(entry: QuarantinedEntry, log_uuid: uuid.UUID) -> int:
    """The bytes of the file."""
    return _HEADER_OFFSET + len(_header(entry, log_uuid)) + entry.chunk_count * _CHUNK.size + entry.byte_length


def write_record(
    storage: Storage, name: str, entry: QuarantinedEntry, log_uuid: uuid.UUID, chunks: Iterable[bytes]
) -> None:
    """Write a whole file under a name that is free, and return when its bytes are on stable storage.

    The name is not: that takes `sync_directory`. Raises `OSError` where the system refuses; the file is removed then as
    far as possible.
    """
    header = _header(entry, log_uuid)
    head = _HEAD.pack(_MAGIC, _VERSION, 0, len(header))
    file = storage.create(name)
    try:
        try:
            start = head + _CRC.pack(crc32c(header, crc32c(head))) + header
            write_all(file, start, 0)
            offset, count, length = len(start), 0, 0
            for number, chunk in enumerate(chunks):
                place = _CHUNK.pack(len(chunk), _chunk_crc(entry.entry_id, number, chunk))
                write_all(file, place, offset)
                write_all(file, chunk, offset + len(place))
                offset += len(place) + len(chunk)
                count += 1
                length += len(chunk)
            if (count, length) != (entry.chunk_count, entry.byte_length):
                raise DamagedLogError(
                    f"entry {entry.entry_id} has {count} chunks of {length} bytes in place of {entry.chunk_count} of "
                    f"{entry.byte_length}; it was not put into the quarantine"
                )
            file.sync()
        finally:
            file.close()
    except BaseException:
        # A process that was killed leaves the file; whoever writes next removes it.
        with contextlib.suppress(OSError):
            storage.remove(name)
        raise


def read_record(storage: Storage, name: str) -> Record:
    """The header. Raises `FileNotFoundError`, `DamagedLogError`, `LogVersionError`."""
    file = storage.open(name, read_only=True)
    try:
        return _read_header(file, storage.describe(name), name)
    finally:
        file.close()


def read_chunks(storage: Storage, name: str) -> Iterator[bytes]:
    """The entry's chunks, each verified, one in memory at a time. Raises as `read_record`.

    The file is open from the first chunk to the last one, so removing it meanwhile changes nothing.
    """
    file = storage.open(name, read_only=True)
    try:
        where = storage.describe(name)
        record = _read_header(file, where, name)
        offset, size, length = record.chunks_offset, file.size(), 0
        for number in range(record.entry.chunk_count):
            place = read_exactly(file, _CHUNK.size, offset)
            if len(place) < _CHUNK.size:
                raise _damaged(where, offset, "the file ends inside of a chunk")
            chunk_length, crc = _CHUNK.unpack(place)
            if chunk_length > size - offset - _CHUNK.size:
                raise _damaged(where, offset, f"a chunk of {chunk_length} bytes does not fit into the file")
            chunk = read_exactly(file, chunk_length, offset + _CHUNK.size)
            if len(chunk) < chunk_length or _chunk_crc(record.entry.entry_id, number, chunk) != crc:
                raise _damaged(where, offset, "a chunk does not match its checksum")
            length += chunk_length
            offset += _CHUNK.size + chunk_length
            yield chunk
        if offset != size or length != record.entry.byte_length:
            raise _damaged(where, offset, "the file is not as long as its header says")
    finally:
        file.close()


def _read_header(file: StorageFile, where: str, name: str) -> Record:
    head = read_exactly(file, _HEADER_OFFSET, 0)
    if len(head) < _HEADER_OFFSET:
        raise _damaged(where, 0, "the file ends inside of its head")
    magic, version, zero, length = _HEAD.unpack(head[: _HEAD.size])
    if magic != _MAGIC:
        raise _damaged(where, 0, "this is no file of a quarantine")
    if length > min(_MAX_HEADER_BYTES, file.size() - _HEADER_OFFSET):
        raise _damaged(where, 12, f"a header of {length} bytes is not possible")
    header = read_exactly(file, length, _HEADER_OFFSET)
    if len(header) < length or _CRC.unpack(head[_HEAD.size :])[0] != crc32c(header, crc32c(head[: _HEAD.size])):
        raise _damaged(where, 0, "the header does not match its checksum")
    if version != _VERSION or zero:
        # Whole, so this is what somebody wrote.
        raise LogVersionError(
            f"{where} has version {version} of the quarantine's format, and this version of walsync reads {_VERSION}; "
            "use a newer one"
        )
    try:
        entry, log_uuid = _parse(json.loads(header))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(where, _HEADER_OFFSET, f"the header cannot be read ({type(error).__name__}: {error})") from error
    if not name.startswith(f"{entry.entry_id:020d}"):
        raise _damaged(where, _HEADER_OFFSET, f"the file holds entry {entry.entry_id}, which is not what it is named")
    return Record(entry, log_uuid, _HEADER_OFFSET + length)


def _damaged(where: str, offset: int, what: str) -> DamagedLogError:
    return DamagedLogError(
        f"{where}, offset {offset}: {what}. Restore the file from a copy of the directory; or, if the entry can be "
        "done without, set the file aside with `walsync quarantine discard`"
    )


def _chunk_crc(entry_id: int, number: int, chunk: bytes) -> int:
    return crc32c(chunk, crc32c(_PLACE.pack(entry_id, number, len(chunk))))


def _header(entry: QuarantinedEntry, log_uuid: uuid.UUID) -> bytes:
    document = {
        "entry_id": entry.entry_id,
        "log_uuid": str(log_uuid),
        "kind": entry.kind,
        "reason": entry.reason[:_REASON_CHARACTERS],
        "depends_on": entry.depends_on[:_MAX_NAMED],
        "tables": entry.tables[:_MAX_NAMED],
        "commit_time_ns": entry.commit_time_ns,
        "origin": entry.origin,
        "quarantined_at": entry.quarantined_at,
        "change_count": entry.change_count,
        "byte_length": entry.byte_length,
        "chunk_count": entry.chunk_count,
    }
    return json.dumps(document).encode("ascii")


def _parse(document: Any) -> tuple[QuarantinedEntry, uuid.UUID]:
    kind = document["kind"]
    if kind not in ("rejected", "depends"):
        raise ValueError(f"kind {kind!r:.100}")
    entry = QuarantinedEntry(
        entry_id=_number(document["entry_id"]),
        kind=kind,
        reason=_text(document["reason"]),
        depends_on=tuple(_number(entry_id) for entry_id in document["depends_on"]),
        tables=tuple(
            TableName(None if schema is None else _text(schema), _text(table)) for schema, table in document["tables"]
        ),
        commit_time_ns=_number(document["commit_time_ns"]),
        origin=_text(document["origin"]),
        quarantined_at=float(document["quarantined_at"]),
        change_count=_number(document["change_count"]),
        byte_length=_number(document["byte_length"]),
        chunk_count=_number(document["chunk_count"]),
    )
    return entry, uuid.UUID(document["log_uuid"])


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} is no number of the kind that belongs there")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.100} is no text")
    return value


def entry_id_of(name: str, suffix: str) -> EntryId | None:
    """The entry that a file of this suffix is named after; None for a name of another kind."""
    number = name.removesuffix(suffix)
    if len(name) == 20 + len(suffix) and number != name and number.isascii() and number.isdigit():
        return EntryId(int(number))
    return None

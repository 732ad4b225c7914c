"""The bytes of a `ChangeSet`: one or more chunks of MessagePack, and nothing that executes code when it is read.

Chunk 0 is ``[format, commit_time_ns, origin, metadata, changes]``, each further chunk ``[changes]``. Changes are
split over chunks so that an entry of a million rows is read in bounded pieces. A row change is
``[shape, must_match, rows]``, where `shape` is the bytes of
``[kind, schema, table, columns, types, keys, key_types, commit_times, acts_on]``: a reader that meets them again need
not decode them again. A statement is
``["statement", sql, parameters, types, tables, read_tables, dialect, expected_rows]``.

Values that MessagePack has no type for are extension types:

====  =========================  ==================================================================
code  value                      payload
====  =========================  ==================================================================
1     int outside of 64 bits     two's complement, big-endian
2     Decimal                    its decimal text, ASCII
3     date                       year u16, month u8, day u8
4     datetime without a zone    year u16, month, day, hour, minute, second u8, microsecond u32, fold u8
5     datetime with a zone       as 4, then the UTC offset in microseconds, i64
6     time without a zone        hour, minute, second u8, microsecond u32, fold u8
7     time with a fixed offset   as 6, then the UTC offset in microseconds, i64
8     timedelta                  days i32, seconds i32, microseconds i32
9     UUID                       its 16 bytes
10    tuple                      MessagePack of the list of its items
11    str with lone surrogates   UTF-8 with surrogates let through
====  =========================  ==================================================================

A zone is kept as its offset at that moment: the instant and the wall clock are exact, the zone's name is not kept.
"""

from __future__ import annotations

import datetime
import decimal
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import ormsgpack

from walsync.changes.model import CHANGE_KINDS, Change, ChangeSet, RowChanges, StatementChange, TableName
from walsync.exceptions import CorruptEntryError, NotCapturedError
from walsync.wal import EntryId

__all__ = [
    "CHUNK_ROWS",
    "FORMAT",
    "decode_change_set",
    "decode_parts",
    "decode_tables",
    "encode_change_set",
    "encode_changes",
    "encode_shape",
]

FORMAT: Final = 1
CHUNK_ROWS: Final = 4096
"""Rows after which an entry's content goes on in a further chunk."""

_OPTIONS: Final = (
    ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_ENUM
)

_DATE: Final = struct.Struct(">HBB")
_DATETIME: Final = struct.Struct(">HBBBBBIB")
_DATETIME_ZONED: Final = struct.Struct(">HBBBBBIBq")
_TIME: Final = struct.Struct(">BBBIB")
_TIME_ZONED: Final = struct.Struct(">BBBIBq")
_TIMEDELTA: Final = struct.Struct(">iii")
_MICROSECOND: Final = datetime.timedelta(microseconds=1)


# ------------------------------------------------------------------------------------------- single values


def _big_integer(value: int) -> ormsgpack.Ext:
    return ormsgpack.Ext(1, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _datetime(value: datetime.datetime) -> ormsgpack.Ext:
    fields = (
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        value.fold,
    )
    offset = value.utcoffset()
    if offset is None:
        return ormsgpack.Ext(4, _DATETIME.pack(*fields))
    return ormsgpack.Ext(5, _DATETIME_ZONED.pack(*fields, offset // _MICROSECOND))


def _time(value: datetime.time) -> ormsgpack.Ext:
    fields = (value.hour, value.minute, value.second, value.microsecond, value.fold)
    offset = value.utcoffset()
    if offset is None:
        if value.tzinfo is not None:
            raise NotCapturedError(
                f"{value!r} has a time zone but no fixed offset; give it a fixed one, or none at all"
            )
        return ormsgpack.Ext(6, _TIME.pack(*fields))
    return ormsgpack.Ext(7, _TIME_ZONED.pack(*fields, offset // _MICROSECOND))


_ENCODERS: Final[dict[type, Callable[[Any], ormsgpack.Ext]]] = {
    int: _big_integer,
    decimal.Decimal: lambda value: ormsgpack.Ext(2, str(value).encode("ascii")),
    datetime.date: lambda value: ormsgpack.Ext(3, _DATE.pack(value.year, value.month, value.day)),
    datetime.datetime: _datetime,
    datetime.time: _time,
    datetime.timedelta: lambda v: ormsgpack.Ext(8, _TIMEDELTA.pack(v.days, v.seconds, v.microseconds)),
    uuid.UUID: lambda value: ormsgpack.Ext(9, value.bytes),
    tuple: lambda value: ormsgpack.Ext(10, ormsgpack.packb(list(value), _encode_value, _OPTIONS)),
}


def _encode_value(value: Any) -> Any:
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        kind = type(value)
        raise NotCapturedError(
            f"a value of type {kind.__module__}.{kind.__qualname__} cannot be logged: {value!r:.200}"
        )
    return encoder(value)


def _offset(microseconds: int) -> datetime.timezone:
    return datetime.timezone(datetime.timedelta(microseconds=microseconds))


def _decode_datetime(data: bytes) -> datetime.datetime:
    *fields, fold = _DATETIME.unpack(data)
    return datetime.datetime(*fields, fold=fold)


def _decode_datetime_zoned(data: bytes) -> datetime.datetime:
    *fields, fold, offset = _DATETIME_ZONED.unpack(data)
    return datetime.datetime(*fields, fold=fold).replace(tzinfo=_offset(offset))


def _decode_time(data: bytes) -> datetime.time:
    *fields, fold = _TIME.unpack(data)
    return datetime.time(*fields, fold=fold)


def _decode_time_zoned(data: bytes) -> datetime.time:
    *fields, fold, offset = _TIME_ZONED.unpack(data)
    return datetime.time(*fields, fold=fold).replace(tzinfo=_offset(offset))


_DECODERS: Final[dict[int, Callable[[bytes], Any]]] = {
    1: lambda data: int.from_bytes(data, "big", signed=True),
    2: lambda data: decimal.Decimal(data.decode("ascii")),
    3: lambda data: datetime.date(*_DATE.unpack(data)),
    4: _decode_datetime,
    5: _decode_datetime_zoned,
    6: _decode_time,
    7: _decode_time_zoned,
    8: lambda data: datetime.timedelta(*_TIMEDELTA.unpack(data)),
    9: lambda data: uuid.UUID(bytes=bytes(data)),
    10: lambda data: tuple(ormsgpack.unpackb(data, ext_hook=_decode_extension)),
    11: lambda data: data.decode("utf-8", "surrogatepass"),
}


def _decode_extension(code: int, data: bytes) -> Any:
    decoder = _DECODERS.get(code)
    if decoder is None:
        raise ValueError(f"unknown extension type {code}")
    return decoder(data)


def _without_surrogates(value: Any) -> Any:
    """The same document with every string that UTF-8 cannot hold wrapped; only called when there is one."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return ormsgpack.Ext(11, value.encode("utf-8", "surrogatepass"))
        return value
    if type(value) is list:
        return [_without_surrogates(item) for item in value]
    if type(value) is tuple:
        packed = ormsgpack.packb(_without_surrogates(list(value)), _encode_value, _OPTIONS)
        return ormsgpack.Ext(10, packed)
    if type(value) is dict:
        return {key: _without_surrogates(item) for key, item in value.items()}
    return value


def _pack(document: list[Any]) -> bytes:
    try:
        return ormsgpack.packb(document, _encode_value, _OPTIONS)
    except NotCapturedError:
        raise
    except (TypeError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, NotCapturedError):
            raise cause from None
        try:
            return ormsgpack.packb(_without_surrogates(document), _encode_value, _OPTIONS)
        except (TypeError, ValueError) as again:
            raise NotCapturedError(f"the transaction holds a value that cannot be logged: {again}") from again


# --------------------------------------------------------------------------------------------- change sets


def _listed(spec: Any) -> Any:
    return [_listed(part) for part in spec] if type(spec) is tuple else spec


def _frozen(spec: Any) -> Any:
    return tuple([_frozen(part) for part in spec]) if type(spec) is list else spec


def encode_shape(change: RowChanges) -> bytes:
    """The bytes of a row change's shape; see the module's docstring."""
    return _pack(
        [
            change.kind,
            change.table.schema,
            change.table.name,
            list(change.columns),
            _listed(change.types),
            list(change.keys),
            _listed(change.key_types),
            list(change.commit_times),
            [list(table) for table in change.acts_on],
        ]
    )


def _row_document(change: RowChanges, rows: list[list[Any]]) -> list[Any]:
    return [change.header or encode_shape(change), change.must_match, rows]


def _statement_document(change: StatementChange) -> list[Any]:
    return [
        "statement",
        change.sql,
        change.parameters,
        {name: _listed(spec) for name, spec in change.types.items()},
        [list(table) for table in change.tables],
        [list(table) for table in change.read_tables],
        change.dialect,
        change.expected_rows,
    ]


def encode_change_set(change_set: ChangeSet) -> list[bytes]:
    """The chunks of one entry. Raises `NotCapturedError` for a value that cannot be kept exactly."""
    return encode_changes(change_set.commit_time_ns, change_set.origin, change_set.metadata, change_set.changes)


def encode_changes(commit_time_ns: int, origin: str, metadata: Mapping[str, Any], changes: list[Change]) -> list[bytes]:
    """`encode_change_set` for what a `ChangeSet` consists of."""
    if len(changes) == 1:
        # By far the most frequent form, and on the path of every commit.
        (only,) = changes
        if type(only) is RowChanges and len(only.rows) <= CHUNK_ROWS:
            row_document = [only.header or encode_shape(only), only.must_match, only.rows]
            header = [FORMAT, commit_time_ns, origin, metadata, [row_document]]
            try:
                return [ormsgpack.packb(header, _encode_value, _OPTIONS)]
            except (NotCapturedError, TypeError, ValueError):
                # Tried again, or said what is wrong with it.
                return [_pack(header)]
    return _encode_split([FORMAT, commit_time_ns, origin, metadata], changes)


def _encode_split(header: list[Any], changes: list[Change]) -> list[bytes]:
    """The general form: as many chunks as it takes."""
    chunks: list[bytes] = []
    current: list[Any] = []
    document: list[Any] = [*header, current]
    room = CHUNK_ROWS
    for change in changes:
        if isinstance(change, StatementChange):
            current.append(_statement_document(change))
            room -= 1
        else:
            start = 0
            while True:
                # The whole list where it fits: most transactions are small, and a slice is a copy.
                whole = start == 0 and len(change.rows) <= room
                rows = change.rows if whole else change.rows[start : start + room]
                current.append(_row_document(change, rows))
                start += len(rows)
                room -= len(rows)
                if start >= len(change.rows):
                    break
                chunks.append(_pack(document))
                current = []
                document = [current]
                room = CHUNK_ROWS
        if room <= 0:
            chunks.append(_pack(document))
            current = []
            document = [current]
            room = CHUNK_ROWS
    if current or not chunks:
        chunks.append(_pack(document))
    return chunks


def decode_change_set(entry_id: EntryId | None, chunks: Iterable[bytes]) -> ChangeSet:
    """The change set of an entry's chunks. Raises `CorruptEntryError` naming the entry for anything malformed."""
    change_set = ChangeSet(0, "", {}, [], entry_id)
    for part in decode_parts(entry_id, chunks):
        if isinstance(part, ChangeSet):
            change_set = part
        else:
            change_set.changes.append(part)
    return change_set


def decode_tables(entry_id: EntryId | None, chunks: Iterable[bytes]) -> set[TableName]:
    """The tables that an entry writes. Reads and checks all of it, but keeps no more than a chunk in memory."""
    found: set[TableName] = set()
    for part in decode_parts(entry_id, chunks):
        if isinstance(part, RowChanges):
            found.add(part.table)
            found.update(part.acts_on)
        elif isinstance(part, StatementChange):
            found.update(part.tables)
    return found


def decode_parts(entry_id: EntryId | None, chunks: Iterable[bytes]) -> Iterator[ChangeSet | Change]:
    """The entry's header, as a change set without changes, and then its changes: a chunk in memory at a time."""
    first = True
    for chunk in chunks:
        try:
            document = ormsgpack.unpackb(chunk, ext_hook=_decode_extension)
            header = _decode_header(entry_id, document) if first else None
            changes = [_decode_change(change) for change in (document[4] if first else _only(document))]
        except CorruptEntryError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, ArithmeticError) as error:
            raise CorruptEntryError(
                f"entry {entry_id} does not hold a change set that this version of walsync can read "
                f"({type(error).__name__}: {error}); see `walsync verify`"
            ) from error
        if header is not None:
            yield header
        yield from changes
        first = False
    if first:
        raise CorruptEntryError(
            f"entry {entry_id} has no chunks, so it does not hold a change set; see `walsync verify`"
        )


def _decode_header(entry_id: EntryId | None, document: Any) -> ChangeSet:
    version, commit_time_ns, origin, metadata, _ = document
    if version != FORMAT:
        raise CorruptEntryError(
            f"entry {entry_id} has content format {version!r}; this version of walsync reads {FORMAT}: upgrade walsync"
        )
    if type(commit_time_ns) is not int or type(origin) is not str or type(metadata) is not dict:
        raise ValueError("malformed header")
    return ChangeSet(commit_time_ns, origin, metadata, [], entry_id)


def _only(document: Any) -> Any:
    (changes,) = document
    return changes


def _strings(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise ValueError("a list of names is malformed")
    return tuple(value)


def _specs(value: Any, count: int) -> tuple[Any, ...]:
    if type(value) is not list or len(value) != count:
        raise ValueError("types do not fit the columns")
    return tuple([_frozen(spec) for spec in value])


def _table(schema: Any, name: Any) -> TableName:
    if type(name) is not str or not (schema is None or type(schema) is str):
        raise ValueError("a table's name is malformed")
    return TableName(schema, name)


def _decode_change(document: Any) -> Change:
    if document[0] == "statement":
        _, sql, parameters, types, tables, read_tables, dialect, expected_rows = document
        if type(sql) is not str or type(dialect) is not str or type(parameters) is not dict or type(types) is not dict:
            raise ValueError("a statement is malformed")
        if not (expected_rows is None or type(expected_rows) is int):
            raise ValueError("a statement's expected row count is malformed")
        return StatementChange(
            sql,
            parameters,
            {name: _frozen(spec) for name, spec in types.items()},
            [_table(*table) for table in tables],
            [_table(*table) for table in read_tables],
            dialect,
            expected_rows,
        )
    header, must_match, rows = document
    if type(header) is not bytes or type(must_match) is not bool or type(rows) is not list:
        raise ValueError("a row change is malformed")
    shape = _shapes.get(header)
    if shape is None:
        shape = _decode_shape(header)
        if len(_shapes) >= _SHAPES_MAX:
            _shapes.clear()
        _shapes[header] = shape
    width = shape.row_width
    for row in rows:
        if type(row) is not list or len(row) != width:
            raise ValueError("a row does not have the width of its columns")
    return shape.with_rows(rows, must_match)


_SHAPES_MAX: Final = 4096
_shapes: dict[bytes, RowChanges] = {}
"""Decoded shapes. Its operations are atomic in the interpreter; at worst two threads decode the same one."""


def _decode_shape(header: bytes) -> RowChanges:
    kind, schema, name, columns, types, keys, key_types, commit_times, acts_on = ormsgpack.unpackb(
        header, ext_hook=_decode_extension
    )
    if kind not in CHANGE_KINDS:
        raise ValueError("a change is of an unknown kind")
    shape = RowChanges(
        kind,
        _table(schema, name),
        _strings(columns),
        _specs(types, len(columns)),
        _strings(keys),
        _specs(key_types, len(keys)),
        [],
        False,
        _strings(commit_times),
        tuple([_table(*table) for table in acts_on]),
    )
    shape.header = header
    return shape

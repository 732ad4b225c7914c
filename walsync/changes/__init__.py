"""What a committed transaction changed: the model, the types of its values, and the bytes of both.

A `ChangeSet` is one entry's content. It describes itself: every group of rows carries its table, its columns and a
plain description of each column's type, so that a process that has neither the application's code nor a connection
can read it, and one that has a connection can apply it. Nothing in this layer knows sessions or log files.

- `model`: `ChangeSet`, `RowChanges`, `StatementChange`.
- `types`: from a SQLAlchemy type to its description and back, and the recording of single values.
- `codec`: from a `ChangeSet` to chunks and back; no pickle, no code executed when a log is read.
- `places`: where the key and the version of a row lie in what is recorded of it.
- `json_form`: the same as JSON without loss, for tools.
"""

from walsync.changes.codec import decode_change_set, encode_change_set
from walsync.changes.model import ChangeKind, ChangeSet, RowChanges, StatementChange, TableName
from walsync.changes.types import TypeSpec, describe_type, restore_type

__all__ = [
    "ChangeKind",
    "ChangeSet",
    "RowChanges",
    "StatementChange",
    "TableName",
    "TypeSpec",
    "decode_change_set",
    "describe_type",
    "encode_change_set",
    "restore_type",
]

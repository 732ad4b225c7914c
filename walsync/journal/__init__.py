"""Capture: the log as a SQLAlchemy Engine.

The unit of work is not re-implemented and no SQL text is parsed. A session's flushes go to an Engine of the dialect
``walsync``, whose "DBAPI connection" buffers one transaction's changes; SQLAlchemy does what it always does, and what
arrives here are compiled constructs with their parameters. The commit of such a connection hands the buffered changes
to a function: the session layer's, which appends them to the log.

- `buffer`: the changes of one transaction, with savepoints.
- `dbapi`: the connection and cursor that SQLAlchemy believes in.
- `plan`: from a compiled construct to what is recorded: rows, or a statement for the target's dialect.
- `versioned`: the row and the version that a recorded statement changes.
- `dialects`: variants of the target's dialect.
- `commit_time`: which SQL expressions mean "now".
- `foreign_keys`: which tables a change writes by the actions of foreign keys.
- `tables`: which tables a statement reads and writes. `watching`: the compiler that sees them. `functions`: which SQL
  functions read none. `marks`: tables as names in the log.
- `pool`: the pool of its connections. `session_engine`: the Engine as sessions get it.
- `flushed_rows`: the short way of a flush's INSERTs into the buffer.
- `dialect`: the dialect, and `journal_engine()`.
- `keys`, `key_sources`, `key_file`: primary keys before the target sees the row.
- `own_tables`: the tables that walsync keeps in the target.
- `forks`: what is made anew in a forked child.
"""

from walsync.journal.buffer import TransactionBuffer
from walsync.journal.dialect import JournalDialect, journal_engine
from walsync.journal.forks import close_before_fork, leave_to_parent, renew_in_child
from walsync.journal.keys import KeyAllocator, KeyConfig
from walsync.journal.own_tables import create_if_missing
from walsync.journal.session_engine import SessionJournalEngine
from walsync.journal.tables import StatementTables, table_name, tables_of

__all__ = [
    "JournalDialect",
    "KeyAllocator",
    "KeyConfig",
    "SessionJournalEngine",
    "StatementTables",
    "TransactionBuffer",
    "close_before_fork",
    "create_if_missing",
    "journal_engine",
    "leave_to_parent",
    "renew_in_child",
    "table_name",
    "tables_of",
]

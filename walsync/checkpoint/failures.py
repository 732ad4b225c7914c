"""Whose fault a failure of the target is: the tables that say so, and nothing else. Pure, no I/O.

Three kinds, and what the checkpointer does with each:

- *transient*: the target cannot do it now (unreachable, deadlock, lock timeout, serialisation, out of disk, shutting
  down). Tried again for ever, with growing waits.
- *blocked*: the target lacks something that somebody must provide (a table, a permission, a database). Said so, and
  tried again slowly.
- *rejected*: the target refuses this very entry (a constraint, a value, a version). It stays the same however often it
  is tried.

The code decides: SQLSTATE for PostgreSQL and every driver that gives one, the server's error number for MySQL and
MariaDB, SQLite's result code (its message on Python 3.10, which has no code). `register_failure` adds to the tables or
changes them.

A code that no table knows is *unknown*. It is not blamed on an entry: a policy that sets entries aside would, at one
full disk that reports itself in an unlisted way, set all of them aside. Nor is it called transient, which would hide
it behind "it will pass". The batch is applied entry by entry, as for a rejection, so that everything before the
culprit arrives; then the checkpointer treats it as blocked: it shows the error and the entry, keeps the order, and
tries again slowly. Only where the driver itself files an unlisted code under `IntegrityError` or `DataError` is the
entry rejected.

Invariant: a failure that is not the entry's fault is never classified as rejected.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import exc

from walsync.exceptions import EntryRejectedError, TargetBlockedError, TargetUnavailableError, WalsyncError

__all__ = ["Failure", "FailureKind", "classify", "describe_error", "register_failure"]


class FailureKind(enum.Enum):
    """Whose fault a failure is; see the module's docstring."""

    TRANSIENT = "transient"
    BLOCKED = "blocked"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Failure:
    """What `classify` found: the kind, and the code or the words that decided it."""

    kind: FailureKind
    reason: str


_T: Final = FailureKind.TRANSIENT
_B: Final = FailureKind.BLOCKED
_R: Final = FailureKind.REJECTED

# SQLSTATE: five characters, or the two of its class. The longer one wins. Used for every driver that gives a SQLSTATE;
# the codes outside of the standard's classes are PostgreSQL's.
SQLSTATES: Final[dict[str, FailureKind]] = {
    "08": _T,  # connection exception
    "09": _R,  # triggered action exception
    "0A": _B,  # feature not supported
    "21": _R,  # cardinality violation
    "22": _R,  # data exception
    "23": _R,  # integrity constraint violation
    "25006": _T,  # read-only transaction: a standby, after a failover
    "25P02": _T,  # in failed transaction: its cause was reported before, the transaction is rolled back
    "25P03": _T,  # idle in transaction for too long
    "25P04": _T,  # transaction timeout
    "26": _T,  # invalid statement name: a prepared statement that a pooler or a restart has forgotten
    "27": _R,  # triggered data change violation
    "28": _B,  # invalid authorization
    "3D": _B,  # no such database
    "3F": _B,  # no such schema
    "40": _T,  # transaction rollback: serialisation, deadlock, completion unknown
    "40002": _R,  # transaction integrity constraint violation
    "42": _B,  # syntax error or access rule violation: no such table, column, function; no permission
    "44": _R,  # with check option violation
    "45": _R,  # unhandled user-defined exception (SIGNAL)
    "53": _T,  # insufficient resources: disk full, out of memory, too many connections
    "54": _R,  # program limit exceeded: a row or an index entry that is too large
    "55000": _B,  # object not in prerequisite state
    "55006": _T,  # object in use
    "55P03": _T,  # lock not available, lock timeout
    "57014": _T,  # query cancelled, statement timeout
    "57": _T,  # operator intervention: shutdown, crash, cannot connect now
    "57P04": _B,  # database dropped
    "58": _T,  # system error: I/O
    "72": _T,  # snapshot too old
    "HV": _T,  # foreign data wrapper
    "P0001": _R,  # raise exception in a trigger
    "P0004": _R,  # assert failure in a trigger
}

# Error numbers of MySQL and MariaDB servers, and from 2000 of their client libraries.
MYSQL_ERRORS: Final[dict[int, FailureKind]] = {
    # resources, shutdown, network
    3: _T,  # error writing file (out of disk)
    1020: _T,  # record has changed since last read (snapshot isolation)
    1021: _T,  # disk full
    1026: _T,  # error writing file
    1030: _T,  # got error from storage engine (out of disk among others)
    1037: _T,  # out of memory
    1038: _T,  # out of sort memory
    1040: _T,  # too many connections
    1041: _T,  # out of memory
    1043: _T,  # bad handshake
    1047: _T,  # node not ready (Galera)
    1053: _T,  # shutdown in progress
    1077: _T,  # normal shutdown
    1078: _T,  # got signal
    1079: _T,  # shutdown complete
    1080: _T,  # forcing close
    1114: _T,  # table is full
    1129: _T,  # host is blocked because of many connection errors
    1135: _T,  # cannot create a thread
    1152: _T,  # aborted connection
    1154: _T,  # read error from pipe
    1155: _T,  # fcntl error
    1156: _T,  # packets out of order
    1157: _T,  # cannot uncompress
    1158: _T,  # network read error
    1159: _T,  # network read timeout
    1160: _T,  # network write error
    1161: _T,  # network write timeout
    1180: _T,  # error during commit
    1184: _T,  # aborted connection
    1188: _T,  # network error from master
    1203: _T,  # user has too many connections
    1205: _T,  # lock wait timeout
    1206: _T,  # the total number of locks exceeds the lock table
    1213: _T,  # deadlock
    1226: _T,  # user has exceeded a resource
    1290: _T,  # running with --read-only: a replica, after a failover
    1317: _T,  # query interrupted
    1412: _T,  # table definition has changed, retry transaction
    1613: _T,  # transaction branch rolled back: timeout
    1614: _T,  # transaction branch rolled back: deadlock
    1615: _T,  # prepared statement needs to be re-prepared
    1637: _T,  # too many concurrent transactions
    1684: _T,  # concurrent DDL
    1792: _T,  # read-only transaction
    1836: _T,  # running in read-only mode
    1927: _T,  # connection was killed
    1969: _T,  # query interrupted: max_statement_time (MariaDB)
    3024: _T,  # query interrupted: max_execution_time (MySQL)
    3100: _T,  # error while running the replication hook (group replication)
    3101: _T,  # rolled back by group replication
    3169: _T,  # session was killed
    3572: _T,  # lock NOWAIT
    4031: _T,  # disconnected for inactivity
    2002: _T,  # cannot connect through the socket
    2003: _T,  # cannot connect to the server
    2005: _T,  # unknown host
    2006: _T,  # server has gone away
    2012: _T,  # error in server handshake
    2013: _T,  # lost connection during query
    2014: _T,  # commands out of sync
    2026: _T,  # SSL connection error
    2027: _T,  # malformed packet
    2055: _T,  # lost connection
    # something that somebody must provide
    1044: _B,  # access denied to the database
    1045: _B,  # access denied for the user
    1046: _B,  # no database selected
    1049: _B,  # unknown database
    1054: _B,  # unknown column
    1064: _B,  # syntax error
    1109: _B,  # unknown table in statement
    1136: _B,  # column count does not match
    1142: _B,  # command denied on the table
    1143: _B,  # command denied on the column
    1146: _B,  # no such table
    1153: _B,  # packet larger than max_allowed_packet
    1227: _B,  # access denied, privilege needed
    1251: _B,  # client does not support the authentication protocol
    1286: _B,  # unknown storage engine
    1305: _B,  # no such function
    1347: _B,  # not of the expected kind (a view)
    1356: _B,  # view refers to missing things
    1370: _B,  # routine access denied
    1471: _B,  # table is not insertable into
    1698: _B,  # access denied, no password
    1820: _B,  # password must be changed
    1862: _B,  # password has expired
    1906: _B,  # value for a generated column (MariaDB)
    3105: _B,  # value for a generated column (MySQL)
    2059: _B,  # authentication plugin cannot be loaded
    # this very entry
    1048: _R,  # column cannot be null
    1062: _R,  # duplicate entry
    1118: _R,  # row size too large
    1169: _R,  # unique constraint
    1171: _R,  # primary key part is null
    1216: _R,  # foreign key: child row
    1217: _R,  # foreign key: parent row
    1242: _R,  # subquery returns more than one row
    1263: _R,  # null for a NOT NULL column
    1264: _R,  # out of range
    1265: _R,  # data truncated
    1292: _R,  # incorrect value
    1364: _R,  # field without a default
    1365: _R,  # division by zero
    1366: _R,  # incorrect value for the column
    1367: _R,  # illegal value
    1369: _R,  # check option failed
    1406: _R,  # data too long
    1411: _R,  # incorrect value for a function
    1441: _R,  # datetime overflow
    1451: _R,  # foreign key: parent row
    1452: _R,  # foreign key: child row
    1526: _R,  # no partition for the value
    1557: _R,  # foreign key would lead to a duplicate
    1586: _R,  # duplicate entry, with the key's name
    1643: _R,  # SIGNAL: not found
    1644: _R,  # SIGNAL: unhandled user-defined exception
    1690: _R,  # out of range in an expression
    1761: _R,  # foreign key with duplicates
    1762: _R,  # foreign key with duplicates
    3140: _R,  # invalid JSON
    3819: _R,  # check constraint (MySQL)
    4025: _R,  # check constraint (MariaDB)
}

# SQLite's result codes: an extended code, or the primary one (its low 8 bits). The longer one wins.
SQLITE_ERRORS: Final[dict[int, FailureKind]] = {
    3: _B,  # PERM
    4: _T,  # ABORT
    5: _T,  # BUSY
    6: _T,  # LOCKED
    7: _T,  # NOMEM
    8: _B,  # READONLY
    9: _T,  # INTERRUPT
    10: _T,  # IOERR
    11: _B,  # CORRUPT
    13: _T,  # FULL
    14: _T,  # CANTOPEN
    15: _T,  # PROTOCOL
    17: _T,  # SCHEMA
    18: _R,  # TOOBIG
    19: _R,  # CONSTRAINT
    20: _R,  # MISMATCH
    23: _B,  # AUTH
    26: _B,  # NOTADB
}

# Where there is no code, or a code that says too little: words of the message, lower case, first match wins.
MESSAGES: Final[dict[str, list[tuple[str, FailureKind]]]] = {
    "sqlite": [
        ("no such table", _B),
        ("no such column", _B),
        ("has no column named", _B),
        ("no such function", _B),
        ("no such collation", _B),
        ("no such module", _B),
        ("readonly database", _B),
        ("not authorized", _B),
        ("not a database", _B),
        ("is malformed", _B),
        ("foreign key mismatch", _B),
        ("because it is a view", _B),
        ("cannot insert into generated column", _B),
        ("cannot update generated column", _B),
        ("syntax error", _B),
        ("values were supplied", _B),
        ("values for", _B),
        ("is locked", _T),
        ("disk i/o error", _T),
        ("database or disk is full", _T),
        ("out of memory", _T),
        ("unable to open database file", _T),
        ("interrupted", _T),
        ("schema has changed", _T),
        ("locking protocol", _T),
        ("no such savepoint", _T),
        ("constraint failed", _R),
        ("datatype mismatch", _R),
        ("too big", _R),
        ("integer overflow", _R),
        ("error binding parameter", _R),
        ("could not be bound", _R),
    ],
    "postgresql": [
        # libpq gives no SQLSTATE for a connection that was refused by the server.
        ("password authentication failed", _B),
        ("no pg_hba.conf entry", _B),
        ("permission denied", _B),
        ("does not exist", _B),
        ("cannot adapt type", _R),
    ],
    "mysql": [
        ("can not be used with mysql", _R),
    ],
}

_ALIASES: Final = {"mariadb": "mysql"}

# What drivers raise bare, before the server sees anything, for a value that they cannot pass on.
_VALUE_ERRORS: Final = (ArithmeticError, LookupError, TypeError, ValueError)


def register_failure(dialect: str, code: str | int, kind: FailureKind) -> None:
    """Says of what kind failures with this code are, from now on, in this process.

    `dialect` is the name of the SQLAlchemy dialect (``"postgresql"``, ``"mysql"``, ``"mariadb"``, ``"sqlite"`` or any
    other). For ``"mysql"``, ``"mariadb"`` and ``"sqlite"`` the code is an int, the driver's error number; for the
    others a str, a SQLSTATE or the two characters of its class. Replaces what the tables say.
    """
    if kind not in (FailureKind.TRANSIENT, FailureKind.BLOCKED, FailureKind.REJECTED):
        raise ValueError(f"kind must be TRANSIENT, BLOCKED or REJECTED of FailureKind, not {kind!r}")
    family = _ALIASES.get(dialect, dialect)
    numbers = _NUMBERED.get(family)
    if numbers is not None:
        if isinstance(code, bool) or not isinstance(code, int):
            raise ValueError(f"codes of {dialect} are ints, not {code!r}")
        numbers[code] = kind
    else:
        if not isinstance(code, str) or len(code) not in (2, 5):
            raise ValueError(f"codes of {dialect} are SQLSTATEs of five characters, or classes of two, not {code!r}")
        SQLSTATES[code] = kind


_NUMBERED: Final[dict[str, dict[int, FailureKind]]] = {"mysql": MYSQL_ERRORS, "sqlite": SQLITE_ERRORS}


def classify(error: BaseException, dialect: str) -> Failure | None:
    """The kind of a failure that came from the target; None if it came from elsewhere (a fault in the program).

    `dialect` is the name of the target's SQLAlchemy dialect. Thread-safe; never raises.
    """
    if isinstance(error, EntryRejectedError):
        return Failure(_R, "refused by walsync's own check")
    if isinstance(error, TargetBlockedError):
        return Failure(_B, "blocked")
    if isinstance(error, TargetUnavailableError):
        return Failure(_T, "unavailable")
    if isinstance(error, WalsyncError):
        # Before OSError: a time-out of the log is a TimeoutError, and that is one.
        return None
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated:
            return Failure(_T, "the connection is lost")
        return _classify_driver(error.orig, type(error).__name__, _ALIASES.get(dialect, dialect))
    if isinstance(error, exc.StatementError) and isinstance(error.orig, _VALUE_ERRORS):
        return Failure(_R, "a value cannot be bound")
    if isinstance(error, exc.TimeoutError):
        return Failure(_T, "no connection was free in time")
    if isinstance(error, exc.SQLAlchemyError):
        return Failure(FailureKind.UNKNOWN, type(error).__name__)
    if isinstance(getattr(error, "sqlstate", None), str):
        # asyncpg's, when a connection is refused: SQLAlchemy passes that on as it is.
        return _classify_driver(error, type(error).__name__, _ALIASES.get(dialect, dialect))
    if isinstance(error, OSError):
        return Failure(_T, type(error).__name__)
    return None


def _classify_driver(orig: BaseException | None, category: str, family: str) -> Failure:
    """`category` is the name of the DBAPI's class of errors that the driver chose."""
    number = _number(orig, family)
    if number is not None:
        numbers = _NUMBERED[family]
        kind = numbers.get(number)
        if kind is None and family == "sqlite":
            kind = numbers.get(number & 0xFF)
        if kind is not None:
            return Failure(kind, f"{family} error {number}")
    elif (state := _sqlstate(orig)) is not None:
        kind = SQLSTATES.get(state) or SQLSTATES.get(state[:2])
        if kind is not None:
            return Failure(kind, f"SQLSTATE {state}")
        number = None
    message = str(orig).lower()
    for words, kind in MESSAGES.get(family, ()):
        if words in message:
            return Failure(kind, f"message: {words}")
    if category in ("IntegrityError", "DataError"):
        return Failure(_R, category)
    if category == "OperationalError" and number is None and _sqlstate(orig) is None and family == "postgresql":
        # psycopg and psycopg2 have no code for what the server never answered.
        return Failure(_T, "OperationalError without a SQLSTATE")
    return Failure(FailureKind.UNKNOWN, category)


def _number(orig: Any, family: str) -> int | None:
    """The error number that the drivers of MySQL, MariaDB and SQLite give, each in its own place."""
    if family == "sqlite":
        code = getattr(orig, "sqlite_errorcode", None)
        return code if isinstance(code, int) else None
    if family != "mysql":
        return None
    code = getattr(orig, "errno", None)
    if not isinstance(code, int):
        arguments = getattr(orig, "args", ())
        code = arguments[0] if arguments else None
    return code if isinstance(code, int) and not isinstance(code, bool) and code > 0 else None


def _sqlstate(orig: Any) -> str | None:
    """psycopg, asyncpg and others: `sqlstate`; psycopg2: `pgcode`; pyodbc: the first argument."""
    arguments = getattr(orig, "args", ())
    for state in (getattr(orig, "sqlstate", None), getattr(orig, "pgcode", None), arguments[0] if arguments else None):
        if isinstance(state, str) and len(state) == 5 and state.isalnum() and not state.isalpha() and state.isupper():
            return state
        if isinstance(state, str) and len(state) == 5 and state.isdigit():
            return state
    return None


def describe_error(error: BaseException) -> str:
    """One line: the driver's own words, without the statement and its parameters; the message of walsync's own."""
    orig = getattr(error, "orig", None)
    shown = orig if isinstance(orig, BaseException) else error
    words = " ".join(str(shown).split())
    if len(words) > 500:
        words = words[:500] + "..."
    if isinstance(shown, WalsyncError):
        return words
    return f"{type(shown).__name__}: {words}" if words else type(shown).__name__

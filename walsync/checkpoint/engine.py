"""The checkpointer's own way to the target: an engine with its own pool, and the beginning of its transactions.

Own pool, because a reader that waits for the checkpointer holds a connection of the application's pool: with one pool,
as many waiting readers as it has connections would starve the one thread that they wait for.

The engine is an option engine of the application's: same dialect, same execution options, and the same listeners, also
those added later; only the pool is another. The listeners that walsync needs on connections are on that pool alone.

An in-memory SQLite database lives in one connection and cannot have a second pool. With a `StaticPool` the connection
is shared, and then nothing separates the application's transactions from the checkpointer's when both run at the same
moment: it serves tests with a single thread, and a line in the log says so. With a pool that has a connection per
thread the checkpointer's thread would see another, empty database: that is refused.

Where the driver is an asynchronous one, the engine is used on an event loop of its own (`walsync.checkpoint.loop`):
whoever does something with it does so by `run_on`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool
from sqlalchemy.pool.base import _AdhocProxiedConnection

from walsync.checkpoint.config import CheckpointConfig
from walsync.checkpoint.loop import TargetLoop
from walsync.exceptions import ConfigurationError

__all__ = ["ApplyingEngine", "LoopEngine", "begin", "make_engine", "run_on"]

_logger: Final = logging.getLogger("walsync.checkpoint")

_T = TypeVar("_T")


class ApplyingEngine(OptionEngine):
    """The application's engine with a pool of its own."""

    def __init__(self, target: Engine, pool: Pool) -> None:
        # Before the base class, whose constructor may look at the pool.
        self._own_pool = pool
        super().__init__(target, {})
        self._walsync_target = target
        self._walsync_initialised = False

    def initialise(self) -> None:
        """Makes sure that the dialect knows its server, before the own pool is used. Connects once to the target.

        SQLAlchemy lets the first connection of an engine ask the server about itself, and makes the others of the same
        pool wait for the answers. Those of another pool it does not make wait: they would meet a dialect that is half
        initialised by somebody else's first connection. So the first one is always made in the application's pool.
        """
        if self._walsync_initialised:
            return
        try:
            with self._walsync_target.connect():
                pass
        except PoolTimeoutError:
            # All connections of that pool are in use, so it has had a first one.
            _logger.debug("the application's pool has no free connection")
        self._walsync_initialised = True

    # To a type checker the base class's plain attribute; SQLAlchemy hides its own property in the same way.
    if not TYPE_CHECKING:

        @property
        def pool(self) -> Pool:
            return self._own_pool

        @pool.setter
        def pool(self, pool: Pool) -> None:
            self._own_pool = pool


class LoopEngine(ApplyingEngine):
    """The application's engine, of an asynchronous driver, with a pool and an event loop of its own."""

    def __init__(self, target: Engine, pool: Pool) -> None:
        super().__init__(target, pool)
        self.loop = TargetLoop()
        self._knows_server = False
        # First of all listeners, see there.
        event.listen(pool, "connect", self._learn, insert=True)

    def initialise(self) -> None:
        """Nothing: a connection of the application's pool would be of no use to the application's loop any more."""

    def _learn(self, dbapi_connection: Any, record: Any) -> None:
        """Lets the dialect ask the server about itself, on the first connection here, whatever others do meanwhile.

        SQLAlchemy does the same on the first connection of all pools together, and lets the others go on without the
        answers: so no connection is used here, and none of the application's goes without, before all is known.
        """
        if self._knows_server:
            return
        connection = Connection(
            self,
            connection=_AdhocProxiedConnection(dbapi_connection, record),
            _has_events=False,
            _allow_revalidate=False,
            _allow_autobegin=False,
        )
        try:
            self.dialect.initialize(connection)
        finally:
            if not connection.invalidated and not connection.closed:
                self.dialect.do_rollback(connection.connection)
        self._knows_server = True

    def dispose(self, close: bool = True) -> None:
        """Closes the connections that lie in the pool, on the loop that they belong to."""
        dispose = super().dispose
        if close and self.loop.is_running:
            self.loop.run(dispose)
        else:
            dispose(close=False)


def run_on(engine: Engine, function: Callable[[], _T]) -> _T:
    """Calls `function`, which uses this engine, where its connections can be used. Blocks until it returns."""
    return engine.loop.run(function) if isinstance(engine, LoopEngine) else function()


def make_engine(target: Engine, config: CheckpointConfig) -> Engine:
    """The engine that the checkpointer uses; `target` itself where its pool has only one connection to give.

    Does no I/O. Raises `ConfigurationError` for a target that another thread cannot reach.
    """
    if target.dialect.is_async and isinstance(target.pool, StaticPool):
        raise ConfigurationError(
            f"the target {target.url!r} has a single connection (StaticPool), which belongs to one event loop, and the "
            "checkpointer needs one of its own. Use a file; or a database in memory that several connections share: "
            "'sqlite+aiosqlite:///file:NAME?mode=memory&cache=shared&uri=true' with poolclass=AsyncAdaptedQueuePool"
        )
    if isinstance(target.pool, StaticPool):
        _logger.warning(
            "the target %r has a single connection (StaticPool), which the checkpointer shares with the application: "
            "nothing separates their transactions; for tests with a single thread only",
            target.url,
        )
        return target
    if isinstance(target.pool, SingletonThreadPool):
        if target.dialect.name == "sqlite" and _in_memory(target):
            raise ConfigurationError(
                f"the target {target.url!r} is an in-memory SQLite database with one connection per thread: the "
                "checkpointer's thread would see another, empty database. Use a file; or "
                "'sqlite:///file:NAME?mode=memory&cache=shared&uri=true' with poolclass=QueuePool"
            )
        return target
    pool = target.pool.recreate()
    if target.dialect.name in ("mysql", "mariadb"):
        event.listen(pool, "connect", _keep_zero)
    elif target.dialect.name == "postgresql" and config.target_lock_timeout_s > 0:
        milliseconds = max(1, round(config.target_lock_timeout_s * 1000))

        def bound_lock_waits(dbapi_connection: Any, _: Any) -> None:
            # Only where nobody has chosen: 0 is "for ever".
            _execute(
                dbapi_connection,
                f"SELECT set_config('lock_timeout', '{milliseconds}ms', false) "
                "WHERE current_setting('lock_timeout') = '0'",
            )

        event.listen(pool, "connect", bound_lock_waits)
    return LoopEngine(target, pool) if target.dialect.is_async else ApplyingEngine(target, pool)


def _in_memory(target: Engine) -> bool:
    database = target.url.database or ""
    shared = target.url.query.get("cache") == "shared" or "cache=shared" in database
    return not shared and (not database or ":memory:" in database or target.url.query.get("mode") == "memory")


def _keep_zero(dbapi_connection: Any, _: Any) -> None:
    """A recorded 0 in an AUTO_INCREMENT column is a 0, and not a request for the next number."""
    _execute(
        dbapi_connection,
        "SET SESSION sql_mode = CONCAT_WS(',', NULLIF(@@SESSION.sql_mode, ''), 'NO_AUTO_VALUE_ON_ZERO')",
    )


def _execute(dbapi_connection: Any, sql: str) -> None:
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(sql)
    finally:
        cursor.close()
    # A setting made inside of a transaction is undone when the pool rolls that back.
    dbapi_connection.commit()


def begin(session: Session, engine: Engine) -> Connection:
    """The session's connection, inside of a transaction that is one in truth.

    The watermark is worth nothing if each statement commits by itself. So an engine in AUTOCOMMIT gets its database's
    default isolation for this transaction, and a driver that commits by itself is refused (`ConfigurationError`). On
    SQLite the transaction is begun as a writer: a reader that turns into a writer later can be refused for good, with
    SQLITE_BUSY_SNAPSHOT, and Python's driver would begin none before the first DML.
    """
    arguments = {"bind": engine}
    if _autocommits(engine):
        # Asked in a transaction of its own: the level is known to the dialect after the first connection.
        with engine.connect() as connection:
            level = connection.default_isolation_level
        connection = session.connection(bind_arguments=arguments, execution_options={"isolation_level": level})
    else:
        connection = session.connection(bind_arguments=arguments)
    dialect = connection.dialect
    dbapi_connection: Any = connection.connection.dbapi_connection
    if dialect.name == "sqlite":
        if getattr(connection.connection.driver_connection, "in_transaction", True) is False:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        if _driver_autocommits(dialect, dbapi_connection):
            raise ConfigurationError(
                f"the connections of the target {engine.url!r} commit each statement by themselves (autocommit of the "
                "driver); entries could be applied in part. Take autocommit out of connect_args or of the listener "
                "that sets it"
            )
    return connection


def _autocommits(engine: Engine) -> bool:
    level = engine.get_execution_options().get("isolation_level") or getattr(
        engine.dialect, "_on_connect_isolation_level", None
    )
    return isinstance(level, str) and level.upper() == "AUTOCOMMIT"


def _driver_autocommits(dialect: Dialect, dbapi_connection: Any) -> bool:
    detect = getattr(dialect, "detect_autocommit_setting", None)  # since SQLAlchemy 2.0.43
    if detect is not None:
        try:
            return bool(detect(dbapi_connection))
        except NotImplementedError:
            return False
    if hasattr(dbapi_connection, "get_autocommit"):
        return bool(dbapi_connection.get_autocommit())
    return getattr(dbapi_connection, "autocommit", False) is True

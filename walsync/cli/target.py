"""Asking the target for a log's watermark, from outside of the application: read-only, and within a time."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from sqlalchemy import Engine, create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool, Pool

from walsync.checkpoint.failures import describe_error
from walsync.checkpoint.watermark import Watermark
from walsync.exceptions import ConfigurationError, TargetUnavailableError

__all__ = ["WatermarkSchema", "read_watermark", "target_engine"]

WatermarkSchema: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--watermark-schema",
        metavar="NAME",
        help="CheckpointConfig.watermark_schema, if the application sets it.",
        show_default=False,
    ),
]
"""The option of every command that asks a target for the watermark."""

CONNECT_TIMEOUT_S = 10

_TIMEOUT_ARGUMENT = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "pysqlite": "timeout",
}


def read_watermark(url: str, log_uuid: uuid.UUID, schema: str | None) -> int | None:
    """The last entry of this log that the target has; None if it does not know the log.

    Raises `TargetUnavailableError` if the target does not answer, `ConfigurationError` for a URL that cannot be used.
    """
    engine = target_engine(url)
    watermark = Watermark(log_uuid, "", schema)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(watermark.table.name, schema):
                return None
            return watermark.read(connection)
    except DBAPIError as error:
        raise TargetUnavailableError(
            f"{engine.url.render_as_string(hide_password=True)} does not answer: {describe_error(error)}"
        ) from error
    finally:
        engine.dispose()


def target_engine(url: str, *, poolclass: type[Pool] = NullPool) -> Engine:
    """An engine for a URL from the command line. Raises `ConfigurationError` for one that cannot be used."""
    try:
        parsed = make_url(url)
        arguments: dict[str, Any] = {}
        dialect = parsed.get_dialect()
        if dialect.driver in _TIMEOUT_ARGUMENT:
            arguments[_TIMEOUT_ARGUMENT[dialect.driver]] = CONNECT_TIMEOUT_S
        if dialect.name == "sqlite":
            _require_file(parsed.database)
        return create_engine(parsed, poolclass=poolclass, connect_args=arguments)
    except NoSuchModuleError as error:
        raise ConfigurationError(f"--target {url!r} names a database that SQLAlchemy does not know: {error}") from error
    except ArgumentError as error:
        raise ConfigurationError(
            f"--target {url!r} is not a database URL, like sqlite:///orders.db: {error}"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--target needs the driver {error.name!r}, which is not installed. The extras postgresql, mysql and "
            "mariadb have one each: pip install 'sqlalchemy-walsync[cli,postgresql]'"
        ) from error


def _require_file(path: str | None) -> None:
    # SQLite would make an empty database, which is not what somebody who asks has in mind.
    if path and path != ":memory:" and not path.startswith("file:") and not Path(path).is_file():
        raise TargetUnavailableError(f"there is no SQLite database at {path}")

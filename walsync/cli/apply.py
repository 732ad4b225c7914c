"""`walsync apply`: applies a log to its target, in a process of its own, without the application's code.

It takes the log's lease, or stands by until it can have it, and goes on until it is told to stop (SIGTERM, SIGINT), or,
with `--once`, until what was durable at its beginning is applied. It decides nothing that a supervisor or a person
should decide: where the checkpointer halts, it ends, with an exit code that says why.

The signal handlers set a flag, which the loop looks at; nothing else happens in them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Final

import typer
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from walsync.checkpoint import CheckpointConfig, CheckpointStatus, SQLAlchemyCheckpointer
from walsync.cli.apply_display import Display, display_for
from walsync.cli.examine import log_uuid_of
from walsync.cli.output import (
    EXIT_DAMAGED,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_KEPT,
    EXIT_LOCKED,
    EXIT_OK,
    EXIT_TARGET,
    print_error,
    reported_errors,
)
from walsync.cli.target import WatermarkSchema, target_engine
from walsync.exceptions import ApplyTimeoutError, LogError, LogLockedError, TargetError, UsageError, WalsyncError
from walsync.session.rebuild import TableIndexer
from walsync.wal import EntryId, LogConfig, WriteAheadLog

__all__ = ["apply"]

_LOOK_S: Final = 0.1
"""How often signals and the state are looked at."""

_STOP_TIMEOUT_S: Final = 30.0
"""How long the batch under way may take after a signal. Then the process ends, and the target undoes it."""

_DEFAULTS: Final = CheckpointConfig()


class OnReject(str, Enum):
    """The values of `CheckpointConfig.on_reject`."""

    halt = "halt"
    quarantine = "quarantine"


class _Checkpointer(SQLAlchemyCheckpointer):
    """Opening a long log does not read it twice."""

    recovers_entries = False


class _Signals:
    """Whether one came that asks for the end. The handlers that were there before are put back by `listening`."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator[_Signals]:
        def receive(number: int, _: object) -> None:
            self.received = number

        before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class _Ending:
    """Why the command ends: a sentence, unless all is as it was asked for."""

    code: int
    message: str = ""


def apply(
    directory: Annotated[Path, typer.Argument(help="The directory of the log.", show_default=False)],
    target: Annotated[
        str,
        typer.Option(metavar="URL", envvar="WALSYNC_TARGET", help="The database to apply it to.", show_default=False),
    ],
    once: Annotated[
        bool, typer.Option("--once", "--drain", help="End when everything that is durable now is applied.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.0, help="With --once: the longest time without any progress."),
    ] = 60.0,
    wait: Annotated[bool, typer.Option("--wait", help="If there is no log yet, wait for it.")] = False,
    on_reject: Annotated[
        OnReject, typer.Option(help="What becomes of a transaction that the target refuses.")
    ] = OnReject(_DEFAULTS.on_reject),
    batch_changes: Annotated[
        int, typer.Option(metavar="N", help="CheckpointConfig.batch_changes.")
    ] = _DEFAULTS.batch_changes,
    batch_bytes: Annotated[
        int, typer.Option(metavar="N", help="CheckpointConfig.batch_bytes.")
    ] = _DEFAULTS.batch_bytes,
    batch_delay: Annotated[
        float, typer.Option(metavar="SECONDS", help="CheckpointConfig.batch_delay_s.")
    ] = _DEFAULTS.batch_delay_s,
    retry_max: Annotated[
        float, typer.Option(metavar="SECONDS", help="CheckpointConfig.retry_max_s.")
    ] = _DEFAULTS.retry_max_s,
    schema: WatermarkSchema = None,
    network_file_systems: Annotated[
        bool, typer.Option("--network-file-systems", help="LogConfig.network_file_systems.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a document on each line.")] = False,
) -> None:
    """Apply a log to its database, in a process of its own, beside any number of processes that write.

    One process applies at a time: while another one does, this one stands by and takes over when that ends. Stops on
    SIGTERM and SIGINT, after the batch under way. Exit code 0: ended as asked; 1: the log is damaged, or log and target
    do not fit together; 2: it could not begin; 3: with --once, the target cannot apply it now; 4: with --once, all that
    is not applied is in the quarantine; 5: the log is open in a process that does not share it; 6: the target refuses a
    transaction, or with --once lacks something; 7: a fault. With --once and a signal: 128 and the signal's number.
    """
    with _Signals().listening() as signals, reported_errors():
        config = CheckpointConfig(
            on_reject=on_reject.value,
            batch_changes=batch_changes,
            batch_bytes=batch_bytes,
            batch_delay_s=batch_delay,
            retry_max_s=retry_max,
            retry_initial_s=min(_DEFAULTS.retry_initial_s, retry_max),
            watermark_schema=schema,
        )
        engine = target_engine(target, poolclass=QueuePool)
        try:
            if not _found(directory, signals, wait=wait):
                raise typer.Exit(_signalled(signals, once=once))
            log_config = LogConfig(network_file_systems=network_file_systems)
            try:
                ending = _apply(directory, engine, config, log_config, signals, timeout if once else None, as_json)
            except LogLockedError as error:
                ending = _Ending(EXIT_LOCKED, str(error))
        finally:
            engine.dispose()
    if ending.message:
        print_error(ending.message)
    raise typer.Exit(ending.code)


def _found(directory: Path, signals: _Signals, *, wait: bool) -> bool:
    """Whether there is a log; False only after a signal. Raises `LogError` if there is none, and none is waited for."""
    while signals.received is None:
        try:
            log_uuid_of(directory)
        except LogError:
            if not wait:
                raise
            time.sleep(_LOOK_S)
        else:
            return True
    return False


def _signalled(signals: _Signals, *, once: bool) -> int:
    """Without `--once` a signal is how the command is asked to end."""
    return 128 + signals.received if once and signals.received is not None else EXIT_OK


def _apply(
    directory: Path,
    engine: Engine,
    config: CheckpointConfig,
    log_config: LogConfig,
    signals: _Signals,
    patience_s: float | None,
    as_json: bool,
) -> _Ending:
    """`patience_s` is None where it is to go on for ever."""
    checkpointer = _Checkpointer(engine, config=config)
    with WriteAheadLog.recover(directory, checkpointer, config=log_config) as log, display_for(log, as_json) as display:
        through = log.durable_id
        indexer = TableIndexer(log, lambda: checkpointer.applied_id)
        checkpointer.start(log)
        try:
            indexer.start()
            _connect_early(checkpointer)
            if patience_s is None:
                ending = _go_on(checkpointer, display, signals)
            else:
                ending = _drain(checkpointer, display, signals, through, patience_s)
        finally:
            indexer.stop()
            checkpointer.stop(timeout=_STOP_TIMEOUT_S)
        display.end(checkpointer.status, ending.code)
    return ending


def _connect_early(checkpointer: SQLAlchemyCheckpointer) -> None:
    """While another process applies: know the target already, so that taking over takes no time."""
    if checkpointer.status.state != "standby":
        return

    def ask() -> None:
        # Whatever is wrong with the target now, is met again when it matters.
        with suppress(WalsyncError):
            checkpointer.check_watermark()

    threading.Thread(target=ask, name="walsync-connect", daemon=True).start()


def _go_on(checkpointer: SQLAlchemyCheckpointer, display: Display, signals: _Signals) -> _Ending:
    while signals.received is None:
        status = checkpointer.status
        display.show(status)
        if status.state in ("halted", "failed", "stopped"):
            return _stuck(status)
        time.sleep(_LOOK_S)
    return _Ending(EXIT_OK)


def _drain(
    checkpointer: SQLAlchemyCheckpointer, display: Display, signals: _Signals, through: EntryId, patience_s: float
) -> _Ending:
    seen, since = checkpointer.applied_id, time.monotonic()
    while signals.received is None:
        status = checkpointer.status
        display.show(status)
        try:
            checkpointer.wait_applied(through, _LOOK_S)
        except ApplyTimeoutError as error:
            now = time.monotonic()
            if checkpointer.applied_id > seen:
                seen, since = checkpointer.applied_id, now
            elif now - since >= patience_s:
                return _Ending(EXIT_TARGET, f"nothing was applied for --timeout = {patience_s:g} s: {error}")
        except (TargetError, LogError, UsageError) as error:
            found = _stuck(checkpointer.status)
            return _Ending(found.code, str(error))
        else:
            kept = checkpointer.status.quarantined_entries
            if kept:
                return _Ending(EXIT_KEPT, f"{kept} entries are in the quarantine; see `walsync quarantine list`")
            return _Ending(EXIT_OK)
    return _Ending(_signalled(signals, once=True), "stopped by a signal before everything was applied")


_NOT_FITTING: Final = ("WatermarkGapError", "DamagedLogError", "CorruptEntryError", "LogVersionError")


def _stuck(status: CheckpointStatus) -> _Ending:
    """The checkpointer, here or in another process, does not get on by itself."""
    words = status.last_error or f"the checkpointer is {status.state}"
    if status.last_error_type in _NOT_FITTING:
        return _Ending(EXIT_DAMAGED, words)
    if status.state in ("failed", "stopped"):
        return _Ending(EXIT_FAILED, words)
    return _Ending(EXIT_HELD, words)

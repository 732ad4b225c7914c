"""`attach()`: checks what it is given, opens the log, and puts the parts together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from walsync.checkpoint import CheckpointConfig
from walsync.exceptions import AttachError
from walsync.journal import KeyAllocator, KeyConfig
from walsync.journal.key_file import KeyFile
from walsync.journal.key_sources import TargetKeySource
from walsync.session.config import SessionConfig
from walsync.session.journal import Journal, JournalCheckpointer
from walsync.session.pending import PendingTables
from walsync.session.rebuild import TableIndexer
from walsync.session.routing import SessionHooks
from walsync.session.scope import Scope
from walsync.wal import LogConfig, WriteAheadLog

__all__ = ["attach"]


def attach(
    sessions: Any,
    directory: str | os.PathLike[str],
    target: Engine | None = None,
    *,
    include: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    log: LogConfig | None = None,
    checkpoint: CheckpointConfig | None = None,
    keys: KeyConfig | None = None,
    session: SessionConfig | None = None,
    expire_on_commit: bool = False,
) -> Journal:
    """Attach a log to sessions: from here on their commits are durable in it, and applied to the target from there.

    `sessions`: a `sessionmaker`, a `scoped_session`, a subclass of `Session` that makes sessions itself, or one
    `Session`. `directory`: of the log; made if it is missing. `target`: the real database's Engine; the default is the
    one that `sessions` is bound to. `include`, `exclude`: mapped classes and tables that are journaled, or not; a
    transaction that writes any other runs directly on the target. The configs: `LogConfig`, `CheckpointConfig`,
    `KeyConfig`, `SessionConfig`.

    Opening the log recovers it: every entry that is not applied yet is read and checked, the target's watermark is
    asked, and what is missing is replayed in the background; reads wait for what concerns them. Where very much waits,
    they wait for all of it at first: which tables it writes is looked up in the background as well. If the target
    cannot be reached, commits work all the same, and the watermark is asked when it is back.

    Factories get ``expire_on_commit=False`` unless `expire_on_commit` says otherwise (a factory cannot tell
    SQLAlchemy's default from a choice): expired attributes would be read back from the target, each time waiting for
    the entry just committed.

    The factory is given back as it was when the journal is closed.

    Blocks for reading the log, and up to the driver's own time-out for the target. Raises `AttachError` for something
    that cannot be attached, `LogLockedError`, `DamagedLogError`, `LogVersionError`, and `WatermarkGapError` if log and
    target do not belong together. After an exception nothing is attached, and the log is closed.
    """
    session_class, listen_to, bound = _examine(sessions)
    engine = _choose_target(target, bound)
    scope = Scope(include, exclude)
    pending = PendingTables()
    checkpointer = JournalCheckpointer(
        engine, config=checkpoint or CheckpointConfig(), session_factory=_applying_sessions(sessions)
    )
    opened = WriteAheadLog.recover(directory, checkpointer, config=log or LogConfig())
    try:
        allocator = KeyAllocator(TargetKeySource(checkpointer.own_engine), KeyFile(directory), keys or KeyConfig())
        journal = Journal(
            target=engine,
            log=opened,
            checkpointer=checkpointer,
            pending=pending,
            keys=allocator,
            scope=scope,
            config=session or SessionConfig(),
        )
        indexer = TableIndexer(opened, pending, lambda: checkpointer.applied_id)
        checkpointer.report_to(journal)
        checkpointer.start(opened)
    except BaseException:
        opened.close()
        raise
    journal.on_detach(indexer.stop)
    try:
        indexer.start()
        checkpointer.check_watermark()
    except BaseException:
        journal.close(drain=False)
        raise
    hooks = SessionHooks(journal, session_class)
    if isinstance(sessions, Session):
        sessions.__class__ = session_class
    hooks.install(listen_to)
    journal.on_detach(hooks.remove)
    journal.on_detach(_configure(sessions, engine, expire_on_commit))
    return journal


def _examine(sessions: Any) -> tuple[type[Session], Any, Any]:
    """(the class to put hooks on, what to listen to, what it is bound to)."""
    if isinstance(sessions, scoped_session):
        if sessions.registry.has():
            raise AttachError(
                "this scoped_session has a session already, which was made without the log; call .remove() before "
                "attach()"
            )
        return _examine(sessions.session_factory)
    if isinstance(sessions, sessionmaker):
        _refuse(sessions.kw)
        # A sessionmaker makes a subclass for itself; the hooks concern nobody else.
        return sessions.class_, sessions.class_, sessions.kw.get("bind")
    if isinstance(sessions, type) and issubclass(sessions, Session):
        if sessions is Session:
            raise AttachError(
                "attaching to sqlalchemy.orm.Session itself would catch every session of the process; attach to a "
                "sessionmaker, or to a subclass"
            )
        return sessions, sessions, None
    if isinstance(sessions, Session):
        if sessions.in_transaction():
            raise AttachError("this session is in a transaction; commit or roll back before attach()")
        if sessions.twophase:
            raise AttachError("a two-phase session cannot be attached: it has more than one commit point")
        own = type(type(sessions).__name__, (type(sessions),), {})
        return own, sessions, sessions.bind
    kind = type(sessions)
    if kind.__name__ in ("async_sessionmaker", "async_scoped_session", "AsyncSession") or kind.__module__.startswith(
        "sqlalchemy.ext.asyncio"
    ):
        raise AttachError(
            "asynchronous sessions are not supported by this version of walsync; attach to a synchronous sessionmaker "
            "on a synchronous engine"
        )
    raise AttachError(
        "attach() takes a sessionmaker, a scoped_session, a subclass of Session or a Session, not "
        f"{kind.__module__}.{kind.__qualname__}"
    )


def _applying_sessions(sessions: Any) -> Callable[[Engine], Session]:
    """What makes the checkpointer's sessions: of the factory's class, so that the application's own events fire."""
    if isinstance(sessions, scoped_session):
        sessions = sessions.session_factory
    session_class: Any = sessions.class_ if isinstance(sessions, sessionmaker) else Session
    return lambda engine: session_class(bind=engine, expire_on_commit=False)


def _refuse(settings: dict[str, Any]) -> None:
    if settings.get("twophase"):
        raise AttachError("two-phase sessions cannot be attached: their transactions have more than one commit point")
    if settings.get("binds"):
        raise AttachError(
            "a session bound to several engines cannot be attached by this version of walsync; attach a sessionmaker "
            "with a single bind"
        )
    if settings.get("autocommit"):
        raise AttachError("sessions in autocommit mode cannot be attached")


def _choose_target(target: Any, bound: Any) -> Engine:
    if target is not None and bound is not None and target is not bound:
        raise AttachError(
            "target= is another engine than the one that the sessions are bound to; give only one of them"
        )
    engine = target if target is not None else bound
    if engine is None:
        raise AttachError("the sessions are not bound to an engine; bind the factory, or give target=")
    if isinstance(engine, Connection):
        raise AttachError(
            "the sessions are bound to a Connection; walsync needs an Engine, because it applies entries on "
            "connections of its own"
        )
    if isinstance(engine, (str, URL)):
        raise AttachError("target= takes an Engine; make one with sqlalchemy.create_engine()")
    if not isinstance(engine, Engine):
        raise AttachError(
            f"target= takes a synchronous Engine, not {type(engine).__module__}.{type(engine).__qualname__}; "
            "asynchronous engines are not supported by this version of walsync"
        )
    if engine.dialect.name == "walsync":
        raise AttachError("the target is a journal's engine itself; give the real database's")
    return engine


def _configure(sessions: Any, engine: Engine, expire_on_commit: bool) -> Callable[[], None]:
    """Bind what is not bound yet, and set a factory's `expire_on_commit`. Returns what undoes both."""
    if isinstance(sessions, scoped_session):
        sessions = sessions.session_factory
    if isinstance(sessions, sessionmaker):
        before = {name: sessions.kw.get(name) for name in ("bind", "expire_on_commit")}
        sessions.configure(bind=engine, expire_on_commit=expire_on_commit)
        return lambda: sessions.configure(**before)
    if isinstance(sessions, Session):
        single, bind, original = sessions, sessions.bind, type(sessions).__bases__[0]
        single.bind = engine

        def unbind() -> None:
            single.bind = bind
            single.__class__ = original

        return unbind
    return lambda: None

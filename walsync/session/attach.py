"""`attach()`: checks what it is given, opens the log, and puts the parts together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from walsync.checkpoint import CheckpointConfig
from walsync.checkpoint.engine import run_on
from walsync.exceptions import AttachError, ConfigurationError
from walsync.journal import KeyAllocator, KeyConfig
from walsync.journal.key_file import KeyFile
from walsync.journal.key_sources import TargetKeySource
from walsync.session.asynchronous import AsyncSessions, examine_async, plain_engine, settings_of
from walsync.session.bridge import Bridge
from walsync.session.config import SessionConfig
from walsync.session.journal import Journal, JournalCheckpointer
from walsync.session.rebuild import TableIndexer
from walsync.session.routing import TWO_PHASE, SessionHooks
from walsync.session.scope import Scope
from walsync.wal import LogConfig, WriteAheadLog

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["attach"]


def attach(
    sessions: Any,
    directory: str | os.PathLike[str],
    target: Engine | AsyncEngine | None = None,
    *,
    include: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    log: LogConfig | None = None,
    checkpoint: CheckpointConfig | Literal["external"] | None = None,
    keys: KeyConfig | None = None,
    session: SessionConfig | None = None,
    expire_on_commit: bool = False,
    applying: sessionmaker[Any] | type[Session] | None = None,
) -> Journal:
    """Attach a log to sessions: from here on their commits are durable in it, and applied to the target from there.

    `sessions`: a `sessionmaker`, a `scoped_session`, a subclass of `Session` that makes sessions itself, or one
    `Session`; or `async_sessionmaker`, `async_scoped_session`, a subclass of `AsyncSession` or one of these.
    `directory`: of the log; made if it is missing. `target`: the real database's Engine (AsyncEngine for asynchronous
    sessions); the default is the one that `sessions` is bound to. Of several (`binds`) it says which; what is bound to
    the others is left alone. `include`, `exclude`: mapped classes and tables that
    are journaled, or not; a transaction that writes any other runs directly on the target. The configs: `LogConfig`,
    `CheckpointConfig`, `KeyConfig`, `SessionConfig`.

    Any number of processes attach to one directory. One of them applies; when it closes or dies, another takes over.
    ``checkpoint="external"``, short for ``CheckpointConfig(external=True)``, is for a process that only writes: it
    never applies, and somebody else must (`walsync apply`). After `os.fork()` the child goes on with the same journal.

    Opening the log recovers it, unless another process has it open: every entry that is not applied yet is read and
    checked, the target's watermark is asked, and what is missing is replayed in the background; reads wait for what
    concerns them. Where very much waits, they wait for all of it at first: which tables it writes is looked up in the
    background as well. If the target cannot be reached, commits work all the same, and the watermark is asked when it
    is back.

    Factories get ``expire_on_commit=False`` unless `expire_on_commit` says otherwise (a factory cannot tell
    SQLAlchemy's default from a choice): expired attributes would be read back from the target, each time waiting for
    the entry just committed.

    `applying`: what makes the sessions by which entries are applied and replayed; the default is `sessions`, so that
    its listeners hear of them (with ``"walsync.applying"`` in `session.info`). A `sessionmaker`, or a class of
    sessions, for listeners that must not.

    The factory is given back as it was when the journal is closed.

    Blocks for reading the log, and up to the driver's own time-out for the target; in a coroutine call it by
    ``await asyncio.to_thread(walsync.attach, ...)``. Raises `AttachError` for something
    that cannot be attached, `LogLockedError`, `DamagedLogError`, `LogVersionError`, and `WatermarkGapError` if log and
    target do not belong together. After an exception nothing is attached, and the log is closed.
    """
    asynchronous = examine_async(sessions)
    if asynchronous is None:
        session_class, listen_to, settings = _examine(sessions)
    else:
        session_class, listen_to, settings = asynchronous[:3]
    _refuse(settings)
    if SessionHooks.are_on(session_class):
        raise AttachError("these sessions are attached already; close the journal that they are attached to first")
    engine = _choose_target(target, settings, asynchronous)
    scope = Scope(include, exclude)
    if applying is not None:
        _refuse_applying(applying)
        make_applying: Any = applying
    else:
        make_applying = _applying_factory(sessions) if asynchronous is None else session_class
    checkpointer = JournalCheckpointer(
        engine,
        config=_checkpoint_config(checkpoint),
        session_factory=lambda engine: make_applying(bind=engine, expire_on_commit=False),
    )
    session_config = session or SessionConfig()
    opened = WriteAheadLog.recover(directory, checkpointer, config=log or LogConfig())
    try:
        is_async = engine.dialect.is_async
        bridge = Bridge(session_config.async_threads, is_async=is_async)
        allocator = KeyAllocator(
            TargetKeySource(
                checkpointer.own_engine, lambda engine, function: bridge.wait(lambda: run_on(engine, function))
            ),
            KeyFile(directory),
            keys or KeyConfig(),
            bridge.wait if is_async else None,
        )
        journal = Journal(
            target=engine,
            log=opened,
            checkpointer=checkpointer,
            keys=allocator,
            scope=scope,
            config=session_config,
            bridge=bridge,
        )
        indexer = TableIndexer(opened, lambda: checkpointer.applied_id)
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
    if asynchronous is None:
        journal.on_detach(_configure(sessions, engine, expire_on_commit))
    else:
        journal.on_detach(asynchronous.configure(engine, target, expire_on_commit))
    return journal


def _checkpoint_config(checkpoint: CheckpointConfig | str | None) -> CheckpointConfig:
    if isinstance(checkpoint, CheckpointConfig):
        return checkpoint
    if checkpoint is not None and checkpoint != "external":
        raise ConfigurationError(f"checkpoint= takes a CheckpointConfig or 'external', not {checkpoint!r}")
    return CheckpointConfig(external=checkpoint is not None)


def _examine(sessions: Any) -> tuple[type[Session], Any, dict[str, Any]]:
    """(the class to put hooks on, what to listen to, the sessions' settings)."""
    if isinstance(sessions, scoped_session):
        if sessions.registry.has():
            raise AttachError(
                "this scoped_session has a session already, which was made without the log; call .remove() before "
                "attach()"
            )
        return _examine(sessions.session_factory)
    if isinstance(sessions, sessionmaker):
        # A sessionmaker makes a subclass for itself; the hooks concern nobody else.
        return sessions.class_, sessions.class_, sessions.kw
    if isinstance(sessions, type) and issubclass(sessions, Session):
        if sessions is Session:
            raise AttachError(
                "attaching to sqlalchemy.orm.Session itself would catch every session of the process; attach to a "
                "sessionmaker, or to a subclass"
            )
        return sessions, sessions, {}
    if isinstance(sessions, Session):
        if sessions.in_transaction():
            raise AttachError("this session is in a transaction; commit or roll back before attach()")
        own = type(type(sessions).__name__, (type(sessions),), {})
        return own, sessions, settings_of(sessions)
    kind = type(sessions)
    raise AttachError(
        "attach() takes a sessionmaker, a scoped_session, a subclass of Session, a Session, or their asynchronous "
        "counterparts, not "
        f"{kind.__module__}.{kind.__qualname__}"
    )


def _applying_factory(sessions: Any) -> Any:
    """What makes the checkpointer's sessions: the factory, so that they are as the application's own, and tell its
    listeners as well."""
    if isinstance(sessions, scoped_session):
        sessions = sessions.session_factory
    return sessions if isinstance(sessions, sessionmaker) else Session


def _refuse_applying(applying: Any) -> None:
    if not isinstance(applying, sessionmaker) and not (isinstance(applying, type) and issubclass(applying, Session)):
        raise AttachError(
            "applying= takes a sessionmaker, or a class of sessions, not "
            f"{type(applying).__module__}.{type(applying).__qualname__}. Entries are applied by synchronous sessions, "
            "for asynchronous engines as well"
        )


def _refuse(settings: dict[str, Any]) -> None:
    if settings.get("twophase"):
        raise AttachError(TWO_PHASE)
    if settings.get("autocommit"):
        raise AttachError("sessions in autocommit mode cannot be attached")


def _choose_target(target: Any, settings: dict[str, Any], asynchronous: AsyncSessions | None) -> Engine:
    given = target
    target = plain_engine(target)
    if settings.get("binds"):
        bound = _one_of_several(target, [settings.get("bind"), *settings["binds"].values()])
    else:
        bound = plain_engine(settings.get("bind"))
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
            "connections of its own. Attach a factory that is bound to the Engine, and bind single sessions to the "
            "Connection: factory(bind=connection)"
        )
    if isinstance(engine, (str, URL)):
        raise AttachError(
            "target= takes an Engine; make one with sqlalchemy.create_engine(), or create_async_engine() for "
            "asynchronous sessions"
        )
    if not isinstance(engine, Engine):
        raise AttachError(f"target= takes an Engine, not {type(engine).__module__}.{type(engine).__qualname__}")
    if engine.dialect.name == "walsync":
        raise AttachError("the target is a journal's engine itself; give the real database's")
    if asynchronous is None and given is not target:
        raise AttachError(
            "an asynchronous engine was given for synchronous sessions; attach an async_sessionmaker, or give an "
            "engine made by create_engine()"
        )
    if asynchronous is not None and not engine.dialect.is_async:
        raise AttachError(
            f"asynchronous sessions need an asynchronous engine, and {engine.dialect.driver!r} is no such driver; "
            "make one with create_async_engine() and a driver such as asyncpg, psycopg, asyncmy or aiosqlite"
        )
    return engine


def _one_of_several(target: Any, bound: list[Any]) -> Any:
    """The engine to journal, of all that the sessions are bound to."""
    engines = {engine for engine in map(plain_engine, bound) if isinstance(engine, Engine)}
    if target is not None:
        if target not in engines:
            raise AttachError("target= is none of the engines that the sessions are bound to (bind= and binds=)")
        return target
    if len(engines) > 1:
        raise AttachError(
            "the sessions are bound to several engines; say which of them is to be journaled: attach(..., "
            "target=engine). What is bound to the others is left alone"
        )
    return engines.pop() if engines else None


def _configure(sessions: Any, engine: Engine, expire_on_commit: bool) -> Callable[[], None]:
    """Bind what is not bound yet, and set a factory's `expire_on_commit`. Returns what undoes both."""
    if isinstance(sessions, scoped_session):
        sessions = sessions.session_factory
    if isinstance(sessions, sessionmaker):
        before = {name: sessions.kw.get(name) for name in ("bind", "expire_on_commit")}
        bind = before["bind"] if sessions.kw.get("binds") else engine
        sessions.configure(bind=bind, expire_on_commit=expire_on_commit)
        return lambda: sessions.configure(**before)
    if isinstance(sessions, Session):
        single, bind, original = sessions, sessions.bind, type(sessions).__bases__[0]
        if not settings_of(single)["binds"]:
            single.bind = engine

        def unbind() -> None:
            single.bind = bind
            single.__class__ = original

        return unbind
    return lambda: None

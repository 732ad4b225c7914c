"""What `attach()` makes of asynchronous sessions and engines: the synchronous ones that are inside of them.

An `AsyncSession` hands all it does to a `Session`, of its `sync_session_class`. The hooks are put on a subclass of that
class, made for the factory that is attached, so that they concern nobody else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from walsync.exceptions import AttachError
from walsync.session.state import binds_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["AsyncSessions", "examine_async", "plain_engine", "plain_session", "settings_of"]


class AsyncSessions(NamedTuple):
    """What is inside of something that makes, or is, asynchronous sessions."""

    session_class: type[Session]
    """The class to put hooks on; nobody else's."""

    listen_to: Any
    """The class or single session whose events are meant."""

    settings: dict[str, Any]
    """Of the factory, or of the session: `bind`, `binds`, `twophase`; empty where there is none."""

    configure: Callable[[Engine, Any, bool], Callable[[], None]]
    """Use the class, bind what is not bound (to the Engine; `target=` of `attach()`), and set a factory's
    `expire_on_commit`. Returns what undoes it."""


def _module() -> Any:
    """SQLAlchemy's asyncio module; None where nobody has imported it, so that nothing can be one of its objects."""
    return sys.modules.get("sqlalchemy.ext.asyncio")


def plain_engine(engine: Any) -> Any:
    """The Engine (or Connection) inside of an asynchronous one; anything else as it is."""
    asyncio = _module()
    if asyncio is not None:
        if isinstance(engine, asyncio.AsyncEngine):
            return engine.sync_engine
        if isinstance(engine, asyncio.AsyncConnection):
            return engine.sync_connection
    return engine


def plain_session(session: Any) -> Any:
    """The Session inside of an AsyncSession or of a scoped session's present one; anything else as it is."""
    registry = getattr(session, "registry", None)
    if registry is not None and callable(registry):
        session = registry()
    asyncio = _module()
    return session.sync_session if asyncio is not None and isinstance(session, asyncio.AsyncSession) else session


def settings_of(session: Session) -> dict[str, Any]:
    """Of one session what a factory has in `kw`, as far as it matters here."""
    return {"bind": session.bind, "binds": binds_of(session), "twophase": session.twophase}


def examine_async(sessions: Any) -> AsyncSessions | None:
    """None for what has nothing asynchronous about it. Raises `AttachError` for what cannot be attached."""
    asyncio = _module()
    if asyncio is None:
        return None
    if isinstance(sessions, asyncio.async_scoped_session):
        # Of whatever task: the scope is asked of a running one, and there may be none here.
        if sessions.registry.registry:
            raise AttachError(
                "this async_scoped_session has a session already, which was made without the log; "
                "call `await .remove()` before attach()"
            )
        return examine_async(sessions.session_factory)
    if isinstance(sessions, asyncio.async_sessionmaker):
        return _of_factory(sessions)
    if isinstance(sessions, type) and issubclass(sessions, asyncio.AsyncSession):
        if sessions is asyncio.AsyncSession:
            raise AttachError(
                "attaching to sqlalchemy.ext.asyncio.AsyncSession itself would catch every session of the process; "
                "attach to an async_sessionmaker, or to a subclass"
            )
        return _of_class(sessions)
    if isinstance(sessions, asyncio.AsyncSession):
        return _of_session(sessions)
    return None


def _of_factory(factory: Any) -> AsyncSessions:
    settings = factory.kw
    chosen = settings.get("sync_session_class")
    hooked, settings = _hooked(chosen or factory.class_.sync_session_class, settings)

    def configure(engine: Engine, target: Any, expire_on_commit: bool) -> Callable[[], None]:
        before = {name: factory.kw.get(name) for name in ("bind", "expire_on_commit", "sync_session_class")}
        bind = before["bind"]
        if bind is None and not settings.get("binds"):
            bind = _bindable(engine, target)
        used = chosen if isinstance(chosen, sessionmaker) else hooked
        factory.configure(bind=bind, expire_on_commit=expire_on_commit, sync_session_class=used)
        return lambda: factory.configure(**before)

    return AsyncSessions(hooked, hooked, settings, configure)


def _of_class(session_class: Any) -> AsyncSessions:
    chosen = session_class.sync_session_class
    is_own = "sync_session_class" in session_class.__dict__
    hooked, settings = _hooked(chosen, {})

    def configure(_engine: Engine, _target: Any, _expire_on_commit: bool) -> Callable[[], None]:
        session_class.sync_session_class = chosen if isinstance(chosen, sessionmaker) else hooked

        def restore() -> None:
            if is_own:
                session_class.sync_session_class = chosen
            else:
                del session_class.sync_session_class

        return restore

    return AsyncSessions(hooked, hooked, settings, configure)


def _of_session(session: AsyncSession) -> AsyncSessions:
    inner = session.sync_session
    if inner.in_transaction():
        raise AttachError("this session is in a transaction; commit or roll back before attach()")
    hooked, _ = _hooked(type(inner), {})
    original, bind = type(inner), inner.bind

    settings = settings_of(inner)

    def configure(engine: Engine, _target: Any, _expire_on_commit: bool) -> Callable[[], None]:
        inner.__class__ = hooked
        if not settings["binds"]:
            inner.bind = engine

        def restore() -> None:
            inner.__class__ = original
            inner.bind = bind

        return restore

    return AsyncSessions(hooked, inner, settings, configure)


def _hooked(inner: Any, settings: dict[str, Any]) -> tuple[type[Session], dict[str, Any]]:
    """The class to put hooks on, and all settings: those of the asynchronous factory come last."""
    if isinstance(inner, sessionmaker):
        # It has a class of its own already, and what it makes is of that.
        return inner.class_, {**inner.kw, **settings}
    if isinstance(inner, type) and issubclass(inner, Session):
        return type(inner.__name__, (inner,), {}), settings
    raise AttachError(
        f"sync_session_class is {inner!r:.200}, and what its sessions do cannot be seen to; use a subclass of Session, "
        "or a sessionmaker"
    )


def _bindable(engine: Engine, target: Any) -> Any:
    asyncio = _module()
    return target if isinstance(target, asyncio.AsyncEngine) else asyncio.AsyncEngine(engine)

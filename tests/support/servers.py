"""Database servers for the tests: found where one runs, started from the machine's binaries where none does.

`find_server` answers with the URL of a server on which databases can be created: the URL in the environment, else the
default port of this machine, else a private server. A `PrivateServer` belongs to the tests alone, so they may stop it,
kill it and start it again at the same port. What is started here is ended by its process id, and where the system has
`setpriv` by the kernel too, when the tests' process dies.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tests.support.databases import fresh_database, rendered
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PrivateMariaDB", "PrivatePostgreSQL", "PrivateServer", "ServerMissingError", "find_server"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5


class ServerMissingError(Exception):
    """There is no server and none can be started; the message says how to get one."""


class PrivateServer(ABC):
    """A database server of the tests' own, in a temporary directory, on a free port of 127.0.0.1.

    `start` and `stop` may follow one another as often as a test likes; port and data stay. `close` stops it and removes
    the data. Data survives a killed server, for the kernel keeps what was written; it need not survive the machine.
    """

    kind: ClassVar[str]
    drivername: ClassVar[str]
    administrator: ClassVar[str]
    database: ClassVar[str]
    account: ClassVar[str]  # the system account to run under when the tests run as root
    stop_signal: ClassVar[signal.Signals]
    kill_signal: ClassVar[signal.Signals]

    def __init__(self) -> None:
        self._server, self._creator = self._find_programs()
        self._identity = self._find_identity()
        self.directory = Path(tempfile.mkdtemp(prefix=f"walsync-{self.kind}-"))
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            if self._identity is not None:
                os.chown(self.directory, *self._identity)
            self._run(self._creation_command())
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The URL of the administrator's database. It stays the same over stop and start."""
        return rendered(
            URL.create(self.drivername, self.administrator, None, "127.0.0.1", self.port, database=self.database)
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers. Nothing happens if it runs."""
        if self.is_running:
            return
        with self.log.open("ab") as log:
            self._process = self._popen(self._start_command(), log)
        wait_until(self._answers, START_TIMEOUT_S, f"{self.kind} answers on port {self.port}")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server and return when its process has ended; connections are broken off.

        With `immediate` it is cut down without tidying up, and recovers at the next start.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.kill_signal if immediate else self.stop_signal)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.kind} did not stop within {STOP_TIMEOUT_S} s\n{self._log_tail()}") from None

    def restart(self, *, immediate: bool = False) -> None:
        """Stop, then start at the same port with the same data."""
        self.stop(immediate=immediate)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @classmethod
    @abstractmethod
    def _find_programs(cls) -> tuple[str, str]:
        """The paths of the server and of the program that creates its data directory, or `ServerMissingError`."""

    @abstractmethod
    def _creation_command(self) -> list[str]: ...

    @abstractmethod
    def _start_command(self) -> list[str]: ...

    def _find_identity(self) -> tuple[int, int] | None:
        """The user and group to run under: another one when the tests run as root, which servers refuse."""
        if os.geteuid() != 0:
            return None
        for account in (self.account, "nobody"):
            try:
                found = pwd.getpwnam(account)
            except KeyError:
                continue
            return found.pw_uid, found.pw_gid
        raise ServerMissingError(f"{self.kind} cannot run as root, and there is no account {self.account} or nobody")

    def _popen(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        user, group = self._identity or (None, None)
        return subprocess.Popen(
            [*self._end_with_parent(), *command],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            # A signal to the terminal's process group is for the tests, which then stop the server in order.
            start_new_session=True,
            # A MariaDB that starts removes the temporary tables of every other one that shares its temporary directory.
            env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "TMPDIR": str(self.directory)},
        )

    def _end_with_parent(self) -> list[str]:
        """The beginning of a command that is sent the stop signal when this process has died, however it did.

        The kernel looks at the thread that started the command, so this is only for the main thread.
        """
        setpriv = shutil.which("setpriv")
        if setpriv is None or threading.current_thread() is not threading.main_thread():
            return []
        return [setpriv, "--pdeathsig", self.stop_signal.name.removeprefix("SIG"), "--"]

    def _run(self, command: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            status = self._popen(command, log).wait(START_TIMEOUT_S)
        if status != 0:
            raise ServerMissingError(f"{' '.join(command)} failed with {status}:\n{self._log_tail()}")

    def _answers(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"{self.kind} ended instead of starting:\n{self._log_tail()}")
        return _why_not(self.url) is None

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:]) if self.log.exists() else ""


class PrivatePostgreSQL(PrivateServer):
    """A private PostgreSQL. Its fast shutdown is the default, `immediate` its immediate one."""

    kind = "PostgreSQL"
    drivername = "postgresql+psycopg"
    administrator = "postgres"
    database = "postgres"
    account = "postgres"
    stop_signal = signal.SIGINT
    kill_signal = signal.SIGQUIT

    @classmethod
    def _find_programs(cls) -> tuple[str, str]:
        directories = glob.glob("/usr/lib/postgresql/*/bin") + glob.glob("/usr/pgsql-*/bin")
        directories.sort(key=lambda path: [int(part) for part in path.replace("-", "/").split("/") if part.isdigit()])
        return (
            _program(["postgres"], directories[::-1], "apt-get install postgresql"),
            _program(["initdb"], directories[::-1], "apt-get install postgresql"),
        )

    def _creation_command(self) -> list[str]:
        return [
            self._creator,
            f"--pgdata={self.data}",
            f"--username={self.administrator}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]

    def _start_command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "max_connections": "60",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._server, "-D", str(self.data), "-p", str(self.port), *options]


class PrivateMariaDB(PrivateServer):
    """A private MariaDB (or MySQL-compatible server with the same programs). `immediate` is a kill."""

    kind = "MariaDB"
    drivername = "mariadb+pymysql"
    administrator = "root"
    database = "mysql"
    account = "mysql"
    stop_signal = signal.SIGTERM
    kill_signal = signal.SIGKILL

    @classmethod
    def _find_programs(cls) -> tuple[str, str]:
        directories = ["/usr/sbin", "/usr/libexec", "/usr/local/sbin"]
        return (
            _program(["mariadbd", "mysqld"], directories, "apt-get install mariadb-server"),
            _program(["mariadb-install-db", "mysql_install_db"], directories, "apt-get install mariadb-server"),
        )

    def _creation_command(self) -> list[str]:
        return [
            self._creator,
            "--no-defaults",
            f"--datadir={self.data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]

    def _start_command(self) -> list[str]:
        return [
            self._server,
            "--no-defaults",
            f"--datadir={self.data}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self.directory / 'pid'}",
            "--character-set-server=utf8mb4",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=2",  # written at commit, so that a killed server keeps it; not synced
        ]


SERVERS: dict[str, tuple[type[PrivateServer], str, int, Sequence[str]]] = {
    "postgresql": (PrivatePostgreSQL, "WALSYNC_TEST_POSTGRESQL_URL", 5432, ("root", "postgres")),
    "mariadb": (PrivateMariaDB, "WALSYNC_TEST_MARIADB_URL", 3306, ("root",)),
}


@contextmanager
def find_server(name: str) -> Iterator[str]:
    """Yield the URL of a server ("postgresql" or "mariadb") on which databases can be created.

    A URL in the environment must work: it is not passed over for another server. A private server that was started for
    this is ended when the block is left. `ServerMissingError` when there is none.
    """
    server_class, variable, port, users = SERVERS[name]
    if given := os.environ.get(variable):
        if reason := _why_not(given) or _why_not_creating(given):
            raise ServerMissingError(f"{variable} is set, and that server does not serve: {reason}")
        yield given
        return
    reasons = []
    for user in users:
        url = URL.create(server_class.drivername, user, None, "127.0.0.1", port, database=server_class.database)
        reason = _why_not(url) or _why_not_creating(url)
        if reason is None:
            yield rendered(url)
            return
        reasons.append(f"127.0.0.1:{port} as {user}: {reason}")
    try:
        server = server_class()
    except ServerMissingError as error:
        raise ServerMissingError(
            f"no {server_class.kind} server. Set {variable} to the URL of one on which databases may be created, or: "
            f"{error}. Tried {'; '.join(reasons)}"
        ) from error
    with server:
        yield server.url


def _why_not(url: str | URL) -> str | None:
    """Why this server cannot be reached; None if it can."""
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, ImportError) as error:
        return _first_line(error)
    return None


def _why_not_creating(url: str | URL) -> str | None:
    try:
        with fresh_database(make_url(url)):
            return None
    except SQLAlchemyError as error:
        return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _program(names: Sequence[str], directories: Sequence[str], remedy: str) -> str:
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(directories))
        if found:
            return found
    raise ServerMissingError(f"no program {' or '.join(names)} on this machine ({remedy})")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""A slow line to a server, in a process of its own, so that it takes nothing from the process that is measured.

    with slow_line(server_url, rtt_s=0.02) as url:
        engine = create_engine(url)

The process (`python -m tests.support.line PORT LATENCY_S`) tells its port on its first line, and ends with its standard
input, so that it never outlives whoever started it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, make_url

from tests.support.databases import rendered
from tests.support.processes import start_python
from tests.support.proxy import TcpProxy

__all__ = ["slow_line"]

DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


@contextmanager
def slow_line(server: str | URL, *, rtt_s: float) -> Iterator[str]:
    """Yields the URL of the same database behind a line on which a question and its answer take `rtt_s` in all."""
    url = make_url(server)
    port = url.port or DEFAULT_PORTS[url.get_backend_name()]
    with start_python("-m", "tests.support.line", str(port), str(rtt_s / 2)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            if not told.strip().isdigit():
                raise AssertionError(f"the line's process did not begin: {told}{process.communicate()[1]}")
            yield rendered(url.set(host="127.0.0.1", port=int(told)))
        finally:
            process.kill()


def main(port: str, latency_s: str) -> None:
    with TcpProxy("127.0.0.1", int(port), latency_s=float(latency_s)) as proxy:
        print(proxy.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])

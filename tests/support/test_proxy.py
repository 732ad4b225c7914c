"""The proxy does to a line what it says, and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.proxy import CHUNK_BYTES, Direction, TcpProxy, Verdict
from tests.support.waiting import wait_until

TIMEOUT_S = 20.0


class EchoServer:
    """Sends back what it receives, and keeps it. A thread for each connection; all have ended after `close`."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if not self._threads:
                connection.close()
                return
            thread = threading.Thread(target=self._echo, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.received.append(data)
                    connection.sendall(data)
            except OSError:
                pass  # the line was cut

    def close(self) -> None:
        threads, self._threads = self._threads, []
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with closing(EchoServer()) as server:
        yield server


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S)


def receive(line: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        data = line.recv(length - len(received))
        assert data, f"the stream ended after {len(received)} bytes"
        received += data
    return received


def echo(line: socket.socket, data: bytes) -> bytes:
    line.sendall(data)
    return receive(line, len(data))


def is_silent(line: socket.socket, for_s: float = 0.05) -> bool:
    line.settimeout(for_s)
    try:
        line.recv(1)
    except TimeoutError:
        return True
    finally:
        line.settimeout(TIMEOUT_S)
    return False


def send_in_background(line: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=line.sendall, args=(data,))
    thread.start()
    return thread


def test_bytes_and_the_end_of_a_stream_go_through(proxy: TcpProxy) -> None:
    with connect(proxy) as line:
        assert echo(line, b"hello") == b"hello"
        assert proxy.connections == proxy.opened_connections == 1
        line.sendall(b"last")
        line.shutdown(socket.SHUT_WR)
        assert receive(line, 4) == b"last"
        assert line.recv(1) == b""
    wait_until(lambda: proxy.connections == 0, TIMEOUT_S)


def test_much_goes_through_unchanged_with_small_buffers(server: EchoServer) -> None:
    data = bytes(range(256)) * 20_000
    with TcpProxy("127.0.0.1", server.port, buffer_bytes=10_000, latency_s=0.0001) as proxy, connect(proxy) as line:
        sending = send_in_background(line, data)
        assert receive(line, len(data)) == data
        sending.join(TIMEOUT_S)


def test_latency_is_added_each_way(proxy: TcpProxy) -> None:
    proxy.latency_s = 0.05
    with connect(proxy) as line:
        before = time.monotonic()
        assert echo(line, b"x") == b"x"
        assert time.monotonic() - before >= 0.1


@pytest.mark.timeout(20)
def test_latency_does_not_make_the_line_narrower(proxy: TcpProxy) -> None:
    """There and back these are some 320 chunks on the way at the same time. One after the other they need a minute."""
    proxy.latency_s = 0.2
    data = bytes(160 * CHUNK_BYTES)
    with connect(proxy) as line:
        sending = send_in_background(line, data)
        assert receive(line, len(data)) == data
        sending.join(TIMEOUT_S)


def test_bandwidth_makes_bytes_take_their_time(proxy: TcpProxy) -> None:
    proxy.bandwidth_bytes_per_s = 1_000_000.0
    with connect(proxy) as line:
        before = time.monotonic()
        sending = send_in_background(line, bytes(100_000))
        assert receive(line, 100_000) == bytes(100_000)
        assert time.monotonic() - before >= 0.1
        sending.join(TIMEOUT_S)


def test_a_stalled_line_accepts_and_delivers_nothing_until_it_resumes(proxy: TcpProxy, server: EchoServer) -> None:
    with connect(proxy) as old:
        assert echo(old, b"before") == b"before"
        proxy.stall()
        with connect(proxy) as new:
            old.sendall(b"old")
            new.sendall(b"new")
            assert is_silent(old)
            assert is_silent(new)
            assert server.received == [b"before"]
            proxy.resume()
            assert receive(old, 3) == b"old"
            assert receive(new, 3) == b"new"


def test_a_stalled_line_does_not_tell_that_the_client_is_gone(proxy: TcpProxy, server: EchoServer) -> None:
    line = connect(proxy)
    assert echo(line, b"before") == b"before"
    proxy.stall()
    line.sendall(b"late")
    line.close()
    # The proxy opens one connection a turn: after these it has long read what came before them.
    others = [connect(proxy) for _ in range(3)]
    wait_until(lambda: proxy.opened_connections == 4, TIMEOUT_S)
    for other in others:
        other.close()
    assert b"late" not in server.received
    assert proxy.connections == 4
    proxy.resume()
    wait_until(lambda: b"late" in server.received, TIMEOUT_S)
    wait_until(lambda: proxy.connections == 0, TIMEOUT_S)


def test_cut_resets_all_connections_and_accepts_new_ones(proxy: TcpProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        echo(one, b"1")
        echo(other, b"2")
        proxy.cut()
        assert proxy.connections == 0
        for line in (one, other):
            with pytest.raises(ConnectionResetError):
                line.recv(1)
    with connect(proxy) as line:
        assert echo(line, b"again") == b"again"


def test_refused_means_refused_until_accepted_again(proxy: TcpProxy) -> None:
    with connect(proxy) as line:
        echo(line, b"1")
        for _ in range(3):
            proxy.refuse()
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            assert echo(line, b"still there") == b"still there"
            proxy.accept()
            proxy.accept()
            with connect(proxy) as new:
                assert echo(new, b"2") == b"2"


def test_without_a_server_the_client_is_cut_off(server: EchoServer) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with TcpProxy("127.0.0.1", nobody.getsockname()[1]) as proxy:
            # It may hear of it so early that its own connecting fails.
            with pytest.raises(ConnectionResetError), connect(proxy) as line:
                line.recv(1)


@pytest.mark.parametrize(
    ("verdict", "arrives"), [(Verdict.CUT_BEFORE, False), (Verdict.CUT_AFTER, True), (Verdict.LOSE_ANSWER, True)]
)
def test_a_watch_cuts_at_the_moment_that_it_chooses(
    proxy: TcpProxy, server: EchoServer, verdict: Verdict, arrives: bool
) -> None:
    seen: list[tuple[int, Direction, bytes]] = []

    def watch(connection: int, direction: Direction, data: bytes) -> Verdict:
        seen.append((connection, direction, data))
        return verdict if (direction, data) == (Direction.TO_SERVER, b"commit") else Verdict.DELIVER

    proxy.watch = watch
    with connect(proxy) as line, connect(proxy) as other:
        assert echo(line, b"insert") == b"insert"
        line.sendall(b"commit")
        with pytest.raises(ConnectionResetError):
            line.recv(1)
        # The others are not touched.
        assert echo(other, b"read") == b"read"
    if arrives:
        wait_until(lambda: b"commit" in server.received, TIMEOUT_S)
    else:
        assert b"commit" not in server.received
    assert seen[:3] == [
        (1, Direction.TO_SERVER, b"insert"),
        (1, Direction.TO_CLIENT, b"insert"),
        (1, Direction.TO_SERVER, b"commit"),
    ]
    assert (1, Direction.TO_CLIENT, b"commit") not in seen


def test_a_lost_answer_had_been_given(proxy: TcpProxy, server: EchoServer) -> None:
    """The cut comes after the server's answer, so the work is done when the client hears of the cut."""
    proxy.watch = lambda _, direction, data: (
        Verdict.LOSE_ANSWER if direction is Direction.TO_SERVER else Verdict.DELIVER
    )
    for number in range(20):
        with connect(proxy) as line:
            line.sendall(b"%d" % number)
            with pytest.raises(ConnectionResetError):
                line.recv(1)
            assert b"%d" % number in server.received


def test_late_bytes_arrive_after_the_client_has_come_back(proxy: TcpProxy, server: EchoServer) -> None:
    proxy.late_s = 0.2
    proxy.watch = lambda _, direction, data: Verdict.DELIVER_LATE if data == b"commit" else Verdict.DELIVER
    with connect(proxy) as line:
        assert echo(line, b"insert") == b"insert"
        line.sendall(b"commit")
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    with connect(proxy) as line:
        assert echo(line, b"again") == b"again"
        wait_until(lambda: b"commit" in server.received, TIMEOUT_S)
        assert server.received == [b"insert", b"again", b"commit"]
        wait_until(lambda: proxy.connections == 1, TIMEOUT_S)


def test_a_watch_may_use_the_proxy(proxy: TcpProxy) -> None:
    def watch(_: int, direction: Direction, data: bytes) -> Verdict:
        proxy.cut()
        return Verdict.DELIVER

    proxy.watch = watch
    with connect(proxy) as line:
        line.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            line.recv(1)


def test_what_a_watch_raises_is_raised_when_the_proxy_is_closed(server: EchoServer) -> None:
    def watch(*_: object) -> Verdict:
        raise LookupError("no such verdict")

    proxy = TcpProxy("127.0.0.1", server.port, watch=watch)
    with connect(proxy) as line:
        line.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    with pytest.raises(LookupError, match="no such verdict"):
        proxy.close()
    proxy.close()


def test_many_connections_at_once(proxy: TcpProxy) -> None:
    proxy.latency_s = 0.001
    lines = [connect(proxy) for _ in range(60)]
    for number, line in enumerate(lines):
        line.sendall(b"%3d" % number)
    for number, line in enumerate(lines):
        assert receive(line, 3) == b"%3d" % number
    assert proxy.connections == 60
    for line in lines:
        line.close()
    wait_until(lambda: proxy.connections == 0, TIMEOUT_S)


def test_nothing_is_left_after_closing(server: EchoServer) -> None:
    threads = set(threading.enumerate())
    proxy = TcpProxy("127.0.0.1", server.port, latency_s=30.0)
    line = connect(proxy)
    line.sendall(b"on its way")
    wait_until(lambda: proxy.connections == 1, TIMEOUT_S)
    proxy.close()
    proxy.close()
    with pytest.raises(ConnectionResetError):
        line.recv(1)
    line.close()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("tcp-proxy")} <= threads


def test_other_machines_are_refused() -> None:
    with pytest.raises(ValueError, match="on this machine"):
        TcpProxy("192.0.2.1", 80)

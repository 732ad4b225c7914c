"""A TCP proxy between a test and its server, which makes the line between them slow, narrow, silent, or cut.

It owns the connections that go through it, and two sockets and one thread more, whatever their number; after `close()`
none of them is left. It only listens and connects on this machine's loopback, and knows nothing of what it carries: a
test that means a certain message finds it with `watch`.

Each direction of a connection is a queue. What is read gets the moment at which it is due at the other end (the time
that its bytes need on the line, and the latency) and is delivered then, while more is read: latency does not make the
line narrower. A queue is bounded by `buffer_bytes`; beyond it the sender is not read from, and TCP makes it wait. The
end of a stream and its breaking off stand in the queue like data: a line that is stalled does not tell of them either.
The kernel answers the opening of a connection by itself, so that costs no latency.

All sockets and queues belong to the thread. Other threads set the knobs, which are plain attributes, or hand over an
order and wait until it is carried out.
"""

from __future__ import annotations

import enum
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Direction", "TcpProxy", "Verdict", "Watch"]

LOOPBACK: Final = ("127.0.0.1", "localhost")
CHUNK_BYTES: Final = 64 * 1024
BUFFER_BYTES: Final = 8 * 1024 * 1024
ACCEPT_QUEUE: Final = 128
LATE_S: Final = 0.1
CONNECT_TIMEOUT_S: Final = 5.0
ORDER_TIMEOUT_S: Final = 20.0

# Closing a socket that lingers for no time sends a reset in place of an orderly end.
RESET: Final = struct.pack("ii", 1, 0)


class Direction(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class Verdict(enum.Enum):
    """What becomes of the bytes that a `Watch` has seen, and of their connection.

    `DELIVER`: they go on. `CUT_BEFORE`: they do not; the connection is cut. `CUT_AFTER`: they go on, and then the
    client is cut off at once, while the other end may still be at work with them.

    And for bytes on their way to the server only. `LOSE_ANSWER`: they go on, and the connection is cut when the server
    begins to answer; nothing of the answer arrives, and the work is known to be done. `DELIVER_LATE`: the client is cut
    off at once, and the bytes go on after `late_s`, when the client may long have come back on another connection.
    """

    DELIVER = "deliver"
    CUT_BEFORE = "cut before"
    CUT_AFTER = "cut after"
    LOSE_ANSWER = "lose answer"
    DELIVER_LATE = "deliver late"


Watch = Callable[[int, Direction, bytes], Verdict]
"""Called with the connection's number (from 1, in the order of opening), the direction and the bytes, at the moment at
which they are delivered. Their borders are those that TCP made of them: a short message that waits for its answer
before the next one is whole. Called in the proxy's thread, so it must not block; it may use the proxy."""


class _Mark(enum.Enum):
    END = "the sender has ended its stream"
    RESET = "the sender is gone"


class _Flow:
    """One direction of a connection. The thread's alone."""

    def __init__(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self.direction = direction
        self.source = source
        self.sink = sink
        self.queue: deque[tuple[float, bytes | _Mark]] = deque()
        self.queued_bytes = 0
        self.line_free_at = 0.0
        self.unsent = b""  # of a chunk whose delivery has begun, and which the sink did not take whole
        self.cut_when_sent = False
        self.source_ended = False
        self.over = False

    def put(self, item: bytes | _Mark, latency_s: float, bandwidth_bytes_per_s: float | None) -> None:
        now = time.monotonic()
        if isinstance(item, bytes):
            self.queued_bytes += len(item)
            if bandwidth_bytes_per_s is not None:
                self.line_free_at = max(now, self.line_free_at) + len(item) / bandwidth_bytes_per_s
        else:
            self.source_ended = True
        # On an unbounded line this is now, except for what is still on it from before.
        self.queue.append((max(now, self.line_free_at) + latency_s, item))


class _Connection:
    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.client = client
        self.server = server
        self.flows = (_Flow(Direction.TO_SERVER, client, server), _Flow(Direction.TO_CLIENT, server, client))
        self.answer_is_lost = False
        self.is_watched = True
        self.is_open = True


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and carries each connection to `target_host`:`target_port`.

    A context manager; `close` raises what a `watch` raised. The knobs may be changed at any time, and hold for what is
    read from then on: `latency_s`, one way, the same in each direction; `bandwidth_bytes_per_s`, for each direction of
    each connection, None for as much as the machine can; `watch`, asked about all bytes; `late_s`, for its
    `DELIVER_LATE`. The methods may be called from any thread, and when they return, what they say is so.

    It shares its process with the test: where the throughput is measured, both are on the scale.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        latency_s: float = 0.0,
        bandwidth_bytes_per_s: float | None = None,
        watch: Watch | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        if target_host not in LOOPBACK:
            raise ValueError(f"the proxy is for servers on this machine ({', '.join(LOOPBACK)}), not {target_host!r}")
        self.latency_s = latency_s
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.watch = watch
        self.late_s = LATE_S
        self._target = ("127.0.0.1", target_port)
        self._buffer_bytes = buffer_bytes
        self._connections: list[_Connection] = []
        self._opened_count = 0
        self._stalled = False
        self._closing = False
        self._error: Exception | None = None
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        # Not epoll or poll: they count in milliseconds, and a line of a tenth of that is one that tests want.
        self._selector = selectors.SelectSelector()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        # Holds the port while nobody listens at it, so that no other process is given it. Never listens itself.
        self._reservation = _bound_socket(0)
        self.port: Final[int] = self._reservation.getsockname()[1]
        self._listener: socket.socket | None = None
        self._accept()
        self._thread = threading.Thread(target=self._run, name=f"tcp-proxy-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            # A failure of the block says more than one of the line.
            if exception_type is None:
                raise

    # --------------------------------------------------------------------------------------------- for the test

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    @property
    def opened_connections(self) -> int:
        """How many connections have been opened so far."""
        return self._opened_count

    def stall(self) -> None:
        """Deliver nothing any more, in either direction. Connections are accepted, and nothing is lost."""
        self._order(self._set_stalled, True)

    def resume(self) -> None:
        """End `stall`: what waited is delivered, in order."""
        self._order(self._set_stalled, False)

    def cut(self) -> None:
        """Reset all connections at both ends. What was on the way is lost. New connections are accepted."""
        self._order(self._cut_all)

    def refuse(self) -> None:
        """Refuse new connections, as a machine does on which no server runs. Those that are open stay."""
        self._order(self._refuse)

    def accept(self) -> None:
        """End `refuse`."""
        self._order(self._accept)

    def close(self) -> None:
        """Cut everything and end the thread. May be called again. Raises what a `watch` raised."""
        self._closing = True
        self._wake()
        self._thread.join(ORDER_TIMEOUT_S)
        if self._thread.is_alive():
            raise AssertionError(f"the proxy at port {self.port} did not end within {ORDER_TIMEOUT_S} s")
        error, self._error = self._error, None
        if error is not None:
            raise error

    # ----------------------------------------------------------------------------------------------- orders

    def _order(self, action: Callable[..., None], *arguments: object) -> None:
        if threading.current_thread() is self._thread:
            action(*arguments)
            return
        done = threading.Event()
        self._orders.append((lambda: action(*arguments), done))
        self._wake()
        if not done.wait(ORDER_TIMEOUT_S):
            raise AssertionError(f"the proxy at port {self.port} is closed, or its thread is held up by `watch`")

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            pass  # it has not yet seen the wakes before this one, and will
        except OSError:
            if not self._closing:
                raise

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled

    def _cut_all(self) -> None:
        for connection in list(self._connections):
            self._cut(connection)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        if self._listener is None:
            self._listener = _bound_socket(self.port)
            self._listener.setblocking(False)
            self._listener.listen(ACCEPT_QUEUE)
            self._selector.register(self._listener, selectors.EVENT_READ)

    # ------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except Exception as error:  # noqa: BLE001  Nobody would see it here: `close` raises it.
            self._error = self._error or error
        finally:
            self._closing = True
            self._cut_all()
            self._refuse()
            self._selector.close()
            for end in (self._reservation, self._woken, self._waker):
                end.close()
            while self._orders:
                self._orders.popleft()[1].set()

    def _turn(self) -> None:
        self._watch_sockets()
        for key, events in self._selector.select(self._time_to_next_s()):
            if key.fileobj is self._woken:
                self._carry_out_orders()
            elif key.fileobj is self._listener:
                self._open()
            else:
                connection: _Connection = key.data
                for flow in connection.flows:
                    if connection.is_open and events & selectors.EVENT_READ and flow.source is key.fileobj:
                        self._read(connection, flow)
        for connection in list(self._connections):
            for flow in connection.flows:
                self._deliver(connection, flow)
            if connection.is_open and all(flow.over for flow in connection.flows):
                self._close_connection(connection)

    def _watch_sockets(self) -> None:
        """Ask for exactly what there is something to do about, or `select` would return for nothing."""
        for connection in self._connections:
            to_server, to_client = connection.flows
            for end, incoming, outgoing in (
                (connection.client, to_server, to_client),
                (connection.server, to_client, to_server),
            ):
                events = 0
                if not incoming.source_ended and incoming.queued_bytes < self._buffer_bytes:
                    events |= selectors.EVENT_READ
                if outgoing.unsent and not self._stalled:
                    events |= selectors.EVENT_WRITE
                self._select(end, events, connection)

    def _select(self, end: socket.socket, events: int, connection: _Connection | None = None) -> None:
        if end.fileno() == -1:
            return  # the client of a connection that goes on without it
        key = self._selector.get_map().get(end)
        if key is None:
            if events:
                self._selector.register(end, events, connection)
        elif not events:
            self._selector.unregister(end)
        elif key.events != events:
            self._selector.modify(end, events, connection)

    def _time_to_next_s(self) -> float | None:
        """Until something is due; None if nothing is. What a sink has not taken yet, the selector tells."""
        if self._stalled:
            return None
        due = [
            flow.queue[0][0]
            for connection in self._connections
            for flow in connection.flows
            if flow.queue and not flow.unsent
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _carry_out_orders(self) -> None:
        self._woken.recv(CHUNK_BYTES)
        while self._orders:
            action, done = self._orders.popleft()
            action()
            done.set()

    def _open(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # the client has given up already
        try:
            # On the loopback this is answered at once, whatever the server does, so it holds up no other connection.
            server = socket.create_connection(self._target, CONNECT_TIMEOUT_S)
        except OSError:
            _reset(client)
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opened_count += 1
        self._connections.append(_Connection(self._opened_count, client, server))

    def _read(self, connection: _Connection, flow: _Flow) -> None:
        item: bytes | _Mark
        try:
            item = flow.source.recv(CHUNK_BYTES) or _Mark.END
        except BlockingIOError:
            return
        except OSError:
            item = _Mark.RESET
        if connection.answer_is_lost and flow.direction is Direction.TO_CLIENT:
            self._cut(connection)
        else:
            flow.put(item, self.latency_s, self.bandwidth_bytes_per_s)

    def _deliver(self, connection: _Connection, flow: _Flow) -> None:
        """Hand on what is due, as far as the sink takes it."""
        while connection.is_open and not self._stalled:
            if flow.unsent:
                self._send(connection, flow)
                if flow.unsent:
                    return
            if not flow.queue or flow.queue[0][0] > time.monotonic():
                return
            _, item = flow.queue.popleft()
            if item is _Mark.RESET:
                self._cut(connection)
            elif item is _Mark.END:
                self._end(flow)
            else:
                assert isinstance(item, bytes)
                self._begin(connection, flow, item)

    def _begin(self, connection: _Connection, flow: _Flow, data: bytes) -> None:
        """Ask what becomes of the bytes, and do it."""
        verdict = Verdict.DELIVER
        if self.watch is not None and connection.is_watched:
            try:
                verdict = self.watch(connection.number, flow.direction, data)
                if flow.direction is Direction.TO_CLIENT and verdict in (Verdict.LOSE_ANSWER, Verdict.DELIVER_LATE):
                    raise ValueError(f"{verdict} is for bytes on their way to the server")
            except Exception as error:  # noqa: BLE001  The test's own: `close` raises it.
                self._error = self._error or error
                verdict = Verdict.CUT_BEFORE
        if not connection.is_open:
            return  # the hook called cut()
        if verdict is Verdict.CUT_BEFORE:
            self._cut(connection)
        elif verdict is Verdict.DELIVER_LATE:
            self._put_off(connection, flow, data)
        else:
            connection.answer_is_lost = verdict is Verdict.LOSE_ANSWER
            flow.cut_when_sent = verdict is Verdict.CUT_AFTER
            flow.unsent = data

    def _put_off(self, connection: _Connection, flow: _Flow, data: bytes) -> None:
        """Go on without the client: these bytes, later, and then the end of its stream."""
        self._reset_end(connection.client)
        connection.is_watched = False
        flow.source_ended = True
        flow.queue.clear()
        due = time.monotonic() + self.late_s
        flow.queue.extend([(due, data), (due, _Mark.END)])

    def _send(self, connection: _Connection, flow: _Flow) -> None:
        try:
            sent = flow.sink.send(flow.unsent)
        except BlockingIOError:
            return
        except OSError:
            # The receiver is gone. Its own side of the line tells the sender, after what it sent before.
            sent = len(flow.unsent)
            opposite = next(other for other in connection.flows if other is not flow)
            if not opposite.source_ended:
                opposite.put(_Mark.RESET, self.latency_s, None)
            elif opposite.over:
                self._cut(connection)
                return
        flow.unsent = flow.unsent[sent:]
        flow.queued_bytes -= sent
        if flow.cut_when_sent and not flow.unsent:
            # An orderly end for the receiver: a reset could make it throw away what it has just been sent.
            self._close_end(flow.sink)
            self._cut(connection)

    def _end(self, flow: _Flow) -> None:
        flow.over = True
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone: the other direction will say so

    # ---------------------------------------------------------------------------------------------- endings

    def _cut(self, connection: _Connection) -> None:
        for end in (connection.client, connection.server):
            self._reset_end(end)
        self._forget(connection)

    def _close_connection(self, connection: _Connection) -> None:
        for end in (connection.client, connection.server):
            self._close_end(end)
        self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            self._connections.remove(connection)

    def _close_end(self, end: socket.socket) -> None:
        self._select(end, 0)
        end.close()

    def _reset_end(self, end: socket.socket) -> None:
        self._select(end, 0)
        if end.fileno() != -1:
            _reset(end)


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    # Lets the listener have the port that the reservation holds, and that old connections still have.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _reset(end: socket.socket) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass  # it has been reset from the other end already
    end.close()

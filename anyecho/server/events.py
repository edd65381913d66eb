"""The events engine: all connections in one task, by callbacks of the poller.

A turn is one recv(2) into a shared buffer and one send(2) from it. Bytes that the kernel does not accept are
pending. The peer is not read until they are sent (back-pressure), so at most one buffer per connection is pending.
When the server closes a connection, a task performs the lingering close, as in the tasks engine.
"""

from __future__ import annotations

__all__ = ("CappedEventConnection", "EventConnection", "EventsEngine")

from dataclasses import dataclass, field

from anyecho.net.error_queue import drain_error_queue
from anyecho.net.linger import is_acknowledged
from anyecho.net.poller import Poller
from anyecho.net.readiness import ERROR, EXCEPTIONAL, READ, READ_EDGE, WRITE, short_read_drains
from anyecho.net.sockets import Socket
from anyecho.net.stream import PolledStream
from anyecho.net.tls.records import RECORD_SIZE, Records
from anyecho.server.connection import Connection, Engine
from anyecho.server.phases import HANDSHAKE, OPEN
from anyecho.server.reasons import CloseReason

#: Maximum bytes of one turn: enough to amortise two system calls, and at most 0.1 ms of delay for other peers.
_BUFFER_SIZE = 256 * 1024
#: An attribute of an enum class costs 0.2 us on Python 3.11, 2 % of a connection.
_EOF = CloseReason.EOF


@dataclass(eq=False, kw_only=True)
class EventsEngine(Engine):
    poller: Poller
    buffer: memoryview = field(init=False, default_factory=lambda: memoryview(bytearray(_BUFFER_SIZE)))
    #: Receives the plaintext of one TLS record.
    plain: memoryview = field(init=False, default_factory=lambda: memoryview(bytearray(RECORD_SIZE)))
    #: The slice of `buffer` that was sent last, and its length. Most messages are as long as the previous one, and
    #: a new slice costs 0.13 us.
    chunk: memoryview = field(init=False, default_factory=lambda: memoryview(b""))
    count: int = field(init=False, default=-1)


class EventConnection(Connection):
    """A connection that the poller calls back. It has no task: an idle one costs this object and its socket."""

    __slots__ = ("_mask", "_pending", "_received", "_sent", "batch")

    engine: EventsEngine
    batch: int

    def __init__(self, sock: Socket, engine: EventsEngine, records: Records | None = None) -> None:
        super().__init__(sock, engine, records)
        self._received = 0
        self._sent = 0
        #: Bytes that the kernel has not accepted. The peer is not read until this is empty.
        self._pending: bytes | memoryview = b""
        #: Events to wait for when nothing is pending. Edge-triggered saves 0.2 us per echo: for a level-triggered
        #: event the kernel checks readiness twice.
        self._mask = READ_EDGE if short_read_drains(sock) else READ

    def _start(self) -> None:
        try:
            self._wait()
        except OSError as exc:
            self._close_now(self.close_reason(exc))

    def _begin_close(self) -> None:
        if self._scope is not None:  # a task reads the PROXY header
            super()._begin_close()
            return

        if self.records is None and not self._pending:
            eof, quiet = self.peek_eof()
            if eof or (quiet and is_acknowledged(self.sock)):
                # No echo is pending. No task: a server may close thousands of idle connections at once.
                self._close_now(CloseReason.EOF if eof else self.reason)
                return

        super()._begin_close()
        # Make the stream now, not when the task runs: its registration replaces ours, so no further turn is taken.
        stream = self._as_stream()
        if self.records is None:  # else they have the pending bytes
            stream.rest = self._pending
        self.engine.tasks.start_soon(self._run_close, stream)

    def abort(self) -> None:
        if self.phase in (HANDSHAKE, OPEN):
            self.reason = CloseReason.CANCELLED
            self._close_now(CloseReason.EOF if not self.has_pending() and self.peek_eof()[0] else self.reason)
        else:
            super().abort()

    def poller_stopped(self) -> None:
        self._close_now(CloseReason.BROKEN)

    @property
    def totals(self) -> tuple[int, int]:
        return self._received, self._sent

    def dispatch(self, mask: int) -> None:
        try:
            if mask & EXCEPTIONAL:
                self._handle_exceptional(mask)
            if self._pending:
                self._flush()
            else:
                self._turn()
        except Exception as exc:
            # The poller dispatches to all connections: a bug must close this connection only.
            self._close_now(self.close_reason(exc))

    def _turn(self) -> None:
        engine = self.engine
        sent = count = 0
        try:
            count = self.sock.recv_into(engine.buffer)
            if count != engine.count:
                if not count:
                    self._close_now(_EOF)
                    return
                engine.count, engine.chunk = count, engine.buffer[:count]

            self._received += count
            sent = self.sock.send(engine.chunk)
        except BlockingIOError:
            pass

        self._sent += sent
        if sent < count or count == _BUFFER_SIZE:
            self._set_pending(engine.buffer[sent:count])

    def _handle_exceptional(self, mask: int) -> None:
        if mask & ERROR:
            drain_error_queue(self.sock)
        if self._mask != READ:  # a short read no longer means that the receive buffer is empty
            self._mask = READ
            self._wait()

    def _set_pending(self, rest: memoryview) -> None:
        """Keep `rest` until it is sent. If it is empty, wait for input again: there may be more to read."""
        self._pending = bytes(rest)
        self._wait()

    def _flush(self) -> None:
        """Send pending bytes; once all are sent, wait for input."""
        try:
            sent = self.sock.send(self._pending)
        except BlockingIOError:
            return

        self._sent += sent
        self._pending = memoryview(self._pending)[sent:]
        if not self._pending:
            self._pending = b""
            self._wait()

    def _wait(self) -> None:
        mask = WRITE if self._pending else self._mask
        self.engine.poller.report(self.sock.fileno(), mask, self)

    def _close_now(self, reason: CloseReason) -> None:
        self.engine.poller.stop_reporting(self.sock.fileno(), self)
        self.sock.close()
        self._closed(reason)

    async def _run_close(self, stream: PolledStream) -> None:
        try:
            await self._linger(stream)
        finally:
            self._received += stream.bytes_received
            self._sent += stream.bytes_sent
            self._closed(self.reason)


class CappedEventConnection(EventConnection):
    """Echoes `max_bytes`, then closes the connection if the peer sends more."""

    __slots__ = ()

    def _turn(self) -> None:
        left = self.engine.max_bytes - self._received
        if left > _BUFFER_SIZE:
            super()._turn()
            return

        try:
            data = self.sock.recv(left or 1)
        except BlockingIOError:
            return

        if not data:
            self._close_now(CloseReason.EOF)
        elif not left:
            self.request_close(CloseReason.BYTES)
        else:
            self._received += len(data)
            # This read may leave input behind, which an edge-triggered registration does not report again.
            self._set_pending(memoryview(data))

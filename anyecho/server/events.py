"""Engine 2: all plain connections in one task, turned in the Poller's callbacks.

A turn is one recv(2) into a buffer that all share and one send(2) from it. What the kernel does not take is copied,
and until it is gone nothing more is read from that peer: at most one buffer is ever held for anybody. A connection
that the server has to end is handed to a task, which closes it as the other engine does.
"""

from __future__ import annotations

__all__ = ("EventConnection", "EventsEngine")

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from anyio.abc import TaskGroup

from anyecho.net.poller import PolledRegistration, Poller
from anyecho.net.stream import PolledStream
from anyecho.server.connection import Connection

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")

#: What one turn may move: as much as amortises two system calls, as little as keeps others waiting 0.1 ms.
_BUFFER_SIZE = 256 * 1024


class EventsEngine:
    """What all event-driven connections of a server share."""

    def __init__(self, poller: Poller, tasks: TaskGroup, ended: Callable[[Connection], None]) -> None:
        self.poller = poller
        self.tasks = tasks
        self.ended = ended
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))


class EventConnection(Connection):
    __slots__ = ("_engine", "_pending", "_received", "_registration", "_sent")

    def __init__(self, sock: socket.socket, sockaddr: Any, *, linger: float, engine: EventsEngine) -> None:
        super().__init__(sock, sockaddr, linger=linger)
        self._engine = engine
        self._received = 0
        self._sent = 0
        #: What the kernel did not take; while there is any, nothing is read.
        self._pending: bytes | memoryview = b""
        self._registration: PolledRegistration | None = None

    def start(self) -> None:
        """Echo from now on, until the peer is done or `end` is called. Never raises."""
        try:
            self._registration = self._engine.poller.register(self.sock, self._turn)
        except OSError:
            self._finish("broken")
        else:
            self.tell_start()

    def stop(self) -> None:
        assert self._registration is not None  # without one it never started, and has ended
        # Back to a waiter now, not when the task runs: not another turn is taken.
        self._registration.wait()
        self._engine.tasks.start_soon(self._close, PolledStream(self.sock, self._registration))

    def abort(self) -> None:
        if self.reason:
            super().abort()
        else:
            self._finish("cancelled")

    @property
    def totals(self) -> tuple[int, int]:
        return self._received, self._sent

    def _turn(self) -> None:
        buffer = self._engine.buffer
        try:
            count = self.sock.recv_into(buffer)
            if not count:
                self._finish("eof")
                return

            self._received += count
            self._send(buffer[:count])
        except BlockingIOError:
            return
        except OSError:
            self._finish("broken")
        except Exception:
            # The Poller calls this for everybody: whatever it is, it costs this connection only.
            logger.exception("connection failed", extra={"peer": self.name})
            self._finish("error")

    def _send(self, chunk: memoryview) -> None:
        try:
            sent = self.sock.send(chunk)
        except BlockingIOError:
            sent = 0

        self._sent += sent
        if sent < len(chunk):
            self._pending = bytes(chunk[sent:])
            assert self._registration is not None
            self._registration.on_event(self._flush, writable=True)

    def _flush(self) -> None:
        """Send what is pending; read on once it is gone."""
        try:
            sent = self.sock.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self._finish("broken")
            return

        self._sent += sent
        self._pending = memoryview(self._pending)[sent:]
        if not self._pending:
            self._pending = b""
            assert self._registration is not None
            self._registration.on_event(self._turn)

    def _finish(self, reason: str) -> None:
        self.reason = reason
        if self._registration is not None:
            self._registration.close()
        self.sock.close()
        self.tell_end()
        self._engine.ended(self)

    async def _close(self, stream: PolledStream) -> None:
        try:
            await self.close(stream, owed=bytes(self._pending))
        finally:
            self._received += stream.bytes_received
            self._sent += stream.bytes_sent
            self.tell_end()
            self._engine.ended(self)

"""Closed-loop connections: each sends its next message when the echo of the last has returned and is equal.

An echo costs one recv(2) into a buffer that all connections share, one comparison and one send(2). Sockets are
connected by the caller. A `LoadRun` gives the deadline and collects latencies and failures.
"""

from __future__ import annotations

__all__ = ("ClosedLoop", "PolledLoop", "WaitingLoop")

from abc import ABC, abstractmethod
from time import perf_counter_ns
from typing import TYPE_CHECKING, TypeAlias

from anyio.abc import TaskGroup

from anyecho.errors import EchoError, EchoMismatch, EchoTruncated
from anyecho.measure.load_run import LoadRun
from anyecho.net.poller import Poller
from anyecho.net.readiness import READ, WRITE, Registration

if TYPE_CHECKING:
    import socket

#: Two messages of equal size.
Messages: TypeAlias = tuple[memoryview, memoryview]


class ClosedLoop(ABC):
    """Load on one connected, non-blocking `sock`. The caller closes the socket, after `stop`.

    The two `messages` alternate, so that a repeated reply is not equal.
    """

    __slots__ = (
        "_message",
        "_next",
        "_run",
        "_sent",
        "_sent_at",
        "_sent_whole",
        "_size",
        "_sock",
        "_stopped",
        "name",
        "returned",
    )

    def __init__(self, sock: socket.socket, messages: Messages, name: str, run: LoadRun) -> None:
        self.name = name
        self._sock = sock
        self._message, self._next = messages
        self._run = run
        self._size = len(self._message)
        self._stopped = False
        self._sent_at = 0
        #: Bytes of the current message that were echoed; and bytes that the kernel accepted.
        self.returned = self._size
        self._sent = self._size
        #: Whether one send(2) accepted the whole message and no byte is back.
        self._sent_whole = False

    def stop(self) -> None:
        """Send and receive no more. Idempotent."""
        self._stopped = True

    @abstractmethod
    def _flush_when_writable(self) -> None:
        """Call `_flush` whenever the socket is writable, until all is sent."""

    def start(self) -> None:
        """Send the first message; go on until the run's deadline."""
        self._sent_at = perf_counter_ns()
        self._send()

    def _read_reply(self) -> None:
        run = self._run
        try:
            count = self._sock.recv_into(run.buffer)
        except BlockingIOError:
            return
        except OSError as exc:
            self._fail_broken(exc)
            return

        # Fast path: nearly every reply arrives in one piece and is equal.
        whole = self._sent_whole and count == self._size and run.buffer.startswith(self._message)
        if not whole and not self._check_chunk(count):
            return

        now = perf_counter_ns()
        run.add_latency(now - self._sent_at)
        if now < run.deadline:
            self._sent_at = now
            self._send()
        else:
            self._sent_whole = False
            self.returned = self._size
            run.finish(now)

    def _check_chunk(self, count: int) -> bool:
        """Compare the next `count` bytes of a reply. Return whether the reply is complete."""
        buffer, offset = self._run.buffer, self.returned
        if not count:
            self._fail_truncated("the server closed the connection")
            return False

        expected = self._message[offset : min(offset + count, self._sent)]
        if count > len(expected) or not buffer.startswith(expected):
            good = next((i for i, byte in enumerate(expected) if byte != buffer[i]), len(expected))
            self._fail_mismatch(offset + good, buffer[good])
            return False

        self._sent_whole = False
        self.returned += count
        return self.returned == self._size

    def _send(self) -> None:
        self._message, self._next = self._next, self._message
        self.returned = 0
        try:
            self._sent = self._sock.send(self._message)
        except BlockingIOError:
            self._sent = 0
        except OSError as exc:
            self._fail_broken(exc)
            return

        self._sent_whole = self._sent == self._size
        if not self._sent_whole:
            self._flush_when_writable()

    def _flush(self) -> bool:
        """Send more of the message. Return whether all of it is sent."""
        try:
            self._sent += self._sock.send(self._message[self._sent :])
        except BlockingIOError:
            return False
        except OSError as exc:
            self._fail_broken(exc)
            return False

        return self._sent == self._size

    def _fail_broken(self, exc: OSError) -> None:
        self._fail_truncated(f"the connection broke ({exc.strerror})")

    def _fail_truncated(self, why: str) -> None:
        missing = f": byte {self.returned} is missing" if self.returned < self._size else ""
        self._fail(EchoTruncated(f"{self.name}: {why}{missing}", offset=self.returned))

    def _fail_mismatch(self, offset: int, got: int) -> None:
        if offset < self._sent:
            what = f"byte {offset} is wrong: sent 0x{self._message[offset]:02x}, got 0x{got:02x}"
        else:
            what = f"byte {offset} was never sent: got 0x{got:02x}"
        self._fail(EchoMismatch(f"{self.name}: {what}", offset=offset))

    def _fail(self, failure: EchoError) -> None:
        # epoll reports EOF for as long as the descriptor is registered.
        self.stop()
        self._run.fail(failure)


class PolledLoop(ClosedLoop):
    """A closed loop driven by the callbacks of a `Poller`."""

    __slots__ = ("_descriptor", "_poller", "batch")

    batch: int

    def __init__(self, sock: socket.socket, messages: Messages, name: str, run: LoadRun, poller: Poller) -> None:
        super().__init__(sock, messages, name, run)
        self._poller = poller
        self._descriptor = sock.fileno()
        poller.report(self._descriptor, READ, self)

    def dispatch(self, mask: int) -> None:
        if mask & WRITE and self._flush():
            self._poller.report(self._descriptor, READ, self)
        if mask & ~WRITE and not self._stopped:
            self._read_reply()

    def poller_stopped(self) -> None:
        self.stop()

    def stop(self) -> None:
        super().stop()
        self._poller.stop_reporting(self._descriptor, self)

    def _flush_when_writable(self) -> None:
        # Reads go on: a server that stops reading until its echo is read would otherwise deadlock.
        self._poller.report(self._descriptor, READ | WRITE, self)


class WaitingLoop(ClosedLoop):
    """A closed loop driven by tasks, where there is no epoll."""

    __slots__ = ("_registration", "_tasks")

    def __init__(
        self, sock: socket.socket, messages: Messages, name: str, run: LoadRun, registration: Registration
    ) -> None:
        super().__init__(sock, messages, name, run)
        self._registration = registration

    def start_reading(self, tasks: TaskGroup) -> None:
        """Read replies in a new task of `tasks`, until that is cancelled."""
        self._tasks = tasks
        tasks.start_soon(self._read)

    async def _read(self) -> None:
        while not self._stopped:
            self._registration.may_read = False
            await self._registration.readable()
            self._read_reply()

    def _flush_when_writable(self) -> None:
        self._tasks.start_soon(self._write)

    async def _write(self) -> None:
        while not self._stopped:
            self._registration.may_write = False
            await self._registration.writable()
            if self._flush():
                return

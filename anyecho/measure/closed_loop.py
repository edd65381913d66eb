"""One connection that sends its next message when the last is back and equal.

A turn is one recv(2) into a buffer that all connections share, one comparison and one send(2). It knows sockets
that are connected already, and a `Course`, which says when to stop and is told what was found.
"""

from __future__ import annotations

__all__ = ("ClosedLoop", "PolledLoop", "WaitingLoop")

from abc import ABC, abstractmethod
from time import perf_counter_ns
from typing import TYPE_CHECKING, TypeAlias

from anyio.abc import TaskGroup

from anyecho.errors import EchoError, EchoMismatch, EchoTruncated
from anyecho.measure.course import Course
from anyecho.net.fallback import Registration
from anyecho.net.poller import Poller
from anyecho.net.registration import READ, WRITE

if TYPE_CHECKING:
    import socket

#: Of one size.
Messages: TypeAlias = tuple[memoryview, memoryview]


class ClosedLoop(ABC):
    """`sock`, connected and non-blocking. Who owns it closes it, after `stop`.

    It sends its two `messages` by turns, so that the reply before is not equal.
    """

    __slots__ = (
        "_course",
        "_message",
        "_next",
        "_sent",
        "_sent_at",
        "_size",
        "_sock",
        "_stopped",
        "_whole",
        "name",
        "returned",
    )

    def __init__(self, sock: socket.socket, messages: Messages, name: str, course: Course) -> None:
        self.name = name
        self._sock = sock
        self._message, self._next = messages
        self._course = course
        self._size = len(self._message)
        self._stopped = False
        self._sent_at = 0
        #: Bytes of the message on its way that are back; and those that the kernel took.
        self.returned = self._size
        self._sent = self._size
        #: Whether it took them all at once and none is back.
        self._whole = False

    def stop(self) -> None:
        """Take no more turns. Idempotent."""
        self._stopped = True

    @abstractmethod
    def _watch_room(self) -> None:
        """Call `_flush` while there is room to send, until all is sent."""

    def start(self) -> None:
        """Send the first message; go on until the course's deadline."""
        self._sent_at = perf_counter_ns()
        self._send()

    def _turn(self) -> None:
        course = self._course
        try:
            count = self._sock.recv_into(course.buffer)
        except BlockingIOError:
            return
        except OSError as exc:
            self._break(exc)
            return

        # Nearly every reply is back in one piece and equal, which one comparison says.
        whole = self._whole and count == self._size and course.buffer.startswith(self._message)
        if not whole and not self._take(count):
            return

        now = perf_counter_ns()
        course.keep(now - self._sent_at)
        if now < course.deadline:
            self._sent_at = now
            self._send()
        else:
            self._whole = False
            self.returned = self._size
            course.arrive(now)

    def _take(self, count: int) -> bool:
        """Compare the next `count` bytes of a reply; return whether they complete it."""
        buffer, offset = self._course.buffer, self.returned
        if not count:
            self._fail_truncated("the server closed the connection")
            return False

        owed = self._message[offset : min(offset + count, self._sent)]
        if count > len(owed) or not buffer.startswith(owed):
            good = next((i for i, byte in enumerate(owed) if byte != buffer[i]), len(owed))
            self._fail_mismatch(offset + good, buffer[good])
            return False

        self._whole = False
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
            self._break(exc)
            return

        self._whole = self._sent == self._size
        if not self._whole:
            self._watch_room()

    def _flush(self) -> bool:
        """Send more of the message; return whether all of it is sent now."""
        try:
            self._sent += self._sock.send(self._message[self._sent :])
        except BlockingIOError:
            return False
        except OSError as exc:
            self._break(exc)
            return False

        return self._sent == self._size

    def _break(self, exc: OSError) -> None:
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
        # An end is reported for as long as anybody listens.
        self.stop()
        self._course.fail(failure)


class PolledLoop(ClosedLoop):
    """Turns when a Poller tells it to."""

    __slots__ = ("_descriptor", "_poller", "batch")

    batch: int

    def __init__(self, sock: socket.socket, messages: Messages, name: str, course: Course, poller: Poller) -> None:
        super().__init__(sock, messages, name, course)
        self._poller = poller
        self._descriptor = sock.fileno()
        poller.report(self._descriptor, READ, self)

    def dispatch(self, mask: int) -> None:
        if mask & WRITE and self._flush():
            self._poller.report(self._descriptor, READ, self)
        if mask & ~WRITE and not self._stopped:
            self._turn()

    def abandoned(self) -> None:
        self.stop()

    def stop(self) -> None:
        super().stop()
        self._poller.forget(self._descriptor, self)

    def _watch_room(self) -> None:
        # Reading goes on: a server that waits for that before it reads on would else wait for ever.
        self._poller.report(self._descriptor, READ | WRITE, self)


class WaitingLoop(ClosedLoop):
    """Turns in a task of its own, where there is no epoll."""

    __slots__ = ("_registration", "_tasks")

    def __init__(
        self, sock: socket.socket, messages: Messages, name: str, course: Course, registration: Registration
    ) -> None:
        super().__init__(sock, messages, name, course)
        self._registration = registration

    def follow(self, tasks: TaskGroup) -> None:
        """Take turns in one of `tasks`, until it is cancelled."""
        self._tasks = tasks
        tasks.start_soon(self._read)

    async def _read(self) -> None:
        while not self._stopped:
            self._registration.may_read = False
            await self._registration.readable()
            self._turn()

    def _watch_room(self) -> None:
        self._tasks.start_soon(self._write)

    async def _write(self) -> None:
        while not self._stopped:
            self._registration.may_write = False
            await self._registration.writable()
            if self._flush():
                return

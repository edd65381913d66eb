"""The readiness of one socket: what a task waits for, what a `Poller` reports to it, and the masks of events.

`may_read` and `may_write` are cleared by the caller of a system call, on EAGAIN (or EINPROGRESS) only. Kernel
events set them. So an edge before the wait is not missed, and data and FIN in one event are both read.
"""

from __future__ import annotations

__all__ = (
    "ERROR",
    "EXCEPTIONAL",
    "READ",
    "READ_EDGE",
    "WRITE",
    "Pollable",
    "PolledRegistration",
    "Registration",
    "Watch",
    "is_ready",
    "short_read_drains",
)

import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from anyio import BusyResourceError, ClosedResourceError

from anyecho.net.driver import Waiter, make_waiter

# The numbers of epoll_ctl(2): without epoll, `select` lacks Python's names for them.
#: Level-triggered masks for `Poller.report`. Errors and hang-ups are reported with either.
READ = 0x001  # EPOLLIN
WRITE = 0x004  # EPOLLOUT
#: Edge-triggered `READ`, with the `EXCEPTIONAL` events that `short_read_drains` depends on.
READ_EDGE = READ | 0x2000 | 0x002 | 1 << 31  # EPOLLRDHUP, EPOLLPRI, EPOLLET
#: EPOLLERR: an error, or an entry in the error queue.
ERROR = 0x008
#: Urgent data, FIN, hang-up, error: after these a short read may have left data.
EXCEPTIONAL = ~(READ | WRITE)
_MAY_WRITE = WRITE | ERROR | 0x010  # EPOLLHUP
_MAY_READ = ~WRITE
#: The number of the family. `sock.family` makes an enum member of it at each call, which costs 0.4 us.
_family_of = socket.SocketType.family.__get__
_INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})


class Registration(ABC):
    """The readiness of one socket. One reader and one writer may wait at a time."""

    __slots__ = ("may_read", "may_write", "short_read_drains")

    def __init__(self) -> None:
        self.may_read = True
        self.may_write = True
        #: Whether a read of fewer bytes than requested drains the socket. Such a read clears `may_read` too.
        self.short_read_drains = False

    @abstractmethod
    async def readable(self) -> None:
        """Wait for `may_read`. Raises `BusyResourceError` if a task waits, `ClosedResourceError` if closed."""

    @abstractmethod
    async def writable(self) -> None:
        """Wait for `may_write`. Raises the same errors as `readable`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Unregister the socket; waiting tasks raise `ClosedResourceError`. Idempotent.

        The caller closes the socket after this has returned, not before.
        """


class Pollable(Protocol):
    """Receives the events of one socket from a `Poller`. Its methods must not raise."""

    #: Set by the Poller: number of the batch during which it was registered.
    batch: int

    def dispatch(self, mask: int) -> None:
        """Handle the events in `mask`, which has the bits of epoll_ctl(2)."""

    def poller_stopped(self) -> None:
        """Called when the Poller has stopped. No event follows."""


class _EventSource(Protocol):
    """The part of a `Poller` that its registrations use."""

    def report(self, descriptor: int, mask: int, pollable: Pollable) -> None:
        """Report the events in `mask` to `pollable`, and to nothing else."""

    def stop_reporting(self, descriptor: int, pollable: Pollable) -> None:
        """Report no more events to `pollable`."""


class PolledRegistration(Registration):
    """Edge-triggered readiness for waiting tasks.

    The socket is registered once for its life, so a message costs no epoll_ctl(2).
    """

    __slots__ = ("_closed", "_descriptor", "_poller", "_reader", "_reading", "_writer", "_writing", "batch")

    batch: int

    def __init__(self, poller: _EventSource, sock: socket.socket) -> None:
        super().__init__()
        self.short_read_drains = short_read_drains(sock)
        self._poller = poller
        self._descriptor = sock.fileno()
        self._closed = False
        self._reader: Waiter | None = None
        self._writer: Waiter | None = None
        self._reading = False
        self._writing = False
        poller.report(self._descriptor, READ_EDGE | WRITE, self)

    async def readable(self) -> None:
        while not (self.may_read or self._closed):
            if self._reading:
                raise BusyResourceError("reading from")

            self._reader = self._reader or make_waiter()
            self._reading = True
            try:
                await self._reader.wait()
            finally:
                self._reading = False

        if self._closed:
            raise ClosedResourceError

    async def writable(self) -> None:
        while not (self.may_write or self._closed):
            if self._writing:
                raise BusyResourceError("writing to")

            self._writer = self._writer or make_waiter()
            self._writing = True
            try:
                await self._writer.wait()
            finally:
                self._writing = False

        if self._closed:
            raise ClosedResourceError

    def dispatch(self, mask: int) -> None:
        if mask & EXCEPTIONAL:
            self.short_read_drains = False
        if mask & _MAY_READ:
            self.may_read = True
            if self._reading and self._reader is not None:
                self._reader.wake()
        if mask & _MAY_WRITE:
            self.may_write = True
            if self._writing and self._writer is not None:
                self._writer.wake()

    def close(self) -> None:
        """Unregister the socket, which is still open. Waiting calls raise `ClosedResourceError`. Idempotent."""
        self._closed = True
        self._poller.stop_reporting(self._descriptor, self)
        self.dispatch(READ | WRITE)  # wakes the waiting tasks

    poller_stopped = close

    async def aclose(self) -> None:
        # Waiting tasks need not end first: they wait for a `Waiter`, not for the descriptor.
        self.close()


class Watch:
    """A callback that is called while a descriptor is readable (level-triggered)."""

    __slots__ = ("_callback", "_descriptor", "_poller", "batch")

    batch: int

    def __init__(self, poller: _EventSource, descriptor: int, callback: Callable[[], None]) -> None:
        self._poller = poller
        self._descriptor = descriptor
        self._callback = callback
        poller.report(descriptor, READ, self)

    def dispatch(self, mask: int) -> None:
        self._callback()

    def close(self) -> None:
        """Make no further call."""
        self._poller.stop_reporting(self._descriptor, self)

    poller_stopped = close


def short_read_drains(sock: socket.socket) -> bool:
    """Whether a read of fewer bytes than requested drains `sock`, unless an event was `EXCEPTIONAL`.

    True on TCP. On Unix sockets, passed descriptors (SCM_RIGHTS) end reads early.
    """
    return _family_of(sock) in _INTERNET


def is_ready(sock: socket.socket, *, to_write: bool = False) -> bool:
    """Whether a read would not block (data, EOF or an error is pending); with `to_write`, or a write would not."""
    if sock.fileno() < 0:
        return False

    # Not MSG_PEEK, which clears a pending error. Not select(2), which takes no descriptor above 1023.
    poll = select.poll()
    poll.register(sock, select.POLLIN | (select.POLLOUT if to_write else 0))
    return bool(poll.poll(0))

"""The readiness of one socket: what a task waits for, what a `Poller` reports, and the masks of events.

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
    "EventSource",
    "Pollable",
    "Registration",
    "short_read_drains",
)

import socket
from abc import ABC, abstractmethod
from typing import Protocol

# The numbers of epoll_ctl(2): without epoll, `select` lacks Python's names for them.
#: Level-triggered masks for `Poller.report`. Errors and hang-ups are reported with either.
READ = 0x001  # EPOLLIN
WRITE = 0x004  # EPOLLOUT
#: Edge-triggered `READ`, with the `EXCEPTIONAL` events that `short_read_drains` depends on.
READ_EDGE = READ | 0x2000 | 0x002 | 1 << 31  # EPOLLRDHUP, EPOLLPRI, EPOLLET
#: EPOLLERR: an error, or an entry in the error queue.
ERROR = 0x008
#: The number of the family. `sock.family` makes an enum member of it at each call, which costs 0.4 us.
_family_of = socket.SocketType.family.__get__
_INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})
#: Urgent data, FIN, hang-up, error: after these a short read may have left data.
EXCEPTIONAL = ~(READ | WRITE)


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
        """Handle the events in `mask`."""

    def poller_stopped(self) -> None:
        """Called when the Poller has stopped. No event follows."""


class EventSource(Protocol):
    """The part of a `Poller` that its registrations use."""

    def report(self, descriptor: int, mask: int, pollable: Pollable) -> None:
        """Report the events in `mask` to `pollable`, and to nothing else."""

    def stop_reporting(self, descriptor: int, pollable: Pollable) -> None:
        """Report no more events to `pollable`."""


def short_read_drains(sock: socket.socket) -> bool:
    """Whether a read of fewer bytes than requested drains `sock`, unless an event was `EXCEPTIONAL`.

    True on TCP. On Unix sockets, passed descriptors (SCM_RIGHTS) end reads early.
    """
    return _family_of(sock) in _INTERNET

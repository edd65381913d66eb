"""Registrations with a `Poller`: for tasks that wait, and for a callback."""

from __future__ import annotations

__all__ = ("PolledRegistration", "Watch")

import socket
from collections.abc import Callable

from anyio import BusyResourceError, ClosedResourceError

from anyecho.net.driver import Waiter, make_waiter
from anyecho.net.readiness import (
    ERROR,
    EXCEPTIONAL,
    READ,
    READ_EDGE,
    WRITE,
    EventSource,
    Registration,
    short_read_drains,
)

_MAY_WRITE = WRITE | ERROR | 0x010  # EPOLLHUP
_MAY_READ = ~WRITE


class PolledRegistration(Registration):
    """Edge-triggered readiness for waiting tasks.

    The socket is registered once for its life, so a message costs no epoll_ctl(2).
    """

    __slots__ = (
        *("_closed", "_descriptor", "_poller", "_reader", "_reading", "_writer", "_writing"),
        "batch",
    )

    batch: int

    def __init__(self, poller: EventSource, sock: socket.socket) -> None:
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
            self._wake_reader()
        if mask & _MAY_WRITE:
            self._wake_writer()

    def _wake_reader(self) -> None:
        self.may_read = True
        if self._reading and self._reader is not None:
            self._reader.wake()

    def _wake_writer(self) -> None:
        self.may_write = True
        if self._writing and self._writer is not None:
            self._writer.wake()

    def close(self) -> None:
        """Unregister the socket, which is still open. Waiting calls raise `ClosedResourceError`. Idempotent."""
        self._closed = True
        self._poller.stop_reporting(self._descriptor, self)
        self._wake_reader()
        self._wake_writer()

    poller_stopped = close

    async def aclose(self) -> None:
        # Waiting tasks need not end first: they wait for a `Waiter`, not for the descriptor.
        self.close()


class Watch:
    """A callback that is called while a descriptor is readable (level-triggered)."""

    __slots__ = ("_callback", "_descriptor", "_poller", "batch")

    batch: int

    def __init__(self, poller: EventSource, descriptor: int, callback: Callable[[], None]) -> None:
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

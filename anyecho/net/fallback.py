"""Readiness of one socket in one await, and what readiness is to whoever waits for it.

A `Registration` keeps two words of truth, `may_read` and `may_write`. Whoever makes the system call sets them
false, and only when the kernel said EAGAIN (or EINPROGRESS); only the kernel's events set them true. So an edge
that passed before anybody waited is never missed, and one that comes with data and FIN together is not half
forgotten.
"""

from __future__ import annotations

__all__ = ("Fallback", "Registration")

import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from anyio import (
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    Event,
    notify_closing,
    wait_readable,
    wait_writable,
)


class Registration(ABC):
    """One socket's readiness. One reader and one writer may wait at a time."""

    __slots__ = ("may_read", "may_write", "short_read_drains")

    def __init__(self) -> None:
        self.may_read = True
        self.may_write = True
        #: Whether a read that got less than it asked for has left nothing, so that it clears `may_read` too.
        self.short_read_drains = False

    @abstractmethod
    async def readable(self) -> None:
        """Return once `may_read`. Raises `BusyResourceError`, and `ClosedResourceError` when closed meanwhile."""

    @abstractmethod
    async def writable(self) -> None:
        """Return once `may_write`. Raises as `readable` does."""

    @abstractmethod
    async def aclose(self) -> None:
        """Forget the socket, which is still open; wake whoever waits, and let them go first where that matters."""


class Fallback:
    """Registrations for where there is no epoll, and for a client of one connection: waiters only."""

    def register(self, sock: socket.socket | int) -> Registration:
        return _WaitRegistration(sock)

    def unregister(self, sock: socket.socket) -> None:
        """Wake each task that waits for `sock`, which is about to close, with `ClosedResourceError`."""
        notify_closing(sock)


class _WaitRegistration(Registration):
    def __init__(self, sock: socket.socket | int) -> None:
        super().__init__()
        self._sock = sock
        self._closed = False
        self._waiting: dict[str, Event] = {}

    async def readable(self) -> None:
        if not self.may_read:
            await self._wait("reading from", wait_readable)
            self.may_read = True

    async def writable(self) -> None:
        if not self.may_write:
            await self._wait("writing to", wait_writable)
            self.may_write = True

    async def _wait(self, action: str, wait: Callable[[socket.socket | int], Awaitable[None]]) -> None:
        if self._closed:
            raise ClosedResourceError
        if action in self._waiting:
            raise BusyResourceError(action)

        left = self._waiting[action] = Event()
        try:
            await wait(self._sock)
        finally:
            del self._waiting[action]
            left.set()

        if self._closed:
            raise ClosedResourceError

    async def aclose(self) -> None:
        self._closed = True
        notify_closing(self._sock)
        # On asyncio the loop forgets a descriptor's *new* waiter if the number is reused before the old one has
        # unwound; so the socket is not closed under anybody.
        with CancelScope(shield=True):
            for left in list(self._waiting.values()):
                await left.wait()

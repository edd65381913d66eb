"""Readiness without epoll: registrations that wait with the event loop's own functions.

A task that seldom waits, for one descriptor, calls these functions: `wait_readable` and `wait_writable` of anyio.
"""

from __future__ import annotations

__all__ = ("Fallback", "wait_readable", "wait_writable")

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from anyio import (
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    Event,
    notify_closing,
    wait_readable,
    wait_writable,
)

from anyecho.net.readiness import Registration


class Fallback:
    """Registrations for systems without epoll, and for a client of one connection."""

    def register(self, sock: socket.socket) -> Registration:
        return _WaitRegistration(sock)

    async def call_while_readable(self, sock: socket.socket, turn: Callable[[], bool]) -> None:
        """Call `turn`, which must not raise, until it returns false or `sock` is unregistered.

        Between two calls, wait until `sock` is readable.
        """
        with suppress(ClosedResourceError):
            while turn():
                await wait_readable(sock)

    def unregister(self, sock: socket.socket) -> None:
        """Wake each task that waits for `sock`, which is about to close, with `ClosedResourceError`."""
        notify_closing(sock)


class _WaitRegistration(Registration):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        # Level-triggered: if bytes or a FIN are left, the next wait returns at once.
        self.short_read_drains = True
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

    async def _wait(self, action: str, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self._closed:
            raise ClosedResourceError
        if action in self._waiting:
            raise BusyResourceError(action)

        ended = self._waiting[action] = Event()
        try:
            await wait(self._sock)
        finally:
            del self._waiting[action]
            ended.set()

        if self._closed:
            raise ClosedResourceError

    async def aclose(self) -> None:
        self._closed = True
        notify_closing(self._sock)
        # If a descriptor is reused before its old waiter has ended, asyncio's loop removes the *new* waiter. So the
        # socket may be closed only when no task waits for it.
        with CancelScope(shield=True):
            for ended in list(self._waiting.values()):
                await ended.wait()

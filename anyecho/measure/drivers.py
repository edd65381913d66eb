"""Let a load connection be called when its socket is ready: by a `Poller`, or without epoll by tasks."""

from __future__ import annotations

__all__ = ("Drivable", "attach")

from collections.abc import Callable
from typing import Protocol

from anyio import ClosedResourceError, Event
from anyio.abc import TaskGroup

from anyecho.net.exclusive import ExclusivePoller, Resumable
from anyecho.net.poller import Fallback, Poller
from anyecho.net.readiness import READ, WRITE, Pollable, Registration
from anyecho.net.sockets import Socket


class Drivable(Pollable, Protocol):
    """A connection that asks for events: `READ`, ``READ | WRITE``, or 0 for no more."""

    def attach(self, ask: Callable[[int], None], defer: Callable[[Resumable], object] | None = None) -> None: ...

    def resume(self) -> None: ...


def attach(connection: Drivable, sock: Socket, poller: Poller | Fallback, tasks: TaskGroup) -> None:
    """Call `connection` at the events of `sock` that it asks for, until it asks for none.

    Without epoll, by tasks of `tasks`.
    """
    if isinstance(poller, Poller):
        _attach_to_poller(connection, sock.fileno(), poller)
    else:
        _TaskDriver(connection, poller.register(sock), tasks)


def _attach_to_poller(connection: Drivable, descriptor: int, poller: Poller) -> None:
    def ask(mask: int) -> None:
        if mask:
            poller.report(descriptor, mask, connection)
        else:
            poller.stop_reporting(descriptor, connection)

    # Replies that are ready are read before the next messages are sent: the time of sending is in no latency then.
    connection.attach(ask, poller.deferred.append if isinstance(poller, ExclusivePoller) else None)


class _TaskDriver:
    """One task reads and one writes, each waiting with the event loop's own functions."""

    def __init__(self, connection: Drivable, registration: Registration, tasks: TaskGroup) -> None:
        self._connection = connection
        self._registration = registration
        self._tasks = tasks
        self._mask = 0
        self._wanted = Event()
        connection.attach(self._ask)
        tasks.start_soon(self._read)
        tasks.start_soon(self._write)

    def _ask(self, mask: int) -> None:
        self._mask = mask
        self._wanted.set()
        if not mask:
            self._tasks.start_soon(self._registration.aclose)

    async def _read(self) -> None:
        try:
            while self._mask:
                self._registration.may_read = False
                await self._registration.readable()
                if self._mask:
                    self._connection.dispatch(READ)
        except ClosedResourceError:
            pass

    async def _write(self) -> None:
        try:
            while self._mask:
                self._wanted = Event()
                if self._mask & WRITE:
                    self._registration.may_write = False
                    await self._registration.writable()
                    if self._mask:
                        self._connection.dispatch(WRITE)
                else:
                    await self._wanted.wait()
        except ClosedResourceError:
            pass

"""Readiness of many sockets by one epoll(7): which descriptor has which event, and which object is told.

It reads and writes no byte and closes no socket. When the event loop calls it is `driver`'s business.
"""

from __future__ import annotations

__all__ = ("Fallback", "Poller", "call_while_readable", "has_epoll", "open_poller")

import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

from anyio import CancelScope, ClosedResourceError, Event, create_task_group

from anyecho.net.driver import drive
from anyecho.net.fallback import Fallback
from anyecho.net.registration import Pollable, PolledRegistration, Watch

#: Seconds for which one turn may keep the loop from other tasks. Checked between two callbacks.
_SLICE = 0.001
#: Events taken from the kernel at a time: the loop serves others between two batches.
_BATCH = 128


class Poller:
    """Readiness of many sockets by epoll(7). Open it with `open_poller`, which runs it."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.registered: dict[int, Pollable] = {}
        #: Number of the current batch. An event of batch N is not delivered to a descriptor that was registered
        #: during batch N: the number was reused, and the event is about its predecessor.
        self.batch = 0
        #: Events of the current batch that are not dispatched yet.
        self._events: Iterator[tuple[int, int]] = iter(())
        self._has_undispatched = False

    def register(self, sock: socket.socket) -> PolledRegistration:
        """Watch `sock` for tasks that wait, until the registration is closed."""
        return PolledRegistration(self, sock)

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> Watch:
        """Call `callback`, which must not raise, while there is something to read, until the watch is closed."""
        return Watch(self, sock.fileno(), callback)

    def report(self, descriptor: int, mask: int, pollable: Pollable) -> None:
        """Report events in `mask` to `pollable` alone from now on, beginning with all that is pending.

        Raises the `OSError` of a kernel that watches no more sockets.
        """
        pollable.batch = self.batch
        if descriptor in self.registered:
            try:
                self.epoll.modify(descriptor, mask)
            except FileNotFoundError:  # closed by a stranger: the kernel has forgotten it, the number is reused
                self.epoll.register(descriptor, mask)
        else:
            self.epoll.register(descriptor, mask)
        self.registered[descriptor] = pollable

    def stop_reporting(self, descriptor: int, pollable: Pollable) -> None:
        """Report no more to `pollable`. Not a mask of zero: a hang-up is reported on that too, for ever."""
        if self.registered.get(descriptor) is pollable:
            del self.registered[descriptor]
            with suppress(OSError):  # closed too early, by a stranger: then the kernel has forgotten it already
                self.epoll.unregister(descriptor)

    def unregister(self, sock: socket.socket) -> None:
        """Report no event of `sock`, which is about to close, whatever is registered for it."""
        if (pollable := self.registered.get(sock.fileno())) is not None:
            self.stop_reporting(sock.fileno(), pollable)

    def turn(self) -> bool:
        """Dispatch one batch of events, for `_SLICE` at most; return whether some of it are left.

        What is left of an edge-triggered batch the kernel does not report again, so the next turn begins with it.
        """
        if not self._has_undispatched:
            self._events = iter(self.epoll.poll(0, _BATCH))
            self.batch += 1
        self._has_undispatched = False
        over = monotonic() + _SLICE
        batch, registered = self.batch, self.registered
        for descriptor, mask in self._events:
            pollable = registered.get(descriptor)
            if pollable is not None and pollable.batch != batch:
                pollable.dispatch(mask)
                if monotonic() > over:
                    self._has_undispatched = True
                    return True

        return False

    async def run(self, scope: CancelScope) -> None:
        """Dispatch events until `scope` is cancelled; then tell every `Pollable` that no event will follow."""
        try:
            with scope:
                await drive(self.epoll.fileno(), self.turn)
        finally:
            for pollable in list(self.registered.values()):
                pollable.poller_stopped()
            self.epoll.close()


def has_epoll() -> bool:
    """Whether a `Poller` can be opened: not on macOS and BSD, nor where gevent or eventlet has patched `select`."""
    return hasattr(select, "epoll")


async def call_while_readable(poller: Poller | Fallback, sock: socket.socket, turn: Callable[[], bool]) -> None:
    """Call `turn`, which must not raise, while there is something to read, until it says that it has to pause.

    Nothing is watched any more then, or the loop would spin.
    """
    if isinstance(poller, Fallback):
        registration = poller.register(sock)
        try:
            with suppress(ClosedResourceError):  # retired
                while turn():
                    registration.may_read = False
                    await registration.readable()
        finally:
            await registration.aclose()
        return

    paused = Event()

    def on_event() -> None:
        if not turn():
            watch.close()
            paused.set()

    watch = poller.watch(sock, on_event)
    try:
        await paused.wait()
    finally:
        watch.close()


@asynccontextmanager
async def open_poller() -> AsyncIterator[Poller | Fallback]:
    """A running Poller, or the fallback where the system has no epoll.

    It outlives a cancellation from outside until the block is left, because connections that are closing
    politely still wait for it then. The block must end them all before it ends.
    """
    if not has_epoll():
        yield Fallback()
        return

    poller = Poller()
    async with create_task_group() as task_group:
        scope = CancelScope(shield=True)
        task_group.start_soon(poller.run, scope)
        try:
            yield poller
        finally:
            scope.cancel()

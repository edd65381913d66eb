"""Readiness of many sockets in one await.

Besides the fallback, the only caller of anyio's `wait_readable`. It knows descriptors and who waits for them; it
reads and writes no byte and closes no socket.
"""

from __future__ import annotations

__all__ = ("HAVE_EPOLL", "Fallback", "PolledRegistration", "Poller", "open_poller")

import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic

from anyio import (
    BusyResourceError,
    CancelScope,
    ClosedResourceError,
    Event,
    create_task_group,
    wait_readable,
)
from anyio.lowlevel import checkpoint

from anyecho.net.fallback import Fallback, Registration

#: Tests set this false to run everything on the fallback once.
HAVE_EPOLL = hasattr(select, "epoll")

if HAVE_EPOLL:
    _WAITER = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
    _WRITE = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
    _READ = ~select.EPOLLOUT

#: Callbacks alone may keep the loop from everybody else for this long.
_SLICE = 0.001


class Poller:
    """Readiness of many sockets by epoll(7). Open it with `open_poller`, which runs it."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.registered: dict[int, PolledRegistration] = {}
        #: Counts the batches of events taken, so that a batch is not taken for one that came later.
        self.batch = 0
        #: Callbacks that come batch after batch must not keep the loop to themselves either.
        self._yielded_at = 0.0

    def register(self, sock: socket.socket, callback: Callable[[], None] | None = None) -> PolledRegistration:
        """Watch `sock` until the registration is closed: for waiters, or with a `callback` as `on_event` does."""
        return PolledRegistration(self, sock.fileno(), callback)

    async def run(self, scope: CancelScope) -> None:
        """Dispatch events until `scope` is cancelled; then wake every waiter with `ClosedResourceError`."""
        try:
            with scope:
                while True:
                    if events := self.epoll.poll(0):
                        self.batch += 1
                        await self._dispatch(events)
                    else:
                        await wait_readable(self.epoll.fileno())
                        self._yielded_at = monotonic()
        finally:
            for registration in list(self.registered.values()):
                registration.close()
            self.epoll.close()

    async def _dispatch(self, events: list[tuple[int, int]]) -> None:
        woken = False
        for descriptor, mask in events:
            registration = self.registered.get(descriptor)
            # Numbers are reused at once: one registered since this batch was taken is somebody else, to whom
            # these events never happened. What happened to *it* the next batch will say.
            if registration is None or registration.batch == self.batch:
                continue
            if (callback := registration.callback) is None:
                woken |= registration.wake(mask)
                continue

            callback()
            if monotonic() - self._yielded_at > _SLICE:
                await self._yield()

        if woken:
            await self._yield()

    async def _yield(self) -> None:
        await checkpoint()
        self._yielded_at = monotonic()


class PolledRegistration(Registration):
    """Edge-triggered for a waiter, once for its life: no epoll_ctl(2) a message. Level-triggered for a callback."""

    __slots__ = ("_closed", "_descriptor", "_mask", "_poller", "_reader", "_writer", "batch", "callback")

    def __init__(self, poller: Poller, descriptor: int, callback: Callable[[], None] | None) -> None:
        super().__init__()
        self._poller = poller
        self._descriptor = descriptor
        self._reader: Event | None = None
        self._writer: Event | None = None
        self._closed = False
        self._mask = _WAITER if callback is None else select.EPOLLIN
        self.callback = callback
        self.resume()

    async def readable(self) -> None:
        if not self.may_read and not self._closed:
            if self._reader is not None:
                raise BusyResourceError("reading from")

            self._reader = Event()
            try:
                await self._reader.wait()
            finally:
                self._reader = None

        if self._closed:
            raise ClosedResourceError

    async def writable(self) -> None:
        if not self.may_write and not self._closed:
            if self._writer is not None:
                raise BusyResourceError("writing to")

            self._writer = Event()
            try:
                await self._writer.wait()
            finally:
                self._writer = None

        if self._closed:
            raise ClosedResourceError

    def wake(self, mask: int) -> bool:
        """Take in what the kernel reported; return whether somebody was waiting for it."""
        woken = False
        if mask & _READ:
            self.may_read = True
            if self._reader is not None:
                self._reader.set()
                woken = True
        if mask & _WRITE:
            self.may_write = True
            if self._writer is not None:
                self._writer.set()
                woken = True

        return woken

    def on_event(self, callback: Callable[[], None], *, writable: bool = False) -> None:
        """From now on call `callback` while there is something to read, or room to write; it must not raise.

        What is pending is reported again. So it is by `wait`.
        """
        self.callback = callback
        self._set_mask(select.EPOLLOUT if writable else select.EPOLLIN)

    def wait(self) -> None:
        """From now on wake waiters, edge-triggered, and call nobody."""
        self.callback = None
        self.may_read = self.may_write = True
        self._set_mask(_WAITER)

    def _set_mask(self, mask: int) -> None:
        self._mask = mask
        if self._closed:
            return
        if self._poller.registered.get(self._descriptor) is self:
            self._poller.epoll.modify(self._descriptor, mask)
        else:
            self.resume()

    def pause(self) -> None:
        """Report nothing until `resume`. Not a mask of zero: a hang-up is reported on that too, for ever."""
        if self._poller.registered.get(self._descriptor) is self:
            del self._poller.registered[self._descriptor]
            with suppress(OSError):  # closed too early, by a stranger: then the kernel has forgotten it already
                self._poller.epoll.unregister(self._descriptor)

    def resume(self) -> None:
        """Report again, beginning with all that is pending."""
        self.batch = self._poller.batch
        self._poller.epoll.register(self._descriptor, self._mask)
        self._poller.registered[self._descriptor] = self

    def close(self) -> None:
        """Forget the socket, which is still open; calls that wait raise `ClosedResourceError`."""
        if self._closed:
            return

        self.pause()
        self._closed = self.may_read = self.may_write = True
        for waiting in (self._reader, self._writer):
            if waiting is not None:
                waiting.set()

    async def aclose(self) -> None:
        # No need to let the waiters go first: they wait for an Event, not for the descriptor.
        self.close()


@asynccontextmanager
async def open_poller() -> AsyncIterator[Poller | Fallback]:
    """A running Poller, or the fallback where the system has no epoll.

    It outlives a cancellation from outside until the block is left, because connections that are closing
    politely still wait for it then. The block must end them all before it ends.
    """
    if not HAVE_EPOLL:
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

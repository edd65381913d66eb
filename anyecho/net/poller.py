"""Readiness of many sockets by one epoll(7): dispatches each event to the object registered for its descriptor.

It reads and writes no byte and closes no socket. The event loop calls it through `driver`.
"""

from __future__ import annotations

__all__ = ("Fallback", "Poller", "has_epoll", "open_poller")

import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

from anyio import CancelScope, Event, create_task_group

from anyecho.errors import StartError
from anyecho.net.driver import drive
from anyecho.net.fallback import Fallback
from anyecho.net.readiness import Pollable, PolledRegistration, Watch

#: Maximum seconds of one turn, before other tasks run. Checked after each callback.
_SLICE = 0.001
#: Maximum events of one epoll_wait(2). Other tasks run between two batches.
_BATCH = 128


class Poller:
    """Readiness of many sockets by epoll(7). Open it with `open_poller`, which runs it."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.registered: dict[int, Pollable] = {}
        #: Number of the current batch. An event of batch N is not delivered to a descriptor that was registered
        #: during batch N: the descriptor was reused, and the event belongs to its predecessor.
        self.batch = 0
        #: Undispatched events of the current batch. None once all are dispatched.
        self._events: Iterator[tuple[int, int]] | None = None

    def register(self, sock: socket.socket) -> PolledRegistration:
        """Return a registration, on which tasks wait until non-blocking `sock` is readable or writable."""
        return PolledRegistration(self, sock)

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> Watch:
        """Call `callback`, which must not raise, while `sock` is readable, until the watch is closed."""
        return Watch(self, sock.fileno(), callback)

    async def call_while_readable(self, sock: socket.socket, turn: Callable[[], bool]) -> None:
        """Call `turn`, which must not raise, while `sock` is readable, until it returns false.

        Then `sock` is not watched any more: a level-triggered event would make the loop spin.
        """
        paused = Event()

        def on_event() -> None:
            if not turn():
                watch.close()
                paused.set()

        watch = self.watch(sock, on_event)
        try:
            await paused.wait()
        finally:
            watch.close()

    def report(self, descriptor: int, mask: int, pollable: Pollable) -> None:
        """Report events in `mask` to `pollable` only, from now on. Pending events are reported again.

        Raises `OSError` if the kernel cannot watch another socket.
        """
        pollable.batch = self.batch
        if descriptor in self.registered:
            try:
                self.epoll.modify(descriptor, mask)
            except FileNotFoundError:  # closed by other code: the kernel has removed it, and the number is reused
                self.epoll.register(descriptor, mask)
        else:
            self.epoll.register(descriptor, mask)
        self.registered[descriptor] = pollable

    def stop_reporting(self, descriptor: int, pollable: Pollable) -> None:
        """Report no more to `pollable`. With a mask of zero instead, a hang-up would be reported for ever."""
        if self.registered.get(descriptor) is pollable:
            del self.registered[descriptor]
            with suppress(OSError):  # closed too early, by other code: the kernel has removed it
                self.epoll.unregister(descriptor)

    def unregister(self, sock: socket.socket) -> None:
        """Report no more events of `sock`, which is about to close, whatever is registered for it."""
        if (pollable := self.registered.get(sock.fileno())) is not None:
            self.stop_reporting(sock.fileno(), pollable)

    def turn(self) -> bool:
        """Dispatch one batch of events, for `_SLICE` seconds at most; return whether events are left.

        The next turn begins with these, because the kernel does not report edge-triggered events again.
        """
        if self._events is None:
            self._events = iter(self.epoll.poll(0, _BATCH))
            self.batch += 1
        slice_end = monotonic() + _SLICE
        batch, registered = self.batch, self.registered
        for descriptor, mask in self._events:
            pollable = registered.get(descriptor)
            if pollable is not None and pollable.batch != batch:
                pollable.dispatch(mask)
                if monotonic() > slice_end:
                    return True

        self._events = None
        return False

    async def run(self, scope: CancelScope) -> None:
        """Dispatch events until `scope` is cancelled; then call `poller_stopped` of every `Pollable`."""
        try:
            with scope:
                await drive(self.epoll.fileno(), self.turn)
        finally:
            for pollable in list(self.registered.values()):
                pollable.poller_stopped()
            self.epoll.close()


def has_epoll() -> bool:
    """Whether a `Poller` can be opened: not on macOS or BSD, or if gevent or eventlet has patched `select`."""
    return hasattr(select, "epoll")


@asynccontextmanager
async def open_poller(kind: type[Poller] | None = None) -> AsyncIterator[Poller | Fallback]:
    """Run a Poller, of class `kind`, while the block runs; without epoll, yield a `Fallback`.

    If the block is cancelled, the Poller still runs until the block ends, because connections that linger wait for
    it. The block must close every connection before it ends. Raises `StartError` if it gets no epoll instance.
    """
    if not has_epoll():
        yield Fallback()
        return

    try:
        poller = (kind or Poller)()
    except OSError as exc:
        raise StartError(f"cannot open an epoll instance: {exc.strerror}") from exc

    async with create_task_group() as task_group:
        scope = CancelScope(shield=True)
        task_group.start_soon(poller.run, scope)
        try:
            yield poller
        finally:
            scope.cancel()

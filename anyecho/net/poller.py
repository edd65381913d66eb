"""Readiness of many sockets in one await.

Besides the fallback, the only caller of anyio's `wait_readable`. It knows descriptors and whom to tell of them; it
reads and writes no byte and closes no socket.
"""

from __future__ import annotations

__all__ = ("Fallback", "Poller", "call_while_readable", "has_epoll", "open_poller")

import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic

from anyio import CancelScope, Event, create_task_group, wait_readable
from anyio.lowlevel import checkpoint

from anyecho.net.fallback import Fallback
from anyecho.net.registration import PROMPT, Pollable, PolledRegistration, Watch

#: Callbacks alone may keep the loop from everybody else for this long.
_SLICE = 0.001
#: To park costs 25 to 45 us of processor time. While one peer speaks alone, it is looked again for as long as that,
#: letting others run meanwhile;
_PATIENCE = 0.00005
#: once that was in vain, only after so many waits that ended soon.
_DOUBT = 8
#: Events that tasks may dispatch themselves before it is the Poller's turn, and how many before they look at the
#: clock: a step of a TLS handshake takes most of a slice.
_GLANCE = 64
_PIECE = 8


class Poller:
    """Readiness of many sockets by epoll(7). Open it with `open_poller`, which runs it."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.registered: dict[int, Pollable] = {}
        #: Counts the batches of events taken, so that a batch is not taken for one that came later.
        self.batch = 0
        #: Counts how often events were asked for, and `PROMPT` more whenever there were none.
        self.rounds = 0
        #: Whether a batch is being dispatched, and how many events tasks may in this round.
        self._dispatching = False
        self._glance = _GLANCE
        #: Callbacks that come batch after batch must not keep the loop to themselves either.
        self._yielded_at = 0.0
        #: Of which descriptor the last batch told first, and whether the last two told of that alone.
        self._speaker = -1
        self._alone = False
        #: Whether to look again before parking: while it is not negative.
        self._hope = 0

    def register(self, sock: socket.socket) -> PolledRegistration:
        """Watch `sock` for tasks that wait, until the registration is closed."""
        return PolledRegistration(self, sock)

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> Watch:
        """Call `callback`, which must not raise, while there is something to read, until the watch is closed."""
        return Watch(self, sock.fileno(), callback)

    def report(self, descriptor: int, mask: int, pollable: Pollable) -> None:
        """From now on tell `pollable`, and nobody else, of events in `mask`, beginning with all that is pending.

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

    def forget(self, descriptor: int, pollable: Pollable) -> None:
        """Tell `pollable` no more. Not a mask of zero: a hang-up is reported on that too, for ever."""
        if self.registered.get(descriptor) is pollable:
            del self.registered[descriptor]
            with suppress(OSError):  # closed too early, by a stranger: then the kernel has forgotten it already
                self.epoll.unregister(descriptor)

    def look(self) -> None:
        """Dispatch what has happened. For a task that has just let others run, and would otherwise wait.

        Not while another batch is dispatched, which yields: what that says of a number that is somebody else's by
        then would be believed.
        """
        over = monotonic() + _SLICE
        while not (self._dispatching or self.epoll.closed) and self._glance > 0:
            events = self.epoll.poll(0, _PIECE)
            self._glance -= len(events)
            self.batch += 1
            for descriptor, mask in events:
                pollable = self.registered.get(descriptor)
                if pollable is not None and pollable.batch != self.batch:
                    pollable.dispatch(mask)
            if len(events) < _PIECE or monotonic() > over:
                return

    async def run(self, scope: CancelScope) -> None:
        """Dispatch events until `scope` is cancelled; then tell everybody that nothing more will come."""
        try:
            with scope:
                while True:
                    self.rounds += 1
                    looked, self._glance = self._glance < _GLANCE, _GLANCE
                    if events := self.epoll.poll(0) or await self._wait(looked):
                        self.batch += 1
                        await self._dispatch(events)
        finally:
            for pollable in list(self.registered.values()):
                pollable.abandoned()
            self.epoll.close()

    async def _wait(self, looked: bool) -> list[tuple[int, int]]:
        """Let others run until there are events; return them, or nothing if they have to be asked for."""
        if looked:  # it is not silence, only that tasks were faster
            await self._yield()
            return []

        began = monotonic()
        if self._alone and self._hope >= 0:
            while self._yielded_at - began < _PATIENCE:
                await self._yield()
                if events := self.epoll.poll(0):
                    self.rounds += PROMPT
                    return events
            self._hope = -_DOUBT

        await wait_readable(self.epoll.fileno())
        self.rounds += PROMPT
        self._yielded_at = monotonic()
        self._hope = self._hope + 1 if self._yielded_at - began < 2 * _PATIENCE else min(self._hope, -1)
        return []

    async def _dispatch(self, events: list[tuple[int, int]]) -> None:
        woken = False
        self._alone, self._speaker = len(events) == 1 and events[0][0] == self._speaker, events[0][0]
        batch, registered = self.batch, self.registered
        self._dispatching = True
        for descriptor, mask in events:
            pollable = registered.get(descriptor)
            # Numbers are reused at once: one registered since this batch was taken is somebody else, to whom
            # these events never happened. What happened to *it* the next batch will say.
            if pollable is not None and pollable.batch != batch and pollable.dispatch(mask):
                woken = True
            elif monotonic() - self._yielded_at > _SLICE:
                await self._yield()

        self._dispatching = False
        if woken:
            await self._yield()

    async def _yield(self) -> None:
        await checkpoint()
        self._yielded_at = monotonic()


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
            while turn():
                registration.may_read = False
                await registration.readable()
        finally:
            await registration.aclose()
        return

    paused = Event()

    def on_event() -> None:
        if not turn():
            watch.pause()
            paused.set()

    watch = poller.watch(sock, on_event)
    try:
        await paused.wait()
    finally:
        watch.pause()


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

"""A `Poller` for an event loop that has nothing else to do, such as that of a load generator.

It waits in epoll_wait(2) itself, and enters the event loop every few milliseconds only. So an event costs no pass
of the loop, and a timer is equally exact on each backend. A callback can defer work until all events of a batch are
dispatched.
"""

from __future__ import annotations

__all__ = ("ExclusivePoller", "Resumable")

from time import perf_counter_ns
from typing import Protocol

from anyio import CancelScope

from anyecho.net.poller import Poller
from anyecho.net.readiness import Watch
from anyecho.net.timer import open_timerfd

#: Nanoseconds of one turn. A signal, or a task that sleeps, is late by as much.
_TURN = 4_000_000
#: Seconds of one wait without a timerfd.
_WAIT = 0.002
#: Maximum events of one epoll_wait(2).
_BATCH = 128


class Resumable(Protocol):
    """Has work to do after a batch of events. Its method must not raise."""

    def resume(self) -> None: ...


class ExclusivePoller(Poller):
    """Other tasks of its loop run every 4 ms."""

    def __init__(self) -> None:
        super().__init__()
        #: Objects to resume after the current batch of events, in order.
        self.deferred: list[Resumable] = []
        #: Ends the last wait of a turn. A timeout of every wait would cost 2 to 4 us of CPU time each.
        self._timer = open_timerfd()
        if self._timer is not None:
            Watch(self, self._timer.descriptor, lambda: None)

    def turn(self) -> bool:
        registered, poll, deferred = self.registered, self.epoll.poll, self.deferred
        end = perf_counter_ns() + _TURN
        if self._timer is not None:
            self._timer.set(end)
        wait = _WAIT if self._timer is None else None
        while perf_counter_ns() < end and (events := poll(wait, _BATCH)):
            self.batch = batch = self.batch + 1
            for descriptor, mask in events:
                pollable = registered.get(descriptor)
                if pollable is not None and pollable.batch != batch:
                    pollable.dispatch(mask)
            for each in deferred:
                each.resume()
            deferred.clear()

        return True

    async def run(self, scope: CancelScope) -> None:
        try:
            await super().run(scope)
        finally:
            if self._timer is not None:
                self._timer.close()

"""A `Poller` for an event loop that has nothing else to do, such as that of a load generator.

It waits in epoll_wait(2) itself, and enters the event loop every few milliseconds only. So an event costs no pass
of the loop, and a timer is equally exact on each backend. A callback can defer work until all events of a batch are
dispatched.
"""

from __future__ import annotations

__all__ = ("ExclusivePoller", "Resumable")

from time import monotonic
from typing import Protocol

from anyecho.net.poller import Poller

#: Seconds of one wait, and of one turn. A signal, or a task that sleeps, is late by as much.
_WAIT, _TURN = 0.002, 0.004
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

    def turn(self) -> bool:
        registered, poll, deferred = self.registered, self.epoll.poll, self.deferred
        end = monotonic() + _TURN
        while monotonic() < end and (events := poll(_WAIT, _BATCH)):
            self.batch = batch = self.batch + 1
            for descriptor, mask in events:
                pollable = registered.get(descriptor)
                if pollable is not None and pollable.batch != batch:
                    pollable.dispatch(mask)
            for each in deferred:
                each.resume()
            deferred.clear()

        return True

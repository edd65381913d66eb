"""How many connections there may be, and for how long one may be silent."""

from __future__ import annotations

__all__ = ("ConnectionLimit", "Reaper", "raise_descriptor_limit", "within_descriptors")

import math
import resource
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from anyio import Event, sleep
from anyio.lowlevel import checkpoint

#: Descriptors kept for all that is no connection: listeners, the event loop's own, log files, a resolver.
_RESERVE = 64
#: A connection is looked at this often in the time that it may be idle.
_LOOKS = 8
#: More often than this would cost more than the limit is worth.
_LEAST_INTERVAL = 0.01
#: Connections looked at before other tasks have their turn.
_STEP = 256


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of descriptors to the hard one; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS: the hard limit may be more than its kernel allows
            return soft

    return hard


def within_descriptors(max_connections: int, descriptors: int) -> int:
    """`max_connections`, but never more than leaves 64 descriptors; below 128 of them, than half."""
    if descriptors == resource.RLIM_INFINITY:
        return max_connections

    return max(1, min(max_connections, max(descriptors - _RESERVE, descriptors // 2)))


@dataclass(eq=False)
class ConnectionLimit:
    """A gate before accept: open while fewer than `limit` connections are held."""

    limit: int
    held: int = field(init=False, default=0)
    _freed: Event = field(init=False, default_factory=Event)

    def is_open(self) -> bool:
        return self.held < self.limit

    async def opened(self) -> None:
        while not self.is_open():
            await self._freed.wait()

    def take(self) -> None:
        self.held += 1

    def give_back(self) -> None:
        self.held -= 1
        if self.held == self.limit - 1:
            self._freed.set()
            self._freed = Event()


class Reapable(Protocol):
    """What a reaper looks at, and leaves its notes on."""

    reason: str
    seen: int
    still: int

    @property
    def totals(self) -> tuple[int, int]: ...

    def end(self, reason: str) -> None: ...


class Reaper:
    """Ends those of `connections` on which nothing has moved for `idle_timeout` seconds, at most 1/8 late.

    It compares totals every now and then, so that an echo stamps no time. Looks are counted, not seconds: a process
    that was stopped, or stuck, for longer than that finds the data that came meanwhile before it judges.
    """

    def __init__(self, connections: Collection[Reapable], idle_timeout: float) -> None:
        self._connections = connections
        self._idle_timeout = idle_timeout

    async def run(self) -> None:
        """Reap until cancelled."""
        if math.isinf(self._idle_timeout):
            return

        while True:
            await sleep(max(self._idle_timeout / _LOOKS, _LEAST_INTERVAL))
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        # A function of its own, or the last connection would be kept until the next look.
        for number, connection in enumerate(list(self._connections), start=1):
            self._look_at(connection)
            if number % _STEP == 0:
                await checkpoint()

    def _look_at(self, connection: Reapable) -> None:
        if (moved := sum(connection.totals)) != connection.seen:
            connection.seen, connection.still = moved, 0
            return

        connection.still += 1
        if connection.still >= _LOOKS and not connection.reason:
            connection.end("idle")

"""How many connections there may be, and for how long one may be silent."""

from __future__ import annotations

__all__ = ("ConnectionLimit", "Reaper", "raise_descriptor_limit", "within_descriptors")

import math
import resource
from collections import OrderedDict
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from anyio import Event, sleep
from anyio.lowlevel import checkpoint

#: Descriptors kept for all that is no connection: listeners, the event loop's own, log files, a resolver.
_RESERVE = 64
#: A connection is looked at this often in the time that it may be idle, so it is closed at most 1/8 late.
_LOOKS = 8
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
    """What a reaper watches: it says how many bytes it has moved, and can be ended for a reason."""

    def moved(self) -> int: ...

    def end(self, reason: str) -> None: ...


class Reaper:
    """Ends connections on which nothing has moved for `idle_timeout` seconds.

    It compares totals every now and then, so that an echo stamps no time. All are looked at in the same interval,
    hence the one due first is the first in line, and a line will do for a heap.
    """

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._interval = idle_timeout / _LOOKS
        #: connection -> (when to look next, bytes it had moved, since when it has not moved more)
        self._line: OrderedDict[Reapable, tuple[float, int, float]] = OrderedDict()

    def watch(self, connection: Reapable) -> None:
        now = monotonic()
        self._line[connection] = (now + self._interval, 0, now)

    def forget(self, connection: Reapable) -> None:
        self._line.pop(connection, None)

    async def run(self) -> None:
        """Reap until cancelled."""
        if math.isinf(self._idle_timeout):
            return

        while True:
            await sleep(min(self._interval, 1.0))
            while self._look_at_some():
                await checkpoint()

    def _look_at_some(self) -> bool:
        """Look at those that are due; return whether there may be more of them."""
        now = monotonic()
        for _ in range(_STEP):
            connection, (due, moved, since) = next(iter(self._line.items()), (None, (math.inf, 0, now)))
            if connection is None or due > now:
                return False

            if (total := connection.moved()) != moved:
                moved, since = total, now
            elif now - since >= self._idle_timeout:
                self.forget(connection)
                connection.end("idle")
                continue

            self._line[connection] = (now + self._interval, moved, since)
            self._line.move_to_end(connection)

        return True

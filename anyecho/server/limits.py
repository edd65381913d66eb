"""How many connections there may be, of all and of one address; how long each, and how slow.

What each may send, and how fast, is the engines': they have to stop reading for that.
"""

from __future__ import annotations

__all__ = ("ConnectionLimit", "Reaper", "SourceLimit", "cap_by_fd_limit", "raise_descriptor_limit")

import math
import resource
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio import Event
from anyio.lowlevel import checkpoint

from anyecho.clock import INTERVALS, sleep_running
from anyecho.net.names import source_key
from anyecho.server.options import ServeOptions

#: Descriptors kept for all that is no connection: listeners, the event loop's own, log files, a resolver.
_RESERVED_DESCRIPTORS = 64
#: More often than this would cost more than a limit is worth.
_MIN_INTERVAL = 0.01
#: Connections looked at before other tasks have their turn.
_YIELD_EVERY = 256


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of descriptors to the hard one; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS: the hard limit may be more than its kernel allows
            return soft

    return hard


def cap_by_fd_limit(max_connections: int, descriptors: int) -> int:
    """`max_connections`, but never more than leaves 64 descriptors; below 128 of them, than half."""
    if descriptors == resource.RLIM_INFINITY:
        return max_connections

    return max(1, min(max_connections, max(descriptors - _RESERVED_DESCRIPTORS, descriptors // 2)))


@dataclass(eq=False)
class ConnectionLimit:
    """A gate before accept: open while fewer than `limit` connections are held, and always if none is to `wait`.

    `within` another one, it is closed while that is.
    """

    limit: int
    wait: bool = True
    parent: ConnectionLimit | None = None
    held: int = field(init=False, default=0)
    _freed: Event = field(init=False, default_factory=Event)

    def may_accept(self) -> bool:
        return not (self.wait and self.is_reached()) and (self.parent is None or self.parent.may_accept())

    def is_reached(self) -> bool:
        return self.held >= self.limit

    async def wait_may_accept(self) -> None:
        while not self.may_accept():
            if self.parent is not None:
                await self.parent.wait_may_accept()
            if self.is_reached():
                await self._freed.wait()

    def acquire(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1
        if self.held == self.limit - 1:
            self._freed.set()
            self._freed = Event()


class SourceLimit:
    """At most `limit` concurrent connections per source: an IPv4 address or an IPv6 /64.

    0 is no limit. Peers on Unix sockets have no address and are not limited.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str | bytes] = Counter()
        self._holders: dict[object, str | bytes] = {}

    def acquire(self, holder: object, sockaddr: Any) -> bool:
        """Count `holder`, connected from `sockaddr`, until `release`; return false if the limit is reached."""
        if not self._limit or not isinstance(sockaddr, tuple):
            return True

        address = source_key(sockaddr[0])
        if self._held[address] >= self._limit:
            return False

        self._held[address] += 1
        self._holders[holder] = address
        return True

    def release(self, holder: object) -> None:
        if (address := self._holders.pop(holder, None)) is not None:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]


class Reapable(Protocol):
    """What a reaper looks at, and leaves its notes on."""

    reason: str
    last_total: int
    idle_checks: int
    checks: int
    window_start: int

    @property
    def totals(self) -> tuple[int, int]: ...

    def request_close(self, reason: str) -> None: ...


class Reaper:
    """Ends those of `connections` that are over one of the limits that take time to be reached.

    It compares totals every now and then, so that an echo stamps no time: at least 8 times in the shortest of the
    times allowed, by an eighth of which it may be late. Looks are counted, not seconds, and a look that is late
    waits for an eighth more: a process that was stopped, or stuck, reads what came meanwhile before it judges.
    """

    def __init__(self, connections: Collection[Reapable], options: ServeOptions) -> None:
        self._connections = connections
        window = options.min_rate_window if options.min_rate else math.inf
        times = (options.idle_timeout, options.write_timeout, options.max_duration, window)
        self._interval = max(min(times) / INTERVALS, _MIN_INTERVAL)
        #: How many looks each of the times is.
        self._idle, self._write, self._duration, self._window = map(self._checks_in, times)
        self._min_bytes_per_window = 0.0 if math.isinf(window) else options.min_rate * window

    def _checks_in(self, seconds: float) -> float:
        return seconds if math.isinf(seconds) else math.ceil(seconds / self._interval - 1e-6)

    async def run(self) -> None:
        """Reap until cancelled."""
        if math.isinf(self._interval):
            return

        while True:
            await sleep_running(self._interval)
            await self._check_all()

    async def _check_all(self) -> None:
        # A function of its own, or the last connection would be kept until the next look.
        for number, connection in enumerate(list(self._connections), start=1):
            if reason := self._check(connection):
                connection.request_close(reason)
            if number % _YIELD_EVERY == 0:
                await checkpoint()

    def _check(self, connection: Reapable) -> str:
        """Note what has moved since the last look; return why it is enough, if it is and was not before."""
        received, sent = connection.totals
        moved = received + sent != connection.last_total
        connection.last_total = received + sent
        connection.idle_checks = 0 if moved else connection.idle_checks + 1
        slow = self._is_slow(connection, sent)
        connection.checks += 1
        if connection.reason:
            return ""
        if connection.checks > self._duration:
            return "duration"
        # What it has not taken yet is room that it owes us.
        if received > sent and connection.idle_checks >= self._write:
            return "write"

        if connection.idle_checks >= self._idle:
            return "idle"

        return "rate" if slow else ""

    def _is_slow(self, connection: Reapable, sent: int) -> bool:
        """Whether a window ends with this look in which it took too little. The first look begins the first."""
        if connection.checks % self._window:
            return False

        took = sent - connection.window_start
        connection.window_start = sent
        return connection.checks > 0 and took < self._min_bytes_per_window

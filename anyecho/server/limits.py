"""Limits for the number of connections, in total and per source, and the reaper of idle or slow connections.

`max_bytes` and `rate_limit` are enforced by the engines, which stop reading.
"""

from __future__ import annotations

__all__ = ("ConnectionLimit", "Reaper", "SourceLimit", "cap_by_fd_limit", "descriptor_limit")

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
from anyecho.units import or_infinite

#: Descriptors reserved for all other uses: listeners, the event loop, log files, a resolver.
_RESERVED_DESCRIPTORS = 64
#: Minimum seconds between two checks: more frequent checks cost too much processor time.
_MIN_INTERVAL = 0.01
#: Connections checked before a yield to other tasks.
_YIELD_EVERY = 256


def descriptor_limit() -> int:
    """Return the soft descriptor limit of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def cap_by_fd_limit(max_connections: int, descriptors: int) -> int:
    """Return `max_connections`, or the most that `descriptors` allow: all but 64, below 128 half of them."""
    if descriptors == resource.RLIM_INFINITY:
        return max_connections

    return max(1, min(max_connections, max(descriptors - _RESERVED_DESCRIPTORS, descriptors // 2)))


@dataclass(eq=False)
class ConnectionLimit:
    """Counts connections, and stops accepting while `limit` of them are held.

    Without `wait` it never stops accepting: the caller closes connections over the limit. It also stops accepting
    while `parent` does.
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

    None: no limit. Peers on Unix sockets have no IP address and are not limited.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._held: Counter[str | bytes] = Counter()
        self._holders: dict[object, str | bytes] = {}

    def acquire(self, holder: object, sockaddr: Any) -> bool:
        """Count `holder`, connected from `sockaddr`, until `release`; return false if the limit is reached."""
        if self._limit is None or not isinstance(sockaddr, tuple):
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
    """A connection for the reaper, which keeps its counters there; see `Connection`."""

    reason: str
    last_total: int
    idle_checks: int
    checks: int
    window_start: int

    @property
    def totals(self) -> tuple[int, int]: ...

    def request_close(self, reason: str) -> None: ...


class Reaper:
    """Closes those of `connections` that are idle, slow or too old.

    It compares byte totals at intervals, so that no echo reads a clock. An interval is an eighth of the shortest
    limit, and a close may be late by an interval. Limits are counted in checks, not in seconds, and a late check is
    delayed by another interval: after a stop of the process, input that arrived meanwhile is read before the check.
    """

    def __init__(self, connections: Collection[Reapable], options: ServeOptions) -> None:
        self._connections = connections
        window = or_infinite(options.min_rate_window if options.min_rate else None)
        limits = (options.idle_timeout, options.write_timeout, options.max_duration, window)
        times = [*map(or_infinite, limits)]
        self._interval = max(min(times) / INTERVALS, _MIN_INTERVAL)
        #: Each limit as a number of checks.
        self._idle, self._write, self._duration, self._window = map(self._checks_in, times)
        self._min_bytes_per_window = 0.0 if math.isinf(window) else (options.min_rate or 0.0) * window

    def _checks_in(self, seconds: float) -> float:
        return seconds if math.isinf(seconds) else math.ceil(seconds / self._interval - 1e-6)

    async def run(self) -> None:
        """Check all connections at intervals, until cancelled."""
        if math.isinf(self._interval):
            return

        while True:
            await sleep_running(self._interval)
            await self._check_all()

    async def _check_all(self) -> None:
        # A function of its own: a loop variable in `run` would keep the last connection until the next check.
        for number, connection in enumerate(list(self._connections), start=1):
            if reason := self._check(connection):
                connection.request_close(reason)
            if number % _YIELD_EVERY == 0:
                await checkpoint()

    def _check(self, connection: Reapable) -> str:
        """Update the counters of `connection`; return the reason to close it, or "" if it stays or is closing."""
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
        # Echo is pending, and the kernel has accepted none of it.
        if received > sent and connection.idle_checks >= self._write:
            return "write"

        if connection.idle_checks >= self._idle:
            return "idle"

        return "rate" if slow else ""

    def _is_slow(self, connection: Reapable, sent: int) -> bool:
        """Whether a rate window ends now and too few bytes were sent in it. The first check starts a window."""
        if connection.checks % self._window:
            return False

        sent_in_window = sent - connection.window_start
        connection.window_start = sent
        return connection.checks > 0 and sent_in_window < self._min_bytes_per_window

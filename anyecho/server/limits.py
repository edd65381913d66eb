"""Limits for the number of connections, in total and per source."""

from __future__ import annotations

__all__ = ("ConnectionLimit", "SharedConnectionLimit", "SourceLimit", "connection_limit")

import resource
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from anyio import Event, sleep

from anyecho.net.names import source_key
from anyecho.net.shared_counts import Row
from anyecho.server.options import ServeOptions

#: Descriptors reserved for all other uses: listeners, the event loop, log files, a resolver.
_RESERVED_DESCRIPTORS = 64
#: Seconds for which a new connection is left to a process with fewer, and connections to accept afterwards.
_LEAVE_SECONDS, _GRANT = 0.002, 64


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
        return self._has_room() and (self.parent is None or self.parent.may_accept())

    def _has_room(self) -> bool:
        return not (self.wait and self.is_reached())

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


class SharedConnectionLimit(ConnectionLimit):
    """The limit of one of several processes that accept on the same sockets.

    The kernel wakes all of them, and tends to the same one first. So a process with more connections than another
    leaves a new connection to it, for a moment.
    """

    def __init__(self, limit: int, row: Row, *, wait: bool) -> None:
        super().__init__(limit, wait=wait)
        self._row = row
        #: Connections that may be accepted although another process has fewer.
        self._granted = 0

    def may_accept(self) -> bool:
        if not super().may_accept():
            return False
        if not self._is_ahead():
            self._granted = 0
            return True

        self._granted -= 1
        return self._granted >= 0

    async def wait_may_accept(self) -> None:
        if not self._has_room():
            await super().wait_may_accept()
        elif self._is_ahead():
            least = self._row.least_other()
            await sleep(_LEAVE_SECONDS)
            # The other one has not taken it: it is busy, and may be stuck.
            self._granted = 1 if self._row.least_other() != least else _GRANT

    def acquire(self) -> None:
        super().acquire()
        self._row.publish(self.held)

    def release(self) -> None:
        super().release()
        self._row.publish(self.held)

    def _is_ahead(self) -> bool:
        least = self._row.least_other()
        return least is not None and self.held > least


def connection_limit(options: ServeOptions) -> ConnectionLimit:
    """Return the limit in `options`, or the most that the soft limit of descriptors allows.

    That is all descriptors but 64, or below 128 half of them.
    """
    limit, descriptors = options.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors != resource.RLIM_INFINITY:
        limit = max(1, min(limit, max(descriptors - _RESERVED_DESCRIPTORS, descriptors // 2)))
    wait, row = options.over_limit == "wait", options.shared_row
    return SharedConnectionLimit(limit, row, wait=wait) if row else ConnectionLimit(limit, wait)


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

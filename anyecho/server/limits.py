"""Limits for the number of connections, in total and per source."""

from __future__ import annotations

__all__ = ("ConnectionLimit", "SourceLimit", "cap_by_fd_limit", "descriptor_limit")

import resource
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from anyio import Event

from anyecho.net.names import source_key

#: Descriptors reserved for all other uses: listeners, the event loop, log files, a resolver.
_RESERVED_DESCRIPTORS = 64


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

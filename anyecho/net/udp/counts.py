"""Datagram counters and the guard protocol, shared by `recvfrom` and `mmsg`."""

from __future__ import annotations

__all__ = ("DatagramCounts", "Guard", "Source")

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

#: Socket address of a peer, as recvfrom(2) returns it: host, port and, for IPv6, flow label and scope.
Source: TypeAlias = tuple[Any, ...]


@dataclass(eq=False)
class DatagramCounts:
    """Counters of echoed and dropped datagrams. `dropped` is by the guard's reasons, and by ``fault``;
    `errors` by errno name.

    ``EAGAIN`` counts replies for which the send buffer had no room.
    """

    received: int = 0
    echoed: int = 0
    bytes_received: int = 0
    bytes_echoed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def count_error(self, exc: OSError) -> None:
        self.errors[errno.errorcode.get(exc.errno or 0, str(exc.errno))] += 1

    def count_send_error(self, exc: OSError, source: Source, guard: Guard) -> None:
        """Count `exc`, for which there is no reply to `source`."""
        # SO_BROADCAST is never set, so the kernel refuses to send to the broadcast address of each local network.
        if exc.errno == errno.EACCES:
            guard.refuse(source)
        else:
            self.count_error(exc)


class Guard(Protocol):
    """Decides which datagrams get a reply."""

    def begin_batch(self) -> None:
        """Begin a batch of datagrams. One reading of the clock may serve all of them."""

    def admit(self, source: Source) -> bool:
        """Return whether to reply to `source`. If not, the guard has counted the reason."""

    def refuse(self, source: Source) -> None:
        """Count a drop of an admitted datagram that was sent to or from a broadcast or multicast address."""

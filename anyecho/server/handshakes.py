"""Who shakes hands: how many at a time, and for how long.

Whoever does has proved nothing yet. What a handshake is, a connection knows.
"""

from __future__ import annotations

__all__ = ("Handshakes",)

import logging
import math
from typing import Protocol

from anyio import Lock
from anyio.lowlevel import checkpoint

from anyecho.clock import LOOKS, sleep_running
from anyecho.server.limits import ConnectionLimit
from anyecho.throttled_log import ThrottledLog

logger = logging.getLogger("anyecho.server")

#: One connection in so many may be one that shakes hands, and so cannot take the places of all others; who comes
#: besides waits in the backlog, at TLS's listeners only.
_LIMIT_DIVISOR = 4
#: Looked at before other tasks have their turn.
_YIELD_EVERY = 64


class Endable(Protocol):
    """What takes part."""

    def end(self, reason: str) -> None: ...


class Handshakes:
    """Those of a server that are not over. Each may take `timeout` seconds, and an eighth of that besides."""

    def __init__(self, connections: ConnectionLimit, timeout: float) -> None:
        self._timeout = timeout
        #: How often the limit was checked before each began: no handshake sets a timer, or reads a clock.
        self._checks_at_start: dict[Endable, float] = {}
        self._checks = 0
        #: The gate of TLS's listeners.
        self.gate = ConnectionLimit(max(1, connections.limit // _LIMIT_DIVISOR), within=connections)
        #: For tasks, one of which at a time takes a step, and the loop a round after it: a hundred that have come
        #: at once would keep everybody else waiting for as long as they take together.
        self.step_lock = Lock(fast_acquire=True)
        #: Tells of those that failed by what the peer said: most strangers of the Internet do not speak TLS.
        self.failure_log = ThrottledLog(logger)

    def __len__(self) -> int:
        return len(self._checks_at_start)

    def begin(self, connection: Endable) -> None:
        self._checks_at_start[connection] = self._checks
        self.gate.take()

    def reserve(self, connection: Endable) -> None:
        """It is going to begin, and has its place already. How long until then is somebody else's limit."""
        self._checks_at_start[connection] = math.inf
        self.gate.take()

    def finish(self, connection: Endable) -> None:
        """It is over, however it ended. May be called again, or of one that never began."""
        if self._checks_at_start.pop(connection, None) is not None:
            self.gate.give_back()

    async def run(self) -> None:
        """End those that take too long, until cancelled."""
        if math.isinf(self._timeout):
            return

        while True:
            await sleep_running(self._timeout / LOOKS)
            self._checks += 1
            # Not those that began within the first of so many intervals.
            await self._end_expired(self._checks - LOOKS - 1)

    async def _end_expired(self, oldest: float) -> None:
        # A function of its own, or the last connection would be kept until the next look.
        for number, connection in enumerate(list(self._checks_at_start), start=1):
            # It may have finished while others had their turn.
            if self._checks_at_start.get(connection, math.inf) <= oldest:
                connection.end("handshake")
            if number % _YIELD_EVERY == 0:
                await checkpoint()

"""Limits for TLS handshakes: how many run at the same time, and how long each may take.

A peer is unverified until its handshake is complete. The handshake itself is performed by the connection.
"""

from __future__ import annotations

__all__ = ("Handshakes",)

import logging
import math
from typing import Protocol

from anyio import Lock
from anyio.lowlevel import checkpoint

from anyecho.clock import INTERVALS, sleep_running
from anyecho.server.limits import ConnectionLimit
from anyecho.throttle import ThrottledLog

logger = logging.getLogger("anyecho.server")

#: At most a quarter of the connection limit may be handshakes, so that they cannot use up the limit. Further
#: connections wait in the accept backlog of the TLS listeners.
_LIMIT_DIVISOR = 4
#: Handshakes checked before a yield to other tasks.
_YIELD_EVERY = 64


class Closable(Protocol):
    """A connection in its handshake, or in its PROXY header before the handshake."""

    def request_close(self, reason: str) -> None: ...


class Handshakes:
    """The unfinished handshakes of a server. Each is ended after `timeout` seconds, or up to an eighth later."""

    def __init__(self, connections: ConnectionLimit, timeout: float) -> None:
        self._timeout = timeout
        #: Number of checks before each handshake began. So no handshake needs a timer or a clock reading.
        self._checks_at_start: dict[Closable, float] = {}
        self._checks = 0
        #: The accept limit of the TLS listeners.
        self.accept_limit = ConnectionLimit(max(1, connections.limit // _LIMIT_DIVISOR), parent=connections)
        #: Held by a task during one step of its handshake and one pass of the event loop. Without it, a hundred
        #: simultaneous handshakes would block all other tasks for their total time.
        self.step_lock = Lock(fast_acquire=True)
        #: Throttled log of failed handshakes: most scanners on the Internet do not speak TLS.
        self.failure_log = ThrottledLog(logger)

    def __len__(self) -> int:
        return len(self._checks_at_start)

    def begin(self, connection: Closable) -> None:
        self._checks_at_start[connection] = self._checks
        self.accept_limit.acquire()

    def reserve(self, connection: Closable) -> None:
        """Count a handshake that begins later, after the PROXY header. It has no time limit before `begin`."""
        self._checks_at_start[connection] = math.inf
        self.accept_limit.acquire()

    def finish(self, connection: Closable) -> None:
        """Stop counting a handshake that completed or failed. No effect if `connection` is not counted."""
        if self._checks_at_start.pop(connection, None) is not None:
            self.accept_limit.release()

    async def run(self) -> None:
        """End handshakes that take too long, until cancelled."""
        if math.isinf(self._timeout):
            return

        while True:
            await sleep_running(self._timeout / INTERVALS)
            self._checks += 1
            # Minus one: the interval in which a handshake began was not a whole one.
            await self._close_expired(self._checks - INTERVALS - 1)

    async def _close_expired(self, oldest: float) -> None:
        # A function of its own: a loop variable in `run` would keep the last connection until the next check.
        for number, connection in enumerate(list(self._checks_at_start), start=1):
            # It may have finished during the checkpoint.
            if self._checks_at_start.get(connection, math.inf) <= oldest:
                connection.request_close("handshake")
            if number % _YIELD_EVERY == 0:
                await checkpoint()

"""Close connections over a time limit: idle, slow or old ones, and those that stay too long in an early phase.

Limits are counted in checks, not in seconds, so that no echo and no handshake reads a clock or needs a timer. A
check that is late is delayed by another interval: after a stop of the process, input that arrived meanwhile is read
before the check.
"""

from __future__ import annotations

__all__ = ("PhaseTimeout", "Reaper")

import math
from abc import ABC, abstractmethod
from collections.abc import Collection

from anyio import Event
from anyio.lowlevel import checkpoint

from anyecho.clock import INTERVALS, sleep_running
from anyecho.server.connection import Connection
from anyecho.server.options import ServeOptions
from anyecho.server.phases import CLOSING
from anyecho.server.reasons import CloseReason
from anyecho.units import or_infinite

#: Minimum seconds between two checks: more frequent checks cost too much processor time.
_MIN_INTERVAL = 0.01
#: Connections checked before a yield to other tasks.
_YIELD_EVERY = 64


class Sweep(ABC):
    """Checks `connections` at intervals of an eighth of `seconds`. A close may be late by an interval."""

    def __init__(self, connections: Collection[Connection], seconds: float) -> None:
        self._connections = connections
        self._interval = max(seconds / INTERVALS, _MIN_INTERVAL)

    async def run(self) -> None:
        """Check all connections at intervals, until cancelled."""
        while not math.isinf(self._interval):
            await self._sleep()
            await self._check_all()

    async def _sleep(self) -> None:
        await sleep_running(self._interval)

    async def _check_all(self) -> None:
        # A function of its own: a loop variable in `run` would keep the last connection until the next check.
        for number, connection in enumerate(list(self._connections), start=1):
            if reason := self._check(connection):
                connection.request_close(reason)
            if number % _YIELD_EVERY == 0:
                await checkpoint()

    @abstractmethod
    def _check(self, connection: Connection) -> CloseReason | None:
        """Count a check of `connection`; return the reason to close it, or None if it stays or is closing."""


class PhaseTimeout(Sweep):
    """Closes connections for `reason` that stay in a phase for `seconds`."""

    def __init__(self, seconds: float, reason: CloseReason) -> None:
        #: The checks of each connection in the phase; one that leaves the phase is removed.
        self.checks: dict[Connection, int] = {}
        self._reason = reason
        self._entered = Event()
        super().__init__(self.checks, seconds)

    def enter(self, connection: Connection) -> None:
        self.checks[connection] = 0
        self._entered.set()

    async def _sleep(self) -> None:
        if not self.checks:
            self._entered = Event()
            await self._entered.wait()
        await super()._sleep()

    def _check(self, connection: Connection) -> CloseReason | None:
        checks = self.checks.get(connection)
        if checks is None:  # it left the phase during a checkpoint
            return None

        self.checks[connection] = checks + 1
        # The interval in which it entered the phase was not a whole one.
        return self._reason if checks >= INTERVALS else None


class Reaper(Sweep):
    """Closes those of `connections` that are idle, slow or too old, in every phase.

    It compares byte totals at intervals of an eighth of the shortest limit.
    """

    def __init__(self, connections: Collection[Connection], options: ServeOptions) -> None:
        window = or_infinite(options.min_rate_window if options.min_rate else None)
        times = [*map(or_infinite, (options.idle_timeout, options.write_timeout, options.max_duration, window))]
        super().__init__(connections, min(times))
        #: Each limit as a number of checks.
        self._idle, self._write, self._duration, self._window = map(self._checks_in, times)
        self._min_bytes_per_window = 0.0 if math.isinf(window) else (options.min_rate or 0.0) * window

    def _checks_in(self, seconds: float) -> float:
        return seconds if math.isinf(seconds) else math.ceil(seconds / self._interval - 1e-6)

    def _check(self, connection: Connection) -> CloseReason | None:
        received, sent = connection.totals
        moved = received + sent != connection.last_total
        connection.last_total = received + sent
        connection.idle_checks = 0 if moved else connection.idle_checks + 1
        slow = self._is_slow(connection, sent)
        connection.checks += 1
        if connection.phase >= CLOSING:
            return None
        if connection.checks > self._duration:
            return CloseReason.DURATION
        if connection.stalled_checks() >= self._write:
            return CloseReason.WRITE
        if connection.idle_checks >= self._idle:
            return CloseReason.IDLE

        return CloseReason.RATE if slow else None

    def _is_slow(self, connection: Connection, sent: int) -> bool:
        """Whether a rate window ends now and too few bytes were sent in it. The first check starts a window."""
        if connection.checks % self._window:
            return False

        sent_in_window = sent - connection.window_start
        connection.window_start = sent
        return connection.checks > 0 and sent_in_window < self._min_bytes_per_window

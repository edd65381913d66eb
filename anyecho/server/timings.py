"""Durations of connections and handshakes, and the lag of the event loop, counted in histograms.

Nothing is measured until `Server.monitor` is called: a connection then reads the clock twice. No echo does.
"""

from __future__ import annotations

__all__ = ("Timings",)

from bisect import bisect_left
from time import monotonic

from anyio import current_time, sleep

from anyecho.server.phases import CLOSED, HANDSHAKE, OPEN, Phase
from anyecho.server.totals import CONNECTION_BOUNDS, HANDSHAKE_BOUNDS, LAG_BOUNDS, Histogram

#: Seconds between two measurements of the lag. Each wakes the process, for 0.05 ms.
_LAG_INTERVAL = 0.25


class _Durations:
    """The buckets of a `Histogram`, while it is being counted."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def read(self) -> Histogram:
        return Histogram(bounds=self._bounds, counts=tuple(self._counts), seconds=self._seconds)


class Timings:
    """Measures the connections that begin after it was made. They may be any hashable objects."""

    def __init__(self) -> None:
        self.connections = _Durations(CONNECTION_BOUNDS)
        self.handshakes = _Durations(HANDSHAKE_BOUNDS)
        self.loop_lag = _Durations(LAG_BOUNDS)
        self._accepted_at: dict[object, float] = {}
        self._handshake_at: dict[object, float] = {}

    def begin(self, connection: object) -> None:
        self._accepted_at[connection] = monotonic()

    def advance(self, connection: object, phase: Phase) -> None:
        """Observe what ends as `connection` advances to `phase`. A handshake counts if it succeeds."""
        if phase is HANDSHAKE:
            self._handshake_at[connection] = monotonic()
        elif (began := self._handshake_at.pop(connection, None)) is not None and phase is OPEN:
            self.handshakes.observe(monotonic() - began)
        if phase is CLOSED and (began := self._accepted_at.pop(connection, None)) is not None:
            self.connections.observe(monotonic() - began)

    async def measure_loop_lag(self) -> None:
        """Measure at intervals by how much a sleep is longer than it should be, until cancelled."""
        while True:
            due = current_time() + _LAG_INTERVAL
            await sleep(_LAG_INTERVAL)
            self.loop_lag.observe(max(current_time() - due, 0.0))

"""What a running server reports: totals, whether it is ready, and its peers.

Thousands of connections are read in slices, so that echoes go on between two slices.
"""

from __future__ import annotations

__all__ = ("Monitor",)

from collections.abc import AsyncIterator
from dataclasses import replace

from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.server.admission import Admission
from anyecho.server.connection import Connection
from anyecho.server.listening import Listening
from anyecho.server.stats import Peer, dropped_log_lines
from anyecho.server.timings import Timings
from anyecho.server.totals import DatagramTotals, Totals

#: Connections read before other tasks run: 0.05 ms.
_TOTALS_SLICE = 256
_PEERS_SLICE = 32


class Monitor:
    """Reads the counters of a server, in the thread of its event loop."""

    def __init__(self, admission: Admission, listening: Listening, tasks: TaskGroup) -> None:
        self._admission = admission
        self._listening = listening
        self._timings = admission.timings = Timings()
        tasks.start_soon(self._timings.measure_loop_lag)

    def ready(self) -> bool:
        """Whether the server accepts connections: false from the beginning of a drain."""
        return not self._listening.stopped

    async def totals(self) -> Totals:
        """Return what was counted until now, with the bytes of open connections. No counter ever decreases."""
        await checkpoint()
        # Both at one instant: the bytes of a connection that is closed meanwhile are counted once.
        totals = self._count()
        connections = list(self._admission.connections)
        received, sent = totals.bytes_received, totals.bytes_sent
        for number, connection in enumerate(connections, start=1):
            moved = connection.totals
            received += moved[0]
            sent += moved[1]
            if number % _TOTALS_SLICE == 0:
                await checkpoint()

        return replace(totals, bytes_received=received, bytes_sent=sent)

    async def peers(self) -> AsyncIterator[list[Peer]]:
        """Yield all connected peers in slices, without those in a handshake.

        A slice takes 0.2 ms, and other tasks run before the next one. It is best written as text at once: thousands
        of objects that are kept start a garbage collection, which takes 20 ms beside 5,000 connections.
        """
        connections = list(self._admission.connections)
        for first in range(0, len(connections), _PEERS_SLICE):
            await checkpoint()
            described = map(Connection.peer, connections[first : first + _PEERS_SLICE])
            yield [peer for peer in described if peer is not None]

    def _count(self) -> Totals:
        stats = self._admission.stats
        datagrams = stats.datagrams
        return Totals(
            accepted=stats.accepted,
            open=stats.active,
            closed={**stats.closed},
            bytes_received=stats.bytes_received,
            bytes_sent=stats.bytes_sent,
            accept_errors={**stats.accept_errors},
            tls_failures={**stats.tls_failures},
            datagrams=DatagramTotals(
                received=datagrams.received,
                echoed=datagrams.echoed,
                bytes_received=datagrams.bytes_received,
                bytes_echoed=datagrams.bytes_echoed,
                dropped={**datagrams.dropped},
                errors={**datagrams.errors},
            ),
            connections=self._timings.connections.read(),
            handshakes=self._timings.handshakes.read(),
            loop_lag=self._timings.loop_lag.read(),
            workers_ready=int(self.ready()),
            log_lines_dropped=dropped_log_lines(),
        )

"""What a worker does for its supervisor: report totals, and end when the supervisor has ended."""

from __future__ import annotations

__all__ = ("ORPHAN_LIMIT", "follow", "report_totals")

from anyio import create_task_group, move_on_after, sleep

from anyecho.codec import encode
from anyecho.net.lifeline import Lifeline
from anyecho.server.answers import answer
from anyecho.server.monitor import Monitor
from anyecho.server.server import Server

#: Seconds between two reports: what a killed worker has counted since the last one is lost.
_REPORT_PERIOD = 1.0
#: Seconds that connections may last once the supervisor is gone, and until all are closed. Its successor waits for
#: the addresses.
_ORPHAN_GRACE, ORPHAN_LIMIT = 0.5, 0.75


async def follow(lifeline: Lifeline, server: Server) -> None:
    """Report and answer until cancelled, or until the supervisor is gone: then drain for less than a second."""
    monitor = server.monitor()
    async with create_task_group() as tasks:
        tasks.start_soon(_report_often, lifeline, monitor)
        while (message := await lifeline.receive()) is not None:
            if message.get("ask") == "totals":
                await report_totals(lifeline, monitor)
                await answer(lifeline, message["number"], [], last=True)
            if message.get("ask") == "peers":
                await _report_peers(lifeline, monitor, message["number"])
        tasks.cancel_scope.cancel()

    with move_on_after(ORPHAN_LIMIT):
        await server.drain(_ORPHAN_GRACE)
    server.abort()


async def report_totals(lifeline: Lifeline, monitor: Monitor) -> None:
    """Report what was counted until now, unless the supervisor does not read."""
    lifeline.send({"totals": (await monitor.totals()).to_json()})


async def _report_peers(lifeline: Lifeline, monitor: Monitor, number: int) -> None:
    async for peers in monitor.peers():
        await answer(lifeline, number, encode(peers), last=False)
    await answer(lifeline, number, [], last=True)


async def _report_often(lifeline: Lifeline, monitor: Monitor) -> None:
    while True:
        await report_totals(lifeline, monitor)
        await sleep(_REPORT_PERIOD)

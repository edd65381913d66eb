"""Row 6: a thousand who say nothing, or not enough, and one who does."""

from __future__ import annotations

import time
from typing import Any

from anyecho.measure.options import ConnectOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, dialled, late, milliseconds, served_in
from tests.faults.table import Observed, Scene, injects
from tests.machine import needs_descriptors
from tests.peers import until
from tests.process import TIMEOUT

ATTACKERS = 1000
#: The time that they are allowed. An eighth late is promised; to end a thousand takes a while too.
LIMIT = 0.6
ENDED = late(LIMIT * 9 / 8 + 0.2)


async def outlast(
    said: bytes, reason: str, options: ServeOptions, *, caller: ConnectOptions | None = None, bind: Any = TCP
) -> Observed:
    """Let a thousand say so much and no more; meanwhile be served."""
    needs_descriptors(2 * ATTACKERS + 200)
    async with open_server(bind, options=options) as server:
        [address] = server.addresses
        start = time.monotonic()
        with dialled(address, ATTACKERS) as attackers:
            for sock in attackers:
                sock.send(said)
            # Behind them all in the backlog; then beside them all.
            first = await served_in(address, caller)
            # Not those who are there: the first of them may be out of time already.
            await until(lambda: server.stats.accepted > ATTACKERS, TIMEOUT)
            held = time.monotonic()
            took = max([await served_in(address, caller) for _ in range(3)])
            await until(lambda: server.stats.closed[reason] == ATTACKERS, TIMEOUT)
            ended = time.monotonic()

    assert took < late(0.2)
    assert first < late(LIMIT)
    assert ended - start >= LIMIT
    assert ended - held < ENDED
    return {
        "a good client behind them": f"served in {milliseconds(first)}",
        "beside them": f"in {milliseconds(took)}",
        "closed": f"{ATTACKERS}, the last {ended - held:.2f} s after it was held (limit {LIMIT} s)",
    }


@injects(6, "1000 connect and say nothing, idle_timeout=0.6 s")
async def idle(_: Scene) -> Observed:
    return await outlast(b"", "idle", ServeOptions(idle_timeout=LIMIT, linger=0.05))


@injects(6, "1000 begin a PROXY header and do not end it, proxy_timeout=0.6 s")
async def half_a_header(_: Scene) -> Observed:
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("127.0.0.1",), proxy_timeout=LIMIT)
    said = b"PROXY TCP4 192.0.2.1 "
    return await outlast(said, "proxy_timeout", options, caller=ConnectOptions(proxy_header="v2"))

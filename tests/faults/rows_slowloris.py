"""Row 6: a thousand peers that send nothing or too little, beside a good client."""

from __future__ import annotations

import time
from typing import Any

from anyecho.client.options import ConnectOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, dialled, milliseconds, served_in, time_limit
from tests.faults.table import Observed, Scene, injects
from tests.support.machine import needs_descriptors
from tests.support.peers import until
from tests.support.process import TIMEOUT

ATTACKERS = 1000
#: The limit, which may be exceeded by an eighth; closing a thousand connections takes time too.
LIMIT = 0.6
ENDED = time_limit(LIMIT * 9 / 8 + 0.2)


async def exhaust(
    said: bytes, reason: str, options: ServeOptions, *, caller: ConnectOptions | None = None, bind: Any = TCP
) -> Observed:
    """Connect a thousand peers that send `said` and no more, beside a good client."""
    needs_descriptors(2 * ATTACKERS + 200)
    async with open_server(bind, options=options) as server:
        [address] = server.addresses
        start = time.monotonic()
        with dialled(address, ATTACKERS) as attackers:
            for sock in attackers:
                sock.send(said)
            # First behind all of them in the backlog; then beside them.
            first = await served_in(address, caller)
            # Not the active connections: the limit may have closed the first of them already.
            await until(lambda: server.stats.accepted > ATTACKERS, TIMEOUT)
            held = time.monotonic()
            took = max([await served_in(address, caller) for _ in range(3)])
            await until(lambda: server.stats.closed[reason] == ATTACKERS, TIMEOUT)
            ended = time.monotonic()

    assert took < time_limit(0.2)
    assert first < time_limit(LIMIT)
    assert ended - start >= LIMIT
    assert ended - held < ENDED
    return {
        "a good client behind them": f"served in {milliseconds(first)}",
        "beside them": f"in {milliseconds(took)}",
        "closed": f"{ATTACKERS}, the last {ended - held:.2f} s after it was held (limit {LIMIT} s)",
    }


@injects(6, "1000 peers connect and send nothing, idle_timeout=0.6 s")
async def idle(_: Scene) -> Observed:
    return await exhaust(b"", "idle", ServeOptions(idle_timeout=LIMIT, linger=0.05))


@injects(6, "1000 peers send an incomplete PROXY header, proxy_timeout=0.6 s")
async def half_a_header(_: Scene) -> Observed:
    options = ServeOptions(proxy_protocol="require", proxy_trusted=("127.0.0.1",), proxy_timeout=LIMIT)
    said = b"PROXY TCP4 192.0.2.1 "
    return await exhaust(said, "proxy_timeout", options, caller=ConnectOptions(proxy_header="v2"))

"""A thousand peers that send nothing, or too little, are closed at their limit, and delay no good client."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest
from anyio import fail_after

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.certificates import Files
from tests.support.machine import needs_descriptors
from tests.support.peers import SOON, dial, until
from tests.support.process import TIMEOUT
from tests.support.tls import TLS, options

ATTACKERS = 1000
BEHIND_PROXY: dict[str, Any] = {"proxy_protocol": "require", "proxy_trusted": ("127.0.0.1",)}


@pytest.mark.fault(row=6, injected=f"{ATTACKERS} peers send nothing, half a PROXY header, or half a ClientHello")
@pytest.mark.parametrize("limit", [0.6, 600.0])
@pytest.mark.parametrize(
    ("sent", "reason", "timeout", "others"),
    [
        (b"", "idle", "idle_timeout", {}),
        (b"PROXY TCP4 192.0.2.1 ", "proxy_timeout", "proxy_timeout", BEHIND_PROXY),
        (b"\x16\x03\x01\x02\x00\x01", "handshake", "handshake_timeout", {}),
    ],
    ids=["nothing", "half a header", "half a handshake"],
)
@pytest.mark.by_turns("engine")
async def test_a_thousand_slow_peers_end_at_their_limit_and_delay_no_good_client(
    sent: bytes,
    reason: str,
    timeout: str,
    others: dict[str, Any],
    limit: float,
    files: Files,
    ca_options: ConnectOptions,
) -> None:
    needs_descriptors(2 * ATTACKERS + 200)
    over_tls = reason == "handshake"
    limits: dict[str, Any] = {"linger": 0.05, timeout: limit} | others
    server_options = options(files, **limits) if over_tls else ServeOptions(**limits)
    client_options = ca_options if over_tls else ConnectOptions(proxy_header="v2" if others else "off")
    async with open_server(TLS if over_tls else "tcp://127.0.0.1:0", options=server_options) as server:
        start = time.monotonic()
        with ExitStack() as opened:
            for _ in range(ATTACKERS):
                opened.enter_context(dial(server.addresses[0])).send(sent)
            if limit == 600:
                # Behind all of them in the accept backlog.
                with fail_after(SOON):
                    async with await connect(server.addresses[0], options=client_options) as client:
                        await client.exchange(b"good")
                        assert (server.stats.active, server.stats.closed) == (ATTACKERS + 1, {})
                        return

            await until(lambda: server.stats.closed[reason] == ATTACKERS, TIMEOUT)

    assert time.monotonic() - start >= limit
    assert server.stats.closed == {reason: ATTACKERS}

"""Time limits after a stop of the process or a blocked event loop: input that arrived meanwhile is read first.

The tests block the loop. The input is then in the receive buffer, as after SIGSTOP and SIGCONT.
"""

from __future__ import annotations

import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address
from anyecho.net.poller import Fallback
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.net.proxy.headers import IPV4, v2
from tests.support.blocked import LIMIT, block_loop
from tests.support.certificates import Files, client_over
from tests.support.peers import SOON, dial, until
from tests.support.tls import TLS, options


@pytest.mark.parametrize("after", [0.0, 0.5, 0.8])
@pytest.mark.by_turns("after")
async def test_a_silent_connection_is_not_idle_if_data_has_arrived(after: float, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(idle_timeout=LIMIT)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await block_loop(sock, b"hello", after=after)
            assert await to_thread.run_sync(sock.recv, 5) == b"hello"


@pytest.mark.parametrize("after", [0.0, 0.5, 0.8])
@pytest.mark.by_turns("after")
async def test_a_drain_echoes_data_that_arrived_in_its_grace_period(after: float, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, LIMIT)
                await block_loop(sock, b"hello", after=after)
                with fail_after(SOON):
                    assert await to_thread.run_sync(sock.recv, 5) == b"hello"
                    assert await to_thread.run_sync(sock.recv, 5) == b""


@pytest.mark.parametrize("after", [0.0, 0.5, 0.8])
@pytest.mark.by_turns("after")
async def test_a_proxy_header_that_has_arrived_does_not_time_out(after: float, carrier: Address) -> None:
    trusting = ServeOptions(
        proxy_protocol="v2", proxy_trusted=("127.0.0.1", "unix:"), proxy_timeout=LIMIT, linger=0.1
    )
    header = v2(IPV4)
    async with open_server(carrier, options=trusting) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(header[:10])
            await until(lambda: server.stats.active == 1)
            await block_loop(sock, header[10:] + b"hello", after=after)
            assert await to_thread.run_sync(sock.recv, 5) == b"hello"


async def test_an_incomplete_proxy_header_times_out(carrier: Address) -> None:
    trusting = ServeOptions(
        proxy_protocol="v2", proxy_trusted=("127.0.0.1", "unix:"), proxy_timeout=LIMIT, linger=0.1
    )
    async with open_server(carrier, options=trusting) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await block_loop(sock, v2(IPV4)[:10], after=0.5)
            assert await to_thread.run_sync(sock.recv, 5) == b""
        await until(lambda: server.stats.closed == {"proxy_timeout": 1})


@pytest.mark.parametrize("after", [0.0, 0.5, 0.8])
@pytest.mark.by_turns("after")
async def test_a_handshake_continues_if_its_next_bytes_have_arrived(after: float, files: Files) -> None:
    async with open_server(TLS, options=options(files, handshake_timeout=LIMIT)) as server:
        stream = client_over(dial(server.addresses[0]), Fallback())
        await until(lambda: server.stats.active == 1)
        stream.records.handshake()
        await block_loop(stream._sock, stream.records.take(), after=after)
        async with stream:
            with fail_after(SOON):
                await stream.handshake()
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"

"""Limits of time, when the process was stopped or its loop stuck: what came meanwhile is read before they judge.

A loop that is stuck stands for both. What the peer sends lies in the receive buffer then, as after SIGCONT.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio
import pytest
from anyio import create_task_group, fail_after, to_thread

from anyecho.address import Address
from anyecho.net.poller import Fallback
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.net.proxy.headers import IPV4, v2
from tests.server.test_tls import TLS, options
from tests.support.certificates import Files, client_over
from tests.support.peers import SOON, dial, until

T = TypeVar("T")

LIMIT = 0.4
#: Stuck for longer than any limit here.
STUCK = 2 * LIMIT


async def stick(sock: socket.socket, data: bytes, *, after: float) -> None:
    """Let the loop run for a part of the limit, then block it for longer than the rest; `data` comes meanwhile."""
    await anyio.sleep(after * LIMIT)
    timer = threading.Timer(0.1, sock.sendall, [data])
    timer.start()
    time.sleep(STUCK)  # noqa: ASYNC251 - what the test is about
    timer.join()


async def stick_while(call: Callable[[], T]) -> T:
    """Block the loop for longer than the limit while a thread runs `call`; return what it returns later."""
    with ThreadPoolExecutor(1) as executor:
        result = executor.submit(call)
        time.sleep(STUCK)  # noqa: ASYNC251 - what the test is about
        return await to_thread.run_sync(result.result)


@pytest.mark.parametrize("after", [0.0, 0.5, 0.95])
async def test_a_silent_connection_is_not_idle_if_data_has_come(after: float, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(idle_timeout=LIMIT)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await stick(sock, b"hello", after=after)
            assert await to_thread.run_sync(sock.recv, 5) == b"hello"


@pytest.mark.parametrize("after", [0.0, 0.5, 0.95])
async def test_a_drain_echoes_what_has_come_before_its_grace_is_over(after: float, carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, LIMIT)
                await stick(sock, b"hello", after=after)
                with fail_after(SOON):
                    assert await to_thread.run_sync(sock.recv, 5) == b"hello"
                    assert await to_thread.run_sync(sock.recv, 5) == b""


@pytest.mark.parametrize("after", [0.0, 0.5, 0.95])
async def test_a_header_of_a_proxy_that_has_come_is_not_late(after: float, carrier: Address) -> None:
    trusting = ServeOptions(
        proxy_protocol="v2", proxy_trusted=("127.0.0.1", "unix:"), proxy_timeout=LIMIT, linger=0.1
    )
    header = v2(IPV4)
    async with open_server(carrier, options=trusting) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(header[:10])
            await until(lambda: server.stats.active == 1)
            await stick(sock, header[10:] + b"hello", after=after)
            assert await to_thread.run_sync(sock.recv, 5) == b"hello"


async def test_a_part_of_a_header_is_late_all_the_same(carrier: Address) -> None:
    trusting = ServeOptions(
        proxy_protocol="v2", proxy_trusted=("127.0.0.1", "unix:"), proxy_timeout=LIMIT, linger=0.1
    )
    async with open_server(carrier, options=trusting) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await stick(sock, v2(IPV4)[:10], after=0.5)
            assert await to_thread.run_sync(sock.recv, 5) == b""
        await until(lambda: server.stats.closed == {"proxy_timeout": 1})


@pytest.mark.parametrize("after", [0.0, 0.5, 0.95])
async def test_a_handshake_whose_next_part_has_come_goes_on(after: float, files: Files) -> None:
    async with open_server(TLS, options=options(files, handshake_timeout=LIMIT)) as server:
        stream = client_over(dial(server.addresses[0]), Fallback())
        await until(lambda: server.stats.active == 1)
        stream.records.handshake()
        await stick(stream._sock, stream.records.take(), after=after)
        async with stream:
            with fail_after(SOON):
                await stream.handshake()
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"

"""A small exchange starts no task, and goes on with tasks if the kernel or the peer is slow."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after
from anyio.abc import SocketAttribute

from anyecho.client import exchange as exchanges
from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.echo import echo
from anyecho.errors import EchoStalled, EchoTruncated
from anyecho.net.poller import Fallback, Poller
from anyecho.net.readiness import is_ready
from anyecho.net.stream import PolledStream
from anyecho.server.server import open_server
from tests.net.pairs import raw_pair, reset, stream_over, stream_pair
from tests.support.certificates import tls_pair
from tests.support.peers import SOON, until
from tests.support.tasks import wait_all_tasks_blocked

PAYLOAD = os.urandom(1 << 16)


async def pair(kind: str, poller: Poller | Fallback) -> tuple[PolledStream, PolledStream]:
    return await tls_pair("unix", poller) if kind == "tls" else stream_pair(kind, poller)


def forbid_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyecho.client.client.create_task_group", None)


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
async def test_a_small_exchange_starts_no_task(
    kind: str, poller: Poller | Fallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_tasks(monkeypatch)
    ours, theirs = await pair(kind, poller)
    async with theirs, Client(ours) as client, create_task_group() as tasks:
        tasks.start_soon(echo, theirs)
        for payload in (b"x", PAYLOAD[:1000], b"y"):
            assert await client.exchange(payload) == payload
        tasks.cancel_scope.cancel()


async def test_an_exchange_of_a_datagram_starts_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_server("udp://127.0.0.1:0") as server, await connect(server.addresses[0]) as client:
        forbid_tasks(monkeypatch)
        for payload in (b"x", b"", PAYLOAD[:60_000]):
            assert await client.exchange(payload) == payload


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
async def test_an_exchange_goes_on_with_bytes_that_the_kernel_did_not_take(
    kind: str, poller: Poller | Fallback
) -> None:
    ours, theirs = await pair(kind, poller)
    for stream, option in ((ours, socket.SO_SNDBUF), (theirs, socket.SO_RCVBUF)):
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, option, 4096)
    got: list[bytes] = []
    async with theirs, Client(ours) as client:

        async def answer() -> None:
            for _ in range(2):
                data = b""
                while len(data) < len(PAYLOAD):
                    data += await theirs.receive()
                await theirs.send(data)

        async def exchange() -> None:
            for _ in range(2):
                got.append(await client.exchange(PAYLOAD))

        with fail_after(SOON):
            async with create_task_group() as tasks:
                tasks.start_soon(exchange)
                await wait_all_tasks_blocked()
                assert not got
                tasks.start_soon(answer)

    assert got == [PAYLOAD, PAYLOAD]


async def test_a_send_that_fails_at_once_is_a_truncation_that_names_the_reset(poller: Poller | Fallback) -> None:
    ours, theirs = raw_pair("tcp")
    async with Client(stream_over(ours, poller)) as client:
        reset(theirs)
        await until(partial(is_ready, ours))
        with pytest.raises(EchoTruncated, match=r"the connection broke \(.*reset by peer\): byte 0"):
            await client.exchange(b"hello")


async def test_the_timeout_counts_from_the_send_also_after_tasks_are_started(
    poller: Poller | Fallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight intervals of the clock, the first is over when the tasks start."""
    slept: list[float] = []

    async def sleep(seconds: float) -> Any:
        slept.append(seconds)
        await anyio.sleep(seconds)

    monkeypatch.setattr(exchanges, "sleep", sleep)
    ours, theirs = stream_pair("tcp", poller)
    async with theirs, Client(ours, ConnectOptions(timeout=0.8)) as client:
        with fail_after(SOON), pytest.raises(EchoStalled, match="no byte has moved for 800ms: byte 0 is missing"):
            await client.exchange(b"hello")
    assert 0 < sum(slept) < 0.75

"""A client of a host name with two addresses finds the UDP server at either."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from anyio import fail_after

import anyecho
from anyecho import Client, connect, open_server
from anyecho.errors import ConnectError, EchoLost
from anyecho.net.poller import Fallback, Poller
from tests.support.datagrams import polled_client
from tests.support.machine import needs_ipv6


def sockets() -> int:
    """Return the number of open sockets of this process."""
    with os.scandir("/proc/self/fd") as entries:
        return sum(os.path.basename(os.path.realpath(entry.path)).startswith("socket:") for entry in entries)


def free_port() -> int:
    """Return a free UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def client_of(host: str, poller: Poller | Fallback | None = None) -> AsyncIterator[Client]:
    """Yield a client of ``localhost`` with a server that is bound to `host` only."""
    async with open_server(f"udp://{host}:0") as server:
        address = server.addresses[0]
        assert isinstance(address, anyecho.UDPAddress)
        local = anyecho.UDPAddress(host="localhost", port=address.port)
        async with await polled_client(local, poller) as client:
            yield client


@needs_ipv6
@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_localhost_finds_a_datagram_server_on_either_family(
    host: str, polled: bool, poller: Poller | Fallback
) -> None:
    with fail_after(20):
        async with client_of(host, poller if polled else None) as client:
            before = sockets()
            for message in (b"first", b"", b"third"):
                assert await client.exchange(message) == message
            assert sockets() == before


@needs_ipv6
async def test_datagrams_sent_to_the_unreachable_address_are_resent_once_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = [b"%d" % number * 100 for number in range(200)]
    with fail_after(20):
        async with client_of("[::1]") as client, client.send(items) as echo:
            assert [reply async for reply in echo] == items

    assert "twice" not in caplog.text


async def test_a_name_without_a_datagram_server_at_any_address_is_refused() -> None:
    port = free_port()
    with fail_after(20):
        async with await connect(f"udp://localhost:{port}") as client:
            with pytest.raises(ConnectError, match=f"^cannot reach udp://localhost:{port}: Connection refused$"):
                await client.exchange(b"hello")


async def test_without_ipv6_a_dead_datagram_port_of_localhost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original, port = socket.socket.connect, free_port()

    def without_ipv6(sock: socket.socket, address: tuple[str, int]) -> None:
        if sock.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        original(sock, address)

    monkeypatch.setattr(socket.socket, "connect", without_ipv6)
    with fail_after(20):
        async with await connect(f"udp://localhost:{port}") as client:
            with pytest.raises(ConnectError, match=f"^cannot reach udp://localhost:{port}: Connection refused$"):
                await client.exchange(b"hello")


@needs_ipv6
async def test_a_client_stays_with_the_address_that_has_replied() -> None:
    """Servers at two addresses of one name may differ, so a client does not mix them."""
    async with open_server("udp://127.0.0.1:0") as server:
        address = server.addresses[0]
        assert isinstance(address, anyecho.UDPAddress)
        async with (
            open_server(f"udp://[::1]:{address.port}"),
            await connect(f"udp://localhost:{address.port}") as client,
        ):
            assert await client.exchange(b"hello") == b"hello"
            await server.drain()
            with fail_after(20), pytest.raises((ConnectError, EchoLost), match="Connection refused"):
                await client.exchange(b"hello")

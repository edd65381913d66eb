"""A client connects, exchanges, and is unusable after a failure."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
from anyio import (
    BrokenResourceError,
    BusyResourceError,
    fail_after,
    move_on_after,
)

from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import AddressError, ConnectError, UsageError
from anyecho.server.server import Server
from tests.support.peers import fill_backlog


async def test_connect_takes_an_address_as_text_or_value(server: Server) -> None:
    for address in (server.addresses[0], str(server.addresses[0])):
        async with await connect(address) as client:
            assert await client.exchange(b"x") == b"x"


async def test_a_refused_connection_is_a_connect_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ConnectError, match=f"^cannot connect to tcp://127.0.0.1:{port}: Connection refused$"):
        await connect(f"127.0.0.1:{port}")


async def test_connecting_to_a_silent_host_fails_after_the_timeout(opened: ExitStack) -> None:
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    fill_backlog(listener, opened)
    with fail_after(5), pytest.raises(ConnectError, match="no answer within 200ms"):
        await connect(f"127.0.0.1:{listener.getsockname()[1]}", options=ConnectOptions(timeout=0.2))


@pytest.mark.parametrize("scheme", ["tcp", "udp", "tls"])
async def test_port_0_is_refused_with_the_reason(scheme: str) -> None:
    with pytest.raises(
        ConnectError, match=r"^cannot connect to .*:0: port 0 is any free port, and only for servers$"
    ):
        await connect(f"{scheme}://127.0.0.1:0")


async def test_an_address_without_port_is_an_address_error() -> None:
    with pytest.raises(AddressError):
        await connect("localhost")


async def test_a_timeout_of_zero_is_refused() -> None:
    with pytest.raises(UsageError):
        ConnectOptions(timeout=0)


async def test_a_cancelled_exchange_makes_the_client_unusable(server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        await client.exchange(b"fine")
        with move_on_after(0) as scope:
            await client.exchange(b"cancelled")
        assert scope.cancelled_caught
        for _ in range(2):
            with pytest.raises(BrokenResourceError, match="connect anew"):
                await client.exchange(b"never")


async def test_a_half_closed_client_is_unusable(server: Server) -> None:
    async with await connect(server.addresses[0]) as client:
        async with client.send([b"last"]) as back:
            assert [chunk async for chunk in back] == [b"last"]
        with pytest.raises(BrokenResourceError, match="half-closed"):
            await client.exchange(b"more")


async def test_a_concurrent_second_exchange_is_refused_and_the_first_completes(server: Server) -> None:
    async with await connect(server.addresses[0]) as client, client.send([b"first"]) as back:
        with pytest.raises(BusyResourceError):
            await client.exchange(b"second")
        assert b"".join([chunk async for chunk in back]) == b"first"

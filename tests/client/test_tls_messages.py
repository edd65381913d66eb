"""A client gets its echo though the server's tickets and KeyUpdates are fragmented."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from anyio import create_task_group

from anyecho.client.options import ConnectOptions
from anyecho.errors import EchoTruncated
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls13 import ALERT, CLOSE_NOTIFY, DATA, HANDSHAKE, CraftedPeer, crafted_server, ticket

#: More than the client's stream holds, and less than the kernel buffers hold.
PAYLOAD = os.urandom(100_000)


async def read(server: CraftedPeer, size: int) -> bytes:
    data = b""
    while len(data) < size:
        record = await server.read()
        assert record is not None
        assert record[0] == DATA
        data += record[1]
    return data


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + 16000] for start in range(0, len(data), 16000))


@pytest.mark.parametrize("size", [1000, len(PAYLOAD)])
async def test_an_exchange_that_begins_inside_a_ticket_completes(size: int, ca_options: ConnectOptions) -> None:
    async with crafted_server(ca_options) as (client, server):
        message = ticket(1200)
        server.send(server.seal(HANDSHAKE, message[:1000]))
        async with create_task_group() as tasks:
            tasks.start_soon(client.exchange, PAYLOAD[:size])
            await wait_all_tasks_blocked()
            server.send(server.seal(HANDSHAKE, message[1000:]))
            echo = await read(server, size)
            server.send(server.update_keys(4, requested=True))
            for piece in pieces(echo):
                server.send(server.seal(DATA, piece))


async def test_a_payload_that_ends_inside_a_ticket_is_echoed(ca_options: ConnectOptions) -> None:
    message = ticket(1200)
    back = b""

    async with crafted_server(ca_options) as (client, server):

        async def send() -> None:
            nonlocal back
            async with client.send([b"one", b"two"]) as echo:
                async for chunk in echo:
                    back += chunk

        server.send(server.seal(HANDSHAKE, message[:1000]))
        async with create_task_group() as tasks:
            tasks.start_soon(send)
            await wait_all_tasks_blocked()
            server.send(server.seal(HANDSHAKE, message[1000:], 10, 20))
            assert await read(server, 6) == b"onetwo"
            assert await server.read() == (ALERT, CLOSE_NOTIFY)
            server.send(server.seal(DATA, b"onetwo") + server.seal(ALERT, CLOSE_NOTIFY))

    assert back == b"onetwo"


async def test_eof_inside_a_ticket_is_a_truncated_echo(ca_options: ConnectOptions) -> None:
    async with crafted_server(ca_options) as (client, server):
        server.send(server.seal(HANDSHAKE, ticket(1200)[:1000]))
        server.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(EchoTruncated):
            await client.exchange(b"x")

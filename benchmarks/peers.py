"""Echo servers to compare with, as their own documentation would write them: ``python peers.py NAME``.

Each prints ``tcp://127.0.0.1:PORT`` once it accepts.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from typing import cast

import anyio
import uvloop

CHUNK = 65536


async def asyncio_streams() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    report(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def asyncio_protocol() -> None:
    server = await asyncio.get_running_loop().create_server(EchoProtocol, "127.0.0.1", 0)
    report(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def anyio_streams() -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        # Unguarded, the first reset would end the server.
        with suppress(anyio.BrokenResourceError):
            async with stream:
                async for data in stream:
                    await stream.send(data)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    report(listener.extra(anyio.abc.SocketAttribute.local_port))
    await listener.serve(handle)


def report(port: int) -> None:
    print(f"tcp://127.0.0.1:{port}", flush=True)


PEERS = {
    "asyncio-streams": lambda: asyncio.run(asyncio_streams()),
    "uvloop-streams": lambda: uvloop.run(asyncio_streams()),
    "asyncio-protocol": lambda: asyncio.run(asyncio_protocol()),
    "uvloop-protocol": lambda: uvloop.run(asyncio_protocol()),
    "anyio-asyncio": lambda: anyio.run(anyio_streams),
    "anyio-uvloop": lambda: anyio.run(anyio_streams, backend_options={"use_uvloop": True}),
    "anyio-trio": lambda: anyio.run(anyio_streams, backend="trio"),
}

if __name__ == "__main__":
    PEERS[sys.argv[1]]()

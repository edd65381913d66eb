"""Echo servers in Python, as the documentation of each library would write them: ``python echo.py NAME``.

Every library here sets TCP_NODELAY by default. Each server prints ``tcp://127.0.0.1:PORT`` once it accepts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import cast

import anyio
import anyio.abc

HOST = "127.0.0.1"
BACKLOG = 4096
CHUNK = 65536


def report(port: int) -> None:
    print(f"tcp://{HOST}:{port}", flush=True)


async def serve_forever(server: asyncio.Server) -> None:
    report(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def asyncio_streams(chunk: int) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(chunk):
                writer.write(data)
                await writer.drain()
        writer.close()

    await serve_forever(await asyncio.start_server(handle, HOST, 0, backlog=BACKLOG))


class EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transport has the same interface

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def asyncio_protocol() -> None:
    loop = asyncio.get_running_loop()
    await serve_forever(await loop.create_server(EchoProtocol, HOST, 0, backlog=BACKLOG))


async def trio_serve_tcp() -> None:
    import trio

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, handle, 0, host=HOST, backlog=BACKLOG, handler_nursery=nursery)
        )
        report(listeners[0].socket.getsockname()[1])


async def anyio_listener() -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        # Without it, the first reset would end the server.
        with suppress(anyio.BrokenResourceError):
            async with stream:
                async for data in stream:
                    await stream.send(data)

    listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0, backlog=BACKLOG)
    report(listener.extra(anyio.abc.SocketAttribute.local_port))
    await listener.serve(handle)


def on_uvloop(serve: Callable[[], Awaitable[None]]) -> None:
    anyio.run(serve, backend_options={"use_uvloop": True})


example = partial(asyncio_streams, 128)
streams = partial(asyncio_streams, CHUNK)
PEERS: dict[str, Callable[[], object]] = {
    "asyncio-example": lambda: asyncio.run(example()),
    "asyncio-streams": lambda: asyncio.run(streams()),
    "asyncio-protocol": lambda: asyncio.run(asyncio_protocol()),
    "uvloop-streams": lambda: on_uvloop(streams),
    "uvloop-protocol": lambda: on_uvloop(asyncio_protocol),
    "trio-serve-tcp": lambda: anyio.run(trio_serve_tcp, backend="trio"),
    "anyio-asyncio": lambda: anyio.run(anyio_listener),
    "anyio-uvloop": lambda: on_uvloop(anyio_listener),
    "anyio-trio": lambda: anyio.run(anyio_listener, backend="trio"),
}

if __name__ == "__main__":
    PEERS[sys.argv[1]]()

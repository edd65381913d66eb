"""Echo servers over TLS in Python, as their documentation writes them: ``python tls.py NAME CERTIFICATE``.

Each prints ``tls://127.0.0.1:PORT`` once it accepts.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener
from echo import BACKLOG, HOST, EchoProtocol, on_uvloop


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(sys.argv[2])
    return made


def report(port: int) -> None:
    print(f"tls://{HOST}:{port}", flush=True)


async def asyncio_protocol() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoProtocol, HOST, 0, backlog=BACKLOG, ssl=context())
    report(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def anyio_listener() -> None:
    async def handle(stream: anyio.abc.ByteStream) -> None:
        # Without it, the first reset would end the server.
        with suppress(anyio.BrokenResourceError, ssl.SSLError):
            async with stream:
                async for data in stream:
                    await stream.send(data)

    listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0, backlog=BACKLOG)
    report(listener.extra(anyio.abc.SocketAttribute.local_port))
    await TLSListener(listener, context()).serve(handle)


PEERS: dict[str, Callable[[], object]] = {
    "asyncio-protocol": lambda: asyncio.run(asyncio_protocol()),
    "uvloop-protocol": lambda: on_uvloop(asyncio_protocol),
    "anyio-asyncio": lambda: anyio.run(anyio_listener),
    "anyio-uvloop": lambda: on_uvloop(anyio_listener),
    "anyio-trio": partial(anyio.run, anyio_listener, backend="trio"),
}

if __name__ == "__main__":
    logging.disable()  # some of them log a traceback for a connection without close_notify
    PEERS[sys.argv[1]]()

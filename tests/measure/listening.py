"""A server for one test, which treats each connection by a function."""

from __future__ import annotations

__all__ = ("listening",)

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio import BrokenResourceError, EndOfStream, create_task_group, fail_after
from anyio.abc import ByteStream, SocketAttribute

from tests.client.liars import Behaviour


@asynccontextmanager
async def listening(behaviour: Behaviour, *, rcvbuf: int = 0) -> AsyncIterator[str]:
    """Yield the address of an anyio server that runs `behaviour` on each connection and closes it."""

    async def behave(stream: ByteStream) -> None:
        with suppress(BrokenResourceError, EndOfStream):  # the load may close first
            async with stream:
                await behaviour(stream)

    with fail_after(20):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            create_task_group() as tasks,
        ):
            if rcvbuf:
                sock = listener.extra(SocketAttribute.raw_socket)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            tasks.start_soon(listener.serve, behave)
            yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            tasks.cancel_scope.cancel()

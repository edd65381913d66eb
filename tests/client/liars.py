"""Servers that do not echo correctly, and their behaviours."""

from __future__ import annotations

__all__ = ("Behaviour", "corrupting", "listening", "quitting")

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import anyio
from anyio import BrokenResourceError, EndOfStream, create_task_group, fail_after
from anyio.abc import ByteStream, SocketAttribute

#: Handles one stream of a server, which closes it afterwards.
Behaviour: TypeAlias = Callable[[ByteStream], Awaitable[None]]


def corrupting(wrong: int) -> Behaviour:
    """Echo with bytes `wrong` and ``wrong + 3``, counted from 0, inverted."""

    async def corrupt(stream: ByteStream) -> None:
        offset = 0
        async for chunk in stream:
            bad = bytearray(chunk)
            for index in (wrong, wrong + 3):
                if offset <= index < offset + len(chunk):
                    bad[index - offset] ^= 0xFF
            offset += len(chunk)
            await stream.send(bytes(bad))

    return corrupt


def quitting(kept: int) -> Behaviour:
    """Echo the first `kept` bytes only."""

    async def quit_early(stream: ByteStream) -> None:
        await stream.send((await stream.receive())[:kept])

    return quit_early


@asynccontextmanager
async def listening(behaviour: Behaviour, *, rcvbuf: int = 0) -> AsyncIterator[str]:
    """Yield the address of an anyio server that runs `behaviour` on each connection and closes it."""

    async def behave(stream: ByteStream) -> None:
        with suppress(BrokenResourceError, EndOfStream):  # the client may close first
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

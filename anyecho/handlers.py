"""Ready-made handlers: what a server can do with the stream of a connection, beside the echo.

A handler is a coroutine function of one stream. It returns when it is done; the server closes the stream.
"""

from __future__ import annotations

__all__ = ("HANDLERS", "Handler", "chargen", "discard", "echo", "is_async", "prefix", "upper")

import os
import platform
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from inspect import iscoroutinefunction
from itertools import cycle
from typing import TypeAlias

from anyio import create_task_group
from anyio.abc import ByteStream

from anyecho.echo import echo

Handler: TypeAlias = Callable[[ByteStream], Awaitable[None]]

#: RFC 864: the printable ASCII characters as a ring, of which each line shows 72.
_RING = bytes(range(0x20, 0x7F))
_WIDTH = 72
_PATTERN = b"".join((_RING * 2)[at : at + _WIDTH] + b"\r\n" for at in range(len(_RING)))
#: Lines of one send. Fewer cost more system calls.
_LINES = 19


async def discard(stream: ByteStream) -> None:
    """Read until EOF and send nothing (RFC 863)."""
    async for _ in stream:
        pass


async def chargen(stream: ByteStream) -> None:
    """Send lines of 72 characters until the peer sends EOF, and discard what it sends (RFC 864)."""
    async with create_task_group() as tasks:
        tasks.start_soon(_generate, stream)
        await discard(stream)
        tasks.cancel_scope.cancel()


async def _generate(stream: ByteStream) -> None:
    size = _LINES * (_WIDTH + 2)
    for start in cycle(range(0, len(_PATTERN), size)):
        await stream.send(_PATTERN[start : start + size])


async def upper(stream: ByteStream) -> None:
    """Echo with the ASCII letters in upper case."""
    async for chunk in stream:
        await stream.send(chunk.upper())


async def prefix(stream: ByteStream) -> None:
    """Send a line with the host name and the process ID, then echo: behind a load balancer it names the server."""
    await stream.send(f"{platform.node()} {os.getpid()}\n".encode())
    await echo(stream)


#: The names for ``--handler``.
HANDLERS: Mapping[str, Handler] = {
    "echo": echo,
    "discard": discard,
    "chargen": chargen,
    "upper": upper,
    "prefix": prefix,
}


def is_async(handler: object) -> bool:
    """Return whether `handler` is a coroutine function, an object with such a ``__call__``, or a partial of one."""
    while isinstance(handler, partial):
        handler = handler.func

    return iscoroutinefunction(handler) or iscoroutinefunction(type(handler).__call__)

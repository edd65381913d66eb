"""Behaviours of servers that do not echo correctly."""

from __future__ import annotations

__all__ = ("Behaviour", "corrupting", "quitting")

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from anyio.abc import ByteStream

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

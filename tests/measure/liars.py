"""Servers that are no echo, as what they do with each stream."""

from __future__ import annotations

__all__ = ("Behaviour", "corrupting", "quitting")

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from anyio.abc import ByteStream

#: What a server does with a stream before it closes it.
Behaviour: TypeAlias = Callable[[ByteStream], Awaitable[None]]


def corrupting(wrong: int) -> Behaviour:
    """An echo but for byte `wrong`, counted from 0, and the third after it: they come back inverted."""

    async def corrupt(stream: ByteStream) -> None:
        seen = 0
        async for chunk in stream:
            bad = bytearray(chunk)
            for index in (wrong, wrong + 3):
                if seen <= index < seen + len(chunk):
                    bad[index - seen] ^= 0xFF
            seen += len(chunk)
            await stream.send(bytes(bad))

    return corrupt


def quitting(kept: int) -> Behaviour:
    """An echo of `kept` bytes, and no more."""

    async def quit_early(stream: ByteStream) -> None:
        await stream.send((await stream.receive())[:kept])

    return quit_early

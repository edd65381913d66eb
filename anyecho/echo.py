"""The heart: what an echo is (RFC 862), on any stream.

Everything else in this package exists so that these two lines can be trusted on a real network.
"""

from __future__ import annotations

__all__ = ("Echoable", "echo")

from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Echoable(Protocol[T]):
    """A `ByteStream`, an `ObjectStream`, a datagram socket: what yields items and takes them back."""

    def __aiter__(self) -> AsyncIterator[T]: ...

    async def send(self, item: T, /) -> None: ...


async def echo(stream: Echoable[T]) -> None:
    """Send back every item of `stream`, until its peer has no more to say.

    The stream is left open: whoever opened it closes it.
    """
    async for item in stream:
        await stream.send(item)

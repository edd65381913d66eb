"""The echo service (RFC 862) on any stream."""

from __future__ import annotations

__all__ = ("Echoable", "echo")

from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Echoable(Protocol[T]):
    """Any stream that yields and sends items: a `ByteStream`, an `ObjectStream`, a datagram socket."""

    def __aiter__(self) -> AsyncIterator[T]: ...

    async def send(self, item: T, /) -> None: ...


async def echo(stream: Echoable[T]) -> None:
    """Send back every item of `stream`, until EOF. The stream stays open: the caller closes it.

    After an error or a cancellation, the item received last may have been sent in part or not at all. Other errors
    of `stream` pass unchanged.

    Raises:
        BrokenResourceError: the peer reset the connection, or the network failed.
        ClosedResourceError: this side has closed `stream`, or half-closed it.
        BusyResourceError: another task is receiving from `stream`, or sending on it.
    """
    async for item in stream:
        await stream.send(item)

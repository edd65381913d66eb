"""A `PolledStream` for the checks of trio."""

from __future__ import annotations

__all__ = ("TrioStream",)

import select
import socket
from collections.abc import Awaitable, Callable

import anyio
import trio

from anyecho.net.stream import PolledStream


class TrioStream(trio.abc.HalfCloseableStream):
    """A `PolledStream` with the method names and error classes of trio."""

    def __init__(self, stream: PolledStream, sock: socket.socket) -> None:
        self._stream = stream
        self._sock = sock

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await _translated(lambda: self._stream.send(bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await _translated(self._wait_writable)

    async def _wait_writable(self) -> None:
        stream = self._stream
        await stream.send(b"")  # raises if the stream cannot send
        stream.sending = True
        try:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            stream._registration.may_write = bool(poll.poll(0))
            await stream._registration.writable()
        finally:
            stream.sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            received = b""

            async def receive() -> None:
                nonlocal received
                received = await self._stream.receive(65536 if max_bytes is None else max_bytes)

            await _translated(receive)
            return received
        except anyio.EndOfStream:
            return b""

    async def send_eof(self) -> None:
        await _translated(self._stream.send_eof)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _translated(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError from exc
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError from exc
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError from exc

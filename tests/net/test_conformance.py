"""`PolledStream` passes the checks of `tests.support.conformance` and those of trio, on TCP and Unix sockets."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio
from trio.testing import check_half_closeable_stream, check_two_way_stream

from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.stream import PolledStream
from tests.net.pairs import KINDS, raw_pair, stream_over, stream_pair
from tests.support.conformance import CHECKS, Check, run_check


@pytest.mark.fault(row=28, injected="receives are cancelled just before, when, and just after their bytes arrive")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_polled_stream_conforms(check: Check, kind: str, poller: Poller | Fallback) -> None:
    await run_check(check, *stream_pair(kind, poller))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_stream_without_a_poller_conforms(check: Check, kind: str) -> None:
    await run_check(check, *stream_pair(kind, Fallback()))


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
        stream._sending = True
        try:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            stream._registration.may_write = bool(poll.poll(0))
            await stream._registration.writable()
        finally:
            stream._sending = False

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


def _fill(sock: socket.socket) -> None:
    """Send until the socket stays full: the kernel still moves bytes on after the first EAGAIN."""
    sent = True
    while sent:
        sent = False
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while sock.send(bytes(size)):
                    sent = True
        select.select([], [], [], 0.02)


@pytest.mark.parametrize("clogged", [False, True], ids=["free", "clogged"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contract", [check_two_way_stream, check_half_closeable_stream])
@pytest.mark.parametrize("polled", [True, False], ids=["poller", "fallback"])
def test_the_checks_of_trio_pass(
    contract: Callable[..., Awaitable[None]], kind: str, clogged: bool, polled: bool
) -> None:
    poller: Poller | Fallback = Fallback()

    async def make() -> tuple[TrioStream, TrioStream]:
        left, right = raw_pair(kind)
        return TrioStream(stream_over(left, poller), left), TrioStream(stream_over(right, poller), right)

    async def make_clogged() -> tuple[TrioStream, TrioStream]:
        left, right = await make()
        for stream in (left, right):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                stream._sock.setsockopt(socket.SOL_SOCKET, buffer, 4096)  # full sooner
        for stream in (left, right):
            _fill(stream._sock)

        return left, right

    async def main() -> None:
        nonlocal poller
        async with open_poller() as opened:
            if polled:
                poller = opened
            await contract(make, make_clogged if clogged else None)

    trio.run(main)

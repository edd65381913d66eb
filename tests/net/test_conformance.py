"""`PolledStream` passes the checks of `tests.support.conformance` and those of trio, on TCP and Unix sockets."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import check_half_closeable_stream, check_two_way_stream

from anyecho.net.poller import Fallback, Poller, open_poller
from tests.net.pairs import KINDS, raw_pair, stream_over, stream_pair
from tests.support.conformance import CHECKS, Check, run_check
from tests.support.trio_stream import TrioStream


@pytest.mark.fault(row=28, injected="receives are cancelled just before, when, and just after their bytes arrive")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_polled_stream_conforms(check: Check, kind: str, poller: Poller | Fallback) -> None:
    await run_check(check, *stream_pair(kind, poller))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_stream_without_a_poller_conforms(check: Check, kind: str) -> None:
    await run_check(check, *stream_pair(kind, Fallback()))


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

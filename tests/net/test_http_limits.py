"""Time limits of HTTP connections, exact on a clock of the event loop's own."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

import pytest
from anyio import BrokenResourceError, create_task_group, current_time, sleep

from anyecho.net.http import HTTPLimits, Request, Response, serve_http
from tests.support.memory import MemoryStream, memory_pair
from tests.support.virtual_time import virtual_backend

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbod"
LIMITS = HTTPLimits(idle=5, request=10, send=20, close=2)


anyio_backend = virtual_backend


async def fast(request: Request) -> Response:
    return Response(body=b"now")


async def read_all(ours: MemoryStream) -> tuple[float, list[int]]:
    """Read until EOF; return the time, and the status of each answer."""
    received = b"".join([chunk async for chunk in ours])
    return current_time(), [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]


@pytest.mark.parametrize(
    ("sent", "seconds", "statuses"),
    [
        pytest.param([], 5, [], id="silent from the start"),
        pytest.param([(3, GET[:1])], 13, [408], id="silent after a byte"),
        pytest.param([(1, GET[:1]), *[(1, b"x")] * 30], 11, [408], id="a byte a second"),
        pytest.param([(4, POST)], 14, [408], id="a body without its end"),
        pytest.param([(1, GET)], 6, [200], id="silent after an answer"),
        pytest.param([(1, GET), (4, GET)], 10, [200, 200], id="two requests"),
        pytest.param([(0, GET + GET[:1])], 10, [200, 408], id="silent after the begin of the second request"),
    ],
)
async def test_a_silent_peer_is_closed_and_a_slow_request_refused_at_its_limit(
    sent: list[tuple[float, bytes]], seconds: float, statuses: list[int]
) -> None:
    ours, theirs = memory_pair()
    began = current_time()

    async def send() -> None:
        for pause, data in sent:
            await sleep(pause)
            await ours.send(data)

    async with ours, create_task_group() as tasks:
        tasks.start_soon(serve_http, theirs, fast, LIMITS)
        tasks.start_soon(send)
        ended, answered = await read_all(ours)
        tasks.cancel_scope.cancel()

    assert answered == statuses
    assert ended - began == pytest.approx(seconds)


async def test_no_limit_counts_while_the_handler_runs() -> None:
    ours, theirs = memory_pair()
    began = current_time()

    async def slow(request: Request) -> Response:
        await sleep(100)
        return Response()

    async with ours, create_task_group() as tasks:
        tasks.start_soon(serve_http, theirs, slow, LIMITS)
        await ours.send(GET)
        ended, answered = await read_all(ours)

    assert answered == [200]
    assert ended - began == pytest.approx(105)


async def test_a_refusal_lingers_for_a_peer_that_sends_on() -> None:
    ours, theirs = memory_pair()
    began = current_time()

    async def send() -> None:
        with suppress(BrokenResourceError):
            while True:
                await ours.send(b"nonsense\r\n\r\n")
                await sleep(0.1)

    async with ours:
        async with create_task_group() as tasks:
            tasks.start_soon(send)
            await serve_http(theirs, fast, LIMITS)
            tasks.cancel_scope.cancel()

        ended, answered = await read_all(ours)

    assert answered == [400]
    assert ended - began == pytest.approx(2)


@dataclass(eq=False)
class Stuck(MemoryStream):
    """A stream whose peer reads nothing, and whose close waits too."""

    async def send(self, item: bytes) -> None:
        await sleep(1000)

    async def aclose(self) -> None:
        await super().aclose()
        await sleep(1000)


async def test_a_peer_that_does_not_read_is_closed() -> None:
    ours, theirs = memory_pair()
    began = current_time()
    async with ours:
        await ours.send(GET)
        await serve_http(Stuck(theirs.incoming, theirs.outgoing), fast, LIMITS)

    # 20 to send, 2 to linger, 2 to close.
    assert current_time() - began == pytest.approx(24)

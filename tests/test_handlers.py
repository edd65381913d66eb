"""The ready-made handlers, each on a connection of its own."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator

import pytest
from anyio import create_task_group, fail_after
from anyio.abc import ByteStream

from anyecho.handlers import HANDLERS, Handler, chargen, discard, echo, prefix, upper
from anyecho.net.poller import Fallback
from tests.net.pairs import stream_pair
from tests.support.conformance import drain


@pytest.fixture
async def ends() -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    near, far = stream_pair("unix", Fallback())
    async with near, far:
        yield near, far


async def replies(handler: Handler, ends: tuple[ByteStream, ByteStream], *chunks: bytes) -> bytes:
    """Send `chunks` and EOF to `handler`; return all that comes back."""
    near, far = ends
    for chunk in chunks:
        await near.send(chunk)
    await near.send_eof()
    with fail_after(10):
        await handler(far)
    await far.send_eof()
    return await drain(near)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (echo, b"Hello, World"),
        (discard, b""),
        (upper, b"HELLO, WORLD"),
        (prefix, f"{platform.node()} {os.getpid()}\nHello, World".encode()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_ready_made_handler_replies_until_eof(
    handler: Handler, expected: bytes, ends: tuple[ByteStream, ByteStream]
) -> None:
    assert await replies(handler, ends, b"Hello, ", b"World") == expected


async def test_chargen_sends_the_pattern_of_rfc_864(ends: tuple[ByteStream, ByteStream]) -> None:
    near, far = ends
    received = bytearray()

    async def generate() -> None:
        await chargen(far)
        await far.send_eof()

    async with create_task_group() as tasks:
        tasks.start_soon(generate)
        while len(received) < 200 * 74:
            received += await near.receive()
        await near.send(b"this is discarded")
        await near.send_eof()
        await drain(near)

    lines = bytes(received).split(b"\r\n")
    assert lines[0] == bytes(range(32, 104))
    assert lines[1] == bytes(range(33, 105))
    assert lines[94] == b"~" + bytes(range(32, 103))
    assert lines[95:190] == lines[:95]


async def test_chargen_ends_at_eof_while_its_peer_reads_nothing(ends: tuple[ByteStream, ByteStream]) -> None:
    near, far = ends
    await near.send_eof()
    with fail_after(10):
        await chargen(far)


def test_the_names_for_the_command_line_are_those_of_the_functions() -> None:
    assert list(HANDLERS) == [handler.__name__ for handler in (echo, discard, chargen, upper, prefix)]

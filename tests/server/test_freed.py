"""A connection with a handler or a fault is freed when it ends, without the garbage collector."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
from anyio import to_thread
from anyio.abc import ByteStream

from anyecho.echo import echo
from anyecho.faults import Cut, Fault, Latency, LimitData, ResetPeer, Timeout
from anyecho.handlers import Handler, chargen
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.support.leaks import live_connections
from tests.support.peers import dial, until, until_closed


async def fail(stream: ByteStream) -> None:
    await stream.receive()
    raise ValueError("wrong")


async def leave(stream: ByteStream) -> None:
    await stream.receive()


def talk(address: Any) -> None:
    with dial(address) as sock:
        try:
            sock.sendall(b"hello")
            sock.recv(100)
        except OSError:
            pass


@pytest.mark.parametrize(
    ("handler", "faults"),
    [
        (fail, ()),
        (leave, ()),
        (chargen, ()),
        (echo, (Latency(latency=0.01),)),
        (echo, (LimitData(bytes=2),)),
        (echo, (Cut(bytes=2),)),
        (echo, (ResetPeer(),)),
        (echo, (Timeout(timeout=0.05),)),
    ],
    ids=lambda value: getattr(value, "__name__", "") or ",".join(each.name for each in value),
)
@pytest.mark.by_turns("engine")
async def test_a_connection_is_freed_without_the_garbage_collector(
    handler: Handler, faults: tuple[Fault, ...], caplog: pytest.LogCaptureFixture
) -> None:
    # A record would hold the traceback, and so the frames of the handler.
    caplog.set_level(logging.CRITICAL, "anyecho.server")
    options = ServeOptions(engine="auto", linger=0.1, faults=faults)
    async with open_server("tcp://127.0.0.1:0", options=options, handler=handler) as server:
        gc.collect()
        gc.disable()
        try:
            for number in range(3):
                await to_thread.run_sync(talk, server.address)
                await until_closed(server, number + 1)
            await until(lambda: live_connections() == 0)
        finally:
            gc.enable()

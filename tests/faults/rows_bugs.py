"""Row 3: a bug in the code that serves a connection."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after, to_thread, wait_all_tasks_blocked
from anyio.abc import ByteStream

from anyecho.client.client import connect
from anyecho.echo import echo
from anyecho.net import poller
from anyecho.server import tasks as task_engine
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, dialled, good_client, logged
from tests.faults.table import Observed, Scene, injects
from tests.support.peers import SOON, receive_all, until


class Bug(Exception):
    """Raised on purpose."""


async def buggy(stream: ByteStream) -> None:
    """Echo, or raise `Bug` if the first bytes say so."""
    word = await stream.receive()
    if word == b"raise":
        raise Bug
    if word == b"raise in a group":
        async with create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise Bug

    await stream.send(word)
    await echo(stream)


async def failing_cleanup(stream: ByteStream) -> None:
    """Raise `Bug` in the clean-up after a cancellation."""
    async with create_task_group() as tasks:
        tasks.start_soon(stream.receive)
        try:
            await anyio.sleep_forever()
        finally:
            raise Bug


@injects(3, "in the tasks engine, the echo of two connections raises, of one in a group with a task cancelled")
async def echo_raises(_: Scene) -> Observed:
    with pytest.MonkeyPatch.context() as patch, logged() as lines:
        patch.setattr(task_engine, "echo", buggy)
        return await _fail_two_connections(ServeOptions(engine="tasks", linger=0.1), lines)


@injects(3, "in the events engine, recv_into of two connections raises")
async def receiving_raises(_: Scene) -> Observed:
    if not poller.has_epoll():
        pytest.skip("there is no events engine without epoll")
    recv_into = socket.socket.recv_into

    def failing(sock: socket.socket, buffer: memoryview) -> int:
        count = recv_into(sock, buffer)
        if bytes(buffer[:5]) == b"raise":
            raise Bug
        return count

    with pytest.MonkeyPatch.context() as patch, logged() as lines:
        patch.setattr(socket.socket, "recv_into", failing)
        return await _fail_two_connections(ServeOptions(engine="events", linger=0.1), lines)


async def _fail_two_connections(options: ServeOptions, lines: Sequence[Any]) -> Observed:
    async with open_server(TCP, options=options) as server, good_client(server.addresses[0]):
        for word in (b"raise", b"raise in a group"):
            with dialled(server.addresses[0], 1) as [victim]:
                victim.sendall(word)
                assert await to_thread.run_sync(receive_all, victim) == b""

        await until(lambda: server.stats.active == 1)
        assert server.stats.closed == {"error": 2}
        assert [record.getMessage() for record in lines] == ["connection failed"] * 2
        return {"good client": "echoed all the time", "closed": dict(server.stats.closed)}


@injects(3, "in the tasks engine, cleaning up raises in three connections that a drain cancels")
async def cleaning_up_raises(_: Scene) -> Observed:
    options = ServeOptions(engine="tasks", linger=0.1)
    async with open_server(TCP, options=options) as server, AsyncExitStack() as clients:
        good = await clients.enter_async_context(await connect(server.addresses[0]))
        await good.exchange(b"before")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_engine, "echo", failing_cleanup)
            for _client in range(3):
                await clients.enter_async_context(await connect(server.addresses[0]))
            await until(lambda: server.stats.active == 4)
            await wait_all_tasks_blocked()
        with fail_after(SOON), logged() as lines:
            await server.drain(0)

    assert len(lines) == 3
    assert server.stats.closed == {"error": 3, "drained": 1}
    return {"drain": "ended", "closed": dict(server.stats.closed)}

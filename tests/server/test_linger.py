"""The lingering close: its duration, and when the server closes without one."""

from __future__ import annotations

import pytest
from anyio import (
    CancelScope,
    Event,
    create_task_group,
    fail_after,
    move_on_after,
    to_thread,
)
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from anyecho.address import Address, UnixAddress
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.net import linger
from anyecho.net.poller import Fallback
from anyecho.net.stream import PolledStream
from anyecho.server.options import ServeOptions
from anyecho.server.reasons import CloseReason
from anyecho.server.server import open_server
from tests.net.pairs import raw_pair
from tests.support.certificates import Files
from tests.support.conformance import drain
from tests.support.machine import needs
from tests.support.peers import SOON, dial, receive_all, until
from tests.support.tasks import wait_all_tasks_blocked
from tests.support.tls import TLS, options

LONG = 60.0

on_linux = needs(linger._OUTPUT_QUEUE is not None, "a kernel that says what is unacknowledged")


@on_linux
@pytest.mark.parametrize("talk", [0, 1, 100], ids=["silent", "one echo", "100 echoes"])
async def test_leaving_the_block_does_not_wait_for_an_idle_client(talk: int, carrier: Address) -> None:
    with fail_after(SOON):
        async with open_server(carrier, options=ServeOptions(linger=LONG)) as server:
            client = await connect(server.addresses[0])
            for _ in range(talk):
                await client.exchange(b"x" * 1000)
            await until(lambda: server.stats.active == 1)

    assert server.stats.closed == {"drained": 1}
    assert isinstance(client.stream, ByteStream)
    assert await drain(client.stream) == b""
    await client.aclose()


@on_linux
@pytest.mark.parametrize("talk", [0, 1, 100], ids=["silent", "one echo", "100 echoes"])
async def test_leaving_the_block_does_not_wait_for_an_idle_client_over_tls(
    talk: int, files: Files, ca_options: ConnectOptions
) -> None:
    with fail_after(SOON):
        async with open_server(TLS, options=options(files, linger=LONG)) as server:
            client = await connect(server.addresses[0], options=ca_options)
            for _ in range(talk):
                await client.exchange(b"x" * 1000)
            await until(lambda: server.peers() != [])

    assert server.stats.closed == {"drained": 1}
    assert isinstance(client.stream, ByteStream)
    assert await drain(client.stream) == b""  # EOF is a close_notify
    await client.aclose()


@on_linux
async def test_an_idle_client_is_closed_at_once(carrier: Address) -> None:
    """Also if a limit closes it, not only when the block is left."""
    async with open_server(carrier, options=ServeOptions(linger=LONG, idle_timeout=0.1)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.closed == {"idle": 1})
            assert sock.recv(1) == b""


@on_linux
async def test_an_idle_client_is_closed_without_a_pause(
    carrier: Address, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first check precedes the first pause. The events engine closes before `request_close` returns."""
    monkeypatch.setattr(linger, "_FIRST_CHECK", LONG)
    async with open_server(carrier, options=ServeOptions(linger=LONG)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await wait_all_tasks_blocked()
            [connection] = server._connections
            connection.request_close(CloseReason.DRAINED)
            assert server.stats.active == (engine == "tasks")
            await until(lambda: server.stats.closed == {"drained": 1})
            assert sock.recv(1) == b""


@on_linux
async def test_a_byte_after_an_immediate_close_is_answered_by_a_reset(carrier: Address) -> None:
    async with open_server(carrier, options=ServeOptions(linger=LONG)) as server:
        sock = dial(server.addresses[0])
        await until(lambda: server.stats.active == 1)

    with sock, pytest.raises((ConnectionResetError, BrokenPipeError)):
        assert sock.recv(1) == b""
        for _ in range(100):  # the first one causes the reset
            sock.sendall(b"late")


@pytest.mark.parametrize("why", ["unread input", "no report"])
async def test_the_server_lingers_if_echo_may_be_unread(
    why: str, carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has left input unread; or the kernel does not report unacknowledged bytes."""
    if why == "no report":
        monkeypatch.setattr(linger, "_OUTPUT_QUEUE", None)
    async with open_server(carrier, options=ServeOptions(linger=LONG)) as server:
        with dial(server.addresses[0]) as sock:
            await until(lambda: server.stats.active == 1)
            await wait_all_tasks_blocked()
            if why == "unread input":
                sock.sendall(b"unread")
            [connection] = server._connections
            connection.request_close(CloseReason.DRAINED)
            assert await to_thread.run_sync(sock.recv, 1) == b""
            server.close()
            with move_on_after(0.2):
                await server.wait_closed()
            assert server.stats.active == 1
            for _ in range(10):
                sock.sendall(b"not answered by a reset")

    assert server.stats.closed == {"drained": 1}


@pytest.mark.by_turns("engine")
async def test_a_linger_can_be_cancelled_while_the_peer_sends_without_pause() -> None:
    """asyncio does not cancel a task that has just been woken, here in every pass of the loop."""
    arrival, scope = Event(), CancelScope()

    class Flooded(PolledStream):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            nonlocal arrival
            arrival = Event()
            await arrival.wait()
            return b"x"

    async def linger_until_cancelled() -> None:
        with scope:
            await linger.linger(Flooded(ours, Fallback().register(ours)), ours, None, quiet=False)

    async def cancel_later() -> None:
        for _ in range(50):
            await checkpoint()
        scope.cancel()

    ours, theirs = raw_pair("tcp")
    with ours, theirs:
        async with create_task_group() as tasks:
            tasks.start_soon(linger_until_cancelled)
            tasks.start_soon(cancel_later)
            for _ in range(100):
                arrival.set()
                await checkpoint()
            assert scope.cancelled_caught


async def test_the_server_lingers_until_a_unix_peer_has_read_its_echo(short_path: object) -> None:
    """The echo is in the receive buffer of the peer, where only a reset could destroy it."""
    address = UnixAddress(path=f"{short_path}/echo")
    async with open_server(address, options=ServeOptions(linger=LONG)) as server:
        with dial(server.addresses[0]) as sock:
            sock.sendall(b"echo")
            await until(lambda: any(sum(each.totals) == 8 for each in server._connections))
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, 0)
                with move_on_after(0.1):
                    await server.wait_closed()
                assert server.stats.active == 1
                assert await to_thread.run_sync(receive_all, sock) == b"echo"
                sock.close()
                with fail_after(SOON):
                    await server.wait_closed()

"""A ping over streams tells apart what a server does with its probes: answers, delays, drops and changes."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import EndOfStream, create_task_group, sleep, sleep_forever
from anyio.abc import ByteStream, SocketAttribute

from anyecho.address import UnixAddress
from anyecho.echo import echo
from anyecho.errors import ConnectError
from anyecho.measure.probes import Connected, Lost, Reply, Wrong
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions, TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from tests.client.liars import Behaviour, corrupting, listening
from tests.measure.pings import SOON, Scene, failures, numbers
from tests.support.certificates import Files
from tests.support.tls import TLS
from tests.support.tls import options as tls_options


@pytest.mark.parametrize("size", [1, 7, 8, 56, 300_000])
async def test_each_probe_over_a_stream_is_answered(size: int, server: Server) -> None:
    scene = Scene(server.addresses[0], count=300 if size == 1 else 5, size=size)
    events = await scene.run()

    count = scene.ping.options.count
    assert scene.counts == {"transmitted": count, "received": count}
    assert isinstance(events[0], Connected)
    assert numbers(events, Reply) == [*range(1, (count or 0) + 1)]
    assert list(scene.ping.probes.latencies) == [event.latency for event in events if isinstance(event, Reply)]
    assert min(scene.ping.probes.latencies) > 0
    assert scene.ping.exit_status == 0


@pytest.mark.parametrize("connect", [False, True])
async def test_probes_over_tls_are_answered(connect: bool, files: Files) -> None:
    async with open_server(TLS, options=tls_options(files)) as server:
        scene = Scene(server.addresses[0], count=3, connect=connect, tls=TLSClientOptions(cacert=files.cacert))
        events = await scene.run()

    assert scene.counts == {"transmitted": 3, "received": 3}
    steps = {"dns", "connect", "tls", "echo"} if connect else set()
    assert all(set(event.steps) == steps for event in events if isinstance(event, Reply))


@pytest.mark.parametrize("connect", [False, True])
async def test_a_refused_client_certificate_is_an_error_of_the_first_probe(connect: bool, files: Files) -> None:
    required = TLSServerOptions(
        ssl_certfile=files.cert, ssl_keyfile=files.key, ssl_ca_certs=files.cacert, ssl_cert_reqs="required"
    )
    async with open_server(TLS, options=ServeOptions(tls=required)) as server:
        scene = Scene(server.addresses[0], count=1, connect=connect, tls=TLSClientOptions(cacert=files.cacert))
        with pytest.raises(ConnectError, match="requires a client certificate"):
            await scene.run()


async def test_a_refused_certificate_after_a_reply_loses_probes_and_does_not_end_the_ping(files: Files) -> None:
    """TLS 1.3: the refusal comes after the client's handshake, here on the connection that replaces the first."""
    accepting, refusing = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    for context in (accepting, refusing):
        context.load_cert_chain(files.cert, files.key)
    refusing.verify_mode = ssl.VerifyMode.CERT_REQUIRED

    def answer_once(listener: socket.socket) -> None:
        for context in (accepting, refusing):
            # In a thread, because OpenSSL on a socket sends its alert by itself.
            with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as stream:
                stream.sendall(stream.recv(64))
                stream.recv(64)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SOON)
        address = f"tls://127.0.0.1:{listener.getsockname()[1]}"
        scene = Scene(address, count=3, tls=TLSClientOptions(cacert=files.cacert))
        async with create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, answer_once, listener)
            events = await scene.run()

    assert scene.counts == {"transmitted": 3, "received": 1, "lost": 2, "reconnects": 1}
    assert [each for each, _ in failures(events)] == [(2,), (3,)]


async def test_connections_of_their_own_split_each_latency_into_its_steps(server: Server) -> None:
    scene = Scene(server.addresses[0], count=3, connect=True)
    events = await scene.run()

    replies = [event for event in events if isinstance(event, Reply)]
    dns = set() if isinstance(server.addresses[0], UnixAddress) else {"dns"}
    assert all(set(reply.steps) == {*dns, "connect", "echo"} for reply in replies)
    assert all(0 < sum(reply.steps.values()) <= reply.latency for reply in replies)
    assert {name: len(of_step) for name, of_step in scene.ping.probes.steps.items()} == dict.fromkeys(
        replies[0].steps, 3
    )
    assert server.stats.accepted == 3


@pytest.mark.parametrize("connect", [False, True])
async def test_no_latency_is_below_the_delay_of_its_echo(connect: bool) -> None:
    async def delaying(stream: ByteStream) -> None:
        async for chunk in stream:
            await sleep(0.02)
            await stream.send(chunk)

    async with listening(delaying) as address:
        scene = Scene(address, count=3, connect=connect)
        await scene.run()

    assert min(scene.ping.probes.latencies) >= 20_000_000


async def test_a_reply_after_the_timeout_is_late_and_its_probe_stays_lost() -> None:
    async def hold_the_first(stream: ByteStream) -> None:
        first = await stream.receive()
        second = await stream.receive()  # sent after the first is lost
        await stream.send(first + second)
        await echo(stream)

    async with listening(hold_the_first) as address:
        scene = Scene(address, count=3, timeout=0.4)
        events = await scene.run()

    assert scene.counts["lost"] == scene.counts["late"] == 1
    assert numbers(events, Lost) == numbers(events, Reply, late=True) == [1]
    assert numbers(events, Reply, late=False) == [2, 3]
    late = next(event for event in events if isinstance(event, Reply) and event.late)
    assert late.latency > 400_000_000
    assert late.latency not in scene.ping.probes.latencies


async def test_a_broken_connection_loses_its_probe_and_is_replaced() -> None:
    async def quit_at_the_second(stream: ByteStream) -> None:
        await stream.send(await stream.receive())
        await stream.receive()

    async with listening(quit_at_the_second) as address:
        scene = Scene(address, count=5)
        events = await scene.run()

    assert scene.counts == {"transmitted": 5, "received": 3, "lost": 2, "reconnects": 2}
    assert failures(events) == [((n,), "the server closed the connection") for n in (2, 4)]
    assert [event.again for event in events if isinstance(event, Connected)] == [False, True, True]
    assert scene.ping.exit_status == 0


async def test_a_reset_loses_its_probe_and_is_no_fast_reply() -> None:
    async def reset(stream: ByteStream) -> None:
        await stream.receive()
        sock = stream.extra(SocketAttribute.raw_socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with listening(reset) as address:
        scene = Scene(address, count=2)
        events = await scene.run()

    assert scene.counts == {"transmitted": 2, "lost": 2, "reconnects": 1}
    assert {reason for _, reason in failures(events)} == {"the connection broke (Connection reset by peer)"}
    assert scene.ping.exit_status == 1


@pytest.mark.parametrize("size", [1, 56])
async def test_wrong_bytes_are_counted_exactly_and_the_connection_is_replaced(size: int) -> None:
    async with listening(corrupting(size)) as address:  # the first byte of the second probe
        scene = Scene(address, count=5, size=size)
        events = await scene.run()

    assert scene.counts == {"transmitted": 5, "received": 3, "wrong": 2, "reconnects": 2}
    assert numbers(events, Wrong) == [2, 4]
    sent = 2 if size == 1 else 0
    [first, _] = [event.reason for event in events if isinstance(event, Wrong)]
    assert first == f"byte 0 is wrong: sent 0x{sent:02x}, got 0x{sent ^ 0xFF:02x}"
    assert scene.ping.exit_status == 1


async def test_surplus_bytes_are_stray() -> None:
    async def add(stream: ByteStream) -> None:
        await stream.send(await stream.receive() + b"!!")
        await sleep_forever()

    async with listening(add) as address:
        scene = Scene(address, count=1)
        events = await scene.run()

    assert scene.counts["stray"] == 1
    assert scene.counts["received"] == 1
    assert [event.reason for event in events if isinstance(event, Wrong)] == ["2 bytes came that were never sent"]
    assert scene.ping.exit_status == 1


async def test_a_server_that_reads_nothing_loses_probes_and_does_not_stop_the_ping() -> None:
    tiny = SocketOptions(sndbuf=4096)
    # Never accepted: a transport of asyncio would read until its own buffer is full.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        scene = Scene(address, count=2, size=1 << 22, timeout=0.3, socket=tiny)
        events = await scene.run()

    assert scene.counts == {"transmitted": 2, "lost": 2, "reconnects": 1}
    assert {reason for _, reason in failures(events)} == {"the server has read nothing for 300ms"}


@pytest.mark.parametrize("connect", [False, True])
async def test_a_refused_first_connection_is_an_error(connect: bool, short_path: Path) -> None:
    scene = Scene(f"unix:{short_path}/absent", connect=connect)
    with pytest.raises(ConnectError, match="No such file"):
        await scene.run()


@pytest.mark.parametrize("connect", [False, True])
async def test_a_refused_later_connection_loses_its_probe(connect: bool) -> None:
    async def serve() -> None:
        async with await listener.accept() as stream:
            first = await stream.receive()
            await listener.aclose()
            await stream.send(first)
            with suppress(EndOfStream):
                await stream.receive()

    opened: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    [listener] = opened.listeners
    async with create_task_group() as tasks:
        tasks.start_soon(serve)
        scene = Scene(f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}", count=4, connect=connect)
        await scene.run()
        tasks.cancel_scope.cancel()

    assert scene.counts == {"transmitted": 4, "received": 1, "lost": 3, "errors": 3 if connect else 2}
    assert scene.ping.exit_status == 0


async def silent(stream: ByteStream) -> None:
    await sleep_forever()


@pytest.mark.parametrize("connect", [False, True])
async def test_silence_loses_every_probe(connect: bool) -> None:
    async with listening(silent) as address:
        scene = Scene(address, count=2, timeout=0.05, connect=connect)
        events = await scene.run()

    assert scene.counts == {"transmitted": 2, "lost": 2}
    assert numbers(events, Lost) == [1, 2]
    assert scene.ping.exit_status == 1


@pytest.mark.parametrize(
    ("behaviour", "count", "status"), [(silent, None, 1), (silent, 3, 1), (echo, 3, 0), (echo, None, 0)]
)
async def test_a_deadline_ends_the_ping_unless_count_replies_come_first(
    behaviour: Behaviour, count: int | None, status: int
) -> None:
    async with listening(behaviour) as address:
        scene = Scene(address, count=count, deadline=0.5 if status or not count else SOON, interval=0.01)
        await scene.run()

    assert scene.ping.exit_status == status
    assert scene.counts["transmitted"] >= (count or 1)
    if behaviour is echo and count:
        # More if another probe was outstanding, and its reply came in one piece with that of the last.
        assert scene.counts["received"] >= count


async def test_fewer_replies_than_count_by_the_deadline_are_status_1() -> None:
    async def echo_once(stream: ByteStream) -> None:
        await stream.send(await stream.receive())
        await sleep_forever()

    async with listening(echo_once) as address:
        scene = Scene(address, count=2, deadline=0.5)
        await scene.run()

    assert scene.counts == {"transmitted": 2, "received": 1, "outstanding": 1}
    assert scene.ping.exit_status == 1

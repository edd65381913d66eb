"""A server that forwards, as a peer and an upstream see it, which are plain blocking sockets."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from anyio import EndOfStream, create_task_group, fail_after, move_on_after, to_thread
from anyio.abc import ByteStream

import anyecho
from anyecho.address import Address, UnixAddress
from anyecho.errors import UsageError
from anyecho.faults import Latency, LimitData, ResetPeer
from anyecho.handlers import discard, upper
from anyecho.net.sockets import SocketOptions
from anyecho.net.tls.contexts import TLSClientOptions
from anyecho.server.forwarding import forward
from anyecho.server.server import Server, open_server
from tests.net.pairs import reset
from tests.server.faulty import TCP, error_of, options, run_soon
from tests.support.certificates import Files
from tests.support.peers import (
    SOON,
    converse,
    dial,
    exchange,
    fill_backlog,
    receive,
    receive_all,
    until,
    until_closed,
)
from tests.support.tls import TLS, shake_hands
from tests.support.tls import options as tls_options

pytestmark = pytest.mark.by_turns("engine")


class Line:
    """A peer that is connected through `server` to an upstream."""

    def __init__(self, server: Server, peer: socket.socket, upstream: socket.socket) -> None:
        self.server = server
        self.peer = peer
        self.upstream = upstream

    async def wait_connected(self) -> None:
        """Pass a byte: a reset that comes while the server connects is a refusal."""
        self.peer.sendall(b"x")
        assert await run_soon(receive, self.upstream, 1) == b"x"

    async def closed_for(self, reason: str) -> None:
        await until_closed(self.server)
        assert self.server.stats.closed == {reason: 1}


@asynccontextmanager
async def forwarded(upstream: Address | str, address: Address | str = TCP, **given: Any) -> AsyncIterator[Line]:
    """Listen on `upstream`, forward to it from `address`, and connect a peer."""
    with ExitStack() as opened:
        if isinstance(upstream, UnixAddress):
            listener = opened.enter_context(socket.socket(socket.AF_UNIX))
            upstream = UnixAddress(path=f"{upstream.path}-upstream")
            listener.bind(upstream.path)
            listener.listen()
        else:
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            upstream = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(SOON)
        async with open_server(address, options=options(**given), handler=forward(upstream)) as server:
            peer = opened.enter_context(dial(server.address))
            accepted, _ = await to_thread.run_sync(listener.accept)
            opened.enter_context(accepted).settimeout(SOON)
            yield Line(server, peer, accepted)


async def test_bytes_pass_in_both_directions(carrier: Address) -> None:
    async with forwarded(carrier, carrier) as line:
        line.peer.sendall(b"question")
        assert await run_soon(line.upstream.recv, 100) == b"question"
        line.upstream.sendall(b"answer")
        assert await run_soon(line.peer.recv, 100) == b"answer"
        line.upstream.close()
        assert await run_soon(receive_all, line.peer) == b""
        line.peer.close()
        await line.closed_for("eof")
        assert (line.server.stats.bytes_received, line.server.stats.bytes_sent) == (8, 6)


async def test_much_in_both_directions_at_once_arrives_complete_and_in_order(carrier: Address) -> None:
    there, back = bytes(range(251)) * 20_000, bytes(range(241)) * 20_000
    received: dict[str, bytes] = {}

    async def receive_into(name: str, sock: socket.socket) -> None:
        received[name] = await run_soon(receive_all, sock)

    async def send(sock: socket.socket, payload: bytes) -> None:
        await run_soon(sock.sendall, payload)
        sock.shutdown(socket.SHUT_WR)

    async with forwarded(carrier, carrier) as line:
        async with create_task_group() as tasks:
            tasks.start_soon(receive_into, "upstream", line.upstream)
            tasks.start_soon(receive_into, "peer", line.peer)
            tasks.start_soon(send, line.peer, there)
            tasks.start_soon(send, line.upstream, back)
        await line.closed_for("eof")
    assert received == {"upstream": there, "peer": back}


async def test_an_upstream_may_answer_after_the_half_close_of_the_peer(carrier: Address) -> None:
    async with forwarded(carrier, carrier) as line:
        line.peer.sendall(b"question")
        line.peer.shutdown(socket.SHUT_WR)
        assert await run_soon(receive_all, line.upstream) == b"question"
        line.upstream.sendall(b"late answer")
        line.upstream.close()
        assert await run_soon(receive_all, line.peer) == b"late answer"
        await line.closed_for("eof")


async def test_a_peer_may_send_after_the_half_close_of_the_upstream(carrier: Address) -> None:
    async with forwarded(carrier, carrier) as line:
        line.upstream.shutdown(socket.SHUT_WR)
        assert await run_soon(receive_all, line.peer) == b""
        for _ in range(3):
            line.peer.sendall(b"more")
            assert await run_soon(receive, line.upstream, 4) == b"more"
        line.peer.close()
        assert await run_soon(receive_all, line.upstream) == b""
        await line.closed_for("eof")


@pytest.mark.parametrize("reader", ["peer", "upstream"])
async def test_what_is_not_read_on_one_side_cannot_be_sent_on_the_other(reader: str) -> None:
    small = SocketOptions(sndbuf=65536, rcvbuf=65536)
    async with forwarded(TCP, socket=small) as line:
        sender = line.upstream if reader == "peer" else line.peer
        sender.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):  # the buffers of the kernel hold less
            while sent < 64 << 20:
                sent += await to_thread.run_sync(sender.send, bytes(1 << 20))
        sender.shutdown(socket.SHUT_WR)
        assert len(await run_soon(receive_all, line.peer if reader == "peer" else line.upstream)) == sent


async def test_a_reset_by_the_upstream_is_a_reset_for_the_peer() -> None:
    async with forwarded(TCP) as line:
        await line.wait_connected()
        reset(line.upstream)
        assert await run_soon(error_of, lambda: line.peer.recv(100)) == errno.ECONNRESET
        await line.closed_for("upstream")


async def test_a_reset_by_the_peer_is_a_reset_for_the_upstream() -> None:
    async with forwarded(TCP) as line:
        reset(line.peer)
        assert await run_soon(error_of, lambda: line.upstream.recv(100)) == errno.ECONNRESET
        await line.closed_for("reset")


async def test_a_reset_after_the_end_of_the_answer_takes_nothing_from_the_peer() -> None:
    async with forwarded(TCP) as line:
        line.upstream.sendall(bytes(100_000))
        line.upstream.shutdown(socket.SHUT_WR)
        assert await run_soon(receive, line.peer, 1) == b"\0"
        line.upstream.close()

        def is_noticed() -> bool:
            # The kernel of the upstream answers with a reset, which a later send to it reports.
            with suppress(OSError):
                line.peer.sendall(b"too late")
            return bool(line.server.stats.closed)

        await until(is_noticed)
        assert len(await run_soon(receive_all, line.peer)) == 100_000 - 1
        await line.closed_for("returned")


@pytest.mark.fault(row=10, injected="the server that a connection is forwarded to is not there")
@pytest.mark.parametrize("payload", [b"", b"unread"])
async def test_a_refused_upstream_ends_the_connection_of_the_peer(
    carrier: Address, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        upstream = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        async with open_server(carrier, options=options(), handler=forward(upstream)) as server:
            for _ in range(3):
                with dial(server.address) as peer:
                    peer.sendall(payload)
                    assert await to_thread.run_sync(receive_all, peer) == b""
            await until_closed(server, 3)
            assert server.stats.closed == {"upstream": 3}

    [record] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage() == f"cannot connect to {upstream}: Connection refused (1 times)"
    assert record.exc_info is None


async def test_an_upstream_that_does_not_accept_ends_the_connection_after_the_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fill_backlog(listener, opened)
        upstream = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        async with open_server(TCP, options=options(), handler=forward(upstream, timeout=0.2)) as server:
            with dial(server.address) as peer:
                assert await to_thread.run_sync(receive_all, peer) == b""
            await until_closed(server)
            assert server.stats.closed == {"upstream": 1}
    assert f"cannot connect to {upstream}: no answer within 200ms (1 times)" in caplog.messages


async def test_a_lost_upstream_leaves_the_other_connections_as_they_are() -> None:
    async with forwarded(TCP) as line, forwarded(TCP) as other:
        await line.wait_connected()
        reset(line.upstream)
        assert await run_soon(error_of, lambda: line.peer.recv(1)) == errno.ECONNRESET
        other.peer.sendall(b"still")
        assert await run_soon(receive, other.upstream, 5) == b"still"


async def test_a_drain_lets_a_conversation_end_and_then_closes_both_sides(carrier: Address) -> None:
    async with forwarded(carrier, carrier) as line, create_task_group() as tasks:
        tasks.start_soon(line.server.drain, SOON)
        line.peer.sendall(b"question")
        assert await run_soon(receive, line.upstream, 8) == b"question"
        line.upstream.sendall(b"answer")
        line.upstream.shutdown(socket.SHUT_WR)
        assert await run_soon(receive_all, line.peer) == b"answer"
        line.peer.close()
        with fail_after(SOON):
            await line.server.wait_closed()
        assert line.server.stats.closed == {"eof": 1}


async def test_the_end_of_the_grace_period_closes_both_sides(carrier: Address) -> None:
    async with forwarded(carrier, carrier) as line:
        with fail_after(SOON):
            await line.server.drain(0)
        for sock in (line.peer, line.upstream):
            assert await run_soon(receive_all, sock) == b""
        assert line.server.stats.closed == {"drained": 1}


async def test_the_idle_timeout_acts_on_a_forwarded_connection() -> None:
    async with forwarded(TCP, idle_timeout=0.2) as line:
        for sock in (line.peer, line.upstream):
            assert await run_soon(receive_all, sock) == b""
        await line.closed_for("idle")


@pytest.mark.parametrize("tls", ["peer", "upstream", "upstream, SSL_CERT_FILE"])
async def test_either_side_may_be_over_tls(tls: str, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    over_tls = tls_options(files, engine="auto")
    trust: TLSClientOptions | None = TLSClientOptions(cacert=files.cacert)
    if "SSL_CERT_FILE" in tls:
        trust = None
        monkeypatch.setenv("SSL_CERT_FILE", str(files.cacert))
    with_tls, without = (TLS, over_tls), (TCP, options())
    (front, front_options), (back, back_options) = (with_tls, without) if tls == "peer" else (without, with_tls)
    async with (
        open_server(back, options=back_options, handler=upper) as upstream,
        open_server(front, options=front_options, handler=forward(upstream.address, tls=trust)) as server,
    ):
        if tls == "peer":
            async with await shake_hands(server.address) as peer:
                await peer.send(b"hello")
                await peer.send_eof()
                assert await peer.receive() == b"HELLO"
                with pytest.raises(EndOfStream):
                    await peer.receive()
        else:
            assert await to_thread.run_sync(converse, dial(server.address), b"hello") == b"HELLO"
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}
        await until_closed(upstream)
        assert upstream.stats.closed == {"eof": 1}


async def test_an_upstream_whose_certificate_is_not_trusted_is_refused(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_server(TLS, options=tls_options(files, engine="auto")) as upstream,
        open_server(TCP, options=options(), handler=forward(upstream.address)) as server,
    ):
        with dial(server.address) as peer:
            assert await to_thread.run_sync(receive_all, peer) == b""
        await until_closed(server)
        assert server.stats.closed == {"upstream": 1}
    assert f"cannot connect to {upstream.address}: " in caplog.text


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (Latency(latency=0.1), b"HELLO"),
        (Latency(latency=0.1, stream="upstream"), b"HELLO"),
        (LimitData(bytes=3), b"HEL"),
        (LimitData(bytes=3, stream="upstream"), b""),
    ],
    ids=str,
)
async def test_faults_act_between_the_peer_and_the_upstream(fault: Any, answer: bytes) -> None:
    async with (
        open_server(TCP, options=options(), handler=upper) as upstream,
        open_server(TCP, options=options(faults=(fault,)), handler=forward(upstream.address)) as server,
    ):
        assert await to_thread.run_sync(converse, dial(server.address), b"hello") == answer
        await until_closed(server)
        assert server.stats.closed == {"eof" if isinstance(fault, Latency) else "fault": 1}
        await until_closed(upstream)
        received = 3 if isinstance(fault, LimitData) and fault.stream == "upstream" else 5
        assert upstream.stats.bytes_received == received


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_a_reset_by_a_fault_reaches_the_peer_and_ends_the_upstream(stream: Any) -> None:
    async with forwarded(TCP, faults=(ResetPeer(stream=stream),)) as line:
        (line.peer if stream == "upstream" else line.upstream).sendall(b"x")
        assert await run_soon(error_of, lambda: line.peer.recv(100)) == errno.ECONNRESET
        assert await run_soon(receive_all, line.upstream) == b""
        await line.closed_for("fault")


async def test_a_handler_of_ones_own_may_forward_after_it_has_read() -> None:
    async with open_server(TCP, options=options(), handler=upper) as upstream:
        pass_on = forward(upstream.address)

        async def greet(stream: ByteStream) -> None:
            assert await stream.receive(2) == b"hi"
            await pass_on(stream)

        async with open_server(TCP, options=options(), handler=greet) as server:
            assert await to_thread.run_sync(converse, dial(server.address), b"hi there") == b" THERE"


async def test_an_aborted_server_leaves_no_connection_to_the_upstream() -> None:
    async with (
        open_server(TCP, options=options(), handler=discard) as upstream,
        open_server(TCP, options=options(), handler=forward(upstream.address)) as server,
    ):
        with dial(server.address):
            await until(lambda: upstream.stats.active == 1)
            server.abort()
            await until(lambda: upstream.stats.active == 0)


def test_a_threaded_server_forwards() -> None:
    with (
        anyecho.threaded_server(options=options(), handler=upper) as upstream,
        anyecho.threaded_server(options=options(), handler=anyecho.forward(upstream.address)) as server,
        dial(server.address) as peer,
    ):
        assert exchange(peer, b"hello") == b"HELLO"
        server.wait_until(lambda: server.connections[0].received == b"hello")


async def test_a_peer_that_leaves_while_the_upstream_is_connected_to_is_no_error() -> None:
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fill_backlog(listener, opened)
        upstream = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        async with open_server(TCP, options=options(), handler=forward(upstream)) as server:
            with dial(server.address) as peer:
                await until(lambda: server.stats.active == 1)
                reset(peer)
            with move_on_after(0.05):
                await until_closed(server)
            with fail_after(SOON):
                await server.drain(0)
            assert server.stats.closed.total() == 1


@pytest.mark.parametrize(
    ("bound", "upstream"),
    [
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("127.0.0.1", ""),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.3"),
        ("0.0.0.0", "localhost"),
    ],
)
async def test_a_server_that_would_forward_to_itself_does_not_start(bound: str, upstream: str) -> None:
    with socket.create_server((bound, 0)) as sock:
        handler = forward(f"{upstream}:{sock.getsockname()[1]}")
        with pytest.raises(UsageError, match=r"^cannot forward to .*: this server listens there itself$"):
            async with open_server(f"fd://{os.dup(sock.fileno())}", options=options(), handler=handler):
                pytest.fail("it has started")


async def test_a_server_on_a_path_does_not_forward_to_itself(short_path: Path) -> None:
    (short_path / "link").symlink_to(short_path / "own")
    for name in ("own", "link"):
        handler = forward(f"unix:{short_path}/{name}")
        with pytest.raises(UsageError, match="this server listens there itself"):
            async with open_server(f"unix:{short_path}/own", options=options(), handler=handler):
                pytest.fail("it has started")


@pytest.mark.parametrize(
    ("bound", "upstream"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "host.invalid"), ("0.0.0.0", "192.0.2.1")]
)
async def test_a_server_forwards_to_the_same_port_of_another_host(bound: str, upstream: str) -> None:
    with socket.create_server((bound, 0)) as sock:
        handler = forward(f"{upstream}:{sock.getsockname()[1]}")
        async with open_server(f"fd://{os.dup(sock.fileno())}", options=options(), handler=handler):
            pass

"""A server with a handler: close reasons, limits, drain and statistics are those of an echo."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from anyio import (
    BrokenResourceError,
    EndOfStream,
    Event,
    connect_tcp,
    create_task_group,
    fail_after,
    sleep_forever,
    to_thread,
)
from anyio.abc import ByteStream, SocketAttribute

from anyecho.address import Address, TCPAddress
from anyecho.echo import echo
from anyecho.errors import UsageError
from anyecho.handlers import Handler, chargen, discard, upper
from anyecho.server.server import open_server
from tests.server.faulty import options
from tests.support.certificates import Files
from tests.support.peers import SOON, converse, dial, exchange, receive, receive_all, until_closed
from tests.support.tls import TLS, shake_hands
from tests.support.tls import options as tls_options

pytestmark = pytest.mark.by_turns("engine")


async def test_a_handler_replaces_the_echo(carrier: Address) -> None:
    async with open_server(carrier, options=options(), handler=upper) as server:
        reply = await to_thread.run_sync(converse, dial(server.address), b"Hello, ", b"World")
        assert reply == b"HELLO, WORLD"
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}
        assert (server.stats.bytes_received, server.stats.bytes_sent) == (12, 12)


async def test_a_handler_knows_its_peer() -> None:
    peers = []

    async def note(stream: ByteStream) -> None:
        peers.append(stream.extra(SocketAttribute.remote_address))

    async with open_server("tcp://127.0.0.1:0", options=options(), handler=note) as server:
        with dial(server.address) as sock:
            local = sock.getsockname()
            await to_thread.run_sync(receive_all, sock)
        assert peers == [local]


@pytest.mark.parametrize("size", [10, 10_000_000])
async def test_a_peer_gets_all_that_a_handler_sent_before_it_returned(carrier: Address, size: int) -> None:
    async def greet(stream: ByteStream) -> None:
        await stream.send(bytes(size))

    async with open_server(carrier, options=options(), handler=greet) as server:
        with dial(server.address) as sock:
            sock.sendall(b"unread by the handler")
            assert len(await to_thread.run_sync(receive_all, sock)) == size
        await until_closed(server)
        assert server.stats.closed == {"returned": 1}


async def test_a_handler_that_returns_over_tls_sends_close_notify(files: Files) -> None:
    async def greet(stream: ByteStream) -> None:
        await stream.send(b"hello")

    over_tls = tls_options(files, engine="auto")
    async with (
        open_server(TLS, options=over_tls, handler=greet) as server,
        await shake_hands(server.address) as peer,
    ):
        assert await peer.receive() == b"hello"
        with pytest.raises(EndOfStream):
            await peer.receive()


async def test_eof_over_tls_is_the_reason_although_nothing_was_echoed(files: Files) -> None:
    over_tls = tls_options(files, engine="auto")
    async with open_server(TLS, options=over_tls, handler=discard) as server:
        async with await shake_hands(server.address) as peer:
            await peer.send(b"hello")
            await peer.send_eof()
            with pytest.raises(EndOfStream):
                await peer.receive()
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}


@pytest.mark.fault(row=3, injected="a handler of the user's own raises, alone and in a group")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("wrong"),
        lambda: FileNotFoundError(2, "no such file"),
        lambda: ssl.SSLError("x"),
        lambda: ExceptionGroup("g", [KeyError(1)]),
    ],
)
async def test_an_exception_ends_one_connection_with_one_traceback(
    make: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    # Made here: the traceback of one that outlives the test would keep the connection.
    error = make()

    async def fail_at_x(stream: ByteStream) -> None:
        async for chunk in stream:
            if chunk == b"x":
                raise error
            await stream.send(chunk)

    async with open_server("tcp://127.0.0.1:0", options=options(), handler=fail_at_x) as server:
        with dial(server.address) as neighbour, dial(server.address) as sock:
            assert await to_thread.run_sync(exchange, neighbour, b"before") == b"before"
            sock.sendall(b"x")
            assert await to_thread.run_sync(receive_all, sock) == b""
            assert await to_thread.run_sync(exchange, neighbour, b"after") == b"after"
        await until_closed(server, 2)
        assert server.stats.closed == {"handler": 1, "eof": 1}

    [record] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage() == "the handler failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error or isinstance(
        record.exc_info[1], type(getattr(error, "exceptions", [error])[0])
    )


async def generate(stream: ByteStream) -> AsyncIterator[bytes]:
    yield await stream.receive()


class Shouting:
    async def __call__(self, stream: ByteStream) -> None:
        await upper(stream)

    async def serve(self, greeting: str, stream: ByteStream) -> None:
        await upper(stream)


@pytest.mark.parametrize("wrong", [os.getcwd, lambda _: None, generate, partial(generate), Shouting])
async def test_a_handler_that_is_not_async_is_a_usage_error(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"^handler must be an async function of a stream, not "):
        async with open_server("tcp://127.0.0.1:0", options=options(), handler=wrong):
            pytest.fail("it opened")


@pytest.mark.parametrize(
    "handler",
    [Shouting(), Shouting().__call__, partial(upper), partial(Shouting()), partial(Shouting().serve, "hi")],
)
async def test_a_handler_may_be_an_object_or_a_partial_call(handler: Handler) -> None:
    async with open_server("tcp://127.0.0.1:0", options=options(), handler=handler) as server:
        assert await to_thread.run_sync(converse, dial(server.address), b"ab") == b"AB"


@pytest.mark.parametrize("leave", ["eof", "reset"])
async def test_errors_of_the_stream_need_not_be_caught(leave: str, caplog: pytest.LogCaptureFixture) -> None:
    async def receive_for_ever(stream: ByteStream) -> None:
        while True:
            await stream.receive()

    async with open_server("tcp://127.0.0.1:0", options=options(), handler=receive_for_ever) as server:
        with dial(server.address) as sock:
            if leave == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until_closed(server)
        assert server.stats.closed == {"eof" if leave == "eof" else "reset": 1}
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_handler_may_close_its_stream(carrier: Address) -> None:
    async def greet(stream: ByteStream) -> None:
        async with stream:
            await stream.send(b"hello")

    async with open_server(carrier, options=options(), handler=greet) as server:
        with dial(server.address) as sock:
            assert await to_thread.run_sync(receive_all, sock) == b"hello"
        await until_closed(server)
        assert server.stats.closed == {"returned": 1}


async def test_a_drain_cancels_a_handler_and_sends_the_rest_of_its_last_send(carrier: Address) -> None:
    size = 20_000_000

    async def send_much(stream: ByteStream) -> None:
        await stream.send(bytes(size))

    async with open_server(carrier, options=options(linger=SOON), handler=send_much) as server:
        with dial(server.address) as sock:
            assert len(await to_thread.run_sync(receive, sock, 10)) == 10
            async with create_task_group() as tasks:
                tasks.start_soon(server.drain, 0)
                assert len(await to_thread.run_sync(receive_all, sock)) == size - 10


async def test_a_handler_that_only_waits_is_ended_by_a_drain(carrier: Address) -> None:
    waiting = Event()

    async def wait(_: ByteStream) -> None:
        waiting.set()
        await sleep_forever()

    async with open_server(carrier, options=options(), handler=wait) as server:
        with dial(server.address) as sock, fail_after(SOON):
            await waiting.wait()
            await server.drain(0)
            assert await to_thread.run_sync(receive_all, sock) == b""
        assert server.stats.closed == {"drained": 1}


async def test_unanswered_bytes_are_not_under_the_write_timeout(carrier: Address) -> None:
    limits = options(write_timeout=0.05, idle_timeout=0.4)
    async with open_server(carrier, options=limits, handler=discard) as server:
        with dial(server.address) as sock:
            sock.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, sock) == b""
        assert server.stats.closed == {"idle": 1}


async def test_the_write_timeout_counts_although_the_peer_sends(carrier: Address) -> None:
    async with open_server(carrier, options=options(write_timeout=0.2), handler=chargen) as server:
        with dial(server.address) as sock:
            # The last send fails.
            with fail_after(SOON), suppress(OSError):
                while not server.stats.closed:
                    await to_thread.run_sync(sock.send, b"x")
            await until_closed(server)
            assert server.stats.closed == {"write": 1}


@pytest.mark.parametrize(
    ("limit", "reason"), [({"max_bytes": 3}, "bytes"), ({"min_rate": 1e6, "min_rate_window": 0.1}, "rate")]
)
async def test_limits_act_on_a_handler(limit: dict[str, Any], reason: str, carrier: Address) -> None:
    async with open_server(carrier, options=options(**limit), handler=discard) as server:
        with dial(server.address) as sock:
            sock.sendall(b"hello")
            assert await to_thread.run_sync(receive_all, sock) == b""
        await until_closed(server)
        assert server.stats.closed == {reason: 1}


async def test_a_handler_may_connect_elsewhere_and_lose_that_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: ByteStream) -> None:
        raise BrokenResourceError

    async with open_server("tcp://127.0.0.1:0", options=options(), handler=fail) as server:
        assert isinstance(server.address, TCPAddress)
        async with await connect_tcp(server.address.host, server.address.port) as peer:
            with pytest.raises(EndOfStream):
                await peer.receive()
        await until_closed(server)
        assert server.stats.closed == {"broken": 1}


@pytest.mark.parametrize("addresses", [("udp://127.0.0.1:0",), ("tcp://127.0.0.1:0", "udp://127.0.0.1:0")])
async def test_a_datagram_address_refuses_a_handler(addresses: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"^handler is for streams .* as on udp://127.0.0.1:0, are only"):
        async with open_server(*addresses, options=options(), handler=upper):
            pytest.fail("it opened")


async def test_a_passed_datagram_socket_refuses_a_handler() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError, match=r"^handler is for streams"):
            async with open_server(f"fd://{sock.fileno()}", options=options(), handler=upper):
                pytest.fail("it opened")


@pytest.mark.parametrize(
    ("handler", "given", "error"),
    [(upper, {"engine": "events"}, "^handler needs a task"), (b"upper", {}, "^handler must be an async function")],
)
async def test_a_wrong_handler_is_a_usage_error(handler: Any, given: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        async with open_server("tcp://127.0.0.1:0", options=options(**given), handler=handler):
            pytest.fail("it opened")


@pytest.mark.parametrize("given", [{}, {"handler": echo}])
async def test_the_echo_as_handler_runs_on_the_engine_of_the_echo(given: dict[str, Handler], engine: str) -> None:
    async with open_server("tcp://127.0.0.1:0", options=options(engine=engine), **given) as server:
        with dial(server.address) as sock:
            assert await to_thread.run_sync(exchange, sock, b"x") == b"x"
            kinds = Counter(type(each).__name__ for each in server._connections)
        assert kinds == {"TaskConnection" if engine == "tasks" else "EventConnection": 1}

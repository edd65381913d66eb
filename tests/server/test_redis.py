"""A Redis server behind a forwarding server, with faults between it and its clients."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from anyecho.address import Address, UnixAddress
from anyecho.faults import Cut, Latency, ResetPeer, Slicer
from anyecho.server.forwarding import forward
from anyecho.server.server import open_server
from tests.server.faulty import options, talk
from tests.support.machine import program, short_directory
from tests.support.peers import SOON, dial, receive, receive_all, until_closed
from tests.support.process import Processes

pytestmark = pytest.mark.by_turns("engine")

#: Seconds of a delay.
DELAY = 0.15
VALUE = bytes(range(256)) * 400


def request(*words: bytes) -> bytes:
    """Return a command as RESP, the protocol of Redis: an array of bulk strings."""
    parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)]
    return b"".join(parts)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def ask(sock: socket.socket, reply: bytes, *words: bytes) -> float:
    """Send a command and read its reply, which must be `reply`; return the seconds that it took."""
    start = time.monotonic()
    sock.sendall(request(*words))
    assert receive(sock, len(reply)) == reply
    return time.monotonic() - start


@contextmanager
def running(directory: Path) -> Iterator[tuple[UnixAddress, subprocess.Popen[str]]]:
    """Run Redis on a Unix socket in `directory`, without a TCP port and without files."""
    path = str(directory / "redis")
    command = [program("redis-server"), "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([*command, "--dir", str(directory)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert any("eady to accept connections" in line for line in process.stdout)
            yield UnixAddress(path=path), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def redis() -> Iterator[UnixAddress]:
    with short_directory() as directory, running(Path(directory)) as (address, _):
        with dial(address) as sock:
            ask(sock, b"+OK\r\n", b"SET", b"key", VALUE)
        yield address


async def test_commands_and_large_values_pass(redis: UnixAddress, carrier: Address) -> None:
    def script(sock: socket.socket) -> None:
        ask(sock, b"+PONG\r\n", b"PING")
        ask(sock, bulk(VALUE), b"GET", b"key")
        sock.sendall(request(b"PING") * 1000)
        assert receive(sock, 7000) == b"+PONG\r\n" * 1000
        ask(sock, b"+OK\r\n", b"QUIT")
        assert receive_all(sock) == b""

    async with open_server(carrier, options=options(), handler=forward(redis)) as server:
        await talk(server, script)
        await until_closed(server)
        assert server.stats.closed == {"eof": 1}


async def test_a_reply_is_complete_in_slices(redis: UnixAddress, carrier: Address) -> None:
    given = options(faults=(Slicer(average_size=999, size_variation=500),))
    async with open_server(carrier, options=given, handler=forward(redis)) as server:
        await talk(server, lambda sock: ask(sock, bulk(VALUE), b"GET", b"key"))


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_a_reply_is_late_by_the_latency_until_it_is_removed(
    stream: Any, redis: UnixAddress, carrier: Address
) -> None:
    async with open_server(carrier, options=options(), handler=forward(redis)) as server:
        server.set_faults(Latency(latency=DELAY, stream=stream))
        with dial(server.address) as sock:
            assert await to_thread.run_sync(ask, sock, b"+PONG\r\n", b"PING") >= DELAY
            server.set_faults(Latency(latency=1000, stream=stream))
            sock.sendall(request(b"PING"))
            server.set_faults()
            assert await to_thread.run_sync(receive, sock, 7) == b"+PONG\r\n"


async def test_a_message_is_pushed_to_a_subscriber(redis: UnixAddress, carrier: Address) -> None:
    def script(sock: socket.socket) -> None:
        ask(sock, b"*3\r\n" + bulk(b"subscribe") + bulk(b"news") + b":1\r\n", b"SUBSCRIBE", b"news")
        with dial(redis) as publisher:
            ask(publisher, b":1\r\n", b"PUBLISH", b"news", b"hello")
        pushed = b"*3\r\n" + bulk(b"message") + bulk(b"news") + bulk(b"hello")
        assert receive(sock, len(pushed)) == pushed

    async with open_server(carrier, options=options(), handler=forward(redis)) as server:
        await talk(server, script)


async def test_a_reply_is_cut_in_the_middle_and_complete_on_the_next_connection(
    redis: UnixAddress, carrier: Address
) -> None:
    async with open_server(
        carrier, options=options(faults=(Cut(bytes=1000, on=1),)), handler=forward(redis)
    ) as server:

        def cut_short(sock: socket.socket) -> bytes:
            sock.sendall(request(b"GET", b"key"))
            return receive_all(sock)

        assert await talk(server, cut_short) == bulk(VALUE)[:1000]
        await talk(server, lambda sock: ask(sock, bulk(VALUE), b"GET", b"key"))
        await until_closed(server, 2)
        assert server.stats.closed == {"fault": 1, "eof": 1}


async def test_a_command_before_a_reset_is_not_executed(redis: UnixAddress) -> None:
    given = options(faults=(ResetPeer(stream="upstream", on=1),))
    async with open_server("tcp://127.0.0.1:0", options=given, handler=forward(redis)) as server:

        def script(sock: socket.socket) -> None:
            sock.sendall(request(b"SET", b"never", b"x"))
            with pytest.raises(ConnectionResetError):
                sock.recv(100)

        await talk(server, script)
        await talk(server, lambda sock: ask(sock, b":0\r\n", b"EXISTS", b"never"))


async def test_a_redis_that_dies_ends_its_connections_and_refuses_new_ones(
    carrier: Address, short_path: Path
) -> None:
    with running(short_path) as (redis, process):
        async with open_server(carrier, options=options(), handler=forward(redis)) as server:

            def script(sock: socket.socket) -> None:
                ask(sock, b"+PONG\r\n", b"PING")
                process.kill()
                process.wait()  # until then its accept backlog takes connections
                assert receive_all(sock) == b""

            await talk(server, script)
            await talk(server, receive_all)
            await until_closed(server, 2)
            assert server.stats.closed == {"eof": 1, "upstream": 1}


def test_redis_cli_works_through_the_command_line(redis: UnixAddress, processes: Processes) -> None:
    server = processes.serve(
        "-b", "tcp://127.0.0.1:0", "--forward", str(redis), "--fault", f"latency:latency={DELAY}s"
    )
    port = server.addresses[0].rpartition(":")[2]
    command = [program("redis-cli"), "-h", "127.0.0.1", "-p", port, "PING"]
    start = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=True)
    assert finished.stdout == "PONG\n"
    assert time.monotonic() - start >= DELAY

"""Hostile or numerous peers: too few descriptors, resets, floods, thousands of idle connections."""

from __future__ import annotations

import errno
import gc
import math
import random
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import pytest
from anyio import create_task_group, get_running_tasks, to_thread
from anyio.abc import ByteStream

from anyecho.address import Address
from anyecho.client.client import connect
from anyecho.echo import echo
from anyecho.server import tasks as task_engine
from anyecho.server.server import Server, open_server
from tests.support.machine import needs_descriptors
from tests.support.peers import SOON, dial, receive_all, until
from tests.support.process import Processes, descriptors, resident, wait_until

MIB = 1 << 20


@pytest.fixture
def bind(carrier: Address) -> str:
    """The listening address of a server process."""
    return str(carrier)


def echoes(sock: socket.socket, seconds: float = 5.0) -> bool:
    """Whether `sock` echoes a byte within `seconds`; false also if it is closed."""
    sock.settimeout(seconds)
    try:
        sock.sendall(b"?")
        return sock.recv(1) == b"?"
    except OSError:
        return False


def answered(clients: list[socket.socket]) -> list[socket.socket]:
    """Send a byte on each of `clients`; return those that get it back, with at most a second between two."""
    waiting, got = set(clients), set()
    for client in clients:
        with suppress(ConnectionError):  # closed already
            client.sendall(b"?")
    while ready := select.select(waiting, [], [], 1)[0]:
        for client in ready:
            waiting.remove(client)
            with suppress(ConnectionError):
                if client.recv(1):
                    got.add(client)

    return [client for client in clients if client in got]


@pytest.mark.fault(row=21, injected="300 clients connect, and stay, to a server with 200 or 40 descriptors")
@pytest.mark.parametrize(("limit", "count", "reserve"), [(200, 136, 40), (40, 20, 0)])
@pytest.mark.by_turns("engine")
def test_connections_over_the_descriptor_limit_wait_in_the_backlog(
    limit: int, count: int, reserve: int, bind: str, backend: str, processes: Processes, opened: ExitStack
) -> None:
    needs_descriptors(400)
    server = processes.serve("-b", bind, "--backend", backend, descriptors=limit)
    clients = [opened.enter_context(dial(server.addresses[0])) for _ in range(300)]
    held = answered(clients)
    assert held == clients[:count]
    # The server itself uses some of the 64 descriptors in reserve.
    assert descriptors(server.pid) <= limit - reserve

    held[0].close()
    assert clients[count].recv(1) == b"?"  # sent in the backlog


@pytest.mark.fault(row=1, injected="RLIMIT_NOFILE leaves a server 25 descriptors; 60 clients connect, and stay")
def test_running_out_of_descriptors_does_not_affect_open_connections(
    bind: str, backend: str, processes: Processes, opened: ExitStack
) -> None:
    server = processes.serve("-b", bind, "--backend", backend, descriptors=1000)
    [address] = server.addresses
    first = opened.enter_context(dial(address))
    assert echoes(first)
    limit = descriptors(server.pid) + 25
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, 1000))
    clients = [opened.enter_context(dial(address)) for _ in range(60)]
    held = answered(clients)
    assert 20 <= len(held) <= 30
    assert all(echoes(client) for client in [first, *held])

    for client in clients:
        client.close()
    wait_until(lambda: descriptors(server.pid) < limit - 10)
    assert echoes(opened.enter_context(dial(address)))


@pytest.mark.fault(row=2, injected="accept(2) fails once with each of 6 errors, while 8 clients connect")
@pytest.mark.parametrize("name", ["EMFILE", "ENOBUFS", "ECONNABORTED", "EPERM", "EPROTO", "EINTR"])
@pytest.mark.by_turns("anyio_backend")
async def test_a_failing_accept_affects_no_connection(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    async with await connect(server.addresses[0]) as older:
        await older.exchange(b"before")
        accept = socket.socket.accept
        failures = [getattr(errno, name)]

        def failing(sock: socket.socket) -> tuple[socket.socket, Any]:
            if failures:
                raise OSError(failures.pop(), name)
            return accept(sock)

        monkeypatch.setattr(socket.socket, "accept", failing)
        burst = [opened.enter_context(dial(server.addresses[0])) for _ in range(8)]
        await until(lambda: server.stats.accepted == 1 + len(burst))
        assert server.stats.accept_errors == {name: 1}
        await older.exchange(b"after")
        with anyio.fail_after(SOON):
            async with await connect(server.addresses[0]) as newer:
                await newer.exchange(b"new")


class Buggy:
    """A stream that fails on input that begins with ``bug``."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.send = stream.send

    def __aiter__(self) -> Buggy:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._stream.__anext__()
        if chunk.startswith(b"bug"):
            raise ZeroDivisionError
        return chunk


@pytest.mark.slow
@pytest.mark.fault(row=7, injected="500 RSTs at random moments, and 50 bugs, beside 200 clients with a MiB each")
async def test_resets_and_bugs_do_not_affect_other_connections(
    engine: str, carrier: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 resets at random moments, 50 bugs, and 200 connections that each echo a numbered mebibyte."""

    sequence = b"".join(b"%08x" % i for i in range(MIB // 8))

    async def sometimes_buggy(stream: ByteStream) -> None:
        await echo(Buggy(stream))

    monkeypatch.setattr(task_engine, "echo", sometimes_buggy)
    monkeypatch.setattr(task_engine.logger, "disabled", True)
    gc.collect()
    before = descriptors(), len(get_running_tasks())
    async with open_server(carrier) as server:
        address = server.addresses[0]

        async def neighbour(number: int) -> None:
            numbered = sequence[8 * number :] + sequence[: 8 * number]
            async with await connect(address) as client, client.send([numbered]) as back:
                assert sum([len(chunk) async for chunk in back]) == MIB

        async def faulty(seed: int) -> None:
            dice = random.Random(seed)
            client = await connect(address)
            sock: socket.socket = client.stream.extra(anyio.abc.SocketAttribute.raw_socket)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            async with client:
                await anyio.sleep(dice.random())
                # A reset before the server reads would prevent the bug, so buggy connections wait for the close.
                timeout = math.inf if seed < 50 else dice.random() * 0.05
                with suppress(anyio.EndOfStream), anyio.move_on_after(timeout):
                    await client.stream.send(b"bug" if seed < 50 else bytes(dice.randrange(1, 200_000)))
                    await client.stream.receive()

        async with create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(neighbour, number)
            for seed in range(550):
                tasks.start_soon(faulty, seed)

        await until(lambda: server.stats.active == 0)
        assert server.stats.closed.total() == server.stats.accepted == 750
        # Only the tasks engine calls `echo`, which has the bug.
        assert server.stats.closed["error"] == (50 if engine == "tasks" else 0)

    gc.collect()
    assert (descriptors(), len(get_running_tasks())) == before


@pytest.mark.slow
@pytest.mark.fault(row=4, injected="a peer sends for 0.5 s, from before or after its accept, and never reads")
def test_a_flooding_peer_that_never_reads_costs_no_memory(bind: str, backend: str, processes: Processes) -> None:
    """A transport that pauses reading too late grows by 700 MiB in 2.5 s, unless its first read came early."""
    server = processes.serve("-b", bind, "--backend", backend)
    [address] = server.addresses
    with dial(address) as warm:  # the memory of a first connection does not count
        warm.sendall(bytes(256 * 1024))
        received = 0
        while received < 256 * 1024:
            received += len(warm.recv(65536))
    before = resident(server.pid)
    with dial(address) as flooder:
        assert echoes(flooder)
        flood(flooder)
    server.signal(signal.SIGSTOP)  # accept only after the client has filled the buffers
    with dial(address) as flooder:
        flood(flooder, when_full=lambda: server.signal(signal.SIGCONT))
    grown = resident(server.pid, peak=True) - before

    assert grown < 1 * MIB, f"{grown / MIB:.2f} MiB more"


def flood(sock: socket.socket, when_full: Callable[[], None] = lambda: None) -> None:
    """Send for half a second; call `when_full` once the buffers are full."""
    sock.setblocking(False)
    end = time.monotonic() + 0.5
    is_full = False
    while time.monotonic() < end:
        try:
            sock.send(bytes(65536))
        except BlockingIOError:
            if not is_full:
                when_full()
                is_full = True
            time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.by_turns("engine")
def test_nine_thousand_idle_connections_are_held_and_then_echoed(
    engine: str, backend: str, processes: Processes, opened: ExitStack
) -> None:
    """`benchmarks/run.py` measures their memory."""
    count = 9_000
    needs_descriptors(count + 100)
    server = processes.serve("-b", "tcp://127.0.0.1:0", "--backend", backend)
    had = descriptors(server.pid)
    clients = [opened.enter_context(dial(server.addresses[0])) for _ in range(count)]
    wait_until(lambda: descriptors(server.pid) >= had + count)
    assert all(echoes(client) for client in clients)


async def test_a_flooding_peer_that_reads_does_not_starve_other_peers(server: Server) -> None:
    """When the server has echoed the last bytes of the flood, the next bytes are there already."""

    def send(sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock.sendall(bytes(65536))

    def read(sock: socket.socket) -> None:
        with suppress(OSError):
            receive_all(sock)

    with dial(server.addresses[0]) as flooder:
        async with create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, send, flooder)
            tasks.start_soon(to_thread.run_sync, read, flooder)
            await until(lambda: any(peer.bytes_sent > 8 * MIB for peer in server.peers()))
            async with await connect(server.addresses[0]) as client:
                for _ in range(50):
                    with anyio.fail_after(SOON):
                        await client.exchange(bytes(64))
            flooder.shutdown(socket.SHUT_RDWR)

"""Rows 4 and 5: peers that do not read, or read slowly."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import anyio
from anyio import create_task_group

from anyecho.address import parse_address
from anyecho.server.options import ServeOptions
from anyecho.server.server import open_server
from tests.faults.scene import TCP, Engine, dialled, engines, good_client, milliseconds, percentile, time_limit
from tests.faults.table import Observed, Scene, injects
from tests.support.machine import needs_descriptors
from tests.support.peers import dial, flood, until
from tests.support.process import Process, descriptors, exchange, resident, wait_until

MIB = 1 << 20


@contextmanager
def flooding(process: Process, count: int) -> Iterator[list[socket.socket]]:
    """Yield `count` peers that have filled the buffers before they are accepted, and read nothing."""
    process.signal(signal.SIGSTOP)
    try:
        with dialled(parse_address(process.addresses[0]), count) as socks:
            for sock in socks:
                # Otherwise a thousand would hold 4 GiB of kernel memory.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
                sock.setblocking(False)
            send_more(socks)
            process.signal(signal.SIGCONT)
            yield socks
    finally:
        process.signal(signal.SIGCONT)


def send_more(socks: Sequence[socket.socket]) -> int:
    """Send what the kernel takes; return how many connections are closed."""
    gone = 0
    for sock in socks:
        try:
            with suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
        except ConnectionError:
            gone += 1

    return gone


def _flood(scene: Scene, count: int, write_timeout: float) -> Observed:
    needs_descriptors(count + 100)
    times = ("--write-timeout", f"{write_timeout}s", "--linger", "100ms")
    server = scene.processes.serve("-b", TCP, "--backend", scene.backend, *times)
    address = parse_address(server.addresses[0])
    with dial(address) as good:
        for _ in range(100):
            assert exchange(good, bytes(1000)) == bytes(1000)
        before, had = resident(server.pid), descriptors(server.pid)
        with flooding(server, count) as socks:
            start = time.monotonic()
            wait_until(lambda: descriptors(server.pid) >= had + count)
            while time.monotonic() - start < write_timeout / 2:
                assert send_more(socks) == 0
                assert exchange(good, b"x") == b"x"
                time.sleep(0.02)
            wait_until(lambda: send_more(socks) == count)
            took = time.monotonic() - start
        assert exchange(good, b"x") == b"x"
        grown = resident(server.pid, peak=True) - before

    assert grown < count * MIB
    # The reaper may be an eighth late; then the linger; a thousand connections take about half a second more.
    assert write_timeout <= took < time_limit(write_timeout * 9 / 8 + 0.1 + count / 2000)
    return {
        "RSS": f"+ {grown / MIB:.2f} MiB, {grown / 1024 / count:.0f} KiB each",
        "closed after": f"{took:.2f} s (write_timeout {write_timeout} s)",
    }


@injects(4, "1 peer fills the buffers before it is accepted, keeps sending, and never reads")
def one_floods(scene: Scene) -> Observed:
    return _flood(scene, 1, 0.4)


@injects(4, "1000 peers fill the buffers before they are accepted, keep sending, and never read", slow=True)
def a_thousand_flood(scene: Scene) -> Observed:
    return _flood(scene, 1000, 1.0)


async def send_slowly(sock: socket.socket) -> None:
    with suppress(OSError):
        while True:
            sock.send(b"x")
            await anyio.sleep(0.01)


async def read_slowly(sock: socket.socket) -> None:
    """Send much, and read a byte every 10 ms."""
    async with create_task_group() as tasks:
        tasks.start_soon(flood, sock)
        with suppress(OSError):
            while True:
                with suppress(BlockingIOError):
                    sock.recv(1)
                await anyio.sleep(0.01)


@injects(5, "beside a good client, one peer floods and reads a byte every 10 ms, another sends a byte every 10 ms")
async def slow_ones(_: Scene) -> Observed:
    observed: dict[str, object] = {}
    async with create_task_group() as tasks:
        for engine in engines():
            tasks.start_soon(_beside_slow_ones, engine, observed)

    return observed


async def _beside_slow_ones(engine: Engine, observed: dict[str, object]) -> None:
    # The good client has 100 bytes echoed every few ms.
    options = ServeOptions(engine=engine, min_rate=300, min_rate_window=0.4, linger=0.1)
    async with open_server(TCP, options=options) as server, good_client(server.addresses[0]) as took:
        await until(lambda: len(took) >= 50)
        alone = percentile(took, 0.99)
        took.clear()
        with dialled(server.addresses[0], 2) as [reader, writer]:
            for sock in (reader, writer):
                sock.setblocking(False)
            async with create_task_group() as tasks:
                tasks.start_soon(read_slowly, reader)
                tasks.start_soon(send_slowly, writer)
                await until(lambda: server.stats.closed == {"rate": 2})
                tasks.cancel_scope.cancel()
        beside = percentile(took, 0.99)

    assert beside < time_limit(0.1)
    observed[engine] = f"both closed for their rate; good p99 {milliseconds(alone)} -> {milliseconds(beside)}"

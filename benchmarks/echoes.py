"""Echoes under load: what comes back how fast, what it costs the server, and what one peer can do to the others."""

from __future__ import annotations

__all__ = ("Figures", "check", "measure_echoes", "measure_fairness")

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import process_time
from typing import TypeAlias

from anyio import create_task_group, sleep
from anyio.abc import SocketAttribute

from anyecho.backends import Backend, run
from anyecho.measure.client import connect
from anyecho.measure.load import Load, open_load
from anyecho.measure.options import ConnectOptions, LoadOptions
from anyecho.net.poller import open_poller
from anyecho.net.sockets import SocketOptions
from process import Running

#: What was measured, by name; the name has the unit.
Figures: TypeAlias = dict[str, float]

_WARM_UP = 0.2
_MIB = 1 << 20
#: The load's sockets: TCP_NODELAY, and else as the kernel makes them.
_PLAIN = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False)
#: One that writes and reads 64 KiB at a time must not write MiBs at a time into a send buffer that grows.
_STEADY = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False, sndbuf=64 * 1024)


def check(server: Running, backend: Backend) -> None:
    """One MiB there and back, every byte compared."""

    async def exchange() -> None:
        async with await connect(server.address) as client:
            await client.exchange(bytes(range(256)) * (_MIB // 256))

    run(exchange, backend=backend)


def measure_echoes(server: Running, seconds: float, backend: Backend, *, connections: int, size: int) -> Figures:
    """A closed loop: each of the connections sends its next message when the last is back and equal."""

    async def load() -> Figures:
        options = LoadOptions(connections=connections, size=size, connect=ConnectOptions(socket=_PLAIN))
        async with open_load(server.address, options) as load:
            await load.run(seconds=min(_WARM_UP, seconds))
            spent, own = server.processor_ns(), process_time()
            result = await load.run(seconds=seconds)
            spent, own = server.processor_ns() - spent, process_time() - own

        return {
            "messages_per_second": result.echoes / result.seconds,
            "megabytes_per_second": result.bytes / result.seconds / 1e6,
            "cpu_us_per_echo": spent / result.echoes / 1e3,
            "server_busy": spent / result.seconds / 1e9,
            "load_busy": own / result.seconds,
            **_percentiles(result.latencies),
        }

    return run(load, backend=backend)


def measure_fairness(server: Running, seconds: float, backend: Backend) -> Figures:
    """What 99 that play ping-pong wait: alone, beside one that floods, beside one that never reads.

    The one is turned in the same loop as the 99. A process of its own would share their core, whose scheduler would
    keep the 99 waiting for milliseconds that the server has no part in; here a turn of it costs them some 50 us.
    """

    async def load() -> Figures:
        options = LoadOptions(connections=99, connect=ConnectOptions(socket=_PLAIN))
        async with open_poller() as poller, open_load(server.address, options, poller=poller) as pings:

            async def p99() -> float:
                await pings.run(seconds=min(_WARM_UP, seconds))
                return _percentiles((await pings.run(seconds=seconds)).latencies)["p99_us"]

            alone = await p99()
            steady = LoadOptions(connections=1, size=16 * _MIB, connect=ConnectOptions(socket=_STEADY))
            async with open_load(server.address, steady, poller=poller) as flood, create_task_group() as tasks:
                tasks.start_soon(_flood, flood)
                beside_flood = await p99()
                tasks.cancel_scope.cancel()
            async with _never_reading(server):
                beside_deaf = await p99()

        return {
            "alone_p99_us": alone,
            "flood_p99_us": beside_flood,
            "flood_ratio": beside_flood / alone,
            "deaf_p99_us": beside_deaf,
            "deaf_ratio": beside_deaf / alone,
        }

    return run(load, backend=backend)


async def _flood(flood: Load) -> None:
    await flood.run(seconds=3600)  # until cancelled


@asynccontextmanager
async def _never_reading(server: Running) -> AsyncIterator[None]:
    """One who has written for as long as anything could be written, and is still there."""
    async with await connect(server.address, options=ConnectOptions(socket=_PLAIN)) as client:
        sock = client.stream.extra(SocketAttribute.raw_socket)
        refusals = 0
        while refusals < 20:
            try:
                sock.send(bytes(64 * 1024))
                refusals = 0
            except BlockingIOError:
                refusals += 1
                await sleep(0.005)
        yield


def _percentiles(latencies: array[int]) -> Figures:
    """In microseconds; nearest rank, so that each is one that was measured."""
    ranked = sorted(latencies)
    return {f"p{percent}_us": ranked[(len(ranked) * percent - 1) // 100] / 1e3 for percent in (50, 99)}

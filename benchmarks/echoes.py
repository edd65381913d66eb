"""Echoes under load: throughput, latency, CPU, and fairness between peers."""

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
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions, LoadOptions
from anyecho.measure.load import Load, open_load
from anyecho.net.poller import open_poller
from anyecho.net.sockets import SocketOptions
from process import Running

#: Measured values by name; the name includes the unit.
Figures: TypeAlias = dict[str, float]

_WARM_UP = 0.2
_MIB = 1 << 20
#: Sockets of the load: TCP_NODELAY, otherwise the defaults of the kernel.
_PLAIN = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False)
#: For the flood: a fixed send buffer, so that it writes 64 KiB at a time and not MiBs into a growing buffer.
_STEADY = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False, sndbuf=64 * 1024)


def check(server: Running, backend: Backend) -> None:
    """Echo one MiB; compare every byte."""

    async def exchange() -> None:
        async with await connect(server.address) as client:
            await client.exchange(bytes(range(256)) * (_MIB // 256))

    run(exchange, backend=backend)


def measure_echoes(server: Running, seconds: float, backend: Backend, *, connections: int, size: int) -> Figures:
    """Measure a closed loop: each connection sends its next message when the last is back and equal."""

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
    """Measure the p99 of 99 ping-pong connections: alone, beside a flood, beside a peer that never reads.

    The flood runs in the same event loop as the 99. A separate process would share their core, and the scheduler
    would delay the 99 by milliseconds that are not the server's; here a turn of the flood costs about 50 us.
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
    """Keep a connection that has filled all buffers and never reads."""
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
    """Return percentiles in microseconds, by nearest rank: each is a measured value."""
    ranked = sorted(latencies)
    return {f"p{percent}_us": ranked[(len(ranked) * percent - 1) // 100] / 1e3 for percent in (50, 99)}

"""Echoes under load: throughput, latency, CPU, and fairness between peers."""

from __future__ import annotations

__all__ = ("Figures", "check", "check_complete", "measure_echoes", "measure_fairness")

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

from anyio import create_task_group, sleep
from anyio.abc import SocketAttribute

from anyecho.backends import Backend, run
from anyecho.client.client import connect
from anyecho.client.options import ConnectOptions
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.options import BenchOptions
from anyecho.measure.result import RunResult
from anyecho.net.sockets import SocketOptions
from process import Running, ServerFailed

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

    control = BenchControl()
    control.server_cpu = server.processor_ns
    options = _options(seconds, connections=connections, size=size)
    result = run(partial(run_bench, server.address, options, control=control, exclusive=True), backend=backend)
    check_complete(result)
    if result.server_cpu_per_echo is None:
        raise ServerFailed(f"no echo in {seconds:g} s")
    return {
        "messages_per_second": result.rate,
        "megabytes_per_second": result.rate * size / 1e6,
        "cpu_us_per_echo": result.server_cpu_per_echo * 1e6,
        "server_busy": result.server_cpu_per_echo * result.rate,
        "load_busy": result.generator.cpu_share,
        "p50_us": result.latency.value_at(0.5) / 1e3,
        "p99_us": result.latency.value_at(0.99) / 1e3,
    }


def check_complete(result: RunResult) -> None:
    """Raise `ServerFailed` if a message was lost or wrong."""
    if result.counts.verified != result.counts.sent:
        raise ServerFailed(result.error)


def _options(seconds: float, *, connections: int, size: int = 64, socket: SocketOptions = _PLAIN) -> BenchOptions:
    return BenchOptions(
        connections=connections,
        size=size,
        duration=seconds,
        warmup=min(_WARM_UP, seconds),
        connect_rate=None,
        connect=ConnectOptions(socket=socket),
    )


def measure_fairness(server: Running, seconds: float, backend: Backend) -> Figures:
    """Measure the p99 of 99 ping-pong connections: alone, beside a flood, beside a peer that never reads.

    The flood runs in the same event loop as the 99. A separate process would share their core, and the scheduler
    would delay the 99 by milliseconds that are not the server's; here a turn of the flood costs about 50 us.
    """

    async def load() -> Figures:
        async def p99() -> float:
            result = await run_bench(server.address, _options(seconds, connections=99))
            check_complete(result)
            return result.latency.value_at(0.99) / 1e3

        alone = await p99()
        async with create_task_group() as tasks:
            flood = _options(3600, connections=1, size=16 * _MIB, socket=_STEADY)
            tasks.start_soon(run_bench, server.address, flood)
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

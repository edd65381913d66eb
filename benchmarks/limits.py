"""The accuracy and the cost of the limits: ``python benchmarks/limits.py`` (about four minutes).

* A flood is echoed no faster than ``--rate-limit``: bytes echoed in 10 s, against the limit.
* A connection 5 % above ``--min-rate`` stays, a connection 5 % below is closed.
* An echo costs as much with limits and the PROXY protocol as without.

The table goes to standard output; it exits with 1 if one of the three does not hold.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from time import monotonic

from anyio import BrokenResourceError, create_task_group, move_on_after, sleep

from anyecho.backends import Backend, run
from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.errors import AnyechoError
from anyecho.measure.bench import run_bench
from anyecho.measure.control import BenchControl
from anyecho.measure.options import BenchOptions
from anyecho.net.sockets import SocketOptions
from process import Running, running

BACKENDS: tuple[Backend, ...] = ("asyncio", "uvloop", "trio")
RATES = (10_000, 1_000_000, 50_000_000)
#: Allowed deviation.
SLACK = 0.05
#: Allowed factor of the cost of an echo.
COST = 1.03

PROXIED = ("--proxy-protocol", "v2", "--proxy-trusted", "127.0.0.1")
LIMITED = ("--max-connections-per-ip", "1000", "--idle-timeout", "10m", "--write-timeout", "1m", *PROXIED)
_PLAIN = SocketOptions(tcp_notsent_lowat=0, tcp_user_timeout=0, keepalive=False)


def serve(backend: Backend, *arguments: str) -> Sequence[str]:
    return (
        *(sys.executable, "-P", "-m", "anyecho", "serve", "-b", "tcp://127.0.0.1:0", "--backend", backend),
        *arguments,
    )


def measure_rate_limit(backend: Backend, rate: int, seconds: float, core: int) -> float:
    """Return the bytes per second echoed to a flood."""

    async def flood(client: Client) -> None:
        while True:
            await client.stream.send(bytes(65536))

    async def measure() -> float:
        received = 0
        async with await connect(server.address) as client, create_task_group() as tasks:
            tasks.start_soon(flood, client)
            start = monotonic()
            with move_on_after(seconds):
                while True:
                    received += len(await client.stream.receive())
            elapsed = monotonic() - start
            tasks.cancel_scope.cancel()

        return received / elapsed

    with running(serve(backend, "--rate-limit", str(rate)), core=core) as server:
        return run(measure, backend="asyncio")


def measure_min_rate(backend: Backend, rate: int, seconds: float, core: int) -> dict[float, float]:
    """Return the lifetime of connections at factors of `rate`; infinite if not closed within two windows."""
    lifetimes: dict[float, float] = {}

    async def trickle(factor: float) -> None:
        async with await connect(server.address) as client:
            start = monotonic()
            sent = 0
            lifetimes[factor] = float("inf")
            try:
                while (elapsed := monotonic() - start) < 2.5 * seconds:
                    size = int(factor * rate * elapsed) - sent
                    sent += size
                    await client.exchange(bytes(size)) if size else None
                    await sleep(0.02)
            except (AnyechoError, BrokenResourceError):
                lifetimes[factor] = monotonic() - start

    async def measure() -> None:
        async with create_task_group() as tasks:
            for factor in (1 - SLACK, 1 + SLACK):
                tasks.start_soon(trickle, factor)

    arguments = ("--min-rate", str(rate), "--min-rate-window", f"{seconds}s")
    with running(serve(backend, *arguments), core=core) as server:
        run(measure, backend="asyncio")

    return lifetimes


def measure_cost(server: Running, seconds: float, *, proxied: bool) -> float:
    """Return the microseconds of server CPU per 64-byte echo, with 100 connections."""

    control = BenchControl()
    control.server_cpu = server.processor_ns
    connect = ConnectOptions(socket=_PLAIN, proxy_header="v2" if proxied else "off")
    options = BenchOptions(connections=100, duration=seconds, warmup=min(0.2, seconds), connect=connect)
    result = run(partial(run_bench, server.address, options, control=control, exclusive=True), backend="uvloop")
    assert result.server_cpu_per_echo is not None
    return result.server_cpu_per_echo * 1e6


def compare_costs(backend: Backend, rounds: int, seconds: float, core: int) -> tuple[float, float]:
    """Return the medians for plain and for limited connections, in interleaved rounds of alternating order."""
    costs: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(rounds):
        for proxied in (False, True)[:: -1 if turn % 2 else 1]:
            with running(serve(backend, *(LIMITED if proxied else ())), core=core) as server:
                costs[proxied].append(measure_cost(server, seconds, proxied=proxied))

    return statistics.median(costs[False]), statistics.median(costs[True])


def report(arguments: argparse.Namespace, core: int) -> bool:
    holds = True
    for backend in arguments.backend or BACKENDS:
        for rate in RATES:
            got = measure_rate_limit(backend, rate, arguments.seconds, core)
            within = abs(got / rate - 1) <= SLACK
            holds &= within
            say(backend, f"rate limit {rate} B/s", f"{got:.0f} B/s, {100 * (got / rate - 1):+.2f} %", within)

        slow, fast = measure_min_rate(backend, 10_000, arguments.seconds, core).values()
        within = slow < float("inf") and fast == float("inf")
        holds &= within
        say(backend, "min rate 10000 B/s", f"5 % less: closed after {slow:.1f} s; 5 % more: {fast} s", within)

        plain, limited = compare_costs(backend, arguments.rounds, arguments.turn, core)
        within = limited <= COST * plain
        holds &= within
        say(
            backend,
            "CPU per echo",
            f"plain {plain:.2f} us, limited {limited:.2f} us: x {limited / plain:.3f}",
            within,
        )

    return holds


def say(backend: str, what: str, figure: str, holds: bool) -> None:
    print(f"{backend:8} {what:24} {figure:56} {'holds' if holds else 'MISSED'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="on this one only; repeatable")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of a rate (10)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each cost is measured (7)")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of each measurement of a cost (0.5)")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    return 0 if report(arguments, cores[0]) else 1


if __name__ == "__main__":
    sys.exit(main())

"""``anyecho bench``: load an echo server; print latencies, and what decides whether they can be believed."""

from __future__ import annotations

__all__ = ("app", "bench")

import logging
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.flags import BackendFlag, IPv4Flag, IPv6Flag, verb
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.output_options import OutputOptions
from anyecho.cli.signals import caught_signals
from anyecho.errors import UsageError
from anyecho.measure.options import BenchOptions
from anyecho.measure.series_options import OwnServerOptions, SeriesOptions
from anyecho.measure.shard_options import ShardOptions
from anyecho.validation import given_options

logger = logging.getLogger("anyecho.client")


def bench(
    address: Annotated[str | None, Parameter(help="Address of the server (default: one of its own).")] = None,
    /,
    *,
    series: SeriesOptions,
    options: BenchOptions,
    server: OwnServerOptions,
    shards: ShardOptions,
    outputs: OutputOptions,
    ipv4: IPv4Flag = False,
    ipv6: IPv6Flag = False,
    backend: BackendFlag = "asyncio",
    log: LogOptions,
) -> int:
    """Load an echo server and measure latency and throughput. Every byte of every reply is compared.

    Without an address, each run starts a server of its own in another process, and has its CPU time per echo.

    Without --rate, each connection sends its next message when a reply is back (closed loop): a slow server is
    asked less often. With --rate, messages are sent when they are due (open loop), and the corrected latency counts
    from the due time. A message without a reply within --timeout is lost; its latency counts as that time.
    --processes, --dask and --shard divide a load that one core cannot generate; its schedule stays one.

    Exit status: 0 if every message came back equal, 1 if not, 2 for wrong usage, 3 if there was no connection, 130
    after Ctrl-C, with the figures so far, 99 if a condition of --fail-if holds.
    """
    if ipv4 and ipv6:
        raise UsageError("-4 and -6 exclude each other")

    # Late: the other verbs need neither histograms nor statistics.
    from anyecho.cli.bench_run import run_and_report
    from anyecho.measure.series import plan_of

    connect = replace(options.connect, family=4 if ipv4 else 6 if ipv6 else None)
    options = replace(options, connect=connect)
    if address is not None and (unused := set(given_options(server)) - set(ENVIRONMENT.used)):
        names = sorted(unused)
        raise UsageError(f"without effect, because an address is given: {', '.join(names)}", options=names)

    if address is None and (remote := [name for name in ("shard", "dask") if getattr(shards, name) is not None]):
        raise UsageError(f"{remote[0]} needs the address of a server: its own is on this machine", options=remote)

    plan = plan_of(address, options, series, server, backend=backend, processes=shards.processes)
    with log_to_stderr(log), ENVIRONMENT.attached_to(logger), caught_signals(handled=1) as signals:
        return run_and_report(plan, shards, backend, outputs, signals)


app = verb(bench)

"""``anyecho ping``: print the latency of small messages sent at an interval, and a summary, as ping(8) does."""

from __future__ import annotations

__all__ = ("ping",)

import logging
import os
import signal
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

from anyio import CancelScope, create_task_group
from cyclopts import Parameter

from anyecho.backends import run
from anyecho.cli.environment import Environment
from anyecho.cli.flags import BackendFlag
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.output import Output
from anyecho.cli.ping_lines import JSONLines, TextLines, progress_line
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import UsageError, unwrap_single
from anyecho.measure.ping import Ping
from anyecho.measure.ping_options import PingOptions
from anyecho.net.descriptors import write_all

logger = logging.getLogger("anyecho.client")

#: Seconds after which a progress line is given up if standard error is full.
_ERROR_TIMEOUT = 1.0


def ping(
    address: str,
    /,
    *,
    quiet: Annotated[
        bool, Parameter(name=("--quiet", "-q"), help="Print only the first line and the summary.", negative=())
    ] = False,
    timestamps: Annotated[
        bool, Parameter(name=("--timestamps", "-D"), help="Print Unix time before each line.", negative=())
    ] = False,
    json: Annotated[
        bool,
        Parameter(name="--json", help="Print a JSON object for each probe, and one as the summary.", negative=()),
    ] = False,
    ipv4: Annotated[bool, Parameter(name="-4", help="Use only IPv4.", negative=())] = False,
    ipv6: Annotated[bool, Parameter(name="-6", help="Use only IPv6.", negative=())] = False,
    backend: BackendFlag = "asyncio",
    options: PingOptions,
    log: LogOptions,
    environment: Environment,
) -> int:
    """Send small messages to an echo server; print the latency of each reply, and a summary, as ping(8) does.

    Every reply is compared. SIGQUIT (Ctrl-\\) prints the summary so far, SIGINT (Ctrl-C) prints it and ends.
    Exit status: 0 if there was a reply, 1 if there was none, fewer than --count within --deadline, or a wrong one,
    2 for every other error.
    """
    if ipv4 and ipv6:
        raise UsageError("-4 and -6 exclude each other")

    options = replace(options, family=4 if ipv4 else 6 if ipv6 else None)
    with (
        log_to_stderr(log),
        environment.attached_to(logger),
        caught_signals(handled=1, others=(signal.SIGQUIT,)) as signals,
    ):
        output = Output()
        job = Ping(
            address, options, report=lambda event: output.write(lines.event(event)), before_probe=output.room
        )
        lines = JSONLines(job) if json else TextLines(job, quiet=quiet, timestamps=timestamps)
        return run(_ping, job, lines, output, signals, backend=backend)


async def _ping(job: Ping, lines: TextLines | JSONLines, output: Output, signals: Signals) -> int:
    """Run `job` until it is complete or a signal ends it; return the exit status."""
    ended_by = 0

    async def watch_signals(pinging: CancelScope) -> None:
        nonlocal ended_by
        while (signum := await signals.next()) == signal.SIGQUIT:
            _print_progress(job)
        ended_by = signum
        pinging.cancel()

    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(output.run)
            with CancelScope() as pinging:
                tasks.start_soon(watch_signals, pinging)
                await job.run()
            output.write(lines.summary())
            await output.aclose()
            tasks.cancel_scope.cancel()

    return 128 + ended_by if ended_by == signal.SIGTERM else job.exit_status


def _print_progress(job: Ping) -> None:
    # A terminal has echoed ^\ by then.
    start = "\r" if os.isatty(2) else ""
    with suppress(OSError):
        write_all(2, f"{start}{progress_line(job)}\n".encode(), timeout=_ERROR_TIMEOUT)

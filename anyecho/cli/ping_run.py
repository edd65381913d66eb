"""One run of ``anyecho ping``: its signals, its output and its exit status."""

from __future__ import annotations

__all__ = ("run_and_print",)

import os
import signal
from contextlib import suppress

from anyio import CancelScope, create_task_group

from anyecho.backends import Backend, run
from anyecho.cli.output import Output
from anyecho.cli.ping_lines import JSONLines, TextLines, progress_line
from anyecho.cli.signals import Signals
from anyecho.errors import unwrap_single
from anyecho.measure.ping import Ping
from anyecho.measure.ping_options import PingOptions
from anyecho.net.descriptors import write_all

#: Seconds after which a progress line is given up if standard error is full.
_ERROR_TIMEOUT = 1.0


def run_and_print(
    address: str,
    options: PingOptions,
    backend: Backend,
    signals: Signals,
    *,
    json: bool,
    quiet: bool,
    timestamps: bool,
) -> int:
    """Ping `address`, and print lines or JSON; return the exit status."""
    output = Output()
    job = Ping(address, options, report=lambda event: output.write(lines.event(event)), before_probe=output.room)
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

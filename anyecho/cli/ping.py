"""``anyecho ping``: print the latency of small messages sent at an interval, and a summary, as ping(8) does."""

from __future__ import annotations

__all__ = ("app", "ping")

import logging
import signal
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.flags import BackendFlag, IPv4Flag, IPv6Flag, verb
from anyecho.cli.help_pages import COMMON
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.signals import caught_signals
from anyecho.errors import UsageError
from anyecho.measure.ping_options import PingOptions

logger = logging.getLogger("anyecho.client")


def ping(
    address: str,
    /,
    *,
    quiet: Annotated[
        bool,
        Parameter(
            name=("--quiet", "-q"), help="Print only the first line and the summary.", negative=(), group=COMMON
        ),
    ] = False,
    timestamps: Annotated[
        bool,
        Parameter(name=("--timestamps", "-D"), help="Print Unix time before each line.", negative=(), group=COMMON),
    ] = False,
    json: Annotated[
        bool,
        Parameter(
            name="--json",
            help="Print a JSON object for each probe, and one as the summary.",
            negative=(),
            group=COMMON,
        ),
    ] = False,
    ipv4: IPv4Flag = False,
    ipv6: IPv6Flag = False,
    backend: BackendFlag = "asyncio",
    options: PingOptions,
    log: LogOptions,
) -> int:
    """Send small messages to an echo server; print the latency of each reply, and a summary, as ping(8) does.

    Every reply is compared. SIGQUIT (Ctrl-\\) prints the summary so far, SIGINT (Ctrl-C) prints it and ends.
    Exit status: 0 if there was a reply, 1 if there was none, fewer than --count within --deadline, or a wrong one,
    2 for every other error.
    """
    if ipv4 and ipv6:
        raise UsageError("-4 and -6 exclude each other")

    # Late: the other verbs start faster without it.
    from anyecho.cli.ping_run import run_and_print

    options = replace(options, family=4 if ipv4 else 6 if ipv6 else None)
    with (
        log_to_stderr(log),
        ENVIRONMENT.attached_to(logger),
        caught_signals(handled=1, more=(signal.SIGQUIT,)) as signals,
    ):
        return run_and_print(address, options, backend, signals, json=json, quiet=quiet, timestamps=timestamps)


app = verb(ping)

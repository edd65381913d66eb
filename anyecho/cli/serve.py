"""``anyecho serve``: run a server; print its addresses to standard output once they accept."""

from __future__ import annotations

__all__ = ("app", "serve")

import os
import resource
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from anyecho.address import Address, parse_address
from anyecho.cli.environment import ENVIRONMENT
from anyecho.cli.flags import BackendFlag, verb, whole_number
from anyecho.cli.help_pages import COMMON
from anyecho.cli.job import Job, ServiceOptions
from anyecho.cli.logs import AccessLog, LogOptions
from anyecho.cli.serving import run_server
from anyecho.cli.supervise import run_supervisor
from anyecho.cli.worker import run_worker
from anyecho.errors import UsageError
from anyecho.server.options import ServeOptions
from anyecho.server.worker_options import WorkerOptions
from anyecho.systemd.activation import take_activation


def serve(
    *addresses: Annotated[str, Parameter(help="Listen on these addresses.")],
    service: ServiceOptions,
    backend: BackendFlag = "asyncio",
    options: ServeOptions,
    log: LogOptions,
    workers: WorkerOptions,
    lifeline: Annotated[int | None, Parameter(show=False, converter=whole_number)] = None,
    access_log: Annotated[
        AccessLog,
        Parameter(
            help="Log a line per closed connection, at any log level; =all: per opened one too.",
            metavar="[=all]",
            show_choices=False,
            group=COMMON,
        ),
    ] = False,
) -> int:
    """Run an echo server until SIGTERM or SIGINT.

    Addresses: tcp://host:port (or host:port; an empty host is every interface), unix:/path, unix:@abstract, fd://3,
    fd://NAME (from LISTEN_FDNAMES), udp://host:port; over TLS tls://host:port, tls+unix:, tls+fd://.

    The value off is no limit, for each limit, timeout and buffer size but --max-connections.

    Each bound address is printed on a line once it accepts, then the URLs of --admin and --control. The first
    signal lets connections finish, the second closes them, the third ends a stuck process. SIGHUP replaces the
    workers of --workers, or reloads the certificate files. Without both it is ignored, unless the controlling
    terminal is gone: then it acts like SIGTERM, except under nohup.
    """
    _raise_descriptor_limit()
    activation = take_activation(os.environ)
    if addresses and ("bind" in ENVIRONMENT.used or "bind" in ENVIRONMENT.in_file):
        service = replace(service, bind=())  # the command line overrides the environment and the file
    with ENVIRONMENT.naming("bind"):
        resolved = activation.resolve([parse_address(text) for text in (*addresses, *service.bind)])
    if lifeline is not None:
        return run_worker(lifeline, resolved, ENVIRONMENT)

    job = Job(
        service=service,
        backend=backend,
        options=replace(options, seed=service.seed),
        log=log,
        access_log=access_log,
        admin=_parse_http(service.admin, "admin"),
        control=_parse_http(service.control, "control"),
    )
    if service.control is not None and workers.count is not None:
        text = "control and workers exclude each other: a worker that is replaced would lose its changes"
        raise UsageError(text, options=("control", "workers"))
    with ENVIRONMENT.naming("fault"):
        job.served_options()
    if workers.count is None:
        run_server(resolved, activation, job, ENVIRONMENT)
    else:
        run_supervisor(resolved, activation, job, workers, ENVIRONMENT)

    return 0


def _parse_http(text: str | None, option: str) -> Address | None:
    if text is None:
        return None

    # Late: h11 is imported only if there is something to answer.
    from anyecho.server.http_listener import parse_http_address

    return parse_http_address(text, option)


def _raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard limit.

    The library does not: in a program with other parts, or in its children, select(2) fails above 1023.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS: the hard limit may be more than its kernel allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


app = verb(serve)

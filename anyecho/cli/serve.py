"""``anyecho serve``: run a server; print its addresses to standard output once they accept."""

from __future__ import annotations

__all__ = ("serve",)

import logging
import os
import resource
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Annotated

from anyio import create_task_group
from cyclopts import Parameter

from anyecho.address import Address, UDPAddress, parse_address
from anyecho.backends import run
from anyecho.cli.environment import Environment
from anyecho.cli.flags import BackendFlag, whole_number
from anyecho.cli.handler import find_handler
from anyecho.cli.help_pages import COMMON, GROUPS
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import CertificateError, unwrap_single
from anyecho.faults.fault import Fault
from anyecho.handlers import Handler
from anyecho.net.descriptors import write_all
from anyecho.net.tls.contexts import Certificates
from anyecho.server.options import ServeOptions
from anyecho.server.server import DEFAULT_ADDRESS, Server, open_server
from anyecho.systemd.activation import Activation, take_activation
from anyecho.systemd.notify import Notifier, open_notifier

logger = logging.getLogger("anyecho.server")


def serve(
    *addresses: Annotated[str, Parameter(help="Listen on these addresses.", show_env_var=False)],
    bind: Annotated[
        tuple[str, ...],
        Parameter(
            name=("--bind", "-b"),
            help="Listen on this address too; repeatable.",
            negative=(),
            metavar="ADDRESS",
            group=COMMON,
            show_default=lambda _: f"all sockets that a service manager passed, else {DEFAULT_ADDRESS}",
        ),
    ] = (),
    handler: Annotated[
        str,
        Parameter(
            metavar="NAME|module:function",
            group=COMMON,
            help="What serves a connection: echo, discard, chargen, upper, prefix, or a function of yours.",
        ),
    ] = "echo",
    fault: Annotated[
        tuple[str, ...],
        Parameter(
            name="--fault",
            metavar="NAME:key=value,...",
            group=COMMON,
            help="Misbehave on purpose, like latency:latency=100ms or cut:bytes=1k,on=2; repeatable.",
            negative=(),
            show_default=False,
        ),
    ] = (),
    seed: Annotated[
        int | None,
        Parameter(
            help="Repeat the faults of the run that logged this seed.",
            converter=whole_number,
            show_default=False,
            group=GROUPS["Faults"],
        ),
    ] = None,
    backend: BackendFlag = "asyncio",
    options: ServeOptions,
    log: LogOptions,
    access_log: Annotated[
        bool, Parameter(help="Log a line per closed connection, at any log level.", group=COMMON)
    ] = False,
    environment: Environment,
) -> int:
    """Run an echo server until SIGTERM or SIGINT.

    Addresses: tcp://host:port (or host:port; an empty host is every interface), unix:/path, unix:@abstract, fd://3,
    fd://NAME (from LISTEN_FDNAMES), udp://host:port; over TLS tls://host:port, tls+unix:, tls+fd://.

    The value off is no limit, for each limit, timeout and buffer size but --max-connections.

    Each bound address is printed on a line once it accepts. The first signal lets connections finish, the second
    closes them, the third ends a stuck process. SIGHUP reloads the certificate files. Without such files it is
    ignored, unless the controlling terminal is gone: then it acts like SIGTERM, except under nohup.
    """
    _raise_descriptor_limit()
    activation = take_activation(os.environ)
    if addresses and "bind" in environment.used:
        bind = ()  # the command line overrides the environment
    serving = find_handler(handler)
    options = replace(options, faults=_parse_faults(fault), seed=seed)
    resolved = activation.resolve([parse_address(text) for text in (*addresses, *bind)])
    with (
        log_to_stderr(log, access=access_log),
        environment.attached_to(logger),
        caught_signals(handled=2, hangup=True) as signals,  # one to drain, one to close at once
        open_notifier(os.environ) as notifier,
    ):
        if access_log and resolved and all(isinstance(address, UDPAddress) for address in resolved):
            text = "without effect: access_log (every address is for UDP)"
            logger.warning(text, extra={"options": ("access_log",)})
        run(_serve, resolved, activation, options, serving, signals, notifier, backend=backend)

    return 0


def _parse_faults(texts: Sequence[str]) -> tuple[Fault, ...]:
    if not texts:
        return ()

    # Late: the import of all faults takes 24 ms, a tenth of the start.
    from anyecho.faults.spec import parse_fault

    return tuple(map(parse_fault, texts))


def _raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard limit.

    The library does not: in a program with other parts, or in its children, select(2) fails above 1023.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS: the hard limit may be more than its kernel allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    addresses: Sequence[Address],
    activation: Activation,
    options: ServeOptions,
    handler: Handler,
    signals: Signals,
    notifier: Notifier,
) -> None:
    server: Server | None = None
    # An environment variable can name files that no address uses.
    has_files = options.tls.ssl_certfile is not None and any(address.tls for address in addresses)

    async def stop_on_signals() -> None:
        while await signals.next() == signal.SIGHUP:
            if not has_files and signals.terminal_is_gone():
                logger.warning("the terminal is gone: letting connections finish")
                break
            _hang_up(server, has_files, notifier)

        notifier.stopping("letting connections finish")
        if server is None:
            tasks.cancel_scope.cancel()
            return

        tasks.start_soon(server.drain)
        while await signals.next() == signal.SIGHUP:
            if not signals.terminal_is_gone():  # the kernel and the shell each send one when the terminal closes
                _hang_up(server, has_files, notifier)
        server.abort()

    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(stop_on_signals)
            async with open_server(*addresses, options=options, handler=handler) as server:
                notifier.ready(_status(server))
                tasks.start_soon(notifier.ping_watchdog)
                _warn(activation.unused(addresses), server.certificates)
                _start_reporting(server.addresses)
                await server.wait_closed()

            tasks.cancel_scope.cancel()


def _warn(unused: Sequence[str], certificates: Certificates | None) -> None:
    if unused:
        logger.warning("passed, but not served: %s", ", ".join(unused))
    if certificates is not None and certificates.cacert is not None:
        logger.warning(
            "generated a certificate for this run: clients trust it with --cacert %s", certificates.cacert
        )


def _status(server: Server) -> str:
    return f"listening on {', '.join(map(str, server.addresses))}"


def _hang_up(server: Server | None, has_files: bool, notifier: Notifier) -> None:
    """Reload the certificate. The service manager is notified of the end even if there is no certificate."""
    if not has_files:
        logger.warning("SIGHUP is ignored: no address uses certificate files that could be reloaded")
    if server is not None:
        notifier.reloading()
        if has_files and server.certificates is not None:
            _reload(server.certificates)
        notifier.ready(_status(server))


def _reload(certificates: Certificates) -> None:
    try:
        certificates.reload()
    except CertificateError as exc:
        logger.error("%s; the certificate stays what it was", exc)
    else:
        logger.info("certificates reloaded")


def _start_reporting(addresses: Sequence[Address]) -> None:
    # In a thread, because standard output may block. The thread ends: with a second one, every system call on a
    # descriptor costs more.
    try:
        Thread(target=_report, args=(addresses,), daemon=True).start()
    except RuntimeError:  # a limit of the system (ulimit -u, pids.max)
        _report(addresses, timeout=0.0)


def _report(addresses: Sequence[Address], *, timeout: float | None = None) -> None:
    try:
        for address in addresses:
            write_all(1, f"{address}\n".encode(), timeout=timeout)
    except OSError as exc:
        # Not fatal: peers can still be served.
        logger.warning("cannot report the addresses: %s", exc.strerror)

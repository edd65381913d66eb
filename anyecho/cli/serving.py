"""Run one server process: logs, signals, notifications, and the bound addresses on standard output."""

from __future__ import annotations

__all__ = ("run_server",)

import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from threading import Thread

from anyio import create_task_group

from anyecho.address import Address, UDPAddress
from anyecho.backends import Backend, run
from anyecho.cli.environment import Environment
from anyecho.cli.logs import LogOptions, log_to_stderr
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import CertificateError, unwrap_single
from anyecho.handlers import Handler
from anyecho.net.descriptors import write_all
from anyecho.net.tls.contexts import Certificates
from anyecho.server.options import ServeOptions
from anyecho.server.server import Server, open_server
from anyecho.systemd.activation import Activation
from anyecho.systemd.notify import Notifier, open_notifier

logger = logging.getLogger("anyecho.server")


def run_server(
    addresses: Sequence[Address],
    activation: Activation,
    options: ServeOptions,
    handler: Handler,
    *,
    backend: Backend,
    log: LogOptions,
    access_log: bool,
    admin: Address | None,
    environment: Environment,
) -> None:
    """Serve `addresses` until a signal ends it. Raises the errors of `open_server`."""
    with (
        log_to_stderr(log, access=access_log),
        environment.attached_to(logger),
        caught_signals(handled=2, hangup=True) as signals,  # one to drain, one to close at once
        open_notifier(os.environ) as notifier,
    ):
        if access_log and addresses and all(isinstance(address, UDPAddress) for address in addresses):
            text = "without effect: access_log (every address is for UDP)"
            logger.warning(text, extra={"options": ("access_log",)})
        run(_serve, addresses, activation, options, handler, signals, notifier, admin, backend=backend)


async def _serve(
    addresses: Sequence[Address],
    activation: Activation,
    options: ServeOptions,
    handler: Handler,
    signals: Signals,
    notifier: Notifier,
    admin: Address | None,
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
            async with (
                open_server(*addresses, options=options, handler=handler) as server,
                _admin(admin, server) as urls,
            ):
                notifier.ready(_status(server))
                tasks.start_soon(notifier.ping_watchdog)
                _warn(activation.unused(addresses), server.certificates)
                _start_reporting((*map(str, server.addresses), *urls))
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


@asynccontextmanager
async def _admin(address: Address | None, server: Server) -> AsyncIterator[Sequence[str]]:
    """Answer requests about `server` on `address` inside the block; yield the URLs."""
    if address is None:
        yield ()
        return

    # Late: a server without --admin does not import h11.
    from anyecho.server.admin import open_admin
    from anyecho.server.http_listener import url_of

    async with open_admin(address, server.monitor()) as listener:
        yield [*map(url_of, listener.addresses)]


def _start_reporting(addresses: Sequence[str]) -> None:
    # In a thread, because standard output may block. The thread ends: with a second one, every system call on a
    # descriptor costs more.
    try:
        Thread(target=_report, args=(addresses,), daemon=True).start()
    except RuntimeError:  # a limit of the system (ulimit -u, pids.max)
        _report(addresses, timeout=0.0)


def _report(addresses: Sequence[str], *, timeout: float | None = None) -> None:
    try:
        for address in addresses:
            write_all(1, f"{address}\n".encode(), timeout=timeout)
    except OSError as exc:
        # Not fatal: peers can still be served.
        logger.warning("cannot report the addresses: %s", exc.strerror)

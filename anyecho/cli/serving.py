"""Run one server process: logs, signals, notifications, and the bound addresses on standard output."""

from __future__ import annotations

__all__ = ("open_pages", "run_server", "start_reporting", "status_text", "warn_start", "warn_unused")

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING

from anyio import create_task_group
from anyio.abc import TaskGroup

from anyecho.address import Address, FDAddress, UDPAddress
from anyecho.backends import run
from anyecho.cli.environment import Environment
from anyecho.cli.job import Job
from anyecho.cli.logs import log_to_stderr
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import CertificateError, unwrap_single
from anyecho.net.descriptors import write_all
from anyecho.net.lifeline import Lifeline
from anyecho.net.tls.contexts import Certificates
from anyecho.server.server import Server, open_server
from anyecho.server.supervised import follow, report_totals
from anyecho.systemd.activation import Activation
from anyecho.systemd.notify import Notifier, open_notifier

if TYPE_CHECKING:
    from anyecho.server.admin import AdminSource

logger = logging.getLogger("anyecho.server")


def run_server(
    addresses: Sequence[Address],
    activation: Activation,
    job: Job,
    environment: Environment,
    lifeline: Lifeline | None = None,
) -> None:
    """Serve `addresses` until a signal ends it, or as a worker the supervisor at the other end of `lifeline`.

    Raises the errors of `open_server`.
    """
    opening = open_server(*addresses, handler=job.find_handler(), options=job.served_options())
    # An environment variable can name files that no address uses.
    has_files = job.options.tls.ssl_certfile is not None and any(address.tls for address in addresses)
    with (
        log_to_stderr(job.log, access=job.access_log, worker=job.worker),
        environment.attached_to(logger),
        caught_signals(handled=2, hangup=True) as signals,  # one to drain, one to close at once
        open_notifier(os.environ) as notifier,
    ):
        warn_unused(job, addresses)
        control = _Control(signals, notifier, has_files=has_files)
        run(_serve, opening, addresses, activation, job, control, lifeline, backend=job.backend)


def warn_unused(job: Job, addresses: Sequence[Address]) -> None:
    """Warn of an access log without connections, and of a seed that decides nothing.

    Only a command line is warned of the seed: in a program, faults may be set later.
    """
    if job.access_log and addresses and all(isinstance(address, UDPAddress) for address in addresses):
        text = "without effect: access_log (every address is for UDP)"
        logger.warning(text, extra={"options": ("access_log",)})
    if job.options.seed is not None and not job.service.fault and job.control is None:
        logger.warning("without effect: seed (there is no fault)", extra={"options": ("seed",)})


async def _serve(
    opening: AbstractAsyncContextManager[Server],
    addresses: Sequence[Address],
    activation: Activation,
    job: Job,
    control: _Control,
    lifeline: Lifeline | None,
) -> None:
    with unwrap_single():
        async with create_task_group() as tasks:
            tasks.start_soon(control.obey, tasks)
            async with opening as server:
                control.server = server
                async with (
                    open_pages(job.admin, server.monitor) as urls,
                    _open_control(job.control, server) as control_urls,
                ):
                    if lifeline is not None:
                        _close_passed(addresses)
                        tasks.start_soon(follow, lifeline, server)
                    else:
                        warn_start(activation.unused(addresses), server.certificates)
                        start_reporting((*map(str, server.addresses), *urls, *control_urls))
                    control.notifier.ready(status_text(server.addresses))
                    tasks.start_soon(control.notifier.ping_watchdog)
                    await server.wait_closed()
                if lifeline is not None:
                    await report_totals(lifeline, server.monitor())

            tasks.cancel_scope.cancel()


class _Control:
    """Translates signals into what the server does, and tells the service manager."""

    def __init__(self, signals: Signals, notifier: Notifier, *, has_files: bool) -> None:
        #: None until it is open.
        self.server: Server | None = None
        self._signals = signals
        self.notifier = notifier
        #: Whether there are certificate files to reload.
        self._has_files = has_files

    async def obey(self, tasks: TaskGroup) -> None:
        """Act on signals until the second that ends the server."""
        while await self._signals.next() == signal.SIGHUP:
            if not self._has_files and self._signals.terminal_is_gone():
                logger.warning("the terminal is gone: letting connections finish")
                break
            self._hang_up()

        self.notifier.stopping("letting connections finish")
        if self.server is None:
            tasks.cancel_scope.cancel()
            return

        tasks.start_soon(self.server.drain)
        while await self._signals.next() == signal.SIGHUP:
            if not self._signals.terminal_is_gone():  # the kernel and the shell each send one when it closes
                self._hang_up()
        self.server.abort()

    def _hang_up(self) -> None:
        """Reload the certificate. The service manager is notified of the end even if there is no certificate."""
        if not self._has_files:
            logger.warning("SIGHUP is ignored: no address uses certificate files that could be reloaded")
        if self.server is not None:
            self.notifier.reloading()
            if self._has_files and self.server.certificates is not None:
                _reload(self.server.certificates)
            self.notifier.ready(status_text(self.server.addresses))


def _close_passed(addresses: Sequence[Address]) -> None:
    """Close the descriptors from the supervisor, which the server has duplicated: each would keep a socket open."""
    for address in addresses:
        if isinstance(address, FDAddress) and isinstance(address.fd, int):
            os.close(address.fd)


def warn_start(unused: Sequence[str], certificates: Certificates | None) -> None:
    if unused:
        logger.warning("passed, but not served: %s", ", ".join(unused))
    if certificates is not None and certificates.cacert is not None:
        logger.warning(
            "generated a certificate for this run: clients trust it with --cacert %s", certificates.cacert
        )


def status_text(addresses: Sequence[Address]) -> str:
    return f"listening on {', '.join(map(str, addresses))}"


def _reload(certificates: Certificates) -> None:
    try:
        certificates.reload()
    except CertificateError as exc:
        logger.error("%s; the certificate stays what it was", exc)
    else:
        logger.info("certificates reloaded")


@asynccontextmanager
async def open_pages(address: Address | None, source: Callable[[], AdminSource]) -> AsyncIterator[Sequence[str]]:
    """Answer requests about `source()` on `address` inside the block; yield the URLs."""
    if address is None:
        yield ()
        return

    # Late: a server without --admin does not import h11.
    from anyecho.server.admin import open_admin
    from anyecho.server.http_listener import url_of

    async with open_admin(source(), address) as admin:
        yield [*map(url_of, admin.addresses)]


@asynccontextmanager
async def _open_control(address: Address | None, server: Server) -> AsyncIterator[Sequence[str]]:
    """Let requests to `address` change `server` inside the block; yield the URLs."""
    if address is None:
        yield ()
        return

    # Late: a server without --control imports neither h11 nor all faults.
    from anyecho.server.control import open_control
    from anyecho.server.http_listener import url_of

    async with open_control(server, address) as control:
        yield [*map(url_of, control.addresses)]


def start_reporting(addresses: Sequence[str]) -> None:
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

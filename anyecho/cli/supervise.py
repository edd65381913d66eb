"""``anyecho serve --workers``: the supervisor's logs, signals and notifications, and the command of a worker."""

from __future__ import annotations

__all__ = ("run_supervisor",)

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from anyio import create_task_group
from anyio.abc import ByteStream, TaskGroup

from anyecho.address import Address, FDAddress, StreamAddress
from anyecho.backends import run
from anyecho.cli.environment import Environment
from anyecho.cli.job import Job
from anyecho.cli.logs import log_to_stderr
from anyecho.cli.serving import open_pages, start_reporting, status_text, warn_access_log, warn_start
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import CertificateError, unwrap_single
from anyecho.handlers import Handler
from anyecho.net.listen import Listener
from anyecho.net.tls.contexts import Certificates
from anyecho.server.opening import open_sockets
from anyecho.server.server import DEFAULT_ADDRESS
from anyecho.server.supervisor import Supervisor, open_supervisor
from anyecho.server.worker import Launch
from anyecho.server.worker_options import WorkerOptions, divide
from anyecho.systemd.activation import Activation
from anyecho.systemd.notify import Notifier, open_notifier
from anyecho.units import or_infinite

logger = logging.getLogger("anyecho.server")


def run_supervisor(
    addresses: Sequence[Address],
    activation: Activation,
    job: Job,
    workers: WorkerOptions,
    environment: Environment,
) -> None:
    """Serve `addresses` with worker processes until a signal ends them.

    Raises:
        UsageError: the options are wrong.
        StartError: listening fails, or a worker does not become ready at the start.
    """
    with (
        log_to_stderr(job.log, access=job.access_log),
        environment.attached_to(logger),
        caught_signals(handled=2, hangup=True) as signals,  # one to drain, one to close at once
        open_notifier(os.environ) as notifier,
    ):
        warn_access_log(job.access_log, addresses)
        # A parent may have left it ignored: then no exit status of a child is known.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        run(_supervise, addresses, activation, job, workers, signals, notifier, backend=job.backend)


async def _supervise(
    addresses: Sequence[Address],
    activation: Activation,
    job: Job,
    workers: WorkerOptions,
    signals: Signals,
    notifier: Notifier,
) -> None:
    with ExitStack() as opened, unwrap_single():
        listeners, certificates = await open_sockets(
            addresses or [DEFAULT_ADDRESS], job.served_options(), _handler_of(job), opened
        )
        control = _Control(signals, notifier, listeners, certificates)
        async with create_task_group() as tasks:
            tasks.start_soon(control.obey, tasks)
            async with (
                open_supervisor(list(_launches(listeners, job, workers))) as supervisor,
                open_pages(job.admin, lambda: supervisor) as urls,
            ):
                control.supervisor = supervisor
                notifier.ready(control.status)
                tasks.start_soon(notifier.ping_watchdog)
                warn_start(activation.unused(addresses), certificates)
                start_reporting([*(str(listener.address) for listener in listeners), *urls])
                await supervisor.wait_closed()

            tasks.cancel_scope.cancel()


class _Control:
    """Translates signals into what the supervisor does, and tells the service manager."""

    def __init__(
        self,
        signals: Signals,
        notifier: Notifier,
        listeners: Sequence[Listener],
        certificates: Certificates | None,
    ) -> None:
        self.status = status_text([listener.address for listener in listeners])
        #: None until it is ready.
        self.supervisor: Supervisor | None = None
        self._signals = signals
        self._notifier = notifier
        self._listeners = listeners
        self._certificates = certificates
        #: Whether a roll was requested since the last one began, or still runs.
        self._roll_wanted = self._rolling = False

    async def obey(self, tasks: TaskGroup) -> None:
        while await self._signals.next() == signal.SIGHUP:
            if self._signals.terminal_is_gone():
                logger.warning("the terminal is gone: letting connections finish")
                break
            self._roll_wanted = True
            if not self._rolling:
                tasks.start_soon(self._roll)

        self._notifier.stopping("letting connections finish")
        if self.supervisor is None:
            tasks.cancel_scope.cancel()
            return

        for listener in self._listeners:
            listener.stop()
        self.supervisor.drain()
        while await self._signals.next() == signal.SIGHUP:
            pass
        await self.supervisor.abort()

    async def _roll(self) -> None:
        self._rolling = True
        while self._roll_wanted and self.supervisor is not None:
            self._roll_wanted = False
            self._notifier.reloading()
            if self._reload() and await self.supervisor.roll():
                logger.info("all workers are replaced")
            self._notifier.ready(self.status)
        self._rolling = False

    def _reload(self) -> bool:
        """Return whether the certificate files, which the new workers will read, can be used."""
        try:
            if self._certificates is not None:
                self._certificates.reload()
        except CertificateError as exc:
            logger.error("%s; the certificate stays what it was", exc)
            return False

        return True


def _launches(listeners: Sequence[Listener], job: Job, workers: WorkerOptions) -> Iterator[Launch]:
    options = job.options
    bindings = [f"--bind={_passed(listener)}" for listener in listeners]
    for part in divide(options, workers.count or 1):
        yield Launch(
            command=[*_own_command(), "serve", *bindings, "--lifeline"],
            descriptors=[listener.sock.fileno() for listener in listeners],
            job=replace(job, options=part).to_message(),
            heartbeat_timeout=workers.heartbeat_timeout,
            drain_limit=or_infinite(options.graceful_timeout) + or_infinite(options.linger),
        )


def _passed(listener: Listener) -> FDAddress:
    """Return the address of the inherited socket of `listener`."""
    requested = listener.requested
    proxy = requested.proxy if isinstance(requested, StreamAddress) else None
    return FDAddress(fd=listener.sock.fileno(), tls=requested.tls, proxy=proxy)


def _own_command() -> list[str]:
    """Return the words that started this process, up to the verb: a worker runs the same program."""
    count = len(sys.argv) - 1
    words = sys.orig_argv[: len(sys.orig_argv) - count]
    if len(words) > 1 and sys.orig_argv[len(words) :] == sys.argv[1:]:
        return [sys.executable, *words[1:]]

    return [sys.executable, "-m", "anyecho"]


def _handler_of(job: Job) -> Handler:
    """Return the handler of workers, for a check; a placeholder for one that only they import."""
    return _imported_elsewhere if ":" in job.handler else job.find_handler()


async def _imported_elsewhere(stream: ByteStream) -> None:
    raise NotImplementedError

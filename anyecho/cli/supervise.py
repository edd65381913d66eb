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
from anyecho.cli.serving import open_pages, start_reporting, status_text, warn_start, warn_unused
from anyecho.cli.signals import Signals, caught_signals
from anyecho.errors import CertificateError, unwrap_single
from anyecho.faults.plan import new_seed
from anyecho.handlers import Handler
from anyecho.net.listen import Listener, open_beside
from anyecho.net.tls.contexts import Certificates
from anyecho.server.opening import open_sockets
from anyecho.server.options import ServeOptions
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
        caught_signals(handled=3, hangup=True) as signals,  # to drain, to close at once, to kill workers
        open_notifier(os.environ) as notifier,
    ):
        warn_unused(job, addresses)
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
        options = job.served_options()
        listeners, certificates = await open_sockets(
            addresses or [DEFAULT_ADDRESS], options, _handler_of(job), opened
        )
        job = replace(job, options=_completed(options, certificates))
        slots = [listeners]
        for _ in range(1, workers.count or 1):
            slots.append(_slot_beside(listeners, options, opened) if workers.reuseport else listeners)
        control = _Control(signals, notifier, slots, certificates)
        launches = list(_launches(slots, job, workers))
        async with create_task_group() as tasks:
            tasks.start_soon(control.obey, tasks)
            async with (
                open_supervisor(launches, share_sockets=not workers.reuseport) as supervisor,
                open_pages(job.admin, lambda: supervisor) as urls,
            ):
                control.begin(supervisor, tasks)
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
        slots: Sequence[Sequence[Listener]],
        certificates: Certificates | None,
    ) -> None:
        self.status = status_text([listener.address for listener in slots[0]])
        #: None until it is ready.
        self._supervisor: Supervisor | None = None
        self._signals = signals
        self._notifier = notifier
        self._slots = slots
        self._certificates = certificates
        #: Whether a roll was requested since the last one began, or still runs.
        self._roll_wanted = self._rolling = False

    def begin(self, supervisor: Supervisor, tasks: TaskGroup) -> None:
        """Control `supervisor`, which is ready. A SIGHUP during its start is obeyed now."""
        self._supervisor = supervisor
        if self._roll_wanted:
            self._request_roll(tasks)

    async def obey(self, tasks: TaskGroup) -> None:
        """Act on signals until the third that ends the service."""
        while await self._signals.next() == signal.SIGHUP:
            if self._signals.terminal_is_gone():
                logger.warning("the terminal is gone: letting connections finish")
                break
            self._request_roll(tasks)

        self._notifier.stopping("letting connections finish")
        if self._supervisor is None:
            tasks.cancel_scope.cancel()
            return

        for listeners in self._slots:
            for listener in listeners:
                listener.admit_no_more()
                listener.stop()
        self._supervisor.drain()
        await self._next_end()
        tasks.start_soon(self._supervisor.abort)
        await self._next_end()
        # A worker with a stuck loop would outlive this process, and hold its sockets.
        self._supervisor.kill()

    async def _next_end(self) -> None:
        while await self._signals.next() == signal.SIGHUP:
            pass

    def _request_roll(self, tasks: TaskGroup) -> None:
        self._roll_wanted = True
        if self._supervisor is not None and not self._rolling:
            self._rolling = True
            tasks.start_soon(self._roll, self._supervisor)

    async def _roll(self, supervisor: Supervisor) -> None:
        while self._roll_wanted:
            self._roll_wanted = False
            self._notifier.reloading()
            if self._reload() and await supervisor.roll():
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


def _completed(options: ServeOptions, certificates: Certificates | None) -> ServeOptions:
    """Return the options of the job, with what is generated once for all workers: a seed, a CA."""
    authority = None if certificates is None else certificates.shared_authority()
    if authority is not None:
        options = replace(options, tls=replace(options.tls, authority=authority))
    if options.faults:
        seed = new_seed() if options.seed is None else options.seed
        names = ", ".join(fault.name for fault in options.faults)
        logger.warning("the workers misbehave on purpose: %s, seed %d", names, seed)
        options = replace(options, seed=seed, faults=())

    return options


def _slot_beside(first: Sequence[Listener], options: ServeOptions, opened: ExitStack) -> list[Listener]:
    """Return listeners on the addresses of `first` for another worker, which `opened` closes."""
    beside = [open_beside(listener, backlog=options.backlog, options=options.socket) for listener in first]
    for listener in beside:
        opened.callback(listener.close)

    return beside


def _launches(slots: Sequence[Sequence[Listener]], job: Job, workers: WorkerOptions) -> Iterator[Launch]:
    options = job.options
    for number, (listeners, part) in enumerate(zip(slots, divide(options, len(slots)), strict=True), 1):
        bindings = [f"--bind={_passed(listener)}" for listener in listeners]
        yield Launch(
            command=[*_own_command(), "serve", *bindings, "--lifeline"],
            descriptors=[listener.sock.fileno() for listener in listeners],
            job=replace(job, options=part, worker=number).to_message(),
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
    return _imported_elsewhere if ":" in job.service.handler else job.find_handler()


async def _imported_elsewhere(stream: ByteStream) -> None:
    raise NotImplementedError

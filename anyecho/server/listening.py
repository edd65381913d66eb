"""The listening sockets of a server: accept on them, echo datagrams, stop.

Accepted connections are passed on to `Admission`.
"""

from __future__ import annotations

__all__ = ("Listening", "describe")

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from anyio import CancelScope, Event, create_task_group

from anyecho.address import Address, TCPAddress, UDPAddress
from anyecho.errors import UsageError
from anyecho.faults.fault import Fault
from anyecho.faults.plan import DatagramPlan, FaultPlan
from anyecho.net.accept import Acceptor
from anyecho.net.listen import Listener
from anyecho.net.poller import Fallback, Poller
from anyecho.net.tls.contexts import Certificates
from anyecho.net.udp.echo import Reflector
from anyecho.server.admission import Admission, ListenerPolicy
from anyecho.server.options import ServeOptions
from anyecho.server.stats import Stats
from anyecho.server.udp_guard import SourceGuard
from anyecho.server.unused import check_faults, expected_header

logger = logging.getLogger("anyecho.server")


class Listening:
    """Accepts on `listeners` and passes each connection to `admission`; echoes datagrams. Closes the listeners."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        admission: Admission,
        options: ServeOptions,
        stats: Stats,
        poller: Poller | Fallback,
        certificates: Certificates | None,
        *,
        seed: int,
    ) -> None:
        #: Set once all listeners are closed and no task waits for one.
        self.closed = Event()
        self._listeners = listeners
        self._poller = poller
        self._options = options
        self._certificates = certificates
        self._seed = seed
        #: The faults of each listener for streams, and the carriers of its connections.
        self._plans: list[tuple[FaultPlan, frozenset[str]]] = []
        if options.faults:
            self._warn(options.faults)
        self._acceptors: list[Acceptor] = []
        for listener in listeners:
            requested = listener.requested
            if not isinstance(listener.address, UDPAddress):
                versions = expected_header(requested, options)
                carriers = frozenset({"stream", "tls"} if requested.tls else {"stream"})
                plan = FaultPlan(_acting(options.faults, carriers), seed)
                self._plans.append((plan, carriers))
                policy = ListenerPolicy(versions, certificates if requested.tls else None, plan)
                acceptor = Acceptor(
                    sock=listener.sock,
                    limit=admission.accept_limit(policy),
                    hand_over=partial(admission.admit, policy),
                    errors=stats.accept_errors,
                    preparation=listener.preparation,
                )
                self._acceptors.append(acceptor)
        datagrams = [listener.sock for listener in listeners if isinstance(listener.address, UDPAddress)]
        # One guard for all: a source has one token bucket.
        guard = SourceGuard(options, {sock.getsockname()[1] for sock in datagrams}, stats.datagrams.dropped)
        tune = not options.socket.rcvbuf
        datagram_plans = [DatagramPlan(options.faults, seed) for _ in datagrams]
        self._reflectors = [
            Reflector(sock, guard, stats.datagrams, tune=tune, replies=replying.replies if replying else None)
            for sock, replying in zip(datagrams, datagram_plans, strict=True)
        ]
        self._running: tuple[Acceptor | Reflector, ...] = (*self._acceptors, *self._reflectors)
        self._scope = CancelScope()
        self._stopped = False

    async def run(self) -> None:
        """Accept until stopped or cancelled. Raises `OSError` if a listener can accept no more."""
        try:
            with self._scope:
                async with create_task_group() as tasks:
                    for each in self._running:
                        tasks.start_soon(each.run, self._poller)
        finally:
            self.stop()
            for listener in self._listeners:
                listener.close()
            self.closed.set()

    def announce(self) -> None:
        """Log each requested address once."""
        for requested, listener in {listener.requested: listener for listener in self._listeners}.items():
            logger.info("starting up on %s", describe(requested, listener.address))

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called: the server accepts no more."""
        return self._stopped

    def accept_backlog(self) -> None:
        """Accept all connections in the accept backlogs, if limits allow it; echo datagrams that have arrived."""
        if not self._stopped:
            for acceptor in self._acceptors:
                # The kernel holds one more connection than the backlog of listen(2).
                acceptor.accept_some(self._options.backlog + 1)
            for reflector in self._reflectors:
                reflector.finish()

    def set_faults(self, faults: tuple[Fault, ...]) -> None:
        """Let `faults` act on the connections accepted from now on. Raises `UsageError`."""
        addresses = [(listener.requested, listener.address) for listener in self._listeners]
        check_faults(replace(self._options, faults=faults), addresses)
        for fault in faults:
            if fault.carriers == ("datagram",):
                text = f"{fault.name} is for datagrams, of which the faults are set at the start"
                raise UsageError(text, options=("faults",))
            if fault.flaw is not None and self._certificates is not None:
                self._certificates.flawed(fault.flaw)  # made now, because it may fail
        for plan, carriers in self._plans:
            plan.faults = _acting(faults, carriers)
        if faults:
            self._warn(faults)

    def _warn(self, faults: Sequence[Fault]) -> None:
        names = ", ".join(fault.name for fault in faults)
        logger.warning("this server misbehaves on purpose: %s, seed %d", names, self._seed)

    def stop(self) -> None:
        """Stop listening before this returns. The accepting tasks end soon afterwards."""
        if self._stopped:
            return

        self._stopped = True
        for each in self._running:
            each.stop()
        for listener in self._listeners:
            self._poller.unregister(listener.sock)
            listener.stop()
        self._scope.cancel()


def _acting(faults: Sequence[Fault], carriers: frozenset[str]) -> tuple[Fault, ...]:
    return tuple(fault for fault in faults if carriers & {*fault.carriers})


def describe(requested: Address, bound: Address) -> str:
    """Return the text of an address for the log: ``localhost port 10000``, the format of the original example."""
    if isinstance(requested, TCPAddress) and isinstance(bound, TCPAddress):
        return f"{requested.host or '*'} port {bound.port}"
    if isinstance(requested, UDPAddress) and isinstance(bound, UDPAddress):
        return f"{requested.host or '*'} port {bound.port} (UDP)"

    return str(bound)

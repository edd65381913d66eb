"""The listening sockets of a server: accept on them, echo datagrams, stop.

Accepted connections are passed on to `Admission`.
"""

from __future__ import annotations

__all__ = ("Listening", "describe")

from collections.abc import Sequence
from functools import partial

from anyio import CancelScope, Event, create_task_group

from anyecho.address import Address, TCPAddress, UDPAddress
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
from anyecho.server.unused import expected_header


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
        self._backlog = options.backlog
        self._acceptors: list[Acceptor] = []
        for listener in listeners:
            requested = listener.requested
            if not isinstance(listener.address, UDPAddress):
                versions = expected_header(requested, options)
                carriers = {"stream", "tls"} if requested.tls else {"stream"}
                acting = tuple(fault for fault in options.faults if carriers & {*fault.carriers})
                faults = FaultPlan(acting, seed) if acting else None
                policy = ListenerPolicy(versions, certificates if requested.tls else None, faults)
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
        plans = [DatagramPlan(options.faults, seed) for _ in datagrams]
        self._reflectors = [
            Reflector(sock, guard, stats.datagrams, tune=tune, replies=plan.replies if plan else None)
            for sock, plan in zip(datagrams, plans, strict=True)
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

    def accept_backlog(self) -> None:
        """Accept all connections in the accept backlogs, if limits allow it; echo datagrams that have arrived."""
        if not self._stopped:
            for acceptor in self._acceptors:
                # The kernel holds one more connection than the backlog of listen(2).
                acceptor.accept_some(self._backlog + 1)
            for reflector in self._reflectors:
                reflector.finish()

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


def describe(requested: Address, bound: Address) -> str:
    """Return the text of an address for the log: ``localhost port 10000``, the format of the original example."""
    if isinstance(requested, TCPAddress) and isinstance(bound, TCPAddress):
        return f"{requested.host or '*'} port {bound.port}"
    if isinstance(requested, UDPAddress) and isinstance(bound, UDPAddress):
        return f"{requested.host or '*'} port {bound.port} (UDP)"

    return str(bound)

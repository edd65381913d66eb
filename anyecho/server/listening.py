"""The listening sockets of a server: accept on them, echo datagrams, stop.

Accepted connections are passed on to `Admission`.
"""

from __future__ import annotations

__all__ = ("Listening", "StreamListener")

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from anyio import CancelScope, Event, create_task_group, sleep_forever
from anyio.abc import TaskGroup

from anyecho.address import Address, TCPAddress, UDPAddress
from anyecho.errors import UsageError
from anyecho.faults.fault import Fault
from anyecho.faults.plan import DatagramPlan, FaultPlan, named, new_seed
from anyecho.net.accept import Acceptor
from anyecho.net.listen import Listener
from anyecho.net.poller import Fallback, Poller
from anyecho.net.tls.contexts import Certificates
from anyecho.net.udp.echo import Reflector
from anyecho.server.admission import Admission, ListenerPolicy
from anyecho.server.udp_guard import SourceGuard
from anyecho.server.unused import check_faults, expected_header

logger = logging.getLogger("anyecho.server")

#: Maximum connections accepted in one wake-up, before open connections have their turn; and by one of several
#: processes on the same socket: the first that wakes must not take all.
_ACCEPT_BATCH, _SHARED_ACCEPT_BATCH = 64, 2


class Listening:
    """Accepts on `listeners` and passes each connection to `admission`; echoes datagrams. Closes the listeners.

    Each requested address is logged once.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        admission: Admission,
        poller: Poller | Fallback,
        certificates: Certificates | None,
    ) -> None:
        #: The bound addresses, one for each listener.
        self.addresses = tuple(listener.address for listener in listeners)
        #: Set once all listeners are closed and no task waits for one.
        self.closed = Event()
        self._admission = admission
        self._poller = poller
        self._options = options = admission.options
        self.certificates = certificates
        self.seed = new_seed() if options.seed is None else options.seed
        self._faults: Mapping[str, Fault] = named(options.faults)
        if options.faults:
            self._warn(options.faults)
        self._datagrams = [listener for listener in listeners if isinstance(listener.address, UDPAddress)]
        self._reflectors = [*self._open_reflectors()]
        #: The listeners for streams that accept.
        self.streams = [
            StreamListener(listener, self._policy(listener), admission)
            for listener in listeners
            if not isinstance(listener.address, UDPAddress)
        ]
        self._tasks: TaskGroup | None = None
        self._scope = CancelScope()
        #: Whether `stop` was called: the server accepts no more.
        self.stopped = False
        for requested, listener in {listener.requested: listener for listener in listeners}.items():
            logger.info("starting up on %s", _describe(requested, listener.address))

    async def run(self) -> None:
        """Accept until stopped or cancelled. Raises `OSError` if a listener can accept no more."""
        try:
            with self._scope:
                async with create_task_group() as self._tasks:
                    for stream in self.streams:
                        self._tasks.start_soon(stream.run, self._poller)
                    for reflector in self._reflectors:
                        self._tasks.start_soon(reflector.run, self._poller)
                    await sleep_forever()  # another listener may be added after the last one is removed
        finally:
            self.stop()
            for listener in self._datagrams:
                listener.close()
            self.closed.set()

    def accept_backlog(self) -> None:
        """Accept all connections in the accept backlogs, if limits allow it; echo datagrams that have arrived."""
        if not self.stopped:
            for stream in self.streams:
                stream.accept_backlog(self._options.backlog)
            for reflector in self._reflectors:
                reflector.finish()

    def set_faults(self, faults: Mapping[str, Fault]) -> None:
        """Let `faults` act, on the open connections too that were accepted after the first call.

        Raises `UsageError`.
        """
        listeners = [*(stream.listener for stream in self.streams), *self._datagrams]
        addresses = [(listener.requested, listener.address) for listener in listeners]
        check_faults(replace(self._options, faults=(*faults.values(),)), addresses)
        for fault in faults.values():
            if fault.carriers == ("datagram",) and fault not in self._options.faults:
                text = f"{fault.name} is for datagrams, of which the faults are set at the start"
                raise UsageError(text, options=("faults",))
            if fault.flaw is not None and self.certificates is not None:
                self.certificates.flawed(fault.flaw)  # made now, because it may fail
        for stream in self.streams:
            stream.policy.faults.faults = _acting(faults, stream.listener.requested)
        self._admission.change_faults()
        if faults and faults != self._faults:
            self._warn([*faults.values()])
        self._faults = faults

    def _warn(self, faults: Sequence[Fault]) -> None:
        names = ", ".join(fault.name for fault in faults)
        logger.warning(
            "this server misbehaves on purpose: %s, seed %d", names, self.seed, extra={"options": ("faults",)}
        )

    def stop(self) -> None:
        """Stop listening before this returns. The accepting tasks end soon afterwards."""
        if self.stopped:
            return

        self.stopped = True
        for stream in self.streams:
            stream.stop(self._poller)
        for reflector in self._reflectors:
            reflector.stop()
        for listener in self._datagrams:
            self._poller.unregister(listener.sock)
            listener.stop()
        self._scope.cancel()

    def add(self, listener: Listener, policy: ListenerPolicy) -> StreamListener:
        """Accept on one more `listener` for streams. Once stopped, close it."""
        stream = StreamListener(listener, policy, self._admission)
        if self.stopped:
            listener.close()
            return stream

        self.streams.append(stream)
        if self._tasks is not None:  # else `run` begins soon
            self._tasks.start_soon(stream.run, self._poller)
        return stream

    def remove(self, stream: StreamListener) -> None:
        """Stop listening on `stream` before this returns. Its connections continue."""
        stream.stop(self._poller)
        if stream in self.streams:
            self.streams.remove(stream)

    def _policy(self, listener: Listener) -> ListenerPolicy:
        requested = listener.requested
        certificates = self.certificates if requested.tls else None
        plan = FaultPlan(_acting(self._faults, requested), self.seed)
        return ListenerPolicy(expected_header(requested, self._options), certificates, plan, str(listener.address))

    def _open_reflectors(self) -> Iterator[Reflector]:
        sockets = [listener.sock for listener in self._datagrams]
        counts = self._admission.stats.datagrams
        # One guard for all: a source has one token bucket.
        guard = SourceGuard(self._options, {sock.getsockname()[1] for sock in sockets}, counts.dropped)
        tune = not self._options.socket.rcvbuf
        for sock in sockets:
            plan = DatagramPlan(self._options.faults, self.seed)
            yield Reflector(sock, guard, counts, tune=tune, replies=plan.replies if plan else None)


class StreamListener:
    """Accepts on `listener`, which it closes, and passes each connection to `admission` with `policy`."""

    def __init__(self, listener: Listener, policy: ListenerPolicy, admission: Admission) -> None:
        self.listener = listener
        self.policy = policy
        self._admission = admission
        self._acceptor = Acceptor(
            sock=listener.sock,
            limit=admission.handshakes if policy.certificates else admission.limit,
            hand_over=partial(admission.admit, policy),
            errors=admission.stats.accept_errors,
            preparation=listener.preparation,
            batch=_ACCEPT_BATCH if admission.options.processes == 1 else _SHARED_ACCEPT_BATCH,
        )
        self._scope = CancelScope()

    def set_policy(self, policy: ListenerPolicy) -> None:
        """Require `policy` of the connections accepted from now on."""
        self.policy = policy
        self._acceptor.hand_over = partial(self._admission.admit, policy)

    async def run(self, poller: Poller | Fallback) -> None:
        """Accept until stopped or cancelled. Raises `OSError` if it can accept no more."""
        try:
            with self._scope:
                await self._acceptor.run(poller)
        finally:
            self.stop(poller)
            self.listener.close()

    def accept_backlog(self, size: int) -> None:
        """Accept all connections in the backlog of `size`, if limits allow it. No more get into it."""
        self.listener.admit_no_more()
        # The kernel holds one more connection than the backlog of listen(2).
        self._acceptor.accept_some(size + 1)

    def stop(self, poller: Poller | Fallback) -> None:
        """Stop listening before this returns. `run` returns soon afterwards."""
        self._acceptor.stop()
        poller.unregister(self.listener.sock)
        self.listener.stop()
        self._scope.cancel()


def _acting(faults: Mapping[str, Fault], address: Address) -> Mapping[str, Fault]:
    """Return those of `faults` that act on the connections of `address`, which is for streams."""
    carriers = {"stream", "tls"} if address.tls else {"stream"}
    return {name: fault for name, fault in faults.items() if carriers & {*fault.carriers}}


def _describe(requested: Address, bound: Address) -> str:
    """Return the text of an address for the log: ``localhost port 10000``, the format of the original example."""
    if isinstance(requested, TCPAddress | UDPAddress) and isinstance(bound, TCPAddress | UDPAddress):
        return f"{requested.host or '*'} port {bound.port}{' (UDP)' if isinstance(bound, UDPAddress) else ''}"

    return str(bound)

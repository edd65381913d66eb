"""A server's lifetime: listen, serve, drain.

Knows when connections begin and end, and in which order what they stand on may go; what one does is the
engine's.
"""

from __future__ import annotations

__all__ = ("DEFAULT_ADDRESS", "Server", "open_server", "serve")

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial

from anyio import TASK_STATUS_IGNORED, CancelScope, Event, create_task_group, move_on_after
from anyio.abc import TaskGroup, TaskStatus

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress, parse_address
from anyecho.errors import bare_errors
from anyecho.net.accept import Acceptor
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.tls_contexts import Certificates
from anyecho.server.introduction import Entrance
from anyecho.server.limits import ConnectionLimit, Reaper, raise_descriptor_limit, within_descriptors
from anyecho.server.options import ServeOptions
from anyecho.server.reception import Reception
from anyecho.server.stats import Peer, Stats
from anyecho.server.udp import UDPEcho
from anyecho.server.unused import check_options, expected_header
from anyecho.validation import check_kind

logger = logging.getLogger("anyecho.server")

#: Where the original example listened.
DEFAULT_ADDRESS = "tcp://localhost:10000"


async def serve(
    *addresses: str | Address,
    options: ServeOptions | None = None,
    task_status: TaskStatus[tuple[Address, ...]] = TASK_STATUS_IGNORED,
) -> None:
    """Echo on `addresses` (by default ``tcp://localhost:10000``) until cancelled.

    `task_status` is told the addresses once they accept, with port 0 replaced by the port that was free. Raises
    `BindError` when one cannot be listened on; then none is. Raises `UsageError` when options that protect (TLS,
    PROXY trust) cannot act on any of the addresses.
    """
    async with open_server(*addresses, options=options) as server:
        task_status.started(server.addresses)
        await server.wait_closed()


@asynccontextmanager
async def open_server(*addresses: str | Address, options: ServeOptions | None = None) -> AsyncIterator[Server]:
    """A server that runs inside the block, and closes its connections politely when the block is left.

    Raises as `serve` does, before the block.
    """
    options = ServeOptions() if options is None else options
    check_kind(options, ServeOptions)
    wanted = [parse_address(address) for address in addresses or (DEFAULT_ADDRESS,)]
    # An inherited descriptor may be for streams or for datagrams: its options are checked once it is open.
    inherits = any(isinstance(address, FDAddress) for address in wanted)
    if not inherits:
        check_options(options, [(address, address) for address in wanted])
    limit = within_descriptors(options.max_connections, raise_descriptor_limit())
    with ExitStack() as opened, bare_errors() as whole:
        certificates: Certificates | None = None
        if over_tls := [address for address in wanted if address.tls]:
            certificates = Certificates(options.tls, over_tls)
            opened.callback(certificates.close)
        listeners = await open_listeners(wanted, backlog=options.backlog, options=options.socket)
        for listener in listeners:
            opened.callback(listener.close)
        if inherits:
            check_options(options, [(listener.asked, listener.address) for listener in listeners])

        async with open_poller() as poller, create_task_group() as tasks:
            gate = ConnectionLimit(limit, wait=options.over_limit == "wait")
            server = Server(listeners, gate, options, poller, tasks, certificates)
            server.start()
            try:
                yield server
            except BaseException as exc:
                whole.append(exc)
                raise
            finally:
                server.close()
                tasks.cancel_scope.cancel()

    logger.info("closing server")


class Server:
    """A running server, as `open_server` yields it."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        limit: ConnectionLimit,
        options: ServeOptions,
        poller: Poller | Fallback,
        tasks: TaskGroup,
        certificates: Certificates | None,
    ) -> None:
        self.addresses: tuple[Address, ...] = tuple(listener.address for listener in listeners)
        self.options = options
        self.stats = Stats()
        #: To reload them, and for the file of a made-up CA; without a TLS address there are none.
        self.certificates = certificates
        self._listeners = listeners
        self._poller = poller
        self._tasks = tasks
        self._reception = Reception(options, limit, self.stats, poller, tasks)
        self._connections = self._reception.connections
        self._reaper = Reaper(self._connections, options)
        self._acceptors = [
            self._acceptor(listener) for listener in listeners if not isinstance(listener.address, UDPAddress)
        ]
        datagrams = [listener.sock for listener in listeners if isinstance(listener.address, UDPAddress)]
        self._udp = UDPEcho(datagrams, options, self.stats.datagrams)
        self._accepting = CancelScope()
        self._accepting_ended = Event()
        self._closed = Event()

    def _acceptor(self, listener: Listener) -> Acceptor:
        asked = listener.asked
        entrance = Entrance(expected_header(asked, self.options), self.certificates if asked.tls else None)
        return Acceptor(
            sock=listener.sock,
            gate=self._reception.gate(entrance),
            hand_over=partial(self._reception.begin, entrance),
            errors=self.stats.accept_errors,
            preparation=listener.preparation,
        )

    def start(self) -> None:
        for asked, listener in {listener.asked: listener for listener in self._listeners}.items():
            logger.info("starting up on %s", _describe(asked, listener.address))

        self._tasks.start_soon(self._accept)
        self._tasks.start_soon(self._reaper.run)
        if self.certificates is not None:
            self._tasks.start_soon(self._reception.handshakes.run)

    async def drain(self, grace: float | None = None) -> None:
        """Stop accepting, after those whom the kernel has told that they are connected; go on echoing for `grace`
        seconds (by default the option's); then half-close, give the rest `linger` seconds to read what they are
        owed, and close. Datagrams are echoed as far as they have come: who sends the next one is as well served by
        whoever has the port then.

        Returns when no connection is left, at the latest after grace and linger. `wait_closed` returns then too.
        """
        self._accepting.cancel()
        await self._accepting_ended.wait()
        with move_on_after(self.options.graceful_timeout if grace is None else grace):
            await self._reception.wait_emptied()
        self._end_all("drained")
        await self._reception.wait_emptied()
        self._closed.set()

    def abort(self) -> None:
        """Close every connection now, polite or not; a drain that is under way ends with it."""
        self._reception.refusing = True
        self._tasks.start_soon(self.drain, 0)
        for connection in list(self._connections):
            connection.abort()

    def close(self) -> None:
        """End every connection, politely. Whoever is accepted before the acceptors have noticed is refused."""
        self._reception.refusing = True
        self._end_all("cancelled")

    def _end_all(self, reason: str) -> None:
        for connection in list(self._connections):
            connection.end(reason)

    def peers(self) -> list[Peer]:
        """Who is connected now; no more than `max_connections`."""
        return self._reception.peers()

    async def wait_closed(self) -> None:
        """Return when a drain has ended."""
        await self._closed.wait()

    async def _accept(self) -> None:
        try:
            with self._accepting:
                async with create_task_group() as acceptors:
                    acceptors.start_soon(self._udp.run, self._poller)
                    for acceptor in self._acceptors:
                        acceptors.start_soon(acceptor.run, self._poller)

            # Only a drain comes here; the kernel has told these peers that they are connected. One more than the
            # backlog, because that is how many it lets wait.
            for acceptor in self._acceptors:
                acceptor.accept_some(self.options.backlog + 1)
            self._udp.finish()
        finally:
            for listener in self._listeners:
                listener.close()
            self._accepting_ended.set()


def _describe(asked: Address, bound: Address) -> str:
    """``localhost port 10000``, as the original example said it; other addresses as they are written."""
    if isinstance(asked, TCPAddress) and isinstance(bound, TCPAddress):
        return f"{asked.host or '*'} port {bound.port}"
    if isinstance(asked, UDPAddress) and isinstance(bound, UDPAddress):
        return f"{asked.host or '*'} port {bound.port} (UDP)"

    return str(bound)

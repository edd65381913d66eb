"""A server's lifetime: listen, serve, close, drain.

It decides when connections begin and end, and in which order listeners, connections and the poller end. How a
connection echoes is up to its engine.
"""

from __future__ import annotations

__all__ = ("DEFAULT_ADDRESS", "Server", "open_server", "serve")

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from threading import get_ident

from anyio import TASK_STATUS_IGNORED, create_task_group
from anyio.abc import TaskGroup, TaskStatus

from anyecho.address import Address, FDAddress, TCPAddress, UDPAddress, parse_address
from anyecho.clock import run_within
from anyecho.errors import UsageError, unwrap_single
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.net.tls_contexts import Certificates
from anyecho.server.limits import ConnectionLimit, Reaper, cap_by_fd_limit, raise_descriptor_limit
from anyecho.server.listening import Listening
from anyecho.server.options import ServeOptions
from anyecho.server.reception import Admission
from anyecho.server.stats import Peer, Stats
from anyecho.server.unused import check_options
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
    """A server that runs inside the block. Leaving the block is `drain(0)`; it waits until the server is closed.

    If an exception or a cancellation leaves the block, the connections are counted as ``cancelled``. Raises as
    `serve` does, before the block. The task that enters the block has to leave it.
    """
    options = ServeOptions() if options is None else options
    check_kind(options, ServeOptions)
    wanted = [parse_address(address) for address in addresses or (DEFAULT_ADDRESS,)]
    # An inherited descriptor may be for streams or for datagrams: its options are checked once it is open.
    inherits = any(isinstance(address, FDAddress) for address in wanted)
    if not inherits:
        check_options(options, [(address, address) for address in wanted])
    limit = cap_by_fd_limit(options.max_connections, raise_descriptor_limit())
    with ExitStack() as opened, unwrap_single() as kept:
        certificates: Certificates | None = None
        if over_tls := [address for address in wanted if address.tls]:
            certificates = Certificates(options.tls, over_tls)
            opened.callback(certificates.close)
        listeners = await open_listeners(wanted, backlog=options.backlog, options=options.socket)
        for listener in listeners:
            opened.callback(listener.close)
        if inherits:
            check_options(options, [(listener.requested, listener.address) for listener in listeners])

        async with open_poller() as poller, create_task_group() as tasks:
            connection_limit = ConnectionLimit(limit, wait=options.over_limit == "wait")
            server = Server(listeners, connection_limit, options, poller, tasks, certificates)
            opened.callback(server._set_exited)
            server.start()
            try:
                yield server
                server.close()
                server._close_all("drained")
            except BaseException as exc:
                kept.append(exc)
                raise
            finally:
                server._listening.stop()
                server._close_all("cancelled")
                tasks.cancel_scope.cancel()

    logger.info("closing server")


class Server:
    """A running server, as `open_server` yields it.

    `close`, `drain`, `abort` and `wait_closed` are for the thread of its event loop. In another thread each raises
    `RuntimeError` and changes nothing. Each may be called again, in any order, and after the block has been left.
    """

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
        self._admission = Admission(options, limit, self.stats, poller, tasks)
        self._connections = self._admission.connections
        self._reaper = Reaper(self._connections, options)
        self._listening = Listening(listeners, self._admission, options, self.stats, poller, certificates)
        self._thread = get_ident()
        #: Whether the block has been left, and nothing is left to be done in any thread.
        self._exited = False

    def start(self) -> None:
        for requested, listener in {listener.requested: listener for listener in self._listeners}.items():
            logger.info("starting up on %s", _describe(requested, listener.address))

        self._tasks.start_soon(self._listening.run)
        self._tasks.start_soon(self._reaper.run)
        if self.certificates is not None:
            self._tasks.start_soon(self._admission.handshakes.run)

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The port of all TCP and UDP addresses. Raises `UsageError` if there is none, or more than one."""
        ports = {each.port for each in self.addresses if isinstance(each, TCPAddress | UDPAddress)}
        if len(ports) != 1:
            found = "more than one port" if ports else "no port"
            listed = ", ".join(map(str, self.addresses))
            raise UsageError(f"the server has {found}: it listens on {listed} (see server.addresses)")

        return ports.pop()

    def close(self) -> None:
        """Stop accepting, before this returns: a peer that connects later is refused. Connections stay.

        A connection that waits in the kernel's backlog is accepted first, because its peer has been told that it is
        connected; one beyond `max_connections` is reset. A datagram that has come is answered.
        """
        self._check_thread("close")
        self._listening.accept_backlog()
        self._listening.stop()

    async def drain(self, grace: float | None = None) -> None:
        """Close; go on echoing for `grace` seconds (by default `graceful_timeout`); then half-close each connection
        that is left, wait `linger` seconds for its peer, and end it.

        Returns when no connection is left, at the latest after grace and linger. If it is cancelled, the server
        stays closed, and connections go on.
        """
        self._check_thread("drain")
        if self._exited:
            return

        self.close()
        await self._wait_empty(self.options.graceful_timeout if grace is None else grace)
        self._close_all("drained")
        await self._admission.wait_empty()

    def abort(self) -> None:
        """Stop accepting, reset the backlog, and end every connection now: nothing owed is sent. A `drain` that is
        under way returns.
        """
        self._check_thread("abort")
        self._listening.stop()
        for connection in list(self._connections):
            connection.abort()

    async def wait_closed(self) -> None:
        """Return when the server is closed and no connection is left. It closes nothing itself."""
        self._check_thread("wait_closed")
        if self._exited:
            return

        await self._listening.closed.wait()
        await self._admission.wait_empty()

    def _check_thread(self, verb: str) -> None:
        if get_ident() != self._thread and not self._exited:
            raise RuntimeError(
                f"server.{verb}() was called in another thread than its event loop's: "
                f"use anyio.from_thread.run{'_sync' if verb in ('close', 'abort') else ''}(server.{verb})"
            )

    async def _wait_empty(self, seconds: float) -> None:
        if seconds > 0:
            with suppress(TimeoutError):
                await run_within(seconds, self._admission.wait_empty)

    def _set_exited(self) -> None:
        self._exited = True

    def _close_all(self, reason: str) -> None:
        for connection in list(self._connections):
            connection.request_close(reason)

    def peers(self) -> list[Peer]:
        """Return all connected peers, at most `max_connections`."""
        return self._admission.peers()


def _describe(requested: Address, bound: Address) -> str:
    """``localhost port 10000``, as the original example said it; other addresses as they are written."""
    if isinstance(requested, TCPAddress) and isinstance(bound, TCPAddress):
        return f"{requested.host or '*'} port {bound.port}"
    if isinstance(requested, UDPAddress) and isinstance(bound, UDPAddress):
        return f"{requested.host or '*'} port {bound.port} (UDP)"

    return str(bound)

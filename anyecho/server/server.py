"""A server's lifetime: listen, serve, drain.

Knows when connections begin and end, and in which order what they stand on may go; what one does is the
engine's.
"""

from __future__ import annotations

__all__ = ("DEFAULT_ADDRESS", "Server", "open_server", "serve")

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from anyio import TASK_STATUS_IGNORED, CancelScope, Event, create_task_group, move_on_after
from anyio.abc import TaskGroup, TaskStatus

from anyecho.address import Address, TCPAddress, UDPAddress, parse_address
from anyecho.errors import StartError, bare_errors
from anyecho.net.accept import Acceptor
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.poller import Fallback, Poller, open_poller
from anyecho.server.connection import Connection, Engine
from anyecho.server.events import EventConnection, EventsEngine
from anyecho.server.limits import ConnectionLimit, Reaper, raise_descriptor_limit, within_descriptors
from anyecho.server.options import ServeOptions
from anyecho.server.stats import Stats
from anyecho.server.tasks import TaskConnection
from anyecho.server.udp import UDPEcho

if TYPE_CHECKING:
    import socket

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
    `BindError` when one cannot be listened on; then none is.
    """
    async with open_server(*addresses, options=options) as server:
        task_status.started(server.addresses)
        await server.wait_closed()


@asynccontextmanager
async def open_server(*addresses: str | Address, options: ServeOptions | None = None) -> AsyncIterator[Server]:
    """A server that runs inside the block, and closes its connections politely when the block is left.

    Raises as `serve` does, before the block.
    """
    options = options or ServeOptions()
    wanted = [parse_address(text) if isinstance(text, str) else text for text in addresses or (DEFAULT_ADDRESS,)]
    limit = within_descriptors(options.max_connections, raise_descriptor_limit())
    with ExitStack() as opened, bare_errors() as whole:
        listeners = await open_listeners(wanted, backlog=options.backlog, options=options.socket)
        for listener in listeners:
            opened.callback(listener.close)

        async with open_poller() as poller, create_task_group() as tasks:
            server = Server(listeners, ConnectionLimit(limit), options, poller, tasks)
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
    ) -> None:
        self.addresses: tuple[Address, ...] = tuple(listener.address for listener in listeners)
        self.options = options
        self.stats = Stats()
        self._listeners = listeners
        self._limit = limit
        self._poller = poller
        self._tasks = tasks
        self._engine = Engine(poller=poller, tasks=tasks, linger=options.linger, ended=self._end)
        self._events = (
            EventsEngine(poller=poller, tasks=tasks, linger=options.linger, ended=self._end)
            if isinstance(poller, Poller)
            else None
        )
        if options.engine == "events" and self._events is None:
            raise StartError("the events engine needs epoll, which this system does not have")
        self._connections: set[Connection] = set()
        self._reaper = Reaper(self._connections, options.idle_timeout)
        self._acceptors = [
            Acceptor(sock=listener.sock, gate=limit, hand_over=self._begin, errors=self.stats.accept_errors)
            for listener in listeners
            if not isinstance(listener.address, UDPAddress)
        ]
        datagrams = [listener.sock for listener in listeners if isinstance(listener.address, UDPAddress)]
        self._udp = UDPEcho(datagrams, options, self.stats.datagrams)
        self._refusing = False
        self._accepting = CancelScope()
        self._accepting_ended = Event()
        self._emptied = Event()
        self._closed = Event()

    def start(self) -> None:
        for asked, listener in {listener.asked: listener for listener in self._listeners}.items():
            logger.info("starting up on %s", _describe(asked, listener.address))

        self._tasks.start_soon(self._accept)
        self._tasks.start_soon(self._reaper.run)

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
            await self._wait_emptied()
        self._end_all("drained")
        await self._wait_emptied()
        self._closed.set()

    def abort(self) -> None:
        """Close every connection now, polite or not; a drain that is under way ends with it."""
        self._refusing = True
        self._tasks.start_soon(self.drain, 0)
        for connection in list(self._connections):
            connection.abort()

    def close(self) -> None:
        """End every connection, politely. Whoever is accepted before the acceptors have noticed is refused."""
        self._refusing = True
        self._end_all("cancelled")

    def _end_all(self, reason: str) -> None:
        for connection in list(self._connections):
            connection.end(reason)

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

    def _begin(self, sock: socket.socket, sockaddr: Any) -> None:
        if self._refusing:
            sock.close()
            return

        self.stats.accepted += 1
        self.stats.active += 1
        self._limit.take()
        connection = (
            TaskConnection(sock, self._engine)
            if self._events is None or self._needs_task()
            else EventConnection(sock, self._events)
        )
        self._connections.add(connection)
        connection.start(sockaddr)

    def _needs_task(self) -> bool:
        """Whether something has to wrap the stream: today, only the lines of a debug log."""
        if self.options.engine == "auto":
            return logger.isEnabledFor(logging.DEBUG)

        return self.options.engine == "tasks"

    def _end(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._limit.give_back()
        self.stats.active -= 1
        self.stats.closed[connection.reason] += 1
        received, sent = connection.totals
        self.stats.bytes_received += received
        self.stats.bytes_sent += sent
        if not self._connections:
            self._emptied.set()
            self._emptied = Event()

    async def _wait_emptied(self) -> None:
        if self._connections:
            await self._emptied.wait()


def _describe(asked: Address, bound: Address) -> str:
    """``localhost port 10000``, as the original example said it; other addresses as they are written."""
    if isinstance(asked, TCPAddress) and isinstance(bound, TCPAddress):
        return f"{asked.host or '*'} port {bound.port}"
    if isinstance(asked, UDPAddress) and isinstance(bound, UDPAddress):
        return f"{asked.host or '*'} port {bound.port} (UDP)"

    return str(bound)

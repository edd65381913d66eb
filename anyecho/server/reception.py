"""Admission of accepted sockets: makes a connection of each, or closes it with a reason.

Checks the limits, chooses the engine and keeps the set of connections. It has no time limits.
"""

from __future__ import annotations

__all__ = ("Reception",)

import logging
import math
from typing import TYPE_CHECKING, Any

from anyio import Event
from anyio.abc import TaskGroup

from anyecho.errors import StartError
from anyecho.net.accept import AcceptLimit
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxied import TrustedNetworks, remote_address
from anyecho.net.sockets import peer_name
from anyecho.net.tls_records import Records
from anyecho.server.connection import Connection, Engine
from anyecho.server.events import CappedEventConnection, EventConnection, EventsEngine
from anyecho.server.handshakes import Handshakes
from anyecho.server.introduction import Doorman, Entrance, Introduction
from anyecho.server.limits import AddressLimit, ConnectionLimit
from anyecho.server.options import ServeOptions
from anyecho.server.stats import Peer, Stats
from anyecho.server.tasks import TaskConnection
from anyecho.server.tls_events import CappedTLSEventConnection, TLSEventConnection

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")


class Reception:
    """Owns every accepted socket until it is closed and its close reason is counted."""

    def __init__(
        self,
        options: ServeOptions,
        limit: ConnectionLimit,
        stats: Stats,
        poller: Poller | Fallback,
        tasks: TaskGroup,
    ) -> None:
        self.handshakes = Handshakes(limit, options.handshake_timeout)
        shared: dict[str, Any] = {
            **{"poller": poller, "tasks": tasks, "ended": self._end, "handshakes": self.handshakes},
            **{name: getattr(options, name) for name in ("linger", "max_bytes", "rate_limit")},
        }
        self._options = options
        self._limit = limit
        self._per_address = AddressLimit(options.max_connections_per_ip)
        self._stats = stats
        self._trusted = TrustedNetworks.parse(options.proxy_trusted)
        self._engine = Engine(**shared)
        self._events = EventsEngine(**shared) if isinstance(poller, Poller) else None
        if options.engine == "events" and self._events is None:
            raise StartError("the events engine needs epoll, which this system does not have")
        self._doorman = Doorman(**shared, proxy_timeout=options.proxy_timeout, hand_over=self._hand_over)
        self._emptied = Event()
        #: All open connections, those without a complete PROXY header included.
        self.connections: set[Connection] = set()

    def accept_limit(self, entrance: Entrance) -> AcceptLimit:
        """Return the limit that gates accept on a listener."""
        return self.handshakes.accept_limit if entrance.certificates else self._limit

    def begin(self, entrance: Entrance, sock: socket.socket, sockaddr: Any) -> None:
        """Own `sock`, accepted from `sockaddr`: start a connection, or close it and count the reason."""
        self._stats.accepted += 1
        if self._limit.is_reached():
            self._turn_away(sock, "over_limit")
        elif entrance.versions is None:
            connection = self._connection(sock, entrance)
            if self._per_address.take(connection, sockaddr):
                self._hold(connection, sockaddr)
            else:
                self._turn_away(sock, "per_ip")
        elif sockaddr in self._trusted:
            self._hold(Introduction(sock, self._doorman, entrance), sockaddr)
        else:
            self._doorman.tell_refusal(peer_name(sock, sockaddr), "--proxy-trusted does not name it")
            self._turn_away(sock, "untrusted")

    def peers(self) -> list[Peer]:
        """Return the peers of all connections that echo."""
        return [peer for each in self.connections if (peer := _describe(each)) is not None]

    async def wait_emptied(self) -> None:
        if self.connections:
            await self._emptied.wait()

    def _hold(self, connection: Connection, sockaddr: Any) -> None:
        self._stats.active += 1
        self._limit.take()
        self.connections.add(connection)
        connection.start(sockaddr)

    def _hand_over(self, introduction: Introduction) -> bool:
        connection = self._connection(introduction.sock, introduction.entrance)
        connection.asserted = introduction.asserted
        # The address of the proxy counts only if the header asserts no source.
        source = introduction.asserted.address if introduction.asserted else introduction.sockaddr
        if not self._per_address.take(connection, source):
            introduction.reason = "per_ip"
            return False

        self.connections.discard(introduction)
        self.handshakes.finish(introduction)
        self.connections.add(connection)
        connection.start(introduction.sockaddr)
        return True

    def _turn_away(self, sock: socket.socket, reason: str) -> None:
        sock.close()
        self._stats.closed[reason] += 1

    def _connection(self, sock: socket.socket, entrance: Entrance) -> Connection:
        certificates = entrance.certificates
        records = Records(certificates.context, server_side=True) if certificates else None
        if self._events is None or self._needs_task():
            return TaskConnection(sock, self._engine, records)

        capped = bool(self._options.max_bytes)
        if records is None:
            return (CappedEventConnection if capped else EventConnection)(sock, self._events)

        return (CappedTLSEventConnection if capped else TLSEventConnection)(sock, self._events, records)

    def _needs_task(self) -> bool:
        """Whether a wrapped stream is needed, for a rate limit or a debug log."""
        if self._options.engine == "auto":
            return not math.isinf(self._options.rate_limit) or logger.isEnabledFor(logging.DEBUG)

        return self._options.engine == "tasks"

    def _end(self, connection: Connection) -> None:
        stats = self._stats
        self.connections.discard(connection)
        self._limit.give_back()
        self._per_address.give_back(connection)
        self.handshakes.finish(connection)
        stats.active -= 1
        stats.closed[connection.reason] += 1
        received, sent = connection.totals
        stats.bytes_received += received
        stats.bytes_sent += sent
        if not self.connections:
            self._emptied.set()
            self._emptied = Event()


def _describe(connection: Connection) -> Peer | None:
    """Return the peer of `connection`; None if it does not echo yet, or is no longer connected."""
    asserted = connection.asserted
    if not connection.echoes:
        return None
    try:
        address = asserted.address if asserted else remote_address(connection.sock)
    except OSError:
        return None

    received, sent = connection.totals
    via = asserted.via if asserted else ""
    return Peer(address=address, via=via, bytes_received=received, bytes_sent=sent)

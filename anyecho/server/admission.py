"""Admission of accepted sockets: makes a connection of each, or closes it with a reason.

Checks the connection limits, chooses the engine and keeps the set of connections. Time limits are elsewhere.
"""

from __future__ import annotations

__all__ = ("Admission",)

import logging
from typing import TYPE_CHECKING, Any

from anyio import Event
from anyio.abc import TaskGroup

from anyecho.errors import StartError
from anyecho.net.accept import AcceptLimit
from anyecho.net.names import peer_name, remote_address
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy.trust import TrustedNetworks
from anyecho.net.tls.records import Records
from anyecho.server.connection import Connection, Engine
from anyecho.server.events import CappedEventConnection, EventConnection, EventsEngine
from anyecho.server.handshakes import Handshakes
from anyecho.server.limits import ConnectionLimit, SourceLimit
from anyecho.server.options import ServeOptions
from anyecho.server.proxied import ListenerPolicy, ProxiedConnection, ProxyEngine
from anyecho.server.stats import Peer, Stats
from anyecho.server.tasks import TaskConnection
from anyecho.server.tls_events import CappedTLSEventConnection, TLSEventConnection
from anyecho.units import or_infinite

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")


class Admission:
    """Owns every accepted socket until it is closed and its close reason is counted."""

    def __init__(
        self,
        options: ServeOptions,
        limit: ConnectionLimit,
        stats: Stats,
        poller: Poller | Fallback,
        tasks: TaskGroup,
    ) -> None:
        self.handshakes = Handshakes(limit, or_infinite(options.handshake_timeout))
        shared: dict[str, Any] = {
            **{"poller": poller, "tasks": tasks, "on_closed": self._on_closed, "handshakes": self.handshakes},
            **{name: or_infinite(getattr(options, name)) for name in ("linger", "max_bytes", "rate_limit")},
        }
        self._options = options
        self._limit = limit
        self._per_source = SourceLimit(options.max_connections_per_ip)
        self._stats = stats
        self._trusted = TrustedNetworks.parse(options.proxy_trusted)
        self._engine = Engine(**shared)
        self._events = EventsEngine(**shared) if isinstance(poller, Poller) else None
        if options.engine == "events" and self._events is None:
            raise StartError("the events engine needs epoll, which this system does not have")
        proxy_timeout = or_infinite(options.proxy_timeout)
        self._proxy_engine = ProxyEngine(**shared, proxy_timeout=proxy_timeout, hand_over=self._hand_over)
        self._empty = Event()
        #: All open connections, those without a complete PROXY header included.
        self.connections: set[Connection] = set()

    def accept_limit(self, policy: ListenerPolicy) -> AcceptLimit:
        """Return the limit that gates accept on a listener."""
        return self.handshakes.accept_limit if policy.certificates else self._limit

    def admit(self, policy: ListenerPolicy, sock: socket.socket, sockaddr: Any) -> None:
        """Take over `sock`, accepted from `sockaddr`: start a connection, or close it and count the reason."""
        self._stats.accepted += 1
        if self._limit.is_reached():
            self._reject(sock, "over_limit")
        elif policy.versions is None:
            connection = self._connection(sock, policy)
            if self._per_source.acquire(connection, sockaddr):
                self._start(connection, sockaddr)
            else:
                self._reject(sock, "per_ip")
        elif sockaddr in self._trusted:
            self._start(ProxiedConnection(sock, self._proxy_engine, policy), sockaddr)
        else:
            self._proxy_engine.log_rejection(peer_name(sock, sockaddr), "its address is not in --proxy-trusted")
            self._reject(sock, "untrusted")

    def peers(self) -> list[Peer]:
        """Return the peers of all established connections."""
        return [peer for each in self.connections if (peer := _describe(each)) is not None]

    async def wait_empty(self) -> None:
        if self.connections:
            await self._empty.wait()

    def _start(self, connection: Connection, sockaddr: Any) -> None:
        self._stats.active += 1
        self._limit.acquire()
        self.connections.add(connection)
        connection.start(sockaddr)

    def _hand_over(self, proxied: ProxiedConnection) -> bool:
        connection = self._connection(proxied.sock, proxied.policy)
        connection.asserted = proxied.asserted
        # The address of the proxy counts only if the header asserts no source.
        source = proxied.asserted.address if proxied.asserted else proxied.sockaddr
        if not self._per_source.acquire(connection, source):
            proxied.reason = "per_ip"
            return False

        self.connections.discard(proxied)
        self.handshakes.finish(proxied)
        self.connections.add(connection)
        connection.start(proxied.sockaddr)
        return True

    def _reject(self, sock: socket.socket, reason: str) -> None:
        sock.close()
        self._stats.closed[reason] += 1

    def _connection(self, sock: socket.socket, policy: ListenerPolicy) -> Connection:
        certificates = policy.certificates
        records = Records(certificates.context, server_side=True) if certificates else None
        if self._events is None or self._needs_task():
            return TaskConnection(sock, self._engine, records)

        capped = self._options.max_bytes is not None
        if records is None:
            return (CappedEventConnection if capped else EventConnection)(sock, self._events)

        return (CappedTLSEventConnection if capped else TLSEventConnection)(sock, self._events, records)

    def _needs_task(self) -> bool:
        """Whether a wrapped stream is needed, for a rate limit or a debug log."""
        if self._options.engine == "auto":
            return self._options.rate_limit is not None or logger.isEnabledFor(logging.DEBUG)

        return self._options.engine == "tasks"

    def _on_closed(self, connection: Connection) -> None:
        stats = self._stats
        self.connections.discard(connection)
        self._limit.release()
        self._per_source.release(connection)
        self.handshakes.finish(connection)
        stats.active -= 1
        stats.closed[connection.reason] += 1
        received, sent = connection.totals
        stats.bytes_received += received
        stats.bytes_sent += sent
        if not self.connections:
            self._empty.set()
            self._empty = Event()


def _describe(connection: Connection) -> Peer | None:
    """Return the peer of `connection`; None if it is not established yet, or no longer connected."""
    asserted = connection.asserted
    if not connection.established:
        return None
    try:
        address = asserted.address if asserted else remote_address(connection.sock)
    except OSError:
        return None

    received, sent = connection.totals
    via = asserted.via if asserted else ""
    return Peer(address=address, via=via, bytes_received=received, bytes_sent=sent)

"""Admission of accepted sockets: makes a connection of each, or closes it with a reason.

Checks the connection limits, chooses the engine and keeps the set of connections. When a connection advances to
another phase, it moves the connection's slots and time limit.
"""

from __future__ import annotations

__all__ = ("Admission", "ListenerPolicy")

import logging
from functools import partial
from typing import Any, NamedTuple

from anyio import Event
from anyio.abc import TaskGroup

from anyecho.echo import echo
from anyecho.errors import StartError
from anyecho.faults.plan import FaultPlan
from anyecho.handlers import Handler
from anyecho.net.names import peer_name
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy.header import Versions
from anyecho.net.proxy.trust import TrustedNetworks
from anyecho.net.sockets import Socket
from anyecho.net.tls.contexts import Certificates
from anyecho.net.tls.records import Records
from anyecho.server.connection import Connection, Engine
from anyecho.server.events import CappedEventConnection, EventConnection, EventsEngine
from anyecho.server.handled import HandlerConnection
from anyecho.server.limits import ConnectionLimit, SourceLimit, connection_limit
from anyecho.server.options import ServeOptions, require_tasks
from anyecho.server.peer_log import log_rejected
from anyecho.server.phases import CLOSED, HANDSHAKE, HEADER, OPEN, Phase
from anyecho.server.reaper import PhaseTimeout
from anyecho.server.reasons import CloseReason
from anyecho.server.recorder import Recorder
from anyecho.server.stats import Stats
from anyecho.server.tasks import TaskConnection
from anyecho.server.timings import Timings
from anyecho.server.tls_events import CappedTLSEventConnection, TLSEventConnection
from anyecho.units import or_infinite

logger = logging.getLogger("anyecho.server")

#: At most a quarter of the connection limit may be handshakes, because their peers are unverified. Further
#: connections wait in the accept backlog of the TLS listeners.
_HANDSHAKE_DIVISOR = 4


class ListenerPolicy(NamedTuple):
    """What a listener requires of its connections."""

    #: Accepted versions of the PROXY header; None: no header.
    versions: Versions | None
    #: The certificates to present over TLS; None: no TLS.
    certificates: Certificates | None
    #: The faults of its connections.
    faults: FaultPlan
    #: Its address, for the access log.
    listener: str
    #: Serves its connections; None: the handler of the server.
    handler: Handler | None = None


class Admission:
    """Owns every accepted socket until it is closed and its close reason is counted."""

    def __init__(
        self, options: ServeOptions, poller: Poller | Fallback, tasks: TaskGroup, handler: Handler
    ) -> None:
        self.options = options
        self.stats = Stats()
        self._handler = handler
        #: Whether the faults of a connection may change while it is open. It then has a task.
        self._faults_change = False
        #: All connections. The accept limit of the listeners without TLS.
        self.limit = connection_limit(options)
        #: Held from accept to the end of the handshake. The accept limit of the TLS listeners.
        self.handshakes = ConnectionLimit(max(1, self.limit.limit // _HANDSHAKE_DIVISOR), parent=self.limit)
        #: The time limits of the phases before OPEN.
        self.timeouts = {
            HEADER: PhaseTimeout(or_infinite(options.proxy_timeout), CloseReason.PROXY_TIMEOUT),
            HANDSHAKE: PhaseTimeout(or_infinite(options.handshake_timeout), CloseReason.HANDSHAKE),
        }
        self._per_source = SourceLimit(options.max_connections_per_ip)
        self._trusted = TrustedNetworks.parse(options.proxy_trusted)
        engine_type: type[Engine] = EventsEngine if isinstance(poller, Poller) else Engine
        self._engine = engine_type(
            poller=poller,
            tasks=tasks,
            linger=or_infinite(options.linger),
            max_bytes=options.max_bytes or 0,
            rate_limit=options.rate_limit,
            acquire_source=self._per_source.acquire,
            advance=self._advance,
            tls_failures=self.stats.tls_failures,
        )
        if options.engine == "events" and not isinstance(poller, Poller):
            raise StartError("the events engine needs epoll, which this system does not have")
        self._empty = Event()
        #: Measures the durations of connections; None: nothing is measured.
        self.timings: Timings | None = None
        #: All open connections, those without a complete PROXY header included.
        self.connections: set[Connection] = set()

    def admit(self, policy: ListenerPolicy, sock: Socket, sockaddr: Any) -> None:
        """Take over `sock`, accepted from `sockaddr`: start a connection, or close it and count the reason."""
        self.stats.accepted += 1
        if self.limit.is_reached():
            self._reject(policy, sock, sockaddr, CloseReason.OVER_LIMIT)
            return
        if policy.versions is not None and sockaddr not in self._trusted:
            self._engine.log_rejection(peer_name(sock, sockaddr), "its address is not in --proxy-trusted")
            self._reject(policy, sock, sockaddr, CloseReason.UNTRUSTED)
            return

        connection = self._connection(sock, policy)
        if policy.versions is None and not self._per_source.acquire(connection, sockaddr):
            self._reject(policy, sock, sockaddr, CloseReason.PER_IP)
            return

        connection.listener = policy.listener
        connection.plan = policy.faults
        self.stats.active += 1
        self.limit.acquire()
        self.connections.add(connection)
        if self._engine.recorder is not None:
            self._engine.recorder.begin(connection, sockaddr)
        if self.timings is not None:
            self.timings.begin(connection)
        if policy.certificates:
            self.handshakes.acquire()
        if policy.versions is None:
            connection.start(sockaddr)
        else:
            self.timeouts[HEADER].enter(connection)
            connection.start_proxied(sockaddr, policy.versions)

    def change_faults(self) -> None:
        """Let the faults of the listeners act, which have changed. Connections accepted from now on follow them."""
        self._faults_change = self.options.engine != "events"
        for connection in [*self.connections]:
            if isinstance(connection, HandlerConnection):
                connection.redraw_faults()

    def close_connections(self, plan: FaultPlan, reason: CloseReason) -> None:
        """Close the connections with this fault plan, without a lingering close."""
        for connection in [each for each in self.connections if each.plan is plan]:
            connection.request_close(reason)
            connection.abort()

    def record(self) -> Recorder:
        """Keep a record of each connection from now on. Connections then need a task."""
        require_tasks(self.options, "a record needs")
        self._engine.recorder = self._engine.recorder or Recorder()
        return self._engine.recorder

    async def wait_empty(self) -> None:
        if self.connections:
            await self._empty.wait()

    def _reject(self, policy: ListenerPolicy, sock: Socket, sockaddr: Any, reason: CloseReason) -> None:
        log_rejected(sock, sockaddr, policy.listener, reason)
        sock.close()
        self.stats.closed[str(reason)] += 1

    def _connection(self, sock: Socket, policy: ListenerPolicy) -> Connection:
        plan = policy.faults
        number = plan.next_number()
        drawn = plan.draw(number) if plan.faults else ()
        redraw = partial(plan.draw, number) if self._faults_change else None
        records = None
        if policy.certificates:
            context = policy.certificates.context
            for _, fault, _ in drawn:
                if fault.flaw is not None:
                    context = policy.certificates.flawed(fault.flaw)
            records = Records(context, server_side=True)
        engine, handler = self._engine, policy.handler or self._handler
        if drawn or redraw is not None or handler is not echo:
            return HandlerConnection(sock, engine, records, handler, drawn, redraw)
        if not isinstance(engine, EventsEngine) or self._needs_task():
            return TaskConnection(sock, engine, records)

        capped = self.options.max_bytes is not None
        if records is None:
            return (CappedEventConnection if capped else EventConnection)(sock, engine)

        return (CappedTLSEventConnection if capped else TLSEventConnection)(sock, engine, records)

    def _needs_task(self) -> bool:
        """Whether a wrapped stream is needed, for a rate limit, a record or a debug log."""
        if self.options.engine == "auto":
            wrapped = self.options.rate_limit is not None or self._engine.recorder is not None
            return wrapped or logger.isEnabledFor(logging.DEBUG)

        return self.options.engine == "tasks"

    def _advance(self, connection: Connection, phase: Phase) -> None:
        """Move `connection` on to `phase`, with its slots and time limit. No effect unless it is a later one."""
        before = connection.phase
        if phase <= before:
            return

        connection.phase = phase
        if self.timings is not None:
            self.timings.advance(connection, phase)
        if before is HANDSHAKE and phase is OPEN:
            connection.log_open()
        if before < OPEN:
            self.timeouts[before].checks.pop(connection, None)
            if phase is HANDSHAKE:
                self.timeouts[HANDSHAKE].enter(connection)
            elif connection.records is not None:
                self.handshakes.release()
        if phase is CLOSED:
            self._count_closed(connection)

    def _count_closed(self, connection: Connection) -> None:
        stats = self.stats
        self.connections.discard(connection)
        self.limit.release()
        self._per_source.release(connection)
        stats.active -= 1
        stats.closed[str(connection.reason)] += 1
        received, sent = connection.totals
        stats.bytes_received += received
        stats.bytes_sent += sent
        if self._engine.recorder is not None:
            self._engine.recorder.end(connection, str(connection.reason))
        if not self.connections:
            self._empty.set()
            self._empty = Event()

"""A connection from a trusted proxy until its PROXY header is complete.

A task reads the header within a time limit and hands the socket over to an echoing connection. The header is read
exactly: no byte after it is consumed.
"""

from __future__ import annotations

__all__ = ("ListenerPolicy", "ProxiedConnection", "ProxyEngine")

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio import EndOfStream, TaskHandle, move_on_after

from anyecho.net.proxy.header import ProxyProtocolError, Versions
from anyecho.net.proxy.reader import HeaderReader
from anyecho.net.tls.contexts import Certificates
from anyecho.server.connection import EXPECTED_ERRORS, Connection, Engine, ProxiedSource
from anyecho.throttle import ThrottledLog

if TYPE_CHECKING:
    import socket

    from anyecho.net.readiness import Registration

logger = logging.getLogger("anyecho.server")


class ListenerPolicy(NamedTuple):
    """What a listener requires of its connections."""

    #: Accepted versions of the PROXY header; None: no header.
    versions: Versions | None = None
    #: The certificates to present over TLS; None: no TLS.
    certificates: Certificates | None = None


@dataclass(eq=False, kw_only=True)
class ProxyEngine(Engine):
    """State shared by connections that wait for their PROXY header."""

    #: Maximum seconds until a header is complete.
    proxy_timeout: float
    #: Takes over the socket after a complete header and returns true; or sets the close reason and returns false.
    hand_over: Callable[[ProxiedConnection], bool]
    _rejections: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))

    def log_rejection(self, peer: str, why: object) -> None:
        """Warn in a throttled log that `peer` was rejected."""
        self._rejections.warn("rejected %s: %s", peer, why)


class ProxiedConnection(Connection):
    """A connection from a trusted proxy until its PROXY header is complete."""

    __slots__ = ("_task", "engine", "policy", "sockaddr")

    engine: ProxyEngine

    def __init__(self, sock: socket.socket, engine: ProxyEngine, policy: ListenerPolicy) -> None:
        super().__init__(sock)
        self.engine = engine
        self.policy = policy
        self._task: TaskHandle[None] | None = None
        #: The address of the proxy, from accept(2).
        self.sockaddr: Any = None

    def start(self, sockaddr: Any) -> None:
        self.sockaddr = sockaddr
        self.record_start(sockaddr)
        if self.policy.certificates is not None:
            self.engine.handshakes.reserve(self)
        self._task = self.engine.tasks.start_soon(self._run)

    def _begin_close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @property
    def totals(self) -> tuple[int, int]:
        return 0, 0

    @property
    def established(self) -> bool:
        return False

    async def _run(self) -> None:
        registration: Registration | None = None
        handed_over = False
        try:
            registration = self.engine.poller.register(self.sock)
            await self._read_header(registration)
            # A close may have been requested while the last bytes of the header arrived.
            handed_over = not self.reason and self.engine.hand_over(self)
        except* (ProxyProtocolError, EndOfStream) as group:
            self.reason = self.reason or "proxy"
            self.engine.log_rejection(self.name, str(group.exceptions[0]) or "EOF inside the PROXY header")
        except* EXPECTED_ERRORS:
            self.reason = self.reason or "broken"
        except* Exception:
            self.reason = "error"
            logger.exception("connection failed", extra={"peer": self.name})
        finally:
            # The handle keeps the exception that ended this task, and its frames, as in `TaskConnection`.
            self._task = None
            if (error := sys.exception()) is not None:
                error.__traceback__ = error.__context__ = None
            # After a hand-over, the new connection modifies this registration.
            if not handed_over:
                await self._close(registration)

    async def _read_header(self, registration: Registration) -> None:
        """Read the header and set `asserted`, or the close reason if the time limit is reached."""
        reader = HeaderReader(self.sock, registration, self.policy.versions or "require")
        header = None
        with move_on_after(self.engine.proxy_timeout):
            header = await reader.read()
        if header is None and not self.reason:
            # It may have arrived while the process was stopped or its loop was blocked.
            header = reader.read_now()
        if header is None:
            self.reason = self.reason or "proxy_timeout"
        elif header.source is not None:
            self.asserted = ProxiedSource(header.source, via=self.name)

    async def _close(self, registration: Registration | None) -> None:
        """Close without lingering: there is no echo that a reset could destroy."""
        self.reason = self.reason or "cancelled"
        if registration is not None:
            await registration.aclose()
        self.sock.close()
        self.log_end()
        self.engine.on_closed(self)

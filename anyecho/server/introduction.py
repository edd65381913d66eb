"""What comes before anything else on a connection from a proxy: it has to say for whom it is.

That takes a task, within a time limit; then the socket is handed over, as good as new, to whatever comes next, and
the task ends.
"""

from __future__ import annotations

__all__ = ("Doorman", "Entrance", "Introduction")

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio import EndOfStream, TaskHandle, move_on_after

from anyecho.net.proxied import HeaderReader
from anyecho.net.proxy_protocol import ProxyProtocolError, Versions
from anyecho.net.tls_contexts import Certificates
from anyecho.server.connection import EXPECTED, Connection, Engine, ProxiedSource
from anyecho.throttled_log import ThrottledLog

if TYPE_CHECKING:
    import socket

    from anyecho.net.fallback import Registration

logger = logging.getLogger("anyecho.server")


class Entrance(NamedTuple):
    """What a listener wants of whoever comes."""

    #: It has to begin with a PROXY header of one of these.
    versions: Versions | None = None
    #: It has to speak TLS, and is shown these.
    certificates: Certificates | None = None


@dataclass(eq=False, kw_only=True)
class Doorman(Engine):
    """What connections share that do not echo yet."""

    #: Seconds that a header may take.
    proxy_timeout: float
    #: Takes the socket over and returns true; or gives the introduction the reason why not.
    hand_over: Callable[[Introduction], bool]
    _refusals: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))

    def tell_refusal(self, peer: str, why: object) -> None:
        """Log that `peer` was turned away; of many, one in a while."""
        self._refusals.warn("turned away %s: %s", peer, why)


class Introduction(Connection):
    """A connection of a proxy that is trusted, until it has said whom it speaks for."""

    __slots__ = ("_task", "engine", "entrance", "sockaddr")

    engine: Doorman

    def __init__(self, sock: socket.socket, engine: Doorman, entrance: Entrance) -> None:
        super().__init__(sock)
        self.engine = engine
        self.entrance = entrance
        self._task: TaskHandle[None] | None = None
        #: Who called, as accept(2) has it.
        self.sockaddr: Any = None

    def start(self, sockaddr: Any) -> None:
        self.sockaddr = sockaddr
        self.note_start(sockaddr)
        if self.entrance.certificates is not None:
            self.engine.handshakes.reserve(self)
        self._task = self.engine.tasks.start_soon(self._run)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @property
    def totals(self) -> tuple[int, int]:
        return 0, 0

    @property
    def echoes(self) -> bool:
        return False

    async def _run(self) -> None:
        registration: Registration | None = None
        handed_over = False
        try:
            registration = self.engine.poller.register(self.sock)
            await self._read_header(registration)
            # Not one that was ended in the very moment in which its header was complete.
            handed_over = not self.reason and self.engine.hand_over(self)
        except* (ProxyProtocolError, EndOfStream) as group:
            self.reason = self.reason or "proxy"
            self.engine.tell_refusal(self.name, str(group.exceptions[0]) or "it was done before its header was")
        except* EXPECTED:
            self.reason = self.reason or "broken"
        except* Exception:
            self.reason = "error"
            logger.exception("connection failed", extra={"peer": self.name})
        finally:
            # The handle keeps the exception that ended us, and that its frames: as a `TaskConnection`'s does.
            self._task = None
            if (ended_by := sys.exception()) is not None:
                ended_by.__traceback__ = ended_by.__context__ = None
            # Whoever takes the socket over modifies the registration rather than making it anew.
            if not handed_over:
                await self._close(registration)

    async def _read_header(self, registration: Registration) -> None:
        """Learn for whom it is; the socket is then as good as new. Sets the reason if it took too long."""
        reader = HeaderReader(self.sock, registration, self.entrance.versions or "require")
        header = None
        with move_on_after(self.engine.proxy_timeout):
            header = await reader.read()
        if header is None and not self.reason:
            # It may have come while the process was stopped, or its loop stuck.
            header = reader.read_now()
        if header is None:
            self.reason = self.reason or "proxy_timeout"
        elif header.source is not None:
            self.asserted = ProxiedSource(header.source, via=self.name)

    async def _close(self, registration: Registration | None) -> None:
        """At once: nothing was echoed that a reset could destroy."""
        self.reason = self.reason or "cancelled"
        if registration is not None:
            await registration.aclose()
        self.sock.close()
        self.tell_end()
        self.engine.ended(self)

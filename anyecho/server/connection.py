"""An accepted connection of a server: its name, log lines, close reason and close. An engine echoes on it."""

from __future__ import annotations

__all__ = ("EXPECTED_ERRORS", "Connection", "Engine", "ProxiedSource")

import errno
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, current_time
from anyio.abc import TaskGroup

from anyecho.clock import INTERVALS, call_until
from anyecho.net.linger import linger, peek
from anyecho.net.names import SockAddr, name_of, peer_name
from anyecho.net.poller import Fallback, Poller
from anyecho.net.stream import PolledStream
from anyecho.net.tls.errors import TLSError, TLSTruncated, explain
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.handshakes import Handshakes

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")
access_logger = logging.getLogger("anyecho.access")

#: Errors caused by peers and networks. `ClosedResourceError`: the poller stopped during a connection.
EXPECTED_ERRORS = (BrokenResourceError, ClosedResourceError, EndOfStream, OSError)
#: Reasons of a close by the peer or the network: no lingering close is needed.
_CLOSED_BY_PEER = frozenset({"eof", "broken", "tls_truncated"})
#: Reasons of a close by the server that no byte from the peer caused. An EOF that arrived earlier takes precedence.
_CLOSED_BY_SERVER = frozenset({"drained", "cancelled", "idle", "duration", "rate", "write"})


@dataclass(eq=False, kw_only=True)
class Engine:
    """State shared by all connections of a server."""

    poller: Poller | Fallback
    tasks: TaskGroup
    #: Maximum seconds of a lingering close.
    linger: float
    #: Maximum bytes of a connection (0: no limit), and maximum bytes per second.
    max_bytes: int
    rate_limit: float
    handshakes: Handshakes
    #: Called once for each connection, after its close.
    on_closed: Callable[[Connection], None]


@dataclass(frozen=True)
class ProxiedSource:
    """Client address asserted by a trusted proxy, and the name of the proxy in logs."""

    address: SockAddr
    via: str


class Connection(ABC):
    """Owns and closes `sock`. Has slots, because a server holds thousands of connections."""

    __slots__ = (
        *("_started_at", "_close_scope", "_linger_until", "_name", "asserted", "reason", "sock"),
        *("checks", "idle_checks", "last_total", "window_start"),
    )

    #: Each engine overrides it with a subclass.
    engine: Engine

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        #: The close reason, a key of `Stats.closed`; empty while the connection is open.
        self.reason = ""
        #: None: the peer's address is that of the socket.
        self.asserted: ProxiedSource | None = None
        #: For the reaper: number of checks, total bytes at the last one, successive checks without a new byte, and
        #: bytes sent at the start of the rate window.
        self.checks = 0
        self.last_total = -1
        self.idle_checks = 0
        self.window_start = 0
        self._name = ""
        self._started_at = 0.0
        self._close_scope: CancelScope | None = None
        self._linger_until = math.inf

    @property
    @abstractmethod
    def totals(self) -> tuple[int, int]:
        """Bytes received and sent so far."""

    @property
    def established(self) -> bool:
        """Whether PROXY header and TLS handshake are complete."""
        return True

    @property
    def records(self) -> Records | None:
        """The TLS session, if there is one."""
        return None

    @abstractmethod
    def start(self, sockaddr: Any) -> None:
        """Echo until EOF from the peer at `sockaddr`, or until `request_close` is called. Never raises."""

    def request_close(self, reason: str) -> None:
        """Stop echoing and close, with a lingering close of at most `linger` seconds from now.

        No effect if the connection has a close reason already.
        """
        if not self.reason:
            self.reason = reason
            self._linger_until = current_time() + self.engine.linger
            self._begin_close()

    @abstractmethod
    def _begin_close(self) -> None:
        """Stop echoing and arrange the call of `close`. Called once."""

    def close_reason(self, error: BaseException) -> str:
        """Return the close reason for `error`. The kernel may detect a write timeout before the reaper does."""
        if not self.established:
            *_, cause = _causes(error)
            if isinstance(cause, TLSError) and not isinstance(cause, TLSTruncated):
                self.engine.handshakes.failure_log.warn("handshake with %s failed: %s", self.name, explain(cause))
            return "handshake"

        received, sent = self.totals
        for cause in _causes(error):
            if isinstance(cause, TLSTruncated):
                return "tls_truncated"
            if isinstance(cause, TLSError):
                return "tls_error"
            # TCP_USER_TIMEOUT is over.
            if received > sent and getattr(cause, "errno", None) == errno.ETIMEDOUT:
                return "write"

        return "broken"

    def abort(self) -> None:
        """Close without a lingering close; pending echo is discarded."""
        self.request_close("cancelled")
        self._linger_until = -math.inf
        if self._close_scope is not None:
            self._close_scope.cancel()

    @property
    def name(self) -> str:
        """The name of the peer in logs. Computed on first use: most connections are never logged."""
        if not self._name:
            try:
                self._set_name(None if self.asserted else self.sock.getpeername())
            except OSError:
                self._name = "unknown"

        return self._name

    def _set_name(self, sockaddr: Any) -> None:
        if not self._name:
            self._name = name_of(self.asserted.address) if self.asserted else peer_name(self.sock, sockaddr)

    def log_start(self, sockaddr: Any) -> None:
        if logger.isEnabledFor(logging.INFO):
            self._set_name(sockaddr)
            logger.info("connection accepted", extra={"peer": self._name})
        if access_logger.isEnabledFor(logging.INFO):
            self.record_start(sockaddr)

    def record_start(self, sockaddr: Any) -> None:
        self._set_name(sockaddr)
        self._started_at = monotonic()

    def log_end(self) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("closing", extra={"peer": self.name})
        if access_logger.isEnabledFor(logging.INFO):
            received, sent = self.totals
            fields: dict[str, Any] = {
                "peer": self.name,
                "reason": self.reason,
                "bytes_received": received,
                "bytes_sent": sent,
                "seconds": round(monotonic() - self._started_at, 6),
            }
            if self.asserted:
                fields["via"] = self.asserted.via
            access_logger.info("closed", extra=fields)

    async def close(self, stream: PolledStream) -> None:
        """Send the stream's `rest` and close, within `linger` seconds. Shielded from cancellation.

        A close by the server counts as `eof` if EOF from the peer has arrived and no echo is pending at the end.
        """
        self.engine.handshakes.finish(self)
        if isinstance(stream, TLSStream) and stream.records.failed:
            # Only the alert is left to send.
            stream = stream.without_tls()
        eof, quiet = self.peek_eof()
        min_seconds = self.engine.linger / INTERVALS
        deadline = self._deadline(min_seconds)

        # Resumes if it is cancelled and called again.
        async def send_rest() -> None:
            with suppress(*EXPECTED_ERRORS):
                if stream.rest or eof:
                    await stream.send(stream.rest)
                if not eof:
                    await linger(stream, self.sock, self.records, quiet=quiet)

        with CancelScope(shield=True) as self._close_scope:
            try:
                if self.reason not in _CLOSED_BY_PEER and deadline > current_time():
                    await call_until(deadline, min_seconds, send_rest)
            finally:
                received, sent = self.totals
                # Pending on a plain stream is only `rest`; over TLS, encrypted bytes may be pending too.
                if eof and not stream.rest and (self.records is None or received == sent):
                    self.reason = "eof"
                # TLS sends close_notify here, if there is time.
                self._close_scope.deadline = deadline
                await stream.aclose()

    def _deadline(self, min_seconds: float) -> float:
        """Return the deadline of a close that begins now: at least `min_seconds` away, except after `abort`."""
        if self._linger_until == -math.inf:
            return -math.inf

        now = current_time()
        return max(min(self._linger_until, now + self.engine.linger), now + min_seconds)

    def echo_complete(self) -> bool:
        """Whether EOF from the peer has arrived and no echo is pending."""
        received, sent = self.totals
        return received == sent and self.peek_eof()[0]

    def peek_eof(self) -> tuple[bool, bool]:
        """Return two facts about unread input: EOF from the peer has arrived; nothing has arrived.

        Both are false if the peer or its bytes caused the close, or before the connection is established.
        """
        if self.reason not in _CLOSED_BY_SERVER or not self.established:
            return False, False

        data = peek(self.sock, self.records)
        return data == b"", data is None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, the errors in its group, and the causes of each (``__cause__``)."""
    yield error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else filter(None, [error.__cause__])
    for each in inner:
        yield from _causes(each)

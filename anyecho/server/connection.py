"""An accepted connection of a server: its phases and its close. An engine echoes on it."""

from __future__ import annotations

__all__ = ("Connection", "Engine")

import logging
import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from anyio import CancelScope, Lock, TaskHandle, current_time
from anyio.abc import TaskGroup

from anyecho.clock import INTERVALS, call_until
from anyecho.faults.plan import FaultPlan
from anyecho.net.linger import linger, peek
from anyecho.net.names import remote_address
from anyecho.net.poller import Fallback, Poller
from anyecho.net.proxy.header import Versions
from anyecho.net.proxy.reader import HeaderReader
from anyecho.net.sockets import Socket
from anyecho.net.stream import PolledStream
from anyecho.net.tls.errors import TLSError, TLSTruncated, error_name, explain
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.peer_log import LoggedPeer
from anyecho.server.phases import CLOSED, CLOSING, HANDSHAKE, HEADER, OPEN, Phase
from anyecho.server.reasons import CLOSED_BY_SERVER, NETWORK_ERRORS, CloseReason, reason_for
from anyecho.server.recorder import Recorder
from anyecho.server.stats import Peer
from anyecho.throttle import ThrottledLog

logger = logging.getLogger("anyecho.server")


@dataclass(eq=False, kw_only=True)
class Engine:
    """State shared by all connections of a server."""

    poller: Poller | Fallback
    tasks: TaskGroup
    #: Maximum seconds of a lingering close.
    linger: float
    #: Maximum bytes of a connection (0: no limit), and maximum bytes per second (None: no limit).
    max_bytes: int
    rate_limit: float | None
    #: Counts a connection for its source, a socket address; returns false if the source has too many.
    acquire_source: Callable[[Connection, Any], bool]
    #: Moves a connection on to a later phase, with its slots and time limit.
    advance: Callable[[Connection, Phase], None]
    #: Counts TLS errors by name.
    tls_failures: Counter[str]
    #: Keeps a record of each connection; None: there are no records.
    recorder: Recorder | None = None
    #: Held by a task during one step of its handshake and one pass of the event loop. Without it, a hundred
    #: simultaneous handshakes would block all other tasks for their total time.
    handshake_lock: Lock = field(init=False, default_factory=lambda: Lock(fast_acquire=True))
    #: Throttled: most scanners on the Internet do not speak TLS.
    failed_handshakes: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))
    _rejections: ThrottledLog = field(init=False, default_factory=lambda: ThrottledLog(logger))

    def log_rejection(self, peer: str, why: str) -> None:
        """Warn in a throttled log that `peer` was rejected."""
        self._rejections.warn("rejected %s: %s", peer, why)


class Connection(LoggedPeer):
    """Owns and closes `sock`. Has slots, because a server holds thousands of connections."""

    __slots__ = (
        *("_scope", "engine", "phase", "plan", "reason", "records"),
        *("checks", "idle_checks", "last_total", "window_start"),
    )

    #: The faults of its listener, from which its own are drawn. `Admission` sets it, and the `listener`.
    plan: FaultPlan

    def __init__(self, sock: Socket, engine: Engine, records: Records | None = None) -> None:
        """Over TLS if `records` are given; they must be new."""
        self.sock = sock
        self.engine = engine
        self.records = records
        #: Only `engine.advance` changes it.
        self.phase: Phase = HEADER
        self.asserted = None
        self.via = ""
        self._name = ""
        self._started_at = 0.0
        #: For the reaper: number of checks, total bytes at the last one, successive checks without a new byte, and
        #: bytes sent at the start of the rate window.
        self.checks = 0
        self.last_total = -1
        self.idle_checks = 0
        self.window_start = 0
        #: The task that reads the header or echoes, if there is one; in the phase CLOSING, the lingering close.
        self._scope: TaskHandle[None] | CancelScope | None = None

    @property
    def established(self) -> bool:
        """Whether the connection is or was open: the handshake, if there is one, is complete."""
        return self.phase >= OPEN and (self.records is None or self.records.established)

    def peer(self) -> Peer | None:
        """Return the peer; None if the connection was never open, or is no longer connected."""
        if not self.established:
            return None
        try:
            address = remote_address(self.sock) if self.asserted is None else self.asserted
        except OSError:
            return None

        received, sent = self.totals
        return Peer(address=address, via=self.via, bytes_received=received, bytes_sent=sent)

    def start_proxied(self, sockaddr: Any, versions: Versions) -> None:
        """Read a PROXY header from the proxy at `sockaddr`, then `start`. Never raises."""
        self.record_start(sockaddr)
        self._scope = self.engine.tasks.start_soon(self._run_header, sockaddr, versions)

    async def _run_header(self, sockaddr: Any, versions: Versions) -> None:
        reason: CloseReason | None = CloseReason.CANCELLED
        try:
            async with aclosing(self.engine.poller.register(self.sock)) as registration:
                source = (await HeaderReader(self.sock, registration, versions).read()).source
            if source is not None:
                self.via, self.asserted, self._name = self.name, source, ""
            # The address of the proxy counts only if the header asserts no source.
            acquired = self.engine.acquire_source(self, sockaddr if source is None else source)
            reason = None if acquired else CloseReason.PER_IP
        except* Exception as group:
            reason = self.close_reason(group)
        finally:
            # A close may have been requested while the last bytes of the header arrived.
            if reason is not None or self.phase is not HEADER:
                await self._end_task(reason or self.reason)
            else:
                self._scope = None
                self.start(sockaddr)

    def start(self, sockaddr: Any) -> None:
        """Perform the handshake, if any, and echo until EOF from the peer at `sockaddr`. Never raises."""
        self.engine.advance(self, OPEN if self.records is None else HANDSHAKE)
        self.log_start(sockaddr)
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Begin to read."""

    def _as_stream(self, budget: int = 1) -> PolledStream:
        """Return the connection as a stream, over TLS if it has records."""
        registration = self.engine.poller.register(self.sock)
        if self.records is None:
            return PolledStream(self.sock, registration, budget=budget)

        return TLSStream(self.sock, registration, self.records, budget=budget)

    def request_close(self, reason: CloseReason) -> None:
        """Stop echoing and close, with a lingering close of at most `linger` seconds from now.

        In the phase HEADER, nothing was echoed, and there is no lingering close. No effect if the connection is
        closing already.
        """
        if self.phase < CLOSING:
            self.reason = reason
            self.engine.advance(self, CLOSING)
            self._begin_close()

    def abort(self) -> None:
        """Close without a lingering close; pending echo is discarded."""
        self.request_close(CloseReason.CANCELLED)
        if self._scope is not None:
            self._scope.cancel()

    def _begin_close(self) -> None:
        """Cancel the task, which then closes."""
        task, self._scope = self._scope, CancelScope(deadline=current_time() + self.engine.linger, shield=True)
        if task is not None:
            task.cancel()

    async def _end_task(self, reason: CloseReason) -> None:
        """Close, as the last step of the task. Only a bug overrides the reason of a requested close."""
        if self.phase < CLOSING or reason is CloseReason.ERROR:
            self.reason = reason
            self.engine.advance(self, CLOSING)
        await self._close()
        # The task handle keeps the exception that ends this task, with its frames: reference cycles. On trio they
        # include the frames of the cancelling task, and of the exception that trio waits within.
        if (error := sys.exception()) is not None:
            error.__traceback__ = error.__context__ = None
        self._closed(self.reason)

    async def _close(self) -> None:
        """Close the socket; nothing was echoed that a reset could destroy."""
        self.sock.close()

    def _closed(self, reason: CloseReason) -> None:
        """Log and count the connection. Its socket is closed."""
        self.reason = reason
        self._scope = None
        self.log_end()
        self.engine.advance(self, CLOSED)

    def has_pending(self) -> bool:
        """Whether the kernel has yet to accept bytes for the peer."""
        received, sent = self.totals
        return received > sent

    def stalled_checks(self) -> int:
        """Return the number of successive checks at which the same echo was pending. Called once in each check."""
        return self.idle_checks if self.has_pending() else 0

    def close_reason(self, error: Exception) -> CloseReason:
        """Return the close reason for `error`. Log a bug, an invalid PROXY header and a failed handshake."""
        if self.records is not None and self.records.established:
            self.engine.advance(self, OPEN)  # the error came after the last step of the handshake
        reason, cause = reason_for(error, self.phase, pending=self.has_pending())
        by_tls = isinstance(cause, TLSError) and not isinstance(cause, TLSTruncated)
        if by_tls:
            self.engine.tls_failures[error_name(cause)] += 1
        if reason is CloseReason.ERROR:
            logger.error("connection failed", exc_info=error, extra={"peer": self.name})
        elif reason is CloseReason.PROXY:
            self.engine.log_rejection(self.name, str(cause))
        elif reason is CloseReason.HANDSHAKE and by_tls:
            self.engine.failed_handshakes.warn("handshake with %s failed: %s", self.name, explain(cause))

        return reason

    async def _linger(self, stream: PolledStream) -> None:
        """Send the stream's `rest` and close, within `linger` seconds. Shielded from cancellation.

        A close by the server counts as `eof` if EOF from the peer has arrived and no echo is pending at the end.
        """
        if isinstance(stream, TLSStream) and stream.records.failure is not None:
            # Only the alert is left to send.
            stream = stream.without_tls()
        eof, quiet = self.peek_eof()
        min_seconds = self.engine.linger / INTERVALS
        now = current_time()
        if not isinstance(self._scope, CancelScope):  # no close was requested
            self._scope = CancelScope(deadline=now + self.engine.linger, shield=True)
        scope = self._scope
        deadline = -math.inf if scope.cancel_called else max(scope.deadline, now + min_seconds)
        scope.deadline = math.inf

        # Resumes if it is cancelled and called again.
        async def send_rest() -> None:
            with suppress(*NETWORK_ERRORS):
                if stream.rest or eof:
                    await stream.send(stream.rest)
                if not eof:
                    await linger(stream, self.sock, self.records, quiet=quiet)

        with scope:
            try:
                if self.reason is not CloseReason.EOF and deadline > current_time():
                    await call_until(deadline, min_seconds, send_rest)
            finally:
                # Pending on a plain stream is only `rest`; over TLS, encrypted bytes may be pending too.
                if eof and not stream.rest and (self.records is None or not self.has_pending()):
                    self.reason = CloseReason.EOF
                # TLS sends close_notify here, if there is time.
                scope.deadline = deadline
                await stream.aclose()

    def peek_eof(self) -> tuple[bool, bool]:
        """Return two facts about unread input: EOF from the peer has arrived; nothing has arrived.

        Both are false if the peer or its bytes caused the close, or if the connection was never open.
        """
        if self.reason not in CLOSED_BY_SERVER or not self.established:
            return False, False

        data = peek(self.sock, self.records)
        return data == b"", data is None

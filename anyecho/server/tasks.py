"""Engine 1: one task per connection.

Each runs in one guard, which nothing a peer does can get through: what a network may do to a connection is
counted, a bug is logged and costs this connection only, a cancellation passes. Then the connection is closed
within a time limit, whatever happens.
"""

from __future__ import annotations

__all__ = ("Connection",)

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, current_time
from anyio.abc import ByteStream

from anyecho.echo import echo
from anyecho.net.poller import Fallback, Poller
from anyecho.net.sockets import peer_name
from anyecho.net.stream import PolledStream
from anyecho.transcript import Transcript, shorten

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")
access_logger = logging.getLogger("anyecho.access")

#: What peers and networks do. `ClosedResourceError` is a poller that stopped under a connection.
_EXPECTED = (BrokenResourceError, ClosedResourceError, EndOfStream, OSError)
#: Ended by the peer, or by the network: there is nobody left to be polite to.
_ENDED_BY_PEER = frozenset({"eof", "broken"})
#: Calls a stream may make before it yields though it need not: 8 echoes. Flooding peers take such turns, and a
#: checkpoint costs a fifth of an echo.
_BUDGET = 16


@dataclass(eq=False, slots=True, kw_only=True)
class Connection:
    """One accepted connection, whose socket it owns, from the first byte to the last."""

    sock: socket.socket
    sockaddr: Any
    linger: float
    #: Why it ended, as `Stats.closed` counts it; empty while it runs.
    reason: str = ""
    stream: PolledStream | None = None
    _name: str = ""
    _echoing: CancelScope = field(default_factory=CancelScope)
    _closing: CancelScope | None = None

    async def run(self, poller: Poller | Fallback) -> None:
        """Echo until the peer is done or `end` is called; then close. Raises nothing but a cancellation."""
        began = monotonic()
        try:
            with self._echoing:
                self.stream = PolledStream(self.sock, poller.register(self.sock), budget=_BUDGET)
                await echo(self._told(self.stream))
                self.reason = self.reason or "eof"
        except* _EXPECTED:
            self.reason = self.reason or "broken"
        except* Exception:
            self.reason = self.reason or "error"
            logger.exception("connection failed", extra={"peer": self.name})
        finally:
            self.reason = self.reason or "cancelled"
            await self._close()
            self._tell_end(monotonic() - began)

    def end(self, reason: str) -> None:
        """Stop echoing and close, lingering for a peer that still sends."""
        self.reason = self.reason or reason
        self._echoing.cancel()

    def abort(self) -> None:
        """Close now."""
        self.linger = 0
        self.end("cancelled")
        if self._closing is not None:
            self._closing.cancel()

    def moved(self) -> int:
        """Bytes received and sent so far."""
        return self.stream.bytes_received + self.stream.bytes_sent if self.stream is not None else 0

    @property
    def name(self) -> str:
        """What logs call the peer. Worked out when it is first asked for: most connections are never named."""
        if not self._name:
            self._name = peer_name(self.sock, self.sockaddr)

        return self._name

    async def _close(self) -> None:
        if self.stream is None:
            self.sock.close()
            return

        polite = self.reason not in _ENDED_BY_PEER and self.linger > 0
        # Closing on a peer that still sends is answered with a reset, which destroys echo it has not read yet: so
        # half-close, and read on until it has understood.
        with CancelScope(shield=True, deadline=current_time() + self.linger) as self._closing:
            if polite:
                with suppress(*_EXPECTED):
                    await self.stream.send_eof()
                    while True:
                        await self.stream.receive()

        with CancelScope(shield=True):
            await self.stream.aclose()

    def _told(self, stream: PolledStream) -> ByteStream:
        if logger.isEnabledFor(logging.INFO):
            logger.info("connection accepted", extra={"peer": self.name})
        elif access_logger.isEnabledFor(logging.INFO):
            assert self.name  # while the socket can still tell it
        if not logger.isEnabledFor(logging.DEBUG):
            return stream

        return Transcript(stream, partial(_debug, {"peer": self.name}))

    def _tell_end(self, seconds: float) -> None:
        if logger.isEnabledFor(logging.INFO):
            logger.info("closing", extra={"peer": self.name})
        if access_logger.isEnabledFor(logging.INFO) and self.stream is not None:
            facts = {
                "peer": self.name,
                "reason": self.reason,
                "bytes_received": self.stream.bytes_received,
                "bytes_sent": self.stream.bytes_sent,
                "seconds": round(seconds, 6),
            }
            access_logger.info("closed", extra=facts)


def _debug(extra: Mapping[str, str], what: str, chunk: bytes) -> None:
    logger.debug("%s %s", what, shorten(chunk), extra=extra)

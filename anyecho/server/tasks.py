"""Engine 1: one task per connection, for whatever has to wrap its stream.

Each runs in one guard, which nothing a peer does can get through: what a network may do to a connection is
counted, a bug is logged and costs this connection only, a cancellation passes. Then the connection is closed
within a time limit, whatever happens.
"""

from __future__ import annotations

__all__ = ("TaskConnection",)

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from anyio.abc import ByteStream

from anyecho.echo import echo
from anyecho.net.poller import Fallback, Poller
from anyecho.net.stream import PolledStream
from anyecho.server.connection import EXPECTED, Connection
from anyecho.transcript import Transcript, shorten

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")

#: Calls a stream may make before it yields though it need not: 8 echoes. Flooding peers take such turns, and a
#: checkpoint costs a fifth of an echo.
_BUDGET = 16


class TaskConnection(Connection):
    __slots__ = ("_echoing", "_stream")

    def __init__(self, sock: socket.socket, sockaddr: Any, *, linger: float) -> None:
        super().__init__(sock, sockaddr, linger=linger)
        self._stream: PolledStream | None = None
        self._echoing = CancelScope()

    async def run(self, poller: Poller | Fallback) -> None:
        """Echo until the peer is done or `end` is called; then close. Raises nothing but a cancellation."""
        try:
            with self._echoing:
                self._stream = PolledStream(self.sock, poller.register(self.sock), budget=_BUDGET)
                self.tell_start()
                await echo(self._transcribed(self._stream))
                self.reason = self.reason or "eof"
        except* EXPECTED:
            self.reason = self.reason or "broken"
        except* Exception:
            self.reason = "error"
            logger.exception("connection failed", extra={"peer": self.name})
        finally:
            self.reason = self.reason or "cancelled"
            if self._stream is None:
                self.sock.close()
            else:
                await self.close(self._stream)
            self.tell_end()

    def stop(self) -> None:
        self._echoing.cancel()

    @property
    def totals(self) -> tuple[int, int]:
        return (self._stream.bytes_received, self._stream.bytes_sent) if self._stream is not None else (0, 0)

    def _transcribed(self, stream: PolledStream) -> ByteStream:
        if not logger.isEnabledFor(logging.DEBUG):
            return stream

        return Transcript(stream, partial(_debug, {"peer": self.name}))


def _debug(extra: Mapping[str, str], what: str, chunk: bytes) -> None:
    logger.debug("%s %s", what, shorten(chunk), extra=extra)

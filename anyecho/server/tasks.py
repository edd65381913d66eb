"""The tasks engine: one task per connection, for wrapped streams.

An error or a bug closes this connection only. A cancellation propagates. In each case the connection is closed
within a time limit.
"""

from __future__ import annotations

__all__ = ("TaskConnection",)

import logging
from collections.abc import Awaitable
from functools import partial

from anyio.abc import ByteStream

from anyecho.echo import echo
from anyecho.net.sockets import Socket
from anyecho.net.stream import PolledStream
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.connection import Connection, Engine
from anyecho.server.phases import OPEN
from anyecho.server.reasons import CloseReason
from anyecho.streams import Capped, Paced, Transcript, log_chunk

logger = logging.getLogger("anyecho.server")

#: Fairness: maximum calls of a stream without a checkpoint, 8 echoes. A checkpoint costs a fifth of an echo.
_BUDGET = 16


class TaskConnection(Connection):
    __slots__ = ("_stream",)

    #: The close reason once `_serve` is done.
    end_reason = CloseReason.EOF

    def __init__(self, sock: Socket, engine: Engine, records: Records | None = None) -> None:
        super().__init__(sock, engine, records)
        self._stream: PolledStream | None = None

    def _start(self) -> None:
        self._scope = self.engine.tasks.start_soon(self._run)

    async def _run(self) -> None:
        reason = CloseReason.CANCELLED
        try:
            self._stream = stream = self._as_stream(_BUDGET)
            if isinstance(stream, TLSStream):
                await self._shake_hands(stream)
                self.engine.advance(self, OPEN)
            await self._serve(stream)
            reason = self.end_reason
        except* Exception as group:
            reason = self.close_reason(group)
        finally:
            await self._end_task(reason)

    async def _shake_hands(self, stream: TLSStream) -> None:
        await stream.handshake(self.engine.handshake_lock)

    async def _close(self) -> None:
        if self._stream is None:
            await super()._close()
        else:
            await self._linger(self._stream)

    @property
    def totals(self) -> tuple[int, int]:
        return (self._stream.bytes_received, self._stream.bytes_sent) if self._stream is not None else (0, 0)

    def _serve(self, stream: PolledStream) -> Awaitable[None]:
        """Return the coroutine that serves the peer. No coroutine of its own, which would slow each echo."""
        return echo(self._wrapped(stream))

    def _wrapped(self, stream: ByteStream) -> ByteStream:
        if self.engine.max_bytes:
            stream = Capped(stream, self.engine.max_bytes)
        if self.engine.rate_limit is not None:
            stream = Paced(stream, self.engine.rate_limit)
        if self.engine.recorder is not None:
            stream = self.engine.recorder.wrap(self, stream)
        if logger.isEnabledFor(logging.DEBUG):
            stream = Transcript(stream, partial(log_chunk, logger, extra={"peer": self.name}))

        return stream

"""The tasks engine: one task per connection, for wrapped streams.

Errors of a peer or the network are counted. A bug is logged and closes this connection only. A cancellation
propagates. In each case the connection is closed within a time limit.
"""

from __future__ import annotations

__all__ = ("TaskConnection",)

import logging
import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import TaskHandle
from anyio.abc import ByteStream

from anyecho.echo import echo
from anyecho.net.stream import PolledStream
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from anyecho.server.connection import EXPECTED_ERRORS, Connection, Engine
from anyecho.streams.limits import Capped, LimitReached, Paced
from anyecho.streams.transcript import Transcript, shorten

if TYPE_CHECKING:
    import socket

logger = logging.getLogger("anyecho.server")

#: Fairness: maximum calls of a stream without a checkpoint, 8 echoes. A checkpoint costs a fifth of an echo.
_BUDGET = 16


class TaskConnection(Connection):
    __slots__ = ("_records", "_stream", "_task", "engine")

    def __init__(self, sock: socket.socket, engine: Engine, records: Records | None = None) -> None:
        """Over TLS if `records` are given; they must be new."""
        super().__init__(sock)
        self.engine = engine
        self._records = records
        self._stream: PolledStream | None = None
        self._task: TaskHandle[None] | None = None

    def start(self, sockaddr: Any) -> None:
        self.log_start(sockaddr)
        if self._records is not None:
            self.engine.handshakes.begin(self)
        self._task = self.engine.tasks.start_soon(self._run)

    async def _run(self) -> None:
        try:
            registration = self.engine.poller.register(self.sock)
            if self._records is None:
                self._stream = PolledStream(self.sock, registration, budget=_BUDGET)
            else:
                self._stream = stream = TLSStream(self.sock, registration, self._records, budget=_BUDGET)
                await stream.handshake(self.engine.handshakes.step_lock)
                self.engine.handshakes.finish(self)
            await echo(self._wrapped(self._stream))
            self.reason = self.reason or "eof"
        except* LimitReached as group:
            self.reason = self.reason or str(group.exceptions[0])
        except* EXPECTED_ERRORS as group:
            self.reason = self.reason or self.close_reason(group)
        except* Exception:
            self.reason = "error"
            logger.exception("connection failed", extra={"peer": self.name})
        finally:
            self.reason = self.reason or "cancelled"
            if self._stream is None:
                self.sock.close()
            else:
                await self.close(self._stream)
            self.log_end()
            # The task handle keeps the exception that ends this task, with its frames: reference cycles. On trio
            # they include the frames of the cancelling task, and of the exception that trio waits within.
            self._task = None
            if (error := sys.exception()) is not None:
                error.__traceback__ = error.__context__ = None
            self.engine.on_closed(self)

    def _begin_close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @property
    def records(self) -> Records | None:
        return self._records

    @property
    def established(self) -> bool:
        return self._records is None or self._records.established

    @property
    def totals(self) -> tuple[int, int]:
        return (self._stream.bytes_received, self._stream.bytes_sent) if self._stream is not None else (0, 0)

    def _wrapped(self, stream: ByteStream) -> ByteStream:
        if self.engine.max_bytes:
            stream = Capped(stream, self.engine.max_bytes)
        if not math.isinf(self.engine.rate_limit):
            stream = Paced(stream, self.engine.rate_limit)
        if logger.isEnabledFor(logging.DEBUG):
            stream = Transcript(stream, partial(_debug, {"peer": self.name}))

        return stream


def _debug(extra: Mapping[str, str], what: str, chunk: bytes) -> None:
    logger.debug("%s %s", what, shorten(chunk), extra=extra)
